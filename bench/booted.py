"""What clients see while something is done to the unit: requests sent and failed, inside a box.

    python -m bench.booted [--suite bookworm|trixie] [--only TEXT] [--rate N] [--json FILE]

Each row is a box of its own: a freshly booted systemd with the project and nginx in it, a load of
new connections from within, and one deed. `refused` and `timeout` are what the supervisor is there
to prevent. `cut` is a connection that a worker had when it was killed, which nobody can prevent.
Exits 1 where more was lost than the row may lose.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.booted import deeds, package_life, packages, site
from tests.booted.box import Binding, Box
from tests.booted.manager import wait_for
from tests.booted.roots import SUITES, project_layer, root_of
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import cache_folder
from tools.quick_load import Tally

RATE = 200.0
BINARY = "/usr/sbin/nginx"
CUT = ("reset", "cut")
"""How the end of a killed worker looks to whom it was serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a deed is done."""

    suite: str
    rate: float
    folder: Path

    def boot(self, stack: ExitStack, *bindings: Binding, with_project: bool = True) -> Box:
        folder = Path(tempfile.mkdtemp(prefix="box-", dir=self.folder))
        root = root_of(self.suite)
        lower = [root]
        if with_project:
            lower.insert(0, project_layer({suite: root_of(suite) for suite in SUITES}))
        given = [Binding(one.path.parent.parent, str(one.path.parent.parent)) for one in builds()]
        shared = Binding(cache_folder() / "candidates", str(cache_folder() / "candidates"))
        return stack.enter_context(Box(lower, folder, bindings=[*given, shared, *bindings]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of the requests of one row."""

    sent: int
    failed: Counter[str]
    said: str = ""

    @property
    def lost(self) -> int:
        return sum(self.failed.values())


Deed = Callable[[Setting], Seen]


@contextmanager
def loaded(box: Box, rate: float) -> Iterator[Tally]:
    """Requests all the while; the tally is complete when the block is over."""
    told = Tally()
    with box.quick_load(rate=rate / 2, timeout=30.0) as load:
        load.lap()  # it runs
        yield told
        time.sleep(0.5)  # what comes just afterwards belongs to it
        load.stop()
        told.add(load.total)


def unit(deed: Callable[[Box], str]) -> Deed:
    """Something that is done to our unit while it serves."""

    def row(setting: Setting) -> Seen:
        with ExitStack() as stack:
            box = setting.boot(stack)
            site.configure(box)
            deeds.keep_nginx_on_restart(box)
            site.start(box)
            deeds.wait_until_stored(box, 2)
            with loaded(box, setting.rate) as told:
                said = deed(box)
        return Seen(sent=told.sent, failed=told.failed, said=said)

    return row


def _killed(box: Box) -> str:
    deeds.kill_supervisor(box)
    return "the next one has adopted nginx"


def _all_killed(box: Box) -> str:
    deeds.kill_all(box)
    return "on the listeners of systemd's store"


def _stuck(box: Box) -> str:
    deeds.hang_supervisor(box)
    return "the next one has adopted nginx"


def _restarted(box: Box) -> str:
    master = site.master_pid(box)
    box.run("systemctl", "restart", site.UNIT)
    return "same master" if site.master_pid(box) == master else "ANOTHER MASTER"


def _detached(box: Box) -> str:
    box.run("nginxctl", "detach")
    wait_for("down", lambda: box.show(site.UNIT, "MainPID")["MainPID"] == "0")
    site.start(box)
    return "adopted"


def _reloaded(box: Box) -> str:
    for _ in range(5):
        box.run("nginxctl", "reload")
    return "5 times"


def _own_reloaded(box: Box) -> str:
    for _ in range(5):
        box.run("systemctl", "reload", site.UNIT)
    return "5 times, of the supervisor's own configuration"


def _package(kind: str | None) -> Deed:
    def row(setting: Setting) -> Seen:
        newest = builds()[-1]
        binary = newest.path if kind is None else candidate(newest, kind)
        with ExitStack() as stack:
            box = setting.boot(stack)
            site.configure(box)
            packages.start(box)
            deb = packages.pack(
                root_of(setting.suite), "nginx", f"{newest.version}-1",
                into=Path(stack.enter_context(tempfile.TemporaryDirectory())),
                files={BINARY: binary},
            )  # fmt: skip
            came = packages.upgrade_under_load(box, deb)
        said = f"{came.verdict['verdict']}: {came.verdict['reason']}"
        return Seen(sent=came.sent, failed=Counter(came.failed), said=said)

    return row


def _own_package(setting: Setting) -> Seen:
    with ExitStack() as stack:
        box = setting.boot(
            stack, Binding(package_life.packages(), "/debs/old"),
            Binding(package_life.next_packages(), "/debs/next"), with_project=False,
        )  # fmt: skip
        site.configure(box)
        settings = box.path(site.CONFIG).read_text()
        box.path(site.CONFIG).unlink()
        package_life.dpkg(box, "-i", package_life.deb_in("/debs/old", box))
        box.write(site.CONFIG, settings)
        site.start(box)
        came = package_life.update_by_package(box, package_life.deb_in("/debs/next", box))
        said = f"{package_life.supervisor_version(box)} runs"
    failed = Counter({came.causes: came.failed} if came.failed else {})
    return Seen(sent=came.sent, failed=failed, said=said)


ROWS: dict[str, tuple[Deed, bool]] = {
    "SIGKILL to the supervisor": (unit(_killed), False),
    "the watchdog kills it": (unit(_stuck), False),
    "SIGKILL to supervisor and nginx": (unit(_all_killed), True),
    "systemctl restart, with the drop-in": (unit(_restarted), False),
    "nginxctl detach, systemctl start": (unit(_detached), False),
    "nginxctl reload": (unit(_reloaded), False),
    "systemctl reload": (unit(_own_reloaded), False),
    "a package of nginx": (_package(None), False),
    "a bad package of nginx": (_package("workers_fatal"), False),
    "the supervisor's own package": (_own_package, False),
}
"""The second says whether connections that a killed worker had may be cut."""


def within(seen: Seen, *, may_cut: bool) -> bool:
    """Whether no more was lost than may be."""
    lost = seen.lost - (sum(seen.failed[cause] for cause in CUT) if may_cut else 0)
    return seen.sent > 0 and not lost


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="bench.booted", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--only", default="", help="the rows that have this in their name")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    given = parser.parse_args(arguments)
    chosen = {name: row for name, row in ROWS.items() if given.only in name}
    good, measured = True, []
    print(f"{given.suite}, {given.rate:g} requests/s, a new connection for each\n")
    print(f"{'':38} {'sent':>6} {'failed':>6}  {'s':>5}")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(suite=given.suite, rate=given.rate, folder=Path(folder))
        for name, (deed, may_cut) in chosen.items():
            began = time.monotonic()
            seen = deed(setting)
            took = time.monotonic() - began
            causes = ", ".join(f"{count} {cause}" for cause, count in seen.failed.items() if count)
            fine = within(seen, may_cut=may_cut)
            good &= fine
            note = "; ".join(filter(None, (causes, seen.said, "" if fine else "TOO MANY")))
            print(f"{name:38} {seen.sent:6} {seen.lost:6}  {took:5.1f}  {note}", flush=True)
            measured.append(
                {"row": name, "sent": seen.sent, "failed": dict(seen.failed), "said": seen.said}
            )
    if given.json is not None:
        given.json.write_text(json.dumps({"suite": given.suite, "rows": measured}, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
