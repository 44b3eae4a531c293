"""The service manager is told, or nobody is; neither may fail."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.edges.notify import VARIABLE, Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0"))
        bound.settimeout(10)
        yield bound, name


def test_the_words_that_are_sent(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    notifier = Notifier(name)
    notifier.ready("serving\n1.22.1")
    assert bound.recv(4096) == b"READY=1\nSTATUS=serving 1.22.1"
    notifier.status("upgrading: \udcff")
    assert bound.recv(4096) == b"STATUS=upgrading: ?"
    notifier.reloading()
    word, _, clock = bound.recv(4096).partition(b"\n")
    assert word == b"RELOADING=1"
    assert clock.startswith(b"MONOTONIC_USEC=")
    assert clock[15:].isdigit()
    notifier.stopping()
    assert bound.recv(4096) == b"STOPPING=1"


def test_the_variable_is_used_and_removed(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    environ = {VARIABLE: name, "OTHER": "x"}
    Notifier.from_environment(environ).stopping()
    assert bound.recv(4096) == b"STOPPING=1"
    assert environ == {"OTHER": "x"}


def test_a_full_socket_drops_a_status(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    notifier = Notifier(name)
    for _ in range(2000):
        notifier.status("x")
    bound.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while bound.recv(4096):
            received += 1
    assert 0 < received < 2000


@pytest.mark.parametrize("address", [None, "", "@", "/", "relative", "/nowhere/at/all", "/" * 200])
def test_nobody_listens(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready("x")
    notifier.status("x")
    notifier.reloading()
    notifier.stopping()


def test_without_the_variable_nothing_happens() -> None:
    Notifier.from_environment({}).ready("x")
