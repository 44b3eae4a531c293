"""The control socket of the real thing: clients that misbehave, and what people read at night."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from supervisor import wire
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import COMMANDS, Supervised
from tests.foreign import varlink_python
from tools.load import Load
from tools.nginx_cache import Build

LONG = ("--canary", "60s")
PATIENT = {"restart": {"backoff_initial": "10m", "backoff_max": "10m"}}
STUCK = {"new": 0, "keepalive": 0, "idle": 0, "slow_seconds": 60}


@contextmanager
def supervising(build: Build, **settings: Any) -> Iterator[Supervised]:
    with site.make(build) as one, supervised.running(one, settings) as nginx:
        yield nginx


def spoken(nginx: Supervised, *words: str) -> subprocess.CompletedProcess[str]:
    """Run nginxctl as a person does, without --json."""
    command = [COMMANDS / "nginxctl", "--socket", nginx.socket, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# --- clients ---------------------------------------------------------------------------------


def test_hundreds_of_bad_messages_in_the_middle_of_an_upgrade(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--canary", "1s")
        nginx.until_begun("canary")
        for number in range(400):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(nginx.socket))
                stream.sendall(b'{"method":5}\0' if number % 2 else os.urandom(200) + b"\0")
                if number % 3:
                    assert b"BadMessage" in stream.recv(4096)
        answer = nginx.end(upgrade)
        assert answer.code == 0, answer
        assert nginx.cradle.status(nginx.pid) is None, "the supervisor is gone"
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_seventy_followers_keep_nobody_out(oldest: Build) -> None:
    call = wire.encode_call(f"{wire.INTERFACE}.Events", {"follow": True}, more=True)
    with supervising(oldest) as nginx, ExitStack() as opened:
        followers = []
        for _ in range(70):
            stream = opened.enter_context(socket.socket(socket.AF_UNIX))
            stream.settimeout(60)
            stream.connect(str(nginx.socket))
            stream.sendall(call)
            assert stream.recv(10)
            followers.append(stream)
        for _ in range(3):
            assert nginx.status()["state"] == "running"
        received = b""
        while data := followers[0].recv(1 << 16):
            received += data
        assert b"Busy" in received, "the oldest is told why it is dropped"


VARLINK = """
import json, sys, varlink
address, binary = sys.argv[1:]
with varlink.Client.new_with_address(f"unix:{address}") as client:
    with client.open("org.nginxsupervisor.Control") as control:
        told = {
            "status": control.Status(),
            "upgrade": [one["progress"] for one in control.Upgrade(binary, _more=True)],
            "refused": control.Rollback(to="9.9.9")["progress"],
            "history": control.History()["entries"],
        }
        try:
            control.Upgrade(binary=binary, canary_s=1e300)
        except varlink.VarlinkError as error:
            told["error"] = [error.error(), error.parameters()]
        print(json.dumps(told))
"""


def test_the_varlink_package_runs_an_upgrade(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        command = [varlink_python(), "-W", "ignore", "-c", VARLINK, nginx.socket, newest.path]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        assert told["status"]["state"] == "running"
        assert told["status"]["generations"][0]["version"] == oldest.version
        phases = [one.get("phase", one["event"]) for one in told["upgrade"]]
        assert [phase for phase in phases if phase != "observation"] == [
            "accepted", "preflight", "spawning", "canary", "shifting", "soaking", "committing",
            "verdict",
        ]  # fmt: skip
        verdict = told["upgrade"][-1]
        assert (verdict["verdict"], verdict["reason"]) == ("committed", "healthy")
        assert (verdict["from_version"], verdict["to_version"]) == (oldest.version, newest.version)
        assert verdict["elapsed_s"] == pytest.approx(sum(verdict["phases"].values()))
        assert told["refused"]["verdict"] == "refused"
        assert [one["verdict"] for one in told["history"]] == ["committed", "refused"]
        assert told["error"] == ["org.varlink.service.InvalidParameter", {"parameter": "canary_s"}]
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- what people read ------------------------------------------------------------------------


def test_a_reload_that_changes_nothing_is_refused(oldest: Build) -> None:
    with supervising(oldest) as nginx:
        nginx.site.config.write_text("broken")
        bad = nginx.ctl("reload")
        assert (bad.code, bad.reason) == (3, "config_rejected"), bad
        assert bad.last["verdict"] == "refused"
        for key in ("upgrade_id", "from_version", "to_version", "judged"):
            assert bad.last[key] is None
        assert bad.last["phases"] == {}
        assert "nothing was changed" in spoken(nginx, "reload").stderr


@pytest.fixture
def down(oldest: Build) -> Iterator[Supervised]:
    """A supervisor whose nginx has died and does not start again for minutes."""
    with supervising(oldest, **PATIENT) as nginx:
        good = nginx.site.config.read_text()
        nginx.site.config.write_text("broken")
        for each in nginx.nginx():
            kill(each.pid, signal.SIGKILL)
        nginx.until_state("backoff")
        yield nginx
        nginx.site.config.write_text(good)
        assert nginx.ctl("start").code == 0


def test_while_nginx_is_down(down: Supervised, newest: Build) -> None:
    """Why, and when it is tried next: in status, in what is refused, and in a start that fails."""
    state = spoken(down, "status").stdout.splitlines()[0]
    assert state.startswith("state      backoff  (config_rejected: ")
    assert "broken" in state or "unexpected end of file" in state
    assert re.search(r"nginx is started again in [1-9][0-9]*\.[0-9] s", state)
    for words in (("upgrade", str(newest.path)), ("reload",), ("rollback",)):
        refused = down.ctl(*words)
        assert (refused.code, refused.reason) == (3, "not_running"), refused
        assert "nginx is down (config_rejected: " in refused.last["detail"]
        assert "nginxctl start does that now (else in " in refused.last["detail"]
    reopen = down.ctl("reopen")
    assert (reopen.code, reopen.reason) == (3, "not_running"), reopen
    failed = spoken(down, "start")
    assert failed.returncode == 1
    assert "the supervisor tries again in 600 s" in failed.stderr
    assert "`nginxctl status` tells whether" in failed.stderr
    assert down.status()["last_verdict"] is None, "what was refused at once is no verdict"


def test_while_an_upgrade_is_held(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        for words, reason in (
            (("upgrade",), "upgrade_in_progress"),
            (("restart",), "upgrade_in_progress"),
            (("reload",), "upgrade_held"),
            (("drain", "--now"), "nothing_draining"),
            (("start",), "already_running"),
        ):
            refused = nginx.ctl(*words)
            assert (refused.code, refused.reason) == (3, reason), refused
            assert "is held until someone decides" in refused.last["detail"]
            if reason != "already_running":
                assert "nginxctl promote" in refused.last["detail"]
        assert nginx.ctl("promote").code == 0
        verdict = nginx.end(upgrade).last
        nginx.until_state("running")
        assert nginx.ctl("start").last["detail"] == "cannot start: nginx runs already"
        assert nginx.ctl("rollback", "--to", "9.9.9").code == 3
        seen = nginx.ctl("status").last["last_verdict"]
        assert seen["reason"] == "version_unknown", "a refusal by the preflight counts"
        # What the supervisor finds on record when it starts is the same.
        nginx.die()
        nginx.start()
        assert nginx.status()["last_verdict"]["upgrade_id"] == seen["upgrade_id"]
        assert verdict["upgrade_id"] == nginx.history()[-2]["upgrade_id"]


def test_a_refusal_at_once_does_not_hide_the_last_verdict(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx, Load(nginx.site.plan(**STUCK)):
        done = nginx.ctl("upgrade", newest.path).last
        assert nginx.ctl("upgrade").reason == "previous_generation_draining"
        assert nginx.status()["last_verdict"]["upgrade_id"] == done["upgrade_id"]
        nginx.die()
        nginx.start()
        assert nginx.status()["last_verdict"]["upgrade_id"] == done["upgrade_id"]
        assert nginx.ctl("drain", "--now").code == 0


def test_degraded_when_nobody_accepts_while_the_old_generation_drains(
    oldest: Build, newest: Build
) -> None:
    with supervising(oldest) as nginx, Load(nginx.site.plan(**STUCK)):
        assert nginx.ctl("upgrade", newest.path).code == 0
        assert nginx.status()["state"] == "draining"
        new = nginx.masters()[-1]
        text = nginx.site.config.read_text()
        nginx.site.config.write_text("broken")  # else the supervisor mends it at once
        os.kill(new.pid, signal.SIGWINCH)  # somebody else does that
        status = nginx.until_state("degraded")
        assert status["reason"] == "no_workers"
        nginx.site.config.write_text(text)
        assert nginx.ctl("reload").code == 0
        nginx.until_state("draining")
        assert nginx.ctl("drain", "--now").code == 0


def test_a_supervisor_that_is_killed_under_a_client(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, *LONG)
        nginx.until_phase("canary")
        nginx.die()
        answer = nginx.end(upgrade)
        assert answer.code == 6, answer
        assert "the next supervisor finishes it or rolls it back" in answer.errors
        nginx.start()
        assert nginx.history()[-1]["reason"] == "supervisor_died"


def test_the_phases_of_a_stored_verdict_are_shown_as_they_came(
    oldest: Build, newest: Build
) -> None:
    with supervising(oldest) as nginx:
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.die()
        nginx.start()
        shown = spoken(nginx, "history", "--detail").stdout
        order = [shown.index(f"{phase} ") for phase in (
            "preflight", "spawning", "canary", "shifting", "soaking", "committing"
        )]  # fmt: skip
        assert order == sorted(order)
