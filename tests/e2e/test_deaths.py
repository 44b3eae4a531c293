"""Processes that die where nobody expects it, files that are others by then, and what follows."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.disk import small_disk
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.harness.victims import Points
from tests.e2e.test_package_replacement import kill_everything
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 15.0}


def told(nginx: Supervised) -> list[tuple[str, str]]:
    return [(one["verdict"], one["reason"]) for one in nginx.history()]


def events(nginx: Supervised) -> set[str]:
    return {line["event"] for line in nginx.log()}


# --- everything dies -------------------------------------------------------------------------


def test_a_power_cut_in_an_upgrade_ends_in_a_verdict(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        kill_everything(nginx)
        nginx.end(upgrade)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert told(nginx) == [("rolled_back", "supervisor_died")]
        # It is over: what a package brings later stays, and a stop stops.
        put(newest.path, one.binary)
        assert nginx.ctl("stop").code == 0
        assert nginx.nginx() == []
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))
        nginx.die()
        nginx.start()
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert len(nginx.history()) == 1


def test_a_stop_right_after_a_power_cut_in_an_upgrade(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        kill_everything(nginx)
        nginx.end(upgrade)
        nginx.start()
        assert nginx.stop() == 0
        assert nginx.nginx() == []
        assert sha256(one.binary) == sha256(oldest.path)


# --- only some of it dies --------------------------------------------------------------------


def test_the_supervisor_and_its_master_die_and_the_workers_serve_on(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(**LIGHT)) as load:
            (master,) = nginx.masters()
            nginx.die()
            os.kill(master.pid, signal.SIGKILL)
            until("orphans", lambda: all(seen.parent != master.pid for seen in nginx.nginx()))
            nginx.start()
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == 0, report
        assert "generation.orphans_adopted" in events(nginx)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_told_to_stop_before_it_has_looked_around(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        nginx.die()
        started = nginx.log_text().count("supervisor.started")
        nginx.launch()
        until("the start", lambda: nginx.log_text().count("supervisor.started") > started, poll=0.0)
        assert nginx.stop() == 0
        assert nginx.nginx() == []


def test_a_candidate_with_a_pid_file_of_its_own_is_killed(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        text, moved = one.config.read_text(), one.folder / "run" / "moved.pid"
        one.config.write_text(text.replace(f"pid {one.pid_path};", f"pid {moved};"))
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        os.kill(int(moved.read_text()), signal.SIGKILL)
        assert nginx.end(upgrade).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert not moved.exists()
        one.config.write_text(text)


def test_a_candidate_dies_after_an_upgrade_to_the_same_binary(oldest: Build, newest: Build) -> None:
    """A library was replaced, say: what served before is the version to return to."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        with unfinished.request(one.port):
            assert nginx.ctl("upgrade").code == 0
            assert nginx.status()["state"] == "draining"
            os.kill(nginx.masters()[-1].pid, signal.SIGKILL)
            until("the rescue", lambda: len(nginx.history()) == 3, poll=0.05)
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.history()[-1]["reason"] == "candidate_exited_in_drain"


def test_a_master_without_workers_is_replaced_by_a_start(oldest: Build) -> None:
    """Its sockets are taken over; it could not be asked for workers, as it is stopped."""
    settings = {"restart": {"start_limit": 1}, "stop": {"quit_timeout": "1s"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        text = one.config.read_text()
        one.config.write_text("broken")
        (master,) = nginx.masters()
        os.kill(master.pid, signal.SIGKILL)
        nginx.until_state("degraded")
        one.config.write_text(text)
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- whose process, whose file ---------------------------------------------------------------


def test_a_pid_file_that_names_the_master_of_another_site(oldest: Build) -> None:
    with (
        site.make(oldest) as one, supervised.running(one) as nginx,
        site.make(oldest) as two, supervised.on(two) as other,
    ):  # fmt: skip
        (master,) = nginx.masters()
        two.pid_path.write_text(f"{master.pid}\n")
        other.start()
        assert "pid_file.foreign" in events(other)
        checks.assert_settled(other, oldest, sha256(oldest.path))
        assert other.stop() == 0
        assert [seen.pid for seen in nginx.masters()] == [master.pid]
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("how", ["removed", "a file"])
def test_the_store_is_lost_and_nginx_crashes(oldest: Build, newest: Build, how: str) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        versions = one.folder / "state" / "versions"
        shutil.rmtree(versions)
        if how == "a file":
            versions.write_text("")
        for seen in nginx.nginx():
            kill(seen.pid, signal.SIGKILL)
        until("counted", lambda: nginx.look()["restarts"] == 1, poll=0.05)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        if how == "a file":
            assert nginx.ctl("upgrade", newest.path).code == 3
            versions.unlink()
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_what_runs_is_stored_before_an_upgrade(oldest: Build, newest: Build) -> None:
    """The disk was full when nginx was started; a rollback needs the file all the same."""
    with site.make(oldest) as one, supervised.on(one) as nginx:
        versions = one.folder / "state" / "versions"
        versions.mkdir(parents=True)
        versions.parent.chmod(0o700)
        with small_disk(versions, kilobytes=64):
            nginx.start()
        assert "store.not_written" in events(nginx)
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_verdict_that_the_disk_did_not_take_is_written_later(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        history = one.folder / "state" / "history.jsonl"
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        history.mkdir()
        assert nginx.ctl("promote").code == 0
        assert nginx.end(client).code == 0
        assert nginx.history() == []
        nginx.die()
        history.rmdir()
        nginx.start()
        assert told(nginx) == [("committed", "healthy")]
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4


# --- which version a start runs --------------------------------------------------------------


@pytest.mark.needs("marker")
def test_a_package_that_is_installed_by_half(oldest: Build, newest: Build) -> None:
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        assert nginx.stop() == 0
        put(newest.marker_module, one.module)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert sha256(one.module) == sha256(oldest.marker_module)


def test_a_fault_of_the_configuration_takes_no_package_back(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("stop").code == 0
        put(newest.path, one.binary)
        text = one.config.read_text()
        one.config.write_text("broken")
        assert nginx.ctl("start").code == 1
        assert sha256(one.binary) == sha256(newest.path)
        one.config.write_text(text)
        nginx.ctl("start")
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_crash_reports_and_mends_what_a_package_has_put_there(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        put(newest.path, one.binary)
        for seen in nginx.nginx():
            kill(seen.pid, signal.SIGKILL)
        until("counted", lambda: nginx.look()["restarts"] == 1, poll=0.05)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        (drift,) = [line for line in nginx.log() if line["event"] == "binary.drift"]
        assert drift["restored"] == oldest.version


def test_a_good_binary_is_not_blamed_for_a_spoilt_pid_file(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx:
        points = Points(nginx)
        nginx.start()
        (master,) = nginx.masters()
        points.arm("include.after")  # preflight's last step
        client = nginx.begin("upgrade", newest.path)
        points.wait()
        one.pid_path.write_text("1\n")
        points.go_on()
        answer = nginx.end(client)
        assert answer.reason == "pid_file_wrong", answer
        one.pid_path.write_text(f"{master.pid}\n")
        good = {each["version"]: each["good"] for each in nginx.ctl("versions").lines}
        assert good[newest.version] is not False
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- preflight of a stored version puts its modules in place ---------------------------------


def assert_whole(nginx: Supervised, build: Build) -> None:
    """Binary and module on disk are of one version, and no staged copy lies about."""
    one = nginx.site
    assert sha256(one.binary) == sha256(build.path)
    assert sha256(one.module) == sha256(build.marker_module)
    assert [path.name for path in one.binary.parent.iterdir()] == [one.binary.name]


def upgraded(nginx: Supervised, build: Build) -> None:
    nginx.site.install(build)
    assert nginx.ctl("upgrade").code == 0
    nginx.until_state("running")
    nginx.site.include.unlink(missing_ok=True)


@pytest.mark.needs("marker")
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_supervisor_ends_while_modules_of_a_stored_version_are_in_place(
    oldest: Build, newest: Build, how: str
) -> None:
    with site.make(oldest, Options(module=True)) as one, supervised.on(one) as nginx:
        points = Points(nginx)
        nginx.start()
        upgraded(nginx, newest)
        points.arm("install.before")
        client = nginx.begin("rollback")
        points.wait()
        assert sha256(one.module) == sha256(oldest.marker_module)
        if how == "stopped":
            os.kill(nginx.pid, signal.SIGTERM)
            points.go_on()
            assert nginx.cradle.wait(nginx.pid) == 0
            nginx.end(client)
        else:
            nginx.die()
            nginx.end(client)
            nginx.start()
            checks.assert_settled(nginx, newest, sha256(newest.path))
            assert told(nginx)[-1] == ("rolled_back", "supervisor_died")
            kill_everything(nginx)
        # Whatever it came to by then, the two belong together, and a cold start succeeds.
        served = newest if sha256(one.binary) == sha256(newest.path) else oldest
        assert_whole(nginx, served)
        nginx.start()
        checks.assert_settled(nginx, served, sha256(served.path))


def test_two_supervisors_and_a_pid_file_that_moves(
    oldest: Build, newest: Build, tmp_path: Path
) -> None:
    """The candidate's pid file is the lock of another supervisor: refused, nothing was changed."""
    with (
        site.make(oldest) as one, supervised.running(one) as nginx,
        site.make(oldest) as two, supervised.running(two) as other,
    ):  # fmt: skip
        text = one.config.read_text()
        one.config.write_text(text.replace(f"pid {one.pid_path};", f"pid {two.pid_path};"))
        answer = nginx.ctl("upgrade", newest.path)
        assert (answer.code, answer.reason) == (3, "already_supervised"), answer
        # One that nobody has is locked for an upgrade, and is anybody's again after a refusal.
        moved = one.folder / "run" / "moved.pid"
        lock = moved.with_name(".moved.pid.supervisor-lock")
        one.config.write_text(text.replace(f"pid {one.pid_path};", f"pid {moved};"))
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        assert lock.exists()
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(client).code == 4
        assert not lock.exists()
        one.config.write_text(text)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        checks.assert_settled(other, oldest, sha256(oldest.path))


# --- somebody else acts ----------------------------------------------------------------------


def test_somebody_else_upgrades_nginx(oldest: Build, newest: Build) -> None:
    """As a package's own script does: USR2, then QUIT to the old master."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(**LIGHT)) as load:
            put(newest.path, one.binary)
            (old,) = nginx.masters()
            os.kill(old.pid, signal.SIGUSR2)
            until("two generations", lambda: sum(one.is_accepting for one in nginx.nginx()) == 4)
            new = nginx.masters()[-1].pid
            os.kill(old.pid, signal.SIGQUIT)
            until("the old one's end", lambda: [one.pid for one in nginx.masters()] == [new])
            checks.assert_settled(nginx, newest, sha256(newest.path))
            report = load.stop()
        assert report.failures == 0, report
        assert nginx.ctl("rollback").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("wanted", ["restart", "stop"])
def test_somebody_else_quits_nginx_while_a_connection_is_open(oldest: Build, wanted: str) -> None:
    """It would refuse connections until the last one has ended."""
    settings = {"nginx": {"on_foreign_stop": wanted}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        (old,) = nginx.masters()
        with unfinished.request(one.port) as begun:
            os.kill(old.pid, signal.SIGQUIT)
            if wanted == "restart":
                until("another master", lambda: len(nginx.masters()) == 2)
                checks.assert_serves(nginx, oldest)
                assert nginx.status()["state"] == "draining"
            else:
                nginx.until_state("stopped")
            assert " 200 " in begun.finish()
        if wanted == "restart":
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
        else:
            until("its end", lambda: nginx.nginx() == [])
            assert nginx.ctl("start").code == 0
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
