"""Power cuts at every moment of an upgrade and of a rollback, by replaying what was written.

The start, an upgrade that commits and one that is rolled back are recorded once. After each change
the power may be cut: what is then on the disk is built, nginx and the supervisor are dead, and the
supervisor is started on it. NGS_POWER_CUTS=all starts it on every such disk, else on some.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

from supervisor.edges.journal import History, Journal
from supervisor.edges.store import VersionStore
from tests.e2e.harness import checks, power, site, supervised
from tests.e2e.harness.disk import Shim, build_shim
from tests.e2e.harness.power import Content
from tests.e2e.harness.site import Site, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.test_package_replacement import kill_everything
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

FOLDERS = ("state", "sbin")
STARTED = 8
"""Of the disks, that the supervisor is started on unless all are wanted; and the last one."""
SEED = 20260102


@dataclass(frozen=True, slots=True)
class Cut:
    """The disk after a power cut, and when that was."""

    when: str
    content: Content

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for path, data in sorted(self.content.items()):
            digest.update(f"{path}\0{len(data)}\0".encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()


def all_cuts(record: Path, at_first: Content, root: Path) -> list[Cut]:
    """Every disk that differs from the ones before it."""
    disk, found = power.Disk(at_first, FOLDERS), {}
    changes = power.changes(record, root)
    for number, change in enumerate(changes):
        if change.path.partition("/")[0] not in FOLDERS:
            continue
        disk.apply(change)
        for how, content in disk.after_a_cut():
            cut = Cut(f"{number + 1} of {len(changes)}, after {change}: {how}", content)
            found.setdefault(cut.key, cut)
    return list(found.values())


def record_upgrades(nginx: Supervised, newest: Build) -> None:
    """A start, a commit, and a rollback."""
    nginx.start()
    assert nginx.ctl("upgrade", newest.path).code == 0
    nginx.until_state("running")
    assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
    checks.assert_settled(nginx, newest, sha256(newest.path))
    kill_everything(nginx)


def clear(one: Site, cut: Cut) -> None:
    """The disk as the cut has left it; the folder of the pid file is in memory (/run) and empty."""
    power.write(one.folder, cut.content, *FOLDERS, "run")


def assert_legal(one: Site, cut: Cut) -> None:
    """Nothing of it is damaged: a torn end is no damage, and a version is whole or not there."""
    clear(one, cut)
    contents = Journal(one.folder / "state").read()
    assert not contents.damaged, (cut.when, contents.note)
    store = VersionStore(one.folder / "state", keep=3)
    for version in store.versions():
        store.verify(version.id)
    binary = cut.content["sbin/nginx"]
    assert binary, cut.when


def assert_comes_up(nginx: Supervised, cut: Cut, oldest: Build, newest: Build) -> None:
    """The version that the history says, from the right file, and every upgrade has its verdict."""
    one = nginx.site
    clear(one, cut)
    state = one.folder / "state"
    decided = History(state).entries()
    begun = {str(each["upgrade_id"]) for each in Journal(state).read().records}
    committed = any(each["verdict"] == "committed" for each in decided)
    build = newest if committed else oldest
    nginx.start()
    checks.assert_settled(nginx, build, sha256(build.path))
    told = nginx.history()
    ids = [each["upgrade_id"] for each in told]
    assert len(ids) == len(set(ids)), told
    assert begun <= set(ids), (begun, told)
    assert told[: len(decided)] == list(decided), (decided, told)
    assert Journal(state).read().records == ()  # an empty one says nothing
    kill_everything(nginx)


def test_a_power_cut_at_every_moment(oldest: Build, newest: Build, tmp_path: Path) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx:
        shim = Shim(nginx, build_shim(tmp_path), tmp_path)
        nginx.environment |= {
            "DISK_RECORD": str(shim.record), "DISK_RECORD_BELOW": f"{one.folder}/",
        }  # fmt: skip
        at_first = power.read(one.folder, *FOLDERS)
        record_upgrades(nginx, newest)
        nginx.environment.clear()
        cuts = all_cuts(shim.record, at_first, one.folder)
        for cut in cuts:
            assert_legal(one, cut)
        started = cuts
        if os.environ.get("NGS_POWER_CUTS") != "all":
            started = [*random.Random(SEED).sample(cuts[:-1], STARTED), cuts[-1]]
        for number, cut in enumerate(started):
            try:
                assert_comes_up(nginx, cut, oldest, newest)
            except BaseException as exc:
                exc.add_note(f"the power was cut at change {cut.when} (number {number})")
                raise
        print(f"{len(cuts)} different disks, started on {len(started)}")
        nginx.start()
        other = oldest if one.binary.read_bytes() == newest.path.read_bytes() else newest
        assert nginx.ctl("upgrade", other.path).code == 0
        checks.assert_settled(nginx, other, sha256(other.path))
