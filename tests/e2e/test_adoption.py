"""An nginx that somebody else started, and an upgrade that a dead supervisor left in any phase."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.edges.journal import decode_line, encode_line
from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load, Report
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 15.0}
"""New connections alone: whatever happens, none of them may fail."""


# --- started by somebody else ----------------------------------------------------------------


def by_hand(nginx: Supervised) -> int:
    """Start nginx without the supervisor; its master once all workers accept."""
    one = nginx.site
    launcher = nginx.cradle.run(one.argv, env={}, output=one.folder / "bare.log")
    if one.options.daemon != "off":
        assert nginx.cradle.wait(launcher) == 0, (one.folder / "bare.log").read_text()

    def serves() -> bool:
        accepting = [seen for seen in nginx.nginx() if seen.is_accepting]
        return len(accepting) == one.options.workers and one.pid_path.exists()

    until("nginx by hand", serves)
    (master,) = nginx.masters()
    return master.pid


def test_a_daemon_is_adopted_and_upgraded(oldest: Build, newest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)
        with Load(one.plan(**LIGHT)) as load:
            nginx.start()
            assert nginx.status()["restarts"] == 0
            assert [seen.pid for seen in nginx.masters()] == [pid]
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            assert nginx.ctl("upgrade", candidate(newest, "status_500")).code == 4
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            assert [seen.pid for seen in nginx.masters()] == [pid]
            answer = nginx.ctl("upgrade", newest.path)
            assert answer.code == 0, answer
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == bad_answers(report), report
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("rollback").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def bad_answers(report: Report) -> int:
    """What a bad candidate answered in its canary: that is not lost, it was answered."""
    return report.count("status")


def test_a_foreground_nginx_cannot_be_upgraded_and_is_not_harmed(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest, Options(daemon="off")) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)  # the cradle is its parent, and lives
        with Load(one.plan(**LIGHT)) as load:
            nginx.start()
            told = nginx.status()["generations"][0]["upgradable"]
            assert (told["ok"], told["reason"]) == (False, "usr2_would_be_refused")
            assert f"its parent {nginx.cradle.pid} (" in told["detail"]
            advice = [one["reason"] for one in nginx.ctl("check").last["findings"]]
            assert "usr2_would_be_refused" in advice
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, "usr2_would_be_refused"), answer
            assert "nginxctl adopt --take-over" in answer.last["detail"]
            assert load.stop().failures == 0
        assert [seen.pid for seen in nginx.masters()] == [pid]
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        # It was not the binary's fault: a restart makes nginx ours, and then it is taken.
        assert nginx.ctl("restart").code == 0
        assert nginx.status()["generations"][0]["upgradable"]["ok"] is True
        again = nginx.ctl("upgrade", newest.path)
        assert again.code == 0, again
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_refusal_that_shows_only_by_the_signal(oldest: Build, newest: Build) -> None:
    """Its umask is a daemon's, and its parent has not forked it in its own session."""
    with site.make(oldest, Options(daemon="off")) as one, supervised.on(one) as nginx:
        script = one.folder / "start.sh"
        script.write_text('#!/bin/sh\numask 0\n"$@" &\nwait\n')
        script.chmod(0o755)
        nginx.cradle.run([script, *one.argv], env={}, output=one.folder / "bare.log")
        until("workers", lambda: len([s for s in nginx.nginx() if s.is_accepting]) == 2)
        with Load(one.plan(**LIGHT)) as load:
            nginx.start()
            assert nginx.status()["generations"][0]["upgradable"]["ok"] is True
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (4, "usr2_ignored"), answer
            assert "did not react to USR2" in answer.last["detail"]
            assert "nginxctl adopt --take-over" in answer.last["detail"]
            checks.assert_serves(nginx, oldest)
            checks.assert_pid_file_right(nginx)
            checks.assert_on_disk(nginx, sha256(oldest.path))
            assert load.stop().failures == 0
        assert nginx.ctl("adopt", "--take-over").code == 0
        nginx.until_state("running")
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_name_from_the_path_is_no_place_to_upgrade(oldest: Build, newest: Build) -> None:
    """`nginx` in a shell: USR2 would execute that name in the current folder."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        shell = ["/bin/sh", "-c", 'cd /; nginx "$@"', "sh", *one.argv[1:]]
        environment = {"PATH": str(one.binary.parent)}
        nginx.cradle.run(shell, env=environment, output=one.folder / "bare.log")
        until("workers", lambda: len([s for s in nginx.nginx() if s.is_accepting]) == 2)
        nginx.start()
        told = nginx.status()["generations"][0]["upgradable"]
        answer = nginx.ctl("upgrade", newest.path)
        assert (answer.code, answer.reason) == (3, "executes_another_file"), answer
        assert told == {"ok": False, "reason": answer.reason, "detail": answer.last["detail"]}
        assert nginx.ctl("adopt", "--take-over").code == 0
        nginx.until_state("running")
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_arguments_that_usr2_hands_on(oldest: Build, newest: Build) -> None:
    """The configuration does with the supervisor's arguments, and not with the master's own."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        link = one.folder / "link.conf"
        link.symlink_to(one.config)
        given = ["-p", str(one.folder), "-c", str(link), "-g", "worker_rlimit_core 1;"]
        run = nginx.cradle.run([one.argv[0], *given], env={"ROOM": "x" * 400},
                               output=one.folder / "bare.log")  # fmt: skip
        assert nginx.cradle.wait(run) == 0
        until("workers", lambda: len([s for s in nginx.nginx() if s.is_accepting]) == 2)
        nginx.start()
        text = one.config.read_text()
        one.config.write_text(f"worker_rlimit_core 2;\n{text}")
        answer = nginx.ctl("upgrade", newest.path)
        assert (answer.code, answer.reason) == (3, "config_rejected"), answer
        assert '"worker_rlimit_core" directive is duplicate' in answer.last["detail"]
        assert "nginxctl adopt --take-over" in answer.last["detail"]
        one.config.write_text(text)
        other = one.folder / "other.conf"
        other.write_text(text)
        link.unlink()
        link.symlink_to(other)
        answer = nginx.ctl("upgrade", newest.path)
        assert (answer.code, answer.reason) == (3, "other_configuration"), answer
        assert f"would read {other}, not {one.config}" in answer.last["detail"]
        checks.assert_serves(nginx, oldest)
        assert nginx.ctl("adopt", "--take-over").code == 0
        nginx.until_state("running")
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_foreground_nginx_whose_parent_has_left(oldest: Build, newest: Build) -> None:
    """It takes USR2 by now but still no WINCH, as it never made itself a daemon."""
    with site.make(oldest, Options(daemon="off")) as one, supervised.on(one) as nginx:
        script = one.folder / "start.sh"
        script.write_text('#!/bin/sh\n"$@" &\nwait\n')
        script.chmod(0o755)
        shell = nginx.cradle.run([script, *one.argv], env={}, output=one.folder / "bare.log")
        until("workers", lambda: len([s for s in nginx.nginx() if s.is_accepting]) == 2)
        nginx.start()
        kill(shell, signal.SIGKILL)
        nginx.cradle.wait(shell)
        with Load(one.plan(**LIGHT)) as load:
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (4, "winch_ignored"), answer
            assert "nginxctl adopt --take-over" in answer.last["detail"]
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            assert load.stop().failures == 0
        assert nginx.ctl("restart").code == 0
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@pytest.mark.parametrize(
    ("number", "told", "reason"),
    [
        (signal.SIGSEGV, "ended by signal 11", "master_exited"),
        (signal.SIGTERM, "exited with code 0", "foreign_stop"),
    ],
)
def test_how_an_adopted_master_ends_is_known(
    oldest: Build, newest: Build, number: signal.Signals, told: str, reason: str
) -> None:
    """It is no child of the supervisor: the kernel tells from 6.15 on, its zombie perhaps before.

    Where neither does, that is said, and it counts as a crash: better one start too many.
    """
    settings = {"nginx": {"on_foreign_stop": "stop"}}
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one, settings) as nginx:
        pid = by_hand(nginx)
        nginx.start()
        os.kill(pid, number)
        until("its end", lambda: "supervisor.incident" in nginx.log_text(), poll=0.02)
        (incident,) = [line for line in nginx.log() if line["event"] == "supervisor.incident"]
        is_new = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)
        known = is_new or told in incident["detail"]
        assert (told if known else "how is not known") in incident["detail"]
        assert incident["reason"] == (reason if known else "master_exited")
        if incident["reason"] == "foreign_stop":
            nginx.until_state("stopped")
            assert nginx.ctl("start").code == 0
        until("another master", lambda: pid not in [seen.pid for seen in nginx.masters()])
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_binary_that_was_replaced_before_the_adoption(oldest: Build, newest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        by_hand(nginx)
        put(newest.path, one.binary)
        nginx.start()
        status = nginx.status()
        assert status["generations"][0]["version"] == oldest.version
        assert status["generations"][0]["sha256"] == sha256(oldest.path)
        assert status["binary_on_disk"]["version"] == newest.version
        assert status["binary_on_disk"]["matches_active"] is False
        answer = nginx.ctl("upgrade")
        assert answer.code == 0, answer
        assert answer.last["from_version"] == oldest.version
        checks.assert_settled(nginx, newest, sha256(newest.path))
        # What ran before was kept out of /proc, although its file was gone.
        assert nginx.ctl("rollback").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("broken", ["binary", "configuration"])
def test_what_is_on_disk_cannot_be_used_at_the_adoption(oldest: Build, broken: str) -> None:
    """A package is installed by half, say; what runs is adopted all the same."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)
        kept = one.folder / "kept"
        if broken == "binary":
            os.link(one.binary, kept)
            put(Path("/bin/true"), one.binary)
            nginx.start()
            kept.rename(one.binary)
        else:
            nginx.start()
            until("on record", (one.folder / "state" / "masters.json").exists)
            nginx.die()
            text = one.config.read_text()
            one.config.write_text("broken")
            nginx.start()
            one.config.write_text(text)
        assert [seen.pid for seen in nginx.masters()] == [pid]
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_master_with_another_configuration_has_our_address(oldest: Build) -> None:
    """It is no nginx of ours: left alone, and named where nginx only says that bind failed."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        other, pid = one.folder / "other.conf", one.folder / "other.pid"
        other.write_text(one.config.read_text().replace(f"pid {one.pid_path};", f"pid {pid};"))
        argv = [*one.argv[:-1], other]
        nginx.cradle.run(argv, env={"PADDING": "x" * 99}, output=one.folder / "bare.log")
        until("workers", lambda: len([s for s in nginx.nginx() if s.is_accepting]) == 2)
        (master,) = nginx.masters()
        one.pid_path.write_text(f"{master.pid}\n")
        with Load(one.plan(**LIGHT)) as load:
            assert nginx.cradle.wait(nginx.launch()) == 1
            assert load.stop().failures == 0
        held = rf"127.0.0.1:{one.port} is held by process {master.pid} \(nginx"
        assert re.search(held, nginx.log_text()), nginx.log_text()
        assert "pid_file.foreign" in nginx.log_text()
        assert [seen.pid for seen in nginx.masters()] == [master.pid]
        for seen in nginx.nginx():
            kill(seen.pid, signal.SIGKILL)
        until("its end", lambda: nginx.nginx() == [])


# --- a supervisor that dies in the middle ----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """When the supervisor dies: the candidate and the arguments that make the phase last."""

    phase: str
    kind: str = "good"
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.phase


SHORT = {"rollback_quit_timeout": "1s", "rollback_term_timeout": "500ms"}


@contextmanager
def upgrading(build: Build, death: Death, binary: Path) -> Iterator[tuple[Supervised, Load]]:
    """An upgrade under load; its phase has begun."""
    with (
        site.make(build) as one,
        supervised.running(one, {"upgrade": dict(death.settings)}) as nginx,
        Load(one.plan(**LIGHT)) as load,
    ):
        client = nginx.begin("upgrade", binary, *death.arguments)
        nginx.until_phase(death.phase)
        try:
            yield nginx, load
        finally:
            client.kill()
            client.communicate()


def assert_ended_well(
    nginx: Supervised, load: Load, build: Build, binary: Path, verdict: tuple[str, str]
) -> None:
    """One verdict, nothing lost, right files; and the supervisor is good for another upgrade."""
    nginx.until_state("running")
    told = nginx.history()
    assert [(one["verdict"], one["reason"]) for one in told] == [verdict], told
    checks.assert_settled(nginx, build, sha256(binary))
    other = candidate(build, "good")
    answer = nginx.ctl("upgrade", other)
    assert answer.code == 0, answer
    nginx.until_state("running")
    report = load.stop()
    assert report.failures == 0, report
    checks.assert_settled(nginx, build, sha256(other))
    assert len(nginx.history()) == 2


ROLLED_BACK = ("rolled_back", "supervisor_died")


def test_a_death_while_the_candidate_hangs_in_its_start(oldest: Build, newest: Build) -> None:
    death = Death(phase="spawning", kind="hang", settings=SHORT)
    with upgrading(oldest, death, candidate(newest, death.kind)) as (nginx, load):
        until("USR2", nginx.site.oldbin_path.exists)
        nginx.die()
        nginx.start()
        assert_ended_well(nginx, load, oldest, oldest.path, ROLLED_BACK)


@pytest.mark.parametrize("awake", ["before", "after"])
def test_a_death_while_winch_is_on_its_way(oldest: Build, newest: Build, awake: str) -> None:
    death = Death(phase="canary", arguments=("--canary", "3s"))
    with upgrading(oldest, death, newest.path) as (nginx, load):
        old = nginx.masters()[0].pid
        os.kill(old, signal.SIGSTOP)
        try:
            nginx.until_phase("shifting")
            nginx.die()
            if awake == "after":
                nginx.start()
        finally:
            os.kill(old, signal.SIGCONT)
        if awake == "before":
            nginx.start()
        assert_ended_well(nginx, load, oldest, oldest.path, ROLLED_BACK)


def decide_to_commit(nginx: Supervised) -> None:
    """What the supervisor writes when it begins to commit; it dies before its next step.

    The phase takes a few milliseconds, too few to be hit from outside.
    """
    journal = nginx.site.folder / "state" / "journal.jsonl"
    decoded = decode_line(journal.read_bytes().splitlines()[-1])
    assert not isinstance(decoded, str), decoded
    number, record = decoded
    with journal.open("ab") as file:
        file.write(encode_line(number + 1, {**record, "phase": "committing"}))


def test_what_a_dead_supervisor_committed_is_good_for_a_cold_start(
    oldest: Build, newest: Build
) -> None:
    death = Death(phase="held", arguments=("--hold",))
    with upgrading(oldest, death, newest.path) as (nginx, load):
        old = nginx.masters()[0].pid
        nginx.die()
        decide_to_commit(nginx)
        os.kill(old, signal.SIGQUIT)
        nginx.start()
        nginx.until_state("running")
        load.stop()
        for one in nginx.nginx():
            kill(one.pid, signal.SIGKILL)
        until("a restart", lambda: nginx.look()["restarts"] == 1, poll=0.05)
        checks.assert_settled(nginx, newest, sha256(newest.path))
        by_sha = {one["sha256"]: one for one in nginx.ctl("versions").lines}
        assert by_sha[sha256(newest.path)]["good"] is True
        assert nginx.ctl("rollback").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_death_in_the_drain(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        Load(one.plan(**LIGHT)) as load,
    ):
        with unfinished.request(one.port) as begun:
            assert nginx.ctl("upgrade", newest.path).code == 0
            assert nginx.status()["state"] == "draining"
            nginx.die()
            nginx.start()
            assert nginx.status()["state"] == "draining"
            assert " 200 " in begun.finish()
        assert_ended_well(nginx, load, newest, newest.path, ("committed", "healthy"))


@pytest.mark.parametrize("phase", ["canary", "held"])
def test_a_death_in_the_rollback(oldest: Build, newest: Build, phase: str) -> None:
    arguments = {"canary": ("--canary", "60s"), "held": ("--hold",)}[phase]
    death = Death(phase=phase, arguments=arguments, settings=SHORT)
    # It does not leave when told to, so that the rollback takes a while.
    with upgrading(oldest, death, candidate(newest, "deaf_master")) as (nginx, load):
        back = nginx.begin("rollback")
        nginx.until_phase("rolling_back")
        nginx.die()
        assert nginx.end(back).code == 6
        nginx.start()
        nginx.until_state("running")
        (verdict,) = nginx.history()
        assert_ended_well(nginx, load, oldest, oldest.path, ("rolled_back", verdict["reason"]))


def test_a_death_with_the_old_master(oldest: Build, newest: Build) -> None:
    """Both die at once: only a candidate that nobody has judged is left."""
    death = Death(phase="held", arguments=("--hold",))
    with upgrading(oldest, death, newest.path) as (nginx, load):
        old = nginx.masters()[0].pid
        nginx.die()
        kill(old, signal.SIGKILL)
        nginx.start()
        assert_ended_well(nginx, load, oldest, oldest.path, ROLLED_BACK)
