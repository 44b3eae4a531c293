"""Clients that misbehave, by the hundred, on a real socket: the others are served all the same."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable

import pytest
import trio
from structlog.testing import capture_logs

from supervisor import wire
from supervisor.edges import control_connection
from tests.control.fake_backend import STATUS, FakeBackend, verdict
from tests.control.test_server import STATUS_CALL, UPGRADE_CALL, assert_serves, client, receive

ROUNDS = 300
BAD_CALL = b'{"method":5}\0'


def connected(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)
    return stream


def assert_status(path: str) -> None:
    """Blocking: where the queue of connections is full, connect(2) waits, and trio's does not."""
    with connected(path) as stream:
        stream.sendall(STATUS_CALL)
        received = b""
        while not received.endswith(b"\0"):
            data = stream.recv(1 << 16)
            assert data, received
            received += data
    assert wire.parse_reply(received[:-1]).parameters == STATUS


def bad_message_then_close(path: str) -> None:
    """Read the error and leave: the end of the input and the end of the answer meet."""
    with connected(path) as stream:
        stream.sendall(BAD_CALL)
        assert b"BadMessage" in stream.recv(4096)


def bad_message_and_gone(path: str) -> None:
    with connected(path) as stream:
        stream.sendall(BAD_CALL)


def bad_message_half_closed(path: str) -> None:
    with connected(path) as stream:
        stream.sendall(BAD_CALL)
        stream.shutdown(socket.SHUT_WR)
        assert b"BadMessage" in stream.recv(4096)


def dies_in_mid_reply(path: str) -> None:
    with connected(path) as stream:
        stream.sendall(UPGRADE_CALL)
        assert stream.recv(1)


def dies_in_a_large_reply(path: str) -> None:
    with connected(path) as stream:
        stream.sendall(wire.encode_call(f"{wire.INTERFACE}.Check"))
        assert stream.recv(100)


def resets(path: str) -> None:
    """Close with unread replies, which the other end sees as ECONNRESET."""
    with connected(path) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.sendall(STATUS_CALL * 20 + BAD_CALL)


_random = random.Random(20250101)


def garbage(path: str) -> None:
    data = _random.randbytes(_random.randrange(1, 2000))
    cut = STATUS_CALL[: _random.randrange(len(STATUS_CALL))]
    with connected(path) as stream:
        try:
            for part in (cut, data, STATUS_CALL):
                stream.sendall(part)
        except BrokenPipeError:
            return  # it was told so and closed already
        if _random.random() < 0.5:
            stream.settimeout(0.01)
            try:
                stream.recv(10)
            except (TimeoutError, ConnectionResetError):
                return


Behaviour = Callable[[str], None]


@pytest.mark.parametrize(
    "behave",
    [
        bad_message_then_close,
        bad_message_and_gone,
        bad_message_half_closed,
        dies_in_mid_reply,
        dies_in_a_large_reply,
        resets,
        garbage,
    ],
    ids=lambda one: one.__name__,
)
async def test_whatever_a_client_does_the_others_are_served(
    control: str, backend: FakeBackend, behave: Behaviour
) -> None:
    large = {"name": "n", "ok": False, "detail": "x" * 1_000_000}
    backend.checked = {"ok": False, "findings": [large]}

    def misbehave() -> None:
        for _ in range(ROUNDS):
            behave(control)

    with capture_logs() as logs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, misbehave)
            for _ in range(20):
                await trio.to_thread.run_sync(assert_status, control)
        await trio.to_thread.run_sync(assert_status, control)
    faults = {log["event"] for log in logs} - {"control.called", "control.client_too_slow"}
    assert faults == set()


async def test_a_fault_of_ours_in_one_connection_stays_there(
    control: str, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception may leave the connection: above it is the nursery of the whole supervisor."""
    backend.hold()
    async with client(control) as bystander:
        await bystander.send_all(UPGRADE_CALL)
        assert await receive(bystander) is not None

        async def broken(self: object, incoming: object) -> None:
            raise ZeroDivisionError("a fault")

        with capture_logs() as logs, monkeypatch.context() as patch:
            patch.setattr(control_connection.Connection, "_read_messages", broken)
            async with client(control) as stream:
                assert await receive(stream) is None
                while not logs:  # it is said once the connection is closed
                    await trio.sleep(0.001)
        assert [log["event"] for log in logs] == ["control.connection_failed"]
        assert logs[0]["log_level"] == "error"
        await assert_serves(control)
        backend.release(verdict("committed"))
        replies = [await receive(bystander) for _ in range(3)]
        assert replies[-1] is not None
        assert replies[-1].parameters["progress"] == verdict("committed")
