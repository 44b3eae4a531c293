"""A group that may use nginxctl: no polkit and no sudo, by what the kernel tells of the caller."""

from __future__ import annotations

import subprocess

from tests.booted import site
from tests.booted.box import Box
from tests.e2e.harness.bare import until

CONTROL = """\
[control]
mode = "0660"
group = "deploy"
viewers = ["user:watcher"]
operators = ["group:deploy"]
"""


def as_user(box: Box, user: str, command: str) -> subprocess.CompletedProcess[str]:
    """In a login of the user's, with the groups that it has by now."""
    return box.run("su", "-", user, "-c", command, check=False)


def test_a_group_may_operate(bookworm: Box) -> None:
    bookworm.run("groupadd", "deploy")
    for user in ("alice", "watcher", "stranger"):
        bookworm.run("useradd", "--create-home", "--shell", "/bin/sh", user)
    site.configure(bookworm)
    site.start(bookworm)
    refused = as_user(bookworm, "alice", "nginxctl status")
    assert (refused.returncode, "control.sock" in refused.stderr) == (5, True)
    bookworm.run("usermod", "-aG", "deploy", "alice")
    bookworm.run("usermod", "-aG", "deploy", "watcher")
    site.configure(bookworm, settings=CONTROL)
    bookworm.run("systemctl", "reload", site.UNIT)
    look = ("stat", "-c", "%G %a", "/run/nginx-supervisor/control.sock")
    until("the socket is the group's", lambda: bookworm.run(*look).stdout == "deploy 660\n")
    for command in ("status", "reload", "check", "upgrade --dry-run"):
        done = as_user(bookworm, "alice", f"nginxctl {command}")
        assert done.returncode in (0, 3), done  # 3: what it would do is nothing
    for command in ("stop", "upgrade /usr/sbin/nginx"):
        done = as_user(bookworm, "alice", f"nginxctl {command}")
        assert (done.returncode, "it takes the role admin" in done.stderr) == (5, True), done
    # The highest of a user's roles counts.
    assert as_user(bookworm, "watcher", "nginxctl reload").returncode == 0
    assert as_user(bookworm, "stranger", "nginxctl status").returncode == 5
    assert "control.denied" in bookworm.journal("-u", site.UNIT)
