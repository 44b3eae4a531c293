"""Two things go wrong, one after the other: deaths, disks, and somebody else's signals."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import put, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.harness.victims import Points
from tests.e2e.test_deaths import LIGHT, told
from tools.load import Load
from tools.nginx_cache import Build


def journal_has(nginx: Supervised, word: str) -> bool:
    path = nginx.site.folder / "state" / "journal.jsonl"
    return path.exists() and f'"{word}"'.encode() in path.read_bytes()


def unusable(path: Path) -> None:
    """Nobody can write a file here."""
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "in-the-way").write_text("")


# --- the supervisor dies, and the next one too -------------------------------------------------


def test_the_successor_dies_in_the_rollback_of_a_preflight(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx:
        points = Points(nginx)
        nginx.start()
        with Load(one.plan(**LIGHT)) as load:
            points.arm("stage.before")
            client = nginx.begin("upgrade", newest.path)
            points.wait()
            assert journal_has(nginx, "preflight")
            nginx.die()
            nginx.end(client)
            points.arm("journal.after")
            nginx.launch()
            points.wait()
            assert journal_has(nginx, "rolling_back")
            nginx.die()
            nginx.start()
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            assert load.stop().failures == 0
        assert told(nginx) == [("rolled_back", "supervisor_died")]
        assert nginx.ctl("upgrade", newest.path).code == 0


def test_a_death_in_preflight_takes_the_private_listener_along(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx:
        points = Points(nginx)
        nginx.start()
        points.arm("include.after")
        client = nginx.begin("upgrade", newest.path)
        points.wait()
        nginx.die()
        nginx.end(client)
        nginx.start()
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))


def test_a_death_in_the_last_look_commits_nothing(oldest: Build, newest: Build) -> None:
    """The candidate does not answer; the supervisor that waits for its answer dies."""
    settings = {"upgrade": {"rollback_quit_timeout": "1s", "rollback_term_timeout": "500ms"}}
    with site.make(oldest) as one, supervised.on(one, settings) as nginx:
        nginx.settings["probe"] = [probe(one, timeout="60s")]
        points = Points(nginx)
        nginx.start()
        points.arm("state.soaking")
        client = nginx.begin("upgrade", newest.path, "--soak", "0s")
        points.wait()
        new = nginx.masters()[-1]
        for worker in nginx.nginx():
            if worker.parent == new.pid:
                os.kill(worker.pid, signal.SIGSTOP)
        points.go_on()
        until("the last look", lambda: journal_has(nginx, "committing"), poll=0.0)
        nginx.die()
        nginx.end(client)
        nginx.start()
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        assert told(nginx) == [("rolled_back", "supervisor_died")]


# --- the disk takes nothing, and then something else happens -----------------------------------


def committed_without_history(nginx: Supervised, binary: Path) -> str:
    """An upgrade whose verdict the history does not take; its id."""
    client = nginx.begin("upgrade", binary, "--hold")
    nginx.until_phase("held")
    unusable(nginx.site.folder / "state" / "history.jsonl")
    assert nginx.ctl("promote").code == 0
    answer = nginx.end(client)
    assert answer.code == 0
    nginx.until_state("running")
    return str(answer.last["upgrade_id"])


def test_a_history_that_takes_nothing_keeps_no_successor_from_starting(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        committed_without_history(nginx, newest.path)
        nginx.die()
        nginx.start()
        checks.assert_serves(nginx, newest)
        shutil.rmtree(one.folder / "state" / "history.jsonl")
        assert nginx.ctl("upgrade", oldest.path).code == 0
        assert told(nginx) == [("committed", "healthy")] * 2


@pytest.mark.parametrize("then", ["dry run", "upgrade"])
def test_a_verdict_that_waits_outlives_what_comes_next(
    oldest: Build, newest: Build, then: str
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        first = committed_without_history(nginx, newest.path)
        shutil.rmtree(one.folder / "state" / "history.jsonl")
        if then == "dry run":
            assert nginx.ctl("upgrade", oldest.path, "--dry-run").code == 0
        else:
            client = nginx.begin("upgrade", oldest.path, "--hold")
            nginx.until_phase("held")
        nginx.die()
        if then == "upgrade":
            nginx.end(client)
        nginx.start()
        nginx.until_state("running")
        ids = [each["upgrade_id"] for each in nginx.history()]
        assert ids[0] == first
        assert len(ids) == len(set(ids)) == (1 if then == "dry run" else 2)


def test_a_small_file_that_cannot_be_restored_fails_no_rollback(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        unusable(one.include)
        assert nginx.ctl("rollback").code == 0
        answer = nginx.end(client)
        assert answer.code == 4, answer
        assert str(one.include) in answer.last["detail"]
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        shutil.rmtree(one.include)


# --- somebody else's signals -------------------------------------------------------------------


def test_the_old_master_is_told_to_quit_in_the_canary(oldest: Build, newest: Build) -> None:
    """It has a connection to wait for, and can never serve again."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (old,) = nginx.masters()
        with unfinished.request(one.port), Load(one.plan(**LIGHT)) as load:
            client = nginx.begin("upgrade", newest.path, "--canary", "60s")
            nginx.until_phase("canary")
            os.kill(old.pid, signal.SIGQUIT)
            answer = nginx.end(client)
            assert (answer.code, answer.reason) == (4, "active_exited"), answer
            assert answer.last["phases"]["rolling_back"] < 30, "it waits for no connection"
            checks.assert_serves(nginx, oldest)
            assert load.stop().failures == 0
            assert nginx.ctl("drain", "--now").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_the_old_master_quits_while_held_and_the_candidate_crashes(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (old,) = nginx.masters()
        with unfinished.request(one.port):
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            os.kill(old.pid, signal.SIGQUIT)
            until("seen", lambda: "standby_exited" in [line.get("reason") for line in nginx.log()])
            os.kill(nginx.masters()[-1].pid, signal.SIGKILL)
            answer = nginx.end(client)
            assert (answer.code, answer.reason) == (4, "candidate_exited"), answer
            assert answer.last["phases"]["rolling_back"] < 30, "it waits for no connection"
            checks.assert_serves(nginx, oldest)
            assert nginx.ctl("drain", "--now").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_somebody_upgrades_nginx_and_breaks_its_configuration(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        put(newest.path, one.binary)
        (old,) = nginx.masters()
        os.kill(old.pid, signal.SIGUSR2)
        until("two generations", lambda: sum(s.is_accepting for s in nginx.nginx()) == 4)
        refused = nginx.ctl("upgrade")
        assert (refused.code, refused.reason) == (3, "foreign_upgrade"), refused
        text = one.config.read_text()
        one.config.write_text("broken")
        os.kill(old.pid, signal.SIGQUIT)
        until("one master", lambda: len(nginx.masters()) == 1)
        checks.assert_settled(nginx, newest, sha256(newest.path))
        one.config.write_text(text)


def test_a_rescue_that_fails_is_still_due(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with unfinished.request(one.port):
            assert nginx.ctl("upgrade", newest.path).code == 0
            text = one.config.read_text()
            one.config.write_text("broken")
            os.kill(nginx.masters()[-1].pid, signal.SIGKILL)
            nginx.until_state("backoff")
            one.config.write_text(text)
            until("it serves", lambda: nginx.look()["state"] in ("running", "draining"))
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_restart_into_a_broken_configuration_is_refused(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        text = one.config.read_text()
        one.config.write_text("broken")
        answer = nginx.ctl("restart")
        assert (answer.code, answer.reason) == (3, "config_rejected"), answer
        assert [each.pid for each in nginx.masters()] == [master.pid]
        checks.assert_serves(nginx, oldest)
        one.config.write_text(text)
        assert nginx.ctl("restart").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
