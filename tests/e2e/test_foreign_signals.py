"""Somebody else signals nginx behind the supervisor's back, or upgrades it by hand."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from signal import SIGHUP, SIGKILL, SIGQUIT, SIGUSR2, SIGWINCH

import pytest

from supervisor.edges import procfs
from tests.e2e.harness import checks, processes, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.site import put, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 15.0}


@contextmanager
def under_load(nginx: Supervised) -> Iterator[None]:
    """No request fails meanwhile: a client may have to wait for workers, and is never refused."""
    with Load(nginx.site.plan(**LIGHT)) as load:
        yield
        report = load.stop()
    assert report.failures == 0, report


def accepting(master: int) -> set[int]:
    return {one.pid for one in processes.children(master) if one.is_accepting}


def handled(pid: int, *signals: signal.Signals) -> None:
    """Send them one after the other; returns when the master has run its handler for each."""
    for one in signals:
        os.kill(pid, one)
        until(f"{one.name} handled by {pid}", lambda: not procfs.pending(pid, one))  # noqa: B023


def upgrade_by_hand(nginx: Supervised, build: Build) -> tuple[Seen, Seen]:
    """As far as two generations that accept; the old and the new master."""
    put(build.path, nginx.site.binary)
    (old,) = nginx.masters()
    os.kill(old.pid, SIGUSR2)
    workers = nginx.site.options.workers
    until("a new generation", lambda: any(
        one.pid != old.pid and len(accepting(one.pid)) == workers for one in nginx.masters()
    ))  # fmt: skip
    return old, nginx.masters()[-1]


def until_named(nginx: Supervised, old: Seen, new: Seen) -> None:
    """Two masters, and nobody has asked the supervisor: it says so, and what to do."""
    found: dict[str, object] = {}

    def named() -> bool:
        found.update(nginx.look())
        return found["reason"] == "foreign_upgrade"

    until("the foreign upgrade", named)
    assert found["state"] == "upgrading", found
    assert f"kill -QUIT {old.pid} keeps the new one" in str(found["detail"]), found
    assert f"kill -QUIT {new.pid} keeps the old one" in str(found["detail"]), found
    assert "generation.foreign_upgrade" in {line["event"] for line in nginx.log()}


def incidents(nginx: Supervised) -> list[str]:
    return [one["reason"] for one in nginx.log() if one["event"] == "supervisor.incident"]


# --- an upgrade by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["restart", "stop"])
def test_an_upgrade_by_hand_is_named_and_taken_over(
    oldest: Build, newest: Build, wanted: str
) -> None:
    settings = {"nginx": {"on_foreign_stop": wanted}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        with under_load(nginx):
            old, new = upgrade_by_hand(nginx, newest)
            until_named(nginx, old, new)
            for command in (("upgrade",), ("upgrade", oldest.path), ("reload",)):
                answer = nginx.ctl(*command)
                assert (answer.code, answer.reason) == (3, "foreign_upgrade"), answer
                assert str(new.pid) in answer.last["detail"], answer
            os.kill(old.pid, SIGWINCH)
            until("its workers' end", lambda: not accepting(old.pid))
            assert nginx.look()["reason"] == "foreign_upgrade"
            os.kill(old.pid, SIGQUIT)
            until("the old one's end", lambda: processes.look(old.pid) is None)
            checks.assert_settled(nginx, newest, sha256(newest.path))
            assert nginx.masters()[0].pid == new.pid
        assert incidents(nginx) == ["foreign_upgrade"]
        # From here on it is an nginx like any other.
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_an_upgrade_by_hand_is_taken_back_by_hand(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx):
            old, new = upgrade_by_hand(nginx, newest)
            until_named(nginx, old, new)
            os.kill(old.pid, SIGWINCH)
            until("its workers' end", lambda: not accepting(old.pid))
            os.kill(new.pid, SIGQUIT)
            until("its end", lambda: nginx.look()["reason"] is None)
            checks.assert_serves(nginx, oldest)
            checks.assert_one_generation(nginx)
        until("it is told", lambda: "generation.foreign_upgrade_over" in nginx.log_text())
        assert incidents(nginx) == []
        assert nginx.status()["binary_on_disk"]["matches_active"] is False
        assert nginx.ctl("upgrade").code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_the_old_master_is_killed_in_an_upgrade_by_hand(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx):
            old, new = upgrade_by_hand(nginx, newest)
            until_named(nginx, old, new)
            os.kill(old.pid, SIGKILL)
            until("its end", lambda: processes.look(old.pid) is None)
            checks.assert_settled(nginx, newest, sha256(newest.path))
            assert nginx.masters()[0].pid == new.pid
        assert incidents(nginx) == ["foreign_upgrade"]


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_a_stop_in_an_upgrade_by_hand_ends_both(oldest: Build, newest: Build, how: str) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        old, new = upgrade_by_hand(nginx, newest)
        until_named(nginx, old, new)
        if how == "stop":
            assert nginx.ctl("stop").code == 0
            assert nginx.nginx() == []
            assert not one.pid_path.exists()
            assert nginx.ctl("start").code == 0
            checks.assert_serves(nginx, newest)  # which is on disk
        else:
            assert nginx.stop() == 0
            assert nginx.nginx() == []


# --- a reload -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["HUP", "nginx -s reload"])
def test_a_reload_by_hand_is_noticed(oldest: Build, newest: Build, how: str) -> None:
    """What runs is what is on disk, and a rollback brings back as many workers as there were."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        with under_load(nginx):
            one.configure(replace(one.options, workers=3))
            assert nginx.status()["config_matches_active"] is False
            if how == "HUP":
                os.kill(master.pid, SIGHUP)
            else:
                subprocess.run([*one.argv, "-s", "reload"], check=True)
            until("it is seen", lambda: nginx.look()["config_matches_active"] is True)
            said = [line for line in nginx.log() if line["event"] == "generation.foreign_reload"]
            assert [line["generation"] for line in said] == ["g1"], said
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
        # Without the load: in the canary such a candidate may answer a client with its 500.
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        with under_load(nginx):
            assert nginx.ctl("reload").code == 0
        said = [line for line in nginx.log() if line["event"] == "generation.foreign_reload"]
        assert len(said) == 1, said


# --- WINCH to the only master -------------------------------------------------------------------


def test_winch_to_the_only_master_is_mended(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        with under_load(nginx):
            before = accepting(master.pid)
            os.kill(master.pid, SIGWINCH)
            until("other workers", lambda: bool(accepting(master.pid) - before))
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
        (said,) = [one for one in nginx.log() if one["event"] == "generation.no_workers"]
        assert said["level"] == "error"
        assert "WINCH" in said["detail"]
        assert nginx.masters()[0].pid == master.pid
        # The repair leaves nginx with a flag that starts workers too many when a candidate dies.
        assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_winch_to_the_only_master_with_a_broken_configuration(oldest: Build) -> None:
    """Nothing brings workers back, and that is said."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        text = one.config.read_text()
        one.config.write_text("broken")
        os.kill(master.pid, SIGWINCH)
        status = nginx.until_state("degraded")
        assert status["reason"] == "no_workers"
        assert "nginxctl reload" in status["detail"]
        until("its attempt", lambda: any(
            one["event"] == "generation.revived" and one["level"] == "error" for one in nginx.log()
        ))  # fmt: skip
        one.config.write_text(text)
        assert nginx.ctl("reload").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- signals in each phase of an upgrade --------------------------------------------------------


def harmless(nginx: Supervised, old: Seen, new: Seen) -> None:
    """Signals that are no reason to end an upgrade; each is taken note of before the next."""
    workers = nginx.site.options.workers
    handled(old.pid, SIGUSR2)
    handled(new.pid, SIGUSR2)
    assert len(nginx.masters()) == 2
    before = accepting(old.pid)
    handled(old.pid, SIGHUP)
    until("more workers", lambda: len(accepting(old.pid) - before) == workers)
    handled(old.pid, SIGWINCH)
    until("its workers' end", lambda: not accepting(old.pid))
    # `nginx -s reload` goes by the pid file, which is the candidate's.
    assert int(nginx.site.pid_path.read_text()) == new.pid
    before = accepting(new.pid)
    handled(new.pid, SIGHUP)
    until("its new workers", lambda: len(accepting(new.pid) - before) == workers)
    until("the old ones' end", lambda: not accepting(new.pid) & before)


def begun(
    nginx: Supervised, phase: str, build: Build, length: str = "60s"
) -> tuple[object, Seen, Seen]:
    """An upgrade in `phase`, which a canary is for `length`; it is held after it."""
    client = nginx.begin(
        "upgrade", build.path, "--hold", "--canary", "300ms" if phase == "held" else length
    )
    nginx.until_phase(phase)
    old, new = nginx.masters()
    return client, old, new


@pytest.mark.parametrize("phase", ["canary", "held"])
def test_harmless_signals_in_an_upgrade(oldest: Build, newest: Build, phase: str) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx):
            client, old, new = begun(nginx, phase, newest, "4s")
            harmless(nginx, old, new)
            nginx.until_phase("held")
            assert nginx.ctl("promote").code == 0
            answer: Answer = nginx.end(client)  # type: ignore[arg-type]
            assert answer.code == 0, answer
            checks.assert_settled(nginx, newest, sha256(newest.path))
        assert len(nginx.history()) == 1


@pytest.mark.parametrize("phase", ["canary", "held"])
@pytest.mark.parametrize(
    ("what", "reason"), [(SIGQUIT, "candidate_exited"), (SIGWINCH, "no_workers")]
)
def test_the_candidate_is_told_to_leave(
    oldest: Build, newest: Build, phase: str, what: signal.Signals, reason: str
) -> None:
    """As `nginx -s quit` does, which goes by the pid file."""
    with site.make(oldest) as one, supervised.running(one) as nginx, under_load(nginx):
        client, old, new = begun(nginx, phase, newest)
        os.kill(new.pid, what)
        answer: Answer = nginx.end(client)  # type: ignore[arg-type]
        assert (answer.code, answer.reason) == (4, reason), answer
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        assert nginx.masters()[0].pid == old.pid


def test_signals_while_the_old_generation_drains(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with unfinished.request(one.port) as download:
            assert nginx.ctl("upgrade", newest.path).code == 0
            assert nginx.status()["state"] == "draining"
            old, new = nginx.masters()
            with under_load(nginx):
                handled(old.pid, SIGUSR2, SIGHUP, SIGWINCH)
                handled(new.pid, SIGUSR2)
                before = accepting(new.pid)
                handled(new.pid, SIGHUP)
                until("a reload", lambda: len(accepting(new.pid) - before) == 2)
                before = accepting(new.pid)
                handled(new.pid, SIGWINCH)
                until("it is mended", lambda: len(accepting(new.pid) - before) == 2)
                assert [each.pid for each in nginx.masters()] == [old.pid, new.pid]
                assert not accepting(old.pid)
            assert " 200 " in download.finish()
        checks.assert_settled(nginx, newest, sha256(newest.path))
