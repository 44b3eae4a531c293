"""The service manager is told, or nobody is; neither may fail."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.edges.notify import VARIABLE, Notifier, Watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0"))
        bound.settimeout(10)
        yield bound, name


def test_the_words_that_are_sent(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    notifier = Notifier(name, watchdog=Watchdog(seconds=3.0))
    notifier.ready("serving\n1.22.1")
    assert bound.recv(4096) == b"READY=1\nSTATUS=serving 1.22.1"
    notifier.status("upgrading: \udcff")
    assert bound.recv(4096) == b"STATUS=upgrading: ?"
    notifier.reloading()
    word, _, clock = bound.recv(4096).partition(b"\n")
    assert word == b"RELOADING=1"
    assert clock.startswith(b"MONOTONIC_USEC=")
    assert clock[15:].isdigit()
    notifier.ready("rejected", error=22)
    assert bound.recv(4096) == b"READY=1\nSTATUS=rejected\nERRNO=22"
    notifier.alive()
    assert bound.recv(4096) == b"WATCHDOG=1"
    notifier.alive(extend=2.5)
    assert bound.recv(4096) == b"WATCHDOG=1\nEXTEND_TIMEOUT_USEC=2500000"
    notifier.stopping("draining")
    assert bound.recv(4096) == b"STOPPING=1\nSTATUS=draining"
    notifier.failed(98, "address in use")
    assert bound.recv(4096) == b"ERRNO=98\nSTATUS=address in use"


def test_without_a_watchdog_no_sign_of_life_is_sent(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    notifier = Notifier(name)
    notifier.alive()
    notifier.alive(extend=1.0)
    assert bound.recv(4096) == b"EXTEND_TIMEOUT_USEC=1000000"


def test_the_variables_are_used_and_removed(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    pid = str(os.getpid())
    given = {VARIABLE: name, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": pid}
    environ = {**given, "OTHER": "x", "SYSTEMD_EXEC_PID": pid}
    notifier = Notifier.from_environment(environ)
    notifier.stopping("x")
    assert bound.recv(4096) == b"STOPPING=1\nSTATUS=x"
    assert environ == {"OTHER": "x", "SYSTEMD_EXEC_PID": pid}
    assert notifier.watchdog.seconds == 20.0
    assert notifier.environment == given
    assert notifier.listened_to
    assert not notifier.deaf


def test_a_manager_that_does_not_listen_is_known() -> None:
    own, other = str(os.getpid()), str(os.getppid())
    assert Notifier.from_environment({"SYSTEMD_EXEC_PID": own}).deaf
    assert not Notifier.from_environment({"SYSTEMD_EXEC_PID": other}).deaf  # a shell's in a unit
    assert not Notifier.from_environment({}).deaf


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "77"}, 3.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_PID": "77"}, None),
        ({}, None),
    ],
)
def test_what_the_watchdog_expects(environ: dict[str, str], seconds: float | None) -> None:
    watchdog = Watchdog.from_environment(environ, pid=77)
    assert watchdog.seconds == seconds
    assert not watchdog.problem
    assert environ == {}
    expected = {} if seconds is None else {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "77"}
    assert dict(watchdog.environment) == expected


@pytest.mark.parametrize("period", ["", "0", "-1", "1.5", "soon", "\u0663", str(2**64 - 1)])
def test_a_watchdog_period_that_is_none(period: str) -> None:
    watchdog = Watchdog.from_environment({"WATCHDOG_USEC": period}, pid=77)
    assert watchdog.seconds is None
    assert "WATCHDOG_USEC" in watchdog.problem


def test_a_watchdog_process_that_is_none() -> None:
    given = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "me"}
    watchdog = Watchdog.from_environment(given, pid=77)
    assert watchdog.seconds is None
    assert "WATCHDOG_PID" in watchdog.problem


def _drain(bound: socket.socket) -> list[bytes]:
    bound.setblocking(False)
    taken = []
    with contextlib.suppress(BlockingIOError):
        while True:
            taken.append(bound.recv(4096))
    return taken


async def test_a_full_socket_is_waited_for_by_nobody_and_gets_what_matters(
    manager: tuple[socket.socket, str],
) -> None:
    bound, name = manager
    notifier = Notifier(name)
    for number in range(2000):
        notifier.status(f"{number}")
    notifier.reloading()
    notifier.status("on the way")
    notifier.ready("ready again")
    taken = _drain(bound)
    assert 0 < len(taken) < 2000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        late: list[bytes] = []
        with trio.fail_after(10):
            while not late or b"ready again" not in late[-1]:
                await trio.lowlevel.wait_readable(bound)
                late += _drain(bound)
        nursery.cancel_scope.cancel()
    # The line that was the first to wait, the newest of those after it, and the words in order.
    assert late[0] == b"STATUS=%d" % len(taken)
    assert late[1] == b"STATUS=1999"
    assert late[2].startswith(b"RELOADING=1\n")
    assert late[3:] == [b"STATUS=on the way", b"READY=1\nSTATUS=ready again"]


async def test_a_full_socket_that_nobody_empties_ends_nothing(
    manager: tuple[socket.socket, str], autojump_clock: trio.testing.MockClock
) -> None:
    _, name = manager
    notifier = Notifier(name)
    for number in range(2000):
        notifier.reloading() if number % 2 else notifier.status("x")
    assert len(notifier._waiting) == 32
    notifier.stopping("newest")
    assert len(notifier._waiting) == 32
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        while notifier._waiting[0].startswith(b"STATUS="):
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert notifier._waiting[-1] == b"STOPPING=1\nSTATUS=newest"


@pytest.mark.parametrize("failing", [0, 2])
async def test_a_manager_that_reads_again_at_last_learns_that_the_service_is_up(
    manager: tuple[socket.socket, str],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """Also where the kernel has no memory for a while; nothing tells when it has."""
    bound, name = manager
    notifier = Notifier(name, watchdog=Watchdog(seconds=1.0))
    while not notifier._waiting:
        notifier.status("x")
    notifier.ready("serving")
    for _ in range(100):
        notifier.alive()
    late: list[bytes] = []
    left, send = [errno.ENOBUFS] * failing, socket.socket.send

    class Short(socket.socket):
        def send(self, *given: Any) -> int:
            if left:
                raise OSError(left.pop(), "no memory")
            return send(self, *given)

    monkeypatch.setattr(socket, "socket", Short)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        await trio.sleep(600)
        _drain(bound)
        while b"READY=1\nSTATUS=serving" not in late:
            await trio.lowlevel.wait_readable(bound)
            late += _drain(bound)
        nursery.cancel_scope.cancel()
    assert not left


async def test_at_32_waiting_words_that_the_service_is_up_is_one_more(
    manager: tuple[socket.socket, str],
) -> None:
    _, name = manager
    notifier = Notifier(name, watchdog=Watchdog(seconds=1.0))
    while not notifier._waiting:
        notifier.status("x")
    for _ in range(100):
        notifier.alive()
    notifier.ready("serving")
    for _ in range(100):
        notifier.alive()
    assert len(notifier._waiting) == 32
    assert b"READY=1\nSTATUS=serving" in notifier._waiting


def test_the_last_word_takes_those_along_that_wait(manager: tuple[socket.socket, str]) -> None:
    bound, name = manager
    notifier = Notifier(name)
    while not notifier._waiting:
        notifier.status("x")
    before = len(_drain(bound))
    assert before
    notifier.failed(5, "over")
    assert _drain(bound) == [b"STATUS=x", b"ERRNO=5\nSTATUS=over"]


@pytest.mark.parametrize("address", [None, "", "@", "/", "relative", "/nowhere/at/all", "/" * 200])
def test_nobody_listens(address: str | None) -> None:
    notifier = Notifier(address, watchdog=Watchdog(seconds=1.0))
    notifier.ready("x")
    notifier.status("x")
    notifier.reloading()
    notifier.alive(extend=1)
    notifier.stopping("x")
    notifier.failed(1, "x")
    assert not notifier._waiting


def test_a_manager_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
    notifier = Notifier(str(path))
    notifier.ready("x")
    path.unlink()
    notifier.ready("x")
    assert not notifier._waiting


def test_without_the_variable_nothing_happens() -> None:
    Notifier.from_environment({}).ready("x")
