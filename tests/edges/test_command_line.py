from __future__ import annotations

import os
import subprocess

import pytest

from supervisor.edges import command_line, procfs
from supervisor.edges.command_line import CommandLine, parse


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("nginx", CommandLine(program="nginx")),
        (
            "/usr/sbin/nginx -g daemon on; master_process on;",
            CommandLine(program="/usr/sbin/nginx", globals="daemon on; master_process on;"),
        ),
        (
            "sbin/nginx -p . -c conf/nginx.conf -e stderr",
            CommandLine(
                program="sbin/nginx", prefix=".", config="conf/nginx.conf", error_log="stderr"
            ),
        ),
        (
            "/opt/my nginx -c/etc/a b.conf -g pid /x;",
            CommandLine(program="/opt/my nginx", config="/etc/a b.conf", globals="pid /x;"),
        ),
        ("/usr/sbin/nginx -q", CommandLine(program="/usr/sbin/nginx")),
    ],
)
def test_what_a_title_tells(title: str, expected: CommandLine) -> None:
    assert parse(title, cut=False) == expected


@pytest.mark.parametrize(
    ("title", "unknown"),
    [("n -c /etc/ng", True), ("n -c /etc/nginx.conf -g da", False), ("n", True), ("n -g x", True)],
)
def test_where_a_title_may_be_cut(title: str, *, unknown: bool) -> None:
    assert parse(title, cut=True).config_is_cut is unknown
    assert not parse(title, cut=False).config_is_cut


def test_of_other_processes() -> None:
    assert command_line.of_master(os.getpid()) is None
    assert command_line.of_master(2**22 + 1) is None
    room = procfs.title_room(os.getpid())
    assert room is not None
    assert room > len(procfs.title(os.getpid()))
    assert procfs.title_room(2**22 + 1) is None


def test_relative_to_the_folder_of_the_process() -> None:
    with subprocess.Popen(["sleep", "60"], cwd="/usr") as sleeper:
        assert command_line.resolved(sleeper.pid, "sbin/nginx") == "/usr/sbin/nginx"
        assert command_line.resolved(sleeper.pid, "/bin/nginx") == "/bin/nginx"
        sleeper.kill()
    with pytest.raises(FileNotFoundError):
        command_line.resolved(2**22 + 1, "nginx")
