"""Roles of real users on a real supervisor: nginxctl as they run it, and what SIGHUP changes."""

from __future__ import annotations

import grp
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import write
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools.nginx_cache import Build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

MONITOR, DEPLOYER, ALICE, STRANGER = 12001, 12002, 12003, 12004
DEPLOY = 12100  # a group that no name is needed for

AS_SOMEBODY = """
import json, os, sys
# The interpreter may lie in a home that nobody else may enter: all is imported while it may be.
import argparse, difflib, encodings.idna, encodings.latin_1, importlib.metadata
from supervisor.cli import arguments, commands, connection, main, output, render
uid, *groups = json.loads(sys.argv.pop(1))
os.setgroups(groups)
os.setgid(uid)
os.setuid(uid)
sys.exit(main(sys.argv[1:]))
"""


def as_somebody(nginx: Supervised, ids: list[int], *words: str) -> Answer:
    """nginxctl --json, run by this uid (its gid is the same) with these supplementary groups."""
    ended = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY, json.dumps(ids), "--socket", nginx.socket, "--json",
         *words],
        capture_output=True, text=True, timeout=60, check=False,
        env={name: value for name, value in os.environ.items() if "COVERAGE" not in name},
    )  # fmt: skip
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return Answer(ended.returncode, lines, ended.stderr)


def put(nginx: Supervised, **control: object) -> None:
    """Write other settings for [control], and have the supervisor read them."""
    before = nginx.log_text().count('"settings.')
    nginx.settings["control"] = {"socket": str(nginx.socket), **control}
    write(nginx.toml, nginx.settings)
    os.kill(nginx.pid, signal.SIGHUP)
    until("the settings are read", lambda: nginx.log_text().count('"settings.') > before)


def test_roles_by_user_and_by_supplementary_group(oldest: Build, newest: Build) -> None:
    named = next(one for one in grp.getgrall() if one.gr_gid not in (0, DEPLOY))
    control = {
        "mode": "0666",
        "viewers": [f"user:{MONITOR}", "group:no-such-group-here"],
        "operators": [f"group:{DEPLOY}"],
        "admins": [f"group:{named.gr_name}"],
    }
    monitor, deployer = [MONITOR], [DEPLOYER, 7, DEPLOY]
    alice, stranger = [ALICE, named.gr_gid], [STRANGER, STRANGER]
    with site.make(oldest) as one, supervised.running(one, {"control": control}) as nginx:
        one.folder.chmod(0o755)
        for ids in (monitor, deployer, alice):
            assert as_somebody(nginx, ids, "status").code == 0
            assert as_somebody(nginx, ids, "history").code == 0
        denied = as_somebody(nginx, stranger, "status")
        assert (denied.code, denied.lines) == (5, [])
        assert f"as uid {STRANGER}: it takes the role viewer" in denied.errors
        assert "viewers in [control]" in denied.errors

        denied = as_somebody(nginx, monitor, "reload")
        assert denied.code == 5
        assert f"uid {MONITOR} (viewer): it takes the role operator" in denied.errors
        assert as_somebody(nginx, deployer, "reload").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))

        # What an operator upgrades to is what somebody with the right to has put on disk.
        denied = as_somebody(nginx, deployer, "upgrade", str(newest.path))
        assert denied.code == 5
        assert "Upgrade with `binary`" in denied.errors
        one.install(newest)
        answer = as_somebody(nginx, deployer, "upgrade")
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert as_somebody(nginx, deployer, "rollback").code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))

        denied = as_somebody(nginx, deployer, "stop")
        assert denied.code == 5
        assert "it takes the role admin" in denied.errors
        assert as_somebody(nginx, alice, "restart").code == 0
        answer = as_somebody(nginx, alice, "upgrade", str(newest.path), "--trust")
        assert answer.code == 5
        assert "for root alone" in answer.errors
        assert nginx.status()["state"] == "running"

        told = [line for line in nginx.log() if line["event"] == "control.name_unknown"]
        assert [line["name"] for line in told] == ["group:no-such-group-here"]
        called = [line for line in nginx.log() if line["event"] == "control.called"]
        assert {line["uid"] for line in called} == {DEPLOYER, ALICE}


def test_sighup_gives_and_takes_roles_and_opens_the_socket(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        one.folder.chmod(0o755)
        member = [DEPLOYER, DEPLOY]
        closed = as_somebody(nginx, member, "status")
        assert closed.code == 5
        assert "permission denied" in closed.errors
        put(nginx, mode="0660", group=str(DEPLOY), viewers=[f"group:{DEPLOY}"])
        until("a viewer is let in", lambda: as_somebody(nginx, member, "status").code == 0)
        assert as_somebody(nginx, member, "reload").code == 5
        assert as_somebody(nginx, [STRANGER], "status").code == 5
        put(nginx, mode="0660", group=str(DEPLOY), operators=[f"user:{DEPLOYER}"])
        assert as_somebody(nginx, member, "reload").code == 0
        put(nginx, mode="0660", group=str(DEPLOY), operators=["nobody in particular"])
        read = [line for line in nginx.log() if line["event"].startswith("settings.")]
        assert "neither" in read[-1]["detail"], "nothing of it is taken over"
        assert as_somebody(nginx, member, "reload").code == 0
        put(nginx)
        until("the socket is closed", lambda: nginx.socket.stat().st_mode & 0o777 == 0o600)
        assert "permission denied" in as_somebody(nginx, member, "status").errors
        assert nginx.status()["state"] == "running"
