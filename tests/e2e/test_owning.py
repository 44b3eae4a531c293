"""Owning nginx: every kind of configuration, every way to end, and a supervisor that dies."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

CONFIGURATIONS = {
    "plain": Options(),
    "daemon-on": Options(daemon="on"),
    "daemon-off": Options(daemon="off"),
    "stderr-and-stdout": Options(error_log="stderr", access_log="/dev/stdout"),
    "unix": Options(unix=True),
    "reuseport": Options(reuseport=True),
    "one-worker": Options(workers=1),
    "many-workers": Options(workers=8),
}


def nginx_s(one: Site, word: str) -> None:
    """`nginx -s WORD`, as people type it."""
    subprocess.run([*one.argv, "-s", word], check=True, capture_output=True)


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_every_configuration_serves_is_upgraded_and_ends(
    oldest: Build, newest: Build, options: Options
) -> None:
    with site.make(oldest, options) as one, supervised.running(one) as nginx:
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.stop() == 0
        assert nginx.cradle.living() == []
        assert not one.pid_path.exists()
        assert not one.unix_path.exists()


def test_master_process_off_is_refused(oldest: Build) -> None:
    with (
        site.make(oldest, Options(main="master_process off;")) as one,
        supervised.on(one) as nginx,
    ):
        nginx.launch()
        assert nginx.cradle.wait(nginx.pid) == 1
        assert "master_process" in nginx.log_text()


def test_a_first_start_that_fails_ends_with_the_words_of_nginx(oldest: Build) -> None:
    with (
        site.make(oldest, Options(main="no_such_directive on;")) as one,
        supervised.on(one) as nginx,
    ):
        nginx.launch()
        assert nginx.cradle.wait(nginx.pid) == 1
        assert "no_such_directive" in nginx.log_text()


def test_a_pid_file_that_moves_with_an_upgrade(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        before = one.pid_path
        one.configure(Options(pid=str(one.folder / "run" / "moved.pid")))
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert not before.exists()
        again = nginx.ctl("upgrade", oldest.path)
        assert again.code == 0, again
        nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_rollback_from_a_moved_pid_file(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        one.configure(Options(pid=str(one.folder / "run" / "moved.pid")))
        answer = nginx.ctl("upgrade", candidate(newest, "status_500"))
        assert answer.code == 4, answer
        assert not one.pid_path.exists()
        one.configure(Options())
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- crashes ---------------------------------------------------------------------------------


def crashed(nginx: Supervised, *, workers_too: bool) -> None:
    """SIGKILL the master, or all of nginx; returns when it serves again."""
    victims = nginx.nginx() if workers_too else nginx.masters()
    for one in victims:
        kill(one.pid, signal.SIGKILL)
    gone = {one.pid for one in victims}
    until(
        "another master",
        lambda: bool(nginx.masters()) and not gone & {one.pid for one in nginx.masters()},
    )
    nginx.until_state("running")


@pytest.mark.parametrize("workers_too", [False, True], ids=["master", "all"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_crash_is_followed_by_a_restart(oldest: Build, *, workers_too: bool, unix: bool) -> None:
    with site.make(oldest, Options(unix=unix)) as one, supervised.running(one) as nginx:
        crashed(nginx, workers_too=workers_too)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.status()["restarts"] == 1
        if unix:
            plan = one.plan(address=str(one.unix_path))
            assert checks.served_versions(plan) == {oldest.version}


def test_an_upgrade_works_after_a_crash(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        crashed(nginx, workers_too=False)
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_backoff_and_start_limit(oldest: Build) -> None:
    settings = {"restart": {"backoff_initial": "50ms", "start_limit": 4}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        text = one.config.read_text()
        one.config.write_text("broken")
        for each in nginx.nginx():
            kill(each.pid, signal.SIGKILL)
        # Degraded for another reason as long as the master has lost its workers alone.
        until("it gives up", lambda: nginx.look()["reason"] == "start_limit", poll=0.02)
        assert nginx.look()["state"] == "degraded"
        one.config.write_text(text)
        answer = nginx.ctl("start")
        assert answer.code == 0, answer
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_start_is_tried_again_until_it_succeeds(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        text = one.config.read_text()
        one.config.write_text("broken")
        for each in nginx.nginx():
            kill(each.pid, signal.SIGKILL)
        nginx.until_state("backoff")
        one.config.write_text(text)
        nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- stops -----------------------------------------------------------------------------------


def test_stop_start_and_restart(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("stop").code == 0
        assert nginx.status()["state"] == "stopped"
        assert nginx.nginx() == []
        assert not one.pid_path.exists()
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        before = nginx.masters()[0].pid
        assert nginx.ctl("restart").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.masters()[0].pid != before


def test_a_graceful_stop_lets_a_download_end(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(new=0, keepalive=0, idle=0, slow_seconds=2)) as load:
            assert nginx.stop() == 0
            report = load.stop()
        assert report.kinds["slow"].ok >= 1, report
        assert report.count("truncated") == 0, report


def test_a_stop_now_does_not_wait(oldest: Build) -> None:
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        Load(one.plan(new=0, keepalive=0, idle=0, slow_seconds=120)) as load,
    ):
        assert nginx.ctl("stop", "--now").code == 0
        until("truncated", lambda: load.report().count("truncated") == 1, poll=0.05)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_stop_in_the_middle_of_an_upgrade(oldest: Build, newest: Build, signal_name: str) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        os.kill(nginx.pid, getattr(signal, signal_name))
        assert nginx.cradle.wait(nginx.pid) == 0
        answer = nginx.end(upgrade)
        assert answer.code == 4, answer
        assert nginx.cradle.living() == []
        assert sha256(one.binary) == sha256(oldest.path)
        assert not one.pid_path.exists()
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert [each["verdict"] for each in nginx.history()] == ["rolled_back"]


def test_a_foreign_stop_is_followed_by_a_restart(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        before = nginx.masters()[0].pid
        nginx_s(one, "quit")
        until("the old master gone", lambda: before not in [m.pid for m in nginx.masters()])
        until("a new one", lambda: bool(nginx.masters()))
        nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_foreign_stop_is_respected_where_configured(oldest: Build) -> None:
    settings = {"nginx": {"on_foreign_stop": "stop"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        nginx_s(one, "quit")
        status = nginx.until_state("stopped")
        assert status["reason"] == "foreign_stop"
        assert nginx.nginx() == []
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- reload and reopen -----------------------------------------------------------------------


def test_reload_applies_the_configuration_and_refuses_a_bad_one(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        text = one.config.read_text()
        one.config.write_text(text.replace("worker_processes 2", "worker_processes 3"))
        answer = nginx.ctl("reload")
        assert answer.code == 0, answer
        one.options = Options(workers=3)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        one.config.write_text("broken")
        bad = nginx.ctl("reload")
        assert bad.code in (1, 3), bad
        assert "broken" in bad.last["detail"] or "unexpected" in bad.last["detail"], bad
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_reopen_reaches_every_generation(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        one.error_log.rename(one.folder / "error.log.1")
        assert nginx.ctl("reopen").code == 0
        for master in nginx.masters():
            until_open(one.error_log, master.pid)
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(upgrade).code == 4


def until_open(path: Path, pid: int) -> None:
    """Return when the process has the file open under this name."""

    def is_open() -> bool:
        found = []
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(each.readlink())
        return path in found

    until(f"{path} open", is_open)


# --- a supervisor that dies ------------------------------------------------------------------


def test_nginx_outlives_a_killed_supervisor_and_is_adopted(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx, Load(one.plan()) as load:
        before = nginx.masters()[0].pid
        nginx.die()
        checks.assert_serves(nginx, oldest)
        nginx.start()
        assert nginx.masters()[0].pid == before
        assert nginx.status()["restarts"] == 0
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        report = load.stop()
        assert report.failures == 0, report
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.masters()[0].pid != before


@pytest.mark.parametrize("phase", ["spawning", "canary", "held"])
def test_an_interrupted_upgrade_ends_in_a_verdict(oldest: Build, newest: Build, phase: str) -> None:
    kind = "hang" if phase == "spawning" else "good"
    arguments = {"spawning": (), "canary": ("--canary", "60s"), "held": ("--hold",)}[phase]
    settings = {"upgrade": {"rollback_quit_timeout": "1s", "rollback_term_timeout": "500ms"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        old = nginx.masters()[0].pid
        upgrade = nginx.begin("upgrade", candidate(newest, kind), *arguments)
        nginx.until_phase(phase)
        if phase == "spawning":
            until("USR2", one.oldbin_path.exists)
        nginx.die()
        assert nginx.end(upgrade).code == 6
        checks.served_versions(one.plan())
        nginx.start()
        nginx.until_state("running")
        (verdict,) = nginx.history()
        assert verdict["verdict"] == "rolled_back"
        assert verdict["reason"] == "supervisor_died"
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.masters()[0].pid == old


def test_a_drain_is_seen_to_its_end_by_the_next_supervisor(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan()) as load:
            with unfinished.request(one.port) as begun:
                assert nginx.ctl("upgrade", newest.path).code == 0
                assert nginx.status()["state"] == "draining"
                nginx.die()
                nginx.start()
                assert nginx.status()["state"] == "draining"
                assert " 200 " in begun.finish()
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == 0, report
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_candidate_that_dies_in_the_drain_is_replaced_by_the_old_version(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with unfinished.request(one.port) as begun:
            assert nginx.ctl("upgrade", newest.path).code == 0
            assert nginx.status()["state"] == "draining"
            new = nginx.masters()[-1].pid
            os.kill(new, signal.SIGKILL)
            until("a rescue", lambda: checks.answers(one.plan(), oldest.version), poll=0.05)
            assert " 200 " in begun.finish()
            nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- probes outside an upgrade ---------------------------------------------------------------


def test_a_failing_probe_never_keeps_nginx_down_and_is_reported(oldest: Build) -> None:
    with site.make(oldest) as one:
        failing = probe(one, name="failing", url=f"{one.url}/nowhere", expect_status=[204])
        with supervised.running(one, {"probe": [failing, probe(one)]}) as nginx:
            wanted = {"failing": "down", "health": "up"}
            until("one down, one up", lambda: states(nginx) == wanted, poll=0.02)
            # It failed before: it cannot condemn the candidate.
            assert nginx.ctl("upgrade", candidate(oldest, "good")).code == 0


def states(nginx: Supervised) -> dict[str, str]:
    return {each["name"]: each["state"] for each in nginx.look()["probes"]}
