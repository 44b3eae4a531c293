"""What a site may set, through a whole life: start, upgrade, rollback, reload, crash, adoption."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import pytest

from supervisor.edges import procfs
from tests import recording
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build


def back_and_forth(nginx: Supervised, old: Build, new: Build) -> None:
    """An upgrade that is rolled back by itself, one that is committed, and the way back."""
    checks.assert_settled(nginx, old, sha256(old.path))
    assert nginx.ctl("upgrade", candidate(new, "status_500")).code == 4
    checks.assert_rolled_back(nginx, old, sha256(old.path))
    answer = nginx.ctl("upgrade", new.path)
    assert answer.code == 0, answer
    nginx.until_state("running")
    checks.assert_settled(nginx, new, sha256(new.path))
    answer = nginx.ctl("rollback")
    assert answer.code == 0, answer
    nginx.until_state("running")
    checks.assert_settled(nginx, old, sha256(old.path))


def crash(nginx: Supervised) -> None:
    """Everything of nginx is killed; returns when it serves again."""
    gone = {one.pid for one in nginx.nginx()}
    for pid in gone:
        kill(pid, signal.SIGKILL)
    until("another master", lambda: {one.pid for one in nginx.masters()} - gone)
    nginx.until_state("running")


# --- user, worker_processes auto -----------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has workers of another user")
def test_user_and_as_many_workers_as_processors(oldest: Build, newest: Build) -> None:
    somebody = pwd.getpwnam("daemon")
    processors = os.sysconf("SC_NPROCESSORS_ONLN")
    options = Options(main="user daemon;", workers=processors)
    with site.make(oldest, options) as one:
        text = one.config.read_text()
        one.config.write_text(
            text.replace(f"worker_processes {processors};", "worker_processes auto;")
        )
        with supervised.running(one) as nginx:
            back_and_forth(nginx, oldest, newest)
            crash(nginx)
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            for seen in nginx.nginx():
                expected = (0, 0) if seen.is_master else (somebody.pw_uid, somebody.pw_gid)
                assert procfs.identity(seen.pid) == expected


# --- env, [nginx] environment --------------------------------------------------------------------


def runs(record: Path, one: Site) -> list[str]:
    """Every run of an nginx of this site since the last time: a master, -V or -T."""
    lines = record.read_text().splitlines()
    record.unlink()
    return [line for line in lines if line.startswith((str(one.folder), "/proc/"))]


def test_every_nginx_has_the_same_environment(oldest: Build, newest: Build, tmp_path: Path) -> None:
    """Generation 1 has what USR2 hands on, so has each test; and nothing else of it."""
    library, record = recording.build(tmp_path)
    given = {"LD_PRELOAD": str(library), "SEEN": "1", "UNNAMED": "a secret"}
    options = Options(main="env LD_PRELOAD;\nenv SEEN;")
    with (
        site.make(oldest, options) as one,
        supervised.running(one, {"nginx": {"environment": given}}) as nginx,
    ):
        back_and_forth(nginx, oldest, newest)
        crash(nginx)
        nginx.die()
        nginx.start()
        assert nginx.ctl("reload").code == 0
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        ran = runs(record, one)
        assert {line.partition(" SEEN=")[2] for line in ran} == {"1 UNNAMED=-"}, ran
        asked = [line for line in ran if " -V " in line or " -T " in line]
        # The start, three upgrades of one supervisor, a crash, and an upgrade of the next one.
        assert len(ran) - len(asked) == 6, ran
        assert len(asked) >= 12, ran


def test_a_variable_that_a_reload_names_comes_with_the_next_start(
    oldest: Build, newest: Build, tmp_path: Path
) -> None:
    """nginx cannot hand on what it was not started with: nor has a test before that."""
    library, record = recording.build(tmp_path)
    given = {"LD_PRELOAD": str(library), "SEEN": "1"}
    with (
        site.make(oldest, Options(main="env LD_PRELOAD;")) as one,
        supervised.running(one, {"nginx": {"environment": given}}) as nginx,
    ):
        one.configure(Options(main="env LD_PRELOAD;\nenv SEEN;"))
        assert nginx.ctl("reload").code == 0
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        assert {line.partition(" SEEN=")[2] for line in runs(record, one)} == {"- UNNAMED=-"}
        crash(nginx)
        assert {line.partition(" SEEN=")[2] for line in runs(record, one)} == {"1 UNNAMED=-"}


# --- a package ---------------------------------------------------------------------------------


@pytest.mark.needs("marker")
def test_a_reload_between_a_package_and_the_upgrade(oldest: Build, newest: Build) -> None:
    """As certbot does: what runs has its module mapped, and is reloaded as if nothing had come."""
    with (
        site.make(oldest, Options(module=True)) as one,
        supervised.running(one) as nginx,
        Load(one.plan()) as load,
    ):
        one.install(newest)
        for workers in (3, 2):
            one.configure(Options(module=True, workers=workers))
            answer = nginx.ctl("reload")
            assert answer.code == 0, answer
            checks.assert_serves(nginx, oldest)
            checks.assert_one_generation(nginx)
        good = one.config.read_text()
        one.config.write_text(f"no_such_directive on;\n{good}")
        bad = nginx.ctl("reload")
        assert bad.code in (1, 3), bad
        assert bad.reason == "config_rejected"
        one.config.write_text(good)
        answer = nginx.ctl("upgrade")
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert sha256(one.module) == sha256(newest.marker_module)
        assert load.stop().failures == 0


# --- pid -----------------------------------------------------------------------------------------


def test_a_reload_moves_the_pid_file(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        before = one.pid_path
        one.configure(Options(pid=str(one.folder / "moved" / "nginx.pid")))
        one.pid_path.parent.mkdir()
        answer = nginx.ctl("reload")
        assert answer.code == 0, answer
        assert not before.exists()
        assert one.pid_path.with_name(".nginx.pid.supervisor-lock").exists()
        back_and_forth(nginx, oldest, newest)
        crash(nginx)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        nginx.die()
        nginx.start()
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        crash(nginx)
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("stop").code == 0
        assert not one.pid_path.exists()


def test_a_reload_to_the_pid_file_of_another_supervisor(oldest: Build) -> None:
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        site.make(oldest) as two,
        supervised.running(two) as other,
    ):
        text = one.config.read_text()
        one.config.write_text(text.replace(f"pid {one.pid_path};", f"pid {two.pid_path};"))
        answer = nginx.ctl("reload")
        assert answer.code in (1, 3), answer
        assert answer.reason == "already_supervised"
        one.config.write_text(text)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        checks.assert_settled(other, oldest, sha256(oldest.path))


def test_a_successor_knows_what_a_reload_changed(oldest: Build) -> None:
    """What a reload changed is on record for the next supervisor: how many workers there are."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        one.configure(Options(workers=4))
        assert nginx.ctl("reload").code == 0
        record = one.folder / "state" / "masters.json"
        until("it is on record", lambda: '"worker_processes": 4' in record.read_text())
        nginx.die()
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
