"""The supervisor replaces itself: nginx, its clients and whoever waits for a verdict go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import supervisor
from supervisor.edges import procfs
from tests.e2e.harness import checks, processes, site, supervised, victims
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import write
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import COMMANDS, Supervised
from tools.load import Load
from tools.load_client import Connection
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 1, "idle": 1, "slow": 0, "timeout": 20.0}
DRAINING = {"new": 0, "keepalive": 0, "idle": 0, "slow_seconds": 120.0}


def logged(nginx: Supervised, event: str) -> list[dict[str, Any]]:
    return [line for line in nginx.log() if line["event"] == event]


def until_logged(nginx: Supervised, event: str, count: int = 1) -> None:
    until(f"{count} times {event}", lambda: len(logged(nginx, event)) >= count, poll=0.01)


def pids(nginx: Supervised) -> list[int]:
    return sorted(one.pid for one in nginx.nginx())


def a_copy_of_the_program(nginx: Supervised, one: Site) -> Path:
    """Have the supervisor run from a copy of the package, which can be made another version."""
    package = one.folder / "lib" / "supervisor"
    shutil.copytree(Path(supervisor.__file__).parent, package)
    nginx.program = [sys.executable, "-P", "-m", "supervisor.daemon"]
    nginx.environment["PYTHONPATH"] = str(package.parent)
    return package


def follow_events(nginx: Supervised, into: Path) -> subprocess.Popen[bytes]:
    with into.open("wb") as output:
        return subprocess.Popen(
            [COMMANDS / "nginxctl", "--socket", nginx.socket, "--json", "events", "--follow"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def test_under_load_with_clients(oldest: Build, newest: Build) -> None:
    """Twice in a row; then everything works as before, and a master's exit status is known."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        followed = one.folder / "events.log"
        follower = follow_events(nginx, followed)
        try:
            until("the stream", lambda: b"supervisor.started" in followed.read_bytes())
            before, opened = pids(nginx), victims.fewest_open_files(nginx.pid)
            status = nginx.status()
            with Load(one.plan(**LIGHT)) as load:
                for count in (1, 2):
                    asked = nginx.begin("self-upgrade")
                    until_logged(nginx, "supervisor.restarting", count)
                    assert nginx.look()["supervisor_pid"] == nginx.pid  # it waits in the backlog
                    answer = nginx.end(asked)
                    assert (answer.code, answer.reason) == (0, "self_upgraded"), answer
                    told = [line["event"] for line in answer.lines]
                    assert told == ["accepted", "supervisor_restarting", "verdict"]
                report = load.stop()
            assert report.failures == 0, report
            assert pids(nginx) == before
            # Probes come and go, and so do the connections of nginxctl.
            victims.assert_nothing_leaked(nginx, opened)
            assert not opened - victims.open_files(nginx.pid), "something was lost"
            after = nginx.status()
            assert after["supervisor_started"] == status["supervisor_started"]
            assert status["supervisor_replaced"] is None
            assert after["supervisor_replaced"] > after["supervisor_started"]
            assert after["restarts"] == 0

            assert nginx.ctl("upgrade", newest.path).code == 0
            nginx.until_state("running")
            assert nginx.ctl("rollback").code == 0
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            until("all events", lambda: followed.read_bytes().count(b'"upgrade.verdict"') == 2)
        finally:
            follower.kill()
            follower.wait()
        events = [json.loads(line)["event"] for line in followed.read_text().splitlines()]
        assert events.count("supervisor.started") == 1
        assert events.count("supervisor.restarting") == events.count("supervisor.replaced") == 2
        assert nginx.ctl("events").lines[0]["event"] == "supervisor.started"

        os.kill(nginx.masters()[0].pid, signal.SIGKILL)
        until_logged(nginx, "supervisor.incident")
        assert "ended by signal 9" in logged(nginx, "supervisor.incident")[0]["detail"]
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_in_the_midst_of_a_held_upgrade(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(**LIGHT)) as load:
            upgrade = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            refused = nginx.ctl("self-upgrade")
            assert (refused.code, refused.reason) == (3, "upgrade_held"), refused
            assert "--now" in refused.errors

            spent = nginx.status()["upgrade"]["phase_elapsed_s"]
            answer = nginx.ctl("self-upgrade", "--now")
            assert answer.code == 0, answer
            assert "goes on in held" in answer.last["detail"]
            held = nginx.status()["upgrade"]
            assert held["phase"] == "held"
            assert held["phase_elapsed_s"] > spent

            promoted = nginx.ctl("promote")
            waited = nginx.end(upgrade)
            report = load.stop()
        assert report.failures == 0, report
        for answer in (promoted, waited):
            assert (answer.code, answer.last["verdict"]) == (0, "committed"), answer
        assert "supervisor_restarting" in [line["event"] for line in waited.lines]
        (verdict,) = nginx.history()
        assert verdict["upgrade_id"] == held["id"]
        assert verdict["judged"] is True
        assert set(verdict["phases"]) >= {"preflight", "canary", "soaking", "held", "committing"}
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("rollback").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_in_the_midst_of_canary_and_soak(oldest: Build, newest: Build) -> None:
    """The candidate is watched as before, and the windows are as long as they were to be."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--canary", "300s")
        nginx.until_phase("canary")
        before = nginx.status()["upgrade"]
        answer = nginx.ctl("self-upgrade", "--now")
        assert answer.code == 0, answer
        assert "goes on in canary" in answer.last["detail"]
        after = nginx.status()["upgrade"]
        assert (after["id"], after["phase"]) == (before["id"], "canary")
        assert after["phase_elapsed_s"] > before["phase_elapsed_s"]
        os.kill(nginx.masters()[-1].pid, signal.SIGKILL)
        rolled_back = nginx.end(upgrade)
        assert (rolled_back.code, rolled_back.reason) == (4, "candidate_exited"), rolled_back
        assert rolled_back.last["judged"] is True
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))

        upgrade = nginx.begin("upgrade", newest.path, "--soak", "3s")
        nginx.until_phase("soaking")
        assert nginx.ctl("self-upgrade", "--now").code == 0
        committed = nginx.end(upgrade)
        assert committed.code == 0, committed
        assert committed.last["phases"]["soaking"] >= 3.0
        assert len(nginx.history()) == 2
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_an_upgrade_finishes_first(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--soak", "300s")
        nginx.until_phase("soaking")
        asked = nginx.begin("self-upgrade")
        until_logged(nginx, "supervisor.replacement_waits")
        again = nginx.ctl("self-upgrade")
        assert (again.code, again.reason) == (3, "self_upgrade_in_progress"), again
        assert nginx.ctl("promote").code == 0
        answer = nginx.end(asked)
        assert answer.code == 0, answer
        assert "waiting" in [line["event"] for line in answer.lines]
        assert nginx.end(upgrade).code == 0
        events = [line["event"] for line in nginx.log()]
        assert events.index("upgrade.verdict") < events.index("supervisor.restarting")
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_new_version_that_is_broken_or_cannot_go_on(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx:
        package = a_copy_of_the_program(nginx, one)
        nginx.start()
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        before = pids(nginx)

        engine = (package / "engine.py").read_text()
        (package / "engine.py").write_text("def broken(:\n")
        refused = nginx.ctl("self-upgrade", "--now")
        assert (refused.code, refused.reason) == (3, "self_check_failed"), refused
        assert "SyntaxError" in refused.errors
        os.kill(nginx.pid, signal.SIGUSR2)
        until_logged(nginx, "supervisor.not_replaced", 2)
        assert nginx.in_phase("held")
        assert pids(nginx) == before
        assert logged(nginx, "supervisor.restarting") == []
        (package / "engine.py").write_text(engine)

        other = (package / "edges/handover.py").read_text().replace("FORMAT = 1", "FORMAT = 2")
        (package / "edges/handover.py").write_text(other)
        with Load(one.plan(**LIGHT)) as load:
            lost = nginx.ctl("self-upgrade", "--now")
            assert lost.code == 6, lost
            assert nginx.end(upgrade).code == 6
            until("a verdict", lambda: len(nginx.history()) == 1, poll=0.05)
            report = load.stop()
        assert report.failures == 0, report
        (verdict,) = nginx.history()
        assert (verdict["verdict"], verdict["reason"]) == ("rolled_back", "supervisor_died")
        assert "format 1, and this supervisor knows 2" in verdict["detail"]
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        assert processes.look(nginx.pid) is not None


def test_a_new_version_that_dies_at_once(oldest: Build) -> None:
    """As any death of a supervisor: nginx serves on, and the next one adopts it."""
    with site.make(oldest) as one, supervised.on(one) as nginx:
        package = a_copy_of_the_program(nginx, one)
        nginx.start()
        before = pids(nginx)
        working = (package / "inheritance.py").read_text()
        broken = working.replace("def take_over(", "def took_over(").replace(
            "def register(", "def take_over(*_):\n    raise RuntimeError\n\n\ndef register("
        )
        (package / "inheritance.py").write_text(broken)
        with Load(one.plan(**LIGHT)) as load:
            lost = nginx.ctl("self-upgrade")
            assert lost.code == 6, lost
            assert "the supervisor is gone" in lost.errors
            assert nginx.cradle.wait(nginx.pid) == 1
            (package / "inheritance.py").write_text(working)
            nginx.start()
            report = load.stop()
        assert report.failures == 0, report
        assert pids(nginx) == before
        assert logged(nginx, "generation.adopted") != []


def test_settings_that_changed_meanwhile(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        settings = dict(nginx.settings)
        elsewhere = {**settings, "state": {"directory": str(one.folder / "elsewhere")}}
        write(nginx.toml, elsewhere)
        refused = nginx.ctl("self-upgrade")
        assert (refused.code, refused.reason) == (3, "settings_fixed"), refused
        assert "[state]" in refused.errors

        moved = one.folder / "moved.sock"
        write(nginx.toml, {**settings, "control": {"socket": str(moved)}})
        answer = nginx.ctl("self-upgrade")  # on the connection that it has
        assert answer.code == 0, answer
        assert not nginx.socket.exists()
        assert nginx.ctl("status", "--socket", moved).last["supervisor_pid"] == nginx.pid


def test_signals_that_come_in_between(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        before = pids(nginx)
        os.kill(nginx.pid, signal.SIGUSR2)
        until_logged(nginx, "supervisor.restarting")
        for number in (signal.SIGHUP, signal.SIGUSR1):
            os.kill(nginx.pid, number)
        until_logged(nginx, "supervisor.replaced")
        until("the reopening", lambda: "reopening logs" in one.log_text())
        assert pids(nginx) == before
        said = nginx.said
        assert "READY=1" in said[said.index("RELOADING=1") :]

        os.kill(nginx.pid, signal.SIGUSR2)
        until_logged(nginx, "supervisor.restarting", 2)
        assert nginx.stop() == 0
        assert nginx.nginx() == []


def test_a_drain_and_a_stop_are_carried_over(oldest: Build, newest: Build) -> None:
    """And so is nginx's output: what is written before, meanwhile and after is told once."""
    options = Options(access_log="/dev/stdout")
    with site.make(oldest, options) as one, supervised.running(one) as nginx:
        ask(one, "/?before")
        with Load(one.plan(**DRAINING)) as load:
            assert nginx.ctl("upgrade", newest.path).code == 0
            nginx.until_state("draining")
            until("some of its time is over", lambda: drain_left(nginx) <= 28)
            asked = nginx.begin("self-upgrade")
            until_logged(nginx, "supervisor.restarting")
            ask(one, "/?meanwhile")
            assert nginx.end(asked).code == 0
            status = nginx.status()
            assert status["state"] == "draining", status
            assert [each["role"] for each in status["generations"]] == ["active", "retiring"]
            assert drain_left(nginx) <= 28, "it does not begin anew"
            ask(one, "/?after")
            assert nginx.ctl("drain", "--now").code == 0
            nginx.until_state("running")
            load.stop()
        checks.assert_settled(nginx, newest, sha256(newest.path))
        for word in ("before", "meanwhile", "after"):
            until(f"the line of {word}", lambda word=word: lines_of(nginx, word) == 1)  # type: ignore[misc]

        assert nginx.ctl("stop").code == 0
        answer = nginx.ctl("self-upgrade")
        assert answer.code == 0, answer
        assert nginx.status()["state"] == "stopped"
        assert nginx.nginx() == []
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def ask(one: Site, path: str) -> None:
    connection = Connection(one.plan())
    try:
        connection.get(path, keep=False)
    finally:
        connection.close()


def lines_of(nginx: Supervised, word: str) -> int:
    """On the supervisor's own standard output, which is in the same file here."""
    return sum(f'"GET /?{word} ' in line for line in nginx.log_text().splitlines())


def drain_left(nginx: Supervised) -> int:
    detail: str = nginx.status()["detail"]
    return int(detail.split("end in ")[1].split()[0])


def test_commands_of_probes_are_ended_and_inherit_no_mask(oldest: Build) -> None:
    with site.make(oldest) as one:
        seen = one.folder / "mask"
        probe = {
            "name": "masks", "type": "exec", "interval": "50ms", "timeout": "30s", "user": "root",
            "command": ["/bin/sh", "-c", f"grep SigBlk /proc/self/status >> {seen}; sleep 20"],
        }  # fmt: skip
        with supervised.on(one, {"probe": [probe]}) as nginx:
            # As a container's entry point does.
            nginx.program = ["/bin/sh", "-c", 'sleep 600 & exec "$@"', "sh", *nginx.program]
            nginx.start()
            until("the command", lambda: seen.exists() and seen.read_text().count("\n") == 1)
            command = [each.pid for each in nginx.cradle.living() if "grep SigBlk" in each.title]
            (beside,) = [each.pid for each in nginx.cradle.living() if each.title == "sleep 600"]
            assert nginx.ctl("self-upgrade").code == 0
            until("another command", lambda: seen.read_text().count("\n") == 2)
            assert set(seen.read_text().split()) == {"SigBlk:", "0" * 16}
            until("its end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in command))
            stat = procfs.read_stat(beside)
            assert stat is not None
            assert stat.alive, "it is none of the supervisor's"
            os.kill(beside, signal.SIGKILL)
