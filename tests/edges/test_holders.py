"""Who has an address that nginx could not bind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from supervisor.core.nginx_listen import Listen, parse_listen
from supervisor.edges import cgroup, holders, procfs, sockets
from supervisor.edges.holders import Holder, who_holds

LISTENS = """\
import os, socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in sockets), flush=True)
child = os.fork()
print(os.getpid() if child else "", end="\\n" if child else "", flush=True)
sys.stdin.read()
"""


def listen(port: int, host: str = "127.0.0.1") -> Listen:
    (one,) = parse_listen((f"{host}:{port}",), section="http", file="f")
    return one


@contextmanager
def family() -> Iterator[tuple[int, list[int]]]:
    """A process and its child, which share two listening sockets: its pid, and their ports."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ports = [int(one) for one in process.stdout.readline().split()]
        yield process.pid, ports
        process.communicate("")


def test_the_one_who_began_is_named_once_for_all_its_addresses() -> None:
    with family() as (pid, ports):
        said = who_holds([listen(port) for port in ports])
    first, second = ports
    assert said.startswith(f"127.0.0.1:{first} and 127.0.0.1:{second} are held by process {pid} (")
    assert said.count("held by") == 1


def test_each_holder_is_named() -> None:
    mine = socket.create_server(("127.0.0.1", 0))
    with closing(mine), family() as (pid, ports):
        own = mine.getsockname()[1]
        said = who_holds([listen(ports[0]), listen(own, host="0.0.0.0")])
    assert f"127.0.0.1:{ports[0]} is held by process {pid} " in said
    assert f"0.0.0.0:{own} is held by process {os.getpid()} " in said


def test_what_is_free_by_now_is_not_named() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert who_holds([listen(port)]) == ""


def test_a_holder_that_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "everyones_listeners", list)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        said = who_holds([listen(server.getsockname()[1])])
    assert said.endswith(f"is held by {holders.UNSEEN}: stop that first")


def test_an_nginx_tells_by_its_title_how_it_can_be_supervised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    title = "nginx: master process /usr/sbin/nginx -c /etc/" + "x" * 200
    monkeypatch.setattr(procfs, "is_master", lambda _pid: True)
    monkeypatch.setattr(procfs, "title", lambda _pid: title.encode())
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        said = who_holds([listen(server.getsockname()[1])])
    assert f'it is "{title[:120]}..."' in said
    assert "[nginx] has to name its binary and configuration" in said


@pytest.mark.parametrize(
    ("unit", "beside", "shown", "remedy"),
    [
        (
            "apache2.service",
            False,
            "(apache2 of apache2.service)",
            "systemctl stop apache2.service",
        ),
        ("apache2.service", True, "(apache2 of apache2.service)", "kill 12"),
        ("session-3.scope", False, "(apache2 of session-3.scope)", "kill 12"),
        ("", False, "(apache2)", "kill 12"),
    ],
)
def test_what_to_do(unit: str, shown: str, remedy: str, *, beside: bool) -> None:
    holder = Holder(pid=12, program="apache2", unit=unit, title="", is_beside_us=beside)
    assert str(holder) == f"process 12 {shown}"
    assert holder.remedy == f"stop that first (`{remedy}`)"


@pytest.mark.parametrize(
    ("lines", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("3:cpu:/system.slice/b.service\n0::/\n", ""),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/c.service/below\n", "c.service"),
        ("0::/machine.slice/box.scope/payload\n", "box.scope"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(tmp_path: Path, lines: str, unit: str) -> None:
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "cgroup").write_text(lines)
    assert cgroup.unit_of(77, tmp_path) == unit
    assert cgroup.unit_of(78, tmp_path) == ""
