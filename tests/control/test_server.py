"""The server on a real socket: credentials, hang-ups, and clients that behave badly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor import wire
from supervisor.edges.control import ControlSettings, Limits, Peer, serve_control
from tests.control.fake_backend import STATUS, FakeBackend, gate_for, log_event, verdict

STATUS_CALL = wire.encode_call(f"{wire.INTERFACE}.Status")
UPGRADE_CALL = wire.encode_call(f"{wire.INTERFACE}.Upgrade", {}, more=True)
PATIENCE = 60.0


@asynccontextmanager
async def client(path: str) -> AsyncIterator[trio.SocketStream]:
    """A raw connection to the server."""
    with trio.fail_after(PATIENCE):
        async with await trio.open_unix_socket(path) as stream:
            yield stream


async def receive(stream: trio.SocketStream) -> wire.Reply | None:
    """The next reply (of clients that have one call under way at most), None at the end."""
    decoder = wire.Decoder(1 << 24)
    while (message := decoder.next_message()) is None:
        data = await stream.receive_some(1)
        if not data:
            return None
        decoder.feed(data)
    return wire.parse_reply(message)


async def assert_serves(path: str) -> None:
    async with client(path) as stream:
        await stream.send_all(STATUS_CALL)
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == STATUS


async def test_the_peer_is_who_the_kernel_says(control: str, backend: FakeBackend) -> None:
    async with client(control) as stream:
        await stream.send_all(UPGRADE_CALL)
        for _ in backend.events:
            assert await receive(stream) is not None
    ((_, peer),) = backend.submitted
    assert peer == Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())


async def test_a_hang_up_is_noticed_while_nothing_happens(
    control: str, backend: FakeBackend
) -> None:
    backend.hold()
    async with client(control) as stream:
        await stream.send_all(UPGRADE_CALL)
        for _ in backend.events:
            assert await receive(stream) is not None
        assert backend.listeners == 1
    with trio.fail_after(PATIENCE):
        await backend.listener_left.wait()
    await assert_serves(control)


async def test_a_hang_up_with_unread_replies(control: str, backend: FakeBackend) -> None:
    backend.hold()
    async with client(control) as stream:
        await stream.send_all(UPGRADE_CALL)
        await stream.receive_some(1)
    with trio.fail_after(PATIENCE):
        await backend.listener_left.wait()
    assert len(backend.submitted) == 1


async def test_a_half_closed_client_gets_its_verdict(control: str, backend: FakeBackend) -> None:
    backend.hold()
    async with client(control) as stream:
        await stream.send_all(wire.encode_call(f"{wire.INTERFACE}.Upgrade"))
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert backend.listeners == 1
        backend.release(verdict("committed"))
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters["progress"] == verdict("committed")
        assert await receive(stream) is None


async def test_a_call_larger_than_the_limit(control: str) -> None:
    async with client(control) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * 16_000_000)  # it is refused before it is whole
        reply = await receive(stream)
        assert reply is not None
        assert reply.error == f"{wire.INTERFACE}.BadMessage"
        assert "65536 bytes" in str(reply.parameters["detail"])
    await assert_serves(control)


@pytest.mark.parametrize("limits", [Limits(connections=4)])
async def test_silent_clients_give_way(control: str) -> None:
    async with trio.open_nursery() as nursery:

        async def be_silent(task_status: trio.TaskStatus[None]) -> None:
            async with client(control) as stream:
                await stream.send_all(b'{"met')  # half a message is silence too
                task_status.started()
                await stream.receive_some(1)

        for _ in range(30):
            await nursery.start(be_silent)
        await assert_serves(control)
        nursery.cancel_scope.cancel()


FOLLOW_CALL = wire.encode_call(f"{wire.INTERFACE}.Events", {"follow": True}, more=True)


@pytest.mark.parametrize("limits", [Limits(connections=4)])
async def test_followers_keep_nobody_out(control: str, backend: FakeBackend) -> None:
    """The oldest gives way, and is told; who waits for an operation keeps its place."""
    backend.hold()
    async with (
        client(control) as waiting,
        client(control) as oldest,
        client(control) as second,
        client(control) as third,
    ):
        await waiting.send_all(UPGRADE_CALL)
        for _ in backend.events:
            assert await receive(waiting) is not None
        for follower in (oldest, second, third):
            await follower.send_all(FOLLOW_CALL)
            assert await receive(follower) is not None
        await assert_serves(control)
        told = await receive(oldest)
        assert told is not None
        assert told.error == f"{wire.INTERFACE}.Busy"
        assert "gave way" in str(told.parameters["detail"])
        assert await receive(oldest) is None
        assert backend.listeners == 3
        backend.release()
        for stream in (waiting, second, third):
            assert await receive(stream) is not None


@pytest.mark.parametrize("limits", [Limits(connections=3)])
async def test_those_who_wait_give_way_last_and_the_youngest_first(
    control: str, backend: FakeBackend
) -> None:
    """Else reloads that wait for the verdict of a long upgrade would keep `rollback` out."""
    backend.hold()
    async with client(control) as one, client(control) as two, client(control) as three:
        for stream in (one, two, three):
            await stream.send_all(UPGRADE_CALL)
            for _ in backend.events:
                assert await receive(stream) is not None
        await assert_serves(control)
        told = await receive(three)
        assert told is not None
        assert told.error == f"{wire.INTERFACE}.GaveWay"
        assert await receive(three) is None
        assert len(backend.submitted) == 3  # nothing was taken back
        backend.release(verdict("committed"))
        for stream in (one, two):
            done = await receive(stream)
            assert done is not None
            assert done.parameters["progress"] == verdict("committed")


@pytest.mark.parametrize("limits", [Limits(connections=2)])
async def test_a_reply_that_is_under_way_gives_way_to_nobody(
    control: str, backend: FakeBackend
) -> None:
    large = {"name": "n", "ok": False, "detail": "x" * 3_000_000}  # more than the socket takes
    backend.checked = {"ok": False, "findings": [large]}
    async with client(control) as one, client(control) as two:
        for stream in (one, two):
            await stream.send_all(wire.encode_call(f"{wire.INTERFACE}.Check"))
            assert await stream.receive_some(1)
        async with client(control) as late:
            reply = await receive(late)
            assert reply is not None
            assert reply.error == f"{wire.INTERFACE}.Busy"
            assert await receive(late) is None


@pytest.mark.parametrize("limits", [Limits(connections=1)])
async def test_a_follower_that_gives_way_with_half_a_message_on_its_way_gets_no_more(
    control: str, backend: FakeBackend
) -> None:
    backend.log = [{**log_event("x"), "fields": {"text": "x" * 3_000_000}}]
    async with client(control) as follower:
        await follower.send_all(FOLLOW_CALL)
        received = bytearray(await follower.receive_some(1))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await assert_serves(control)
        async for data in follower:
            received += data
    assert b"\0" not in received


@pytest.mark.parametrize("limits", [Limits(write=0.2)])
async def test_a_client_that_reads_nothing_harms_no_other(
    control: str, backend: FakeBackend
) -> None:
    large = {"name": "n", "ok": False, "detail": "x" * 3_000_000}  # more than the socket takes
    backend.checked = {"ok": False, "findings": [large]}
    async with client(control) as deaf:
        await deaf.send_all(wire.encode_call(f"{wire.INTERFACE}.Check"))
        await assert_serves(control)
        with pytest.raises(trio.BrokenResourceError):
            await deaf.send_all(STATUS_CALL * 100_000)  # nobody reads on, and then it is dropped
    await assert_serves(control)


async def test_a_long_history_keeps_nobody_waiting(
    control: str, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, checking and writing thousands of verdicts takes long: all of it in a thread."""
    served, encode_rows = threading.Event(), wire.encode_rows

    def encode_later(name: str, rows: Sequence[Mapping[str, object]]) -> bytes:
        assert served.wait(PATIENCE)
        return encode_rows(name, rows)

    monkeypatch.setattr(wire, "encode_rows", encode_later)
    backend.past = [verdict("committed", upgrade_id=f"u{number}") for number in range(20)]
    async with client(control) as stream:
        await stream.send_all(wire.encode_call(f"{wire.INTERFACE}.History"))
        await assert_serves(control)
        served.set()
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == {"entries": backend.past}


async def test_a_socket_file_that_a_stranger_can_open_still_refuses_him(
    folder: Path, backend: FakeBackend
) -> None:
    """Without root there is no second user to try with: then the allowed ones exclude us."""
    root = os.geteuid() == 0
    settings = ControlSettings(socket=str(folder / "s"), mode=0o666)
    gate = gate_for() if root else gate_for(os.geteuid() + 1)
    folder.chmod(0o755)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX);"
        "os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534));"
        "s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + bytes(1));"
        "print(s.recv(65536).decode().strip(chr(0)))"
    )
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await serve_control(settings, backend, gate=gate, task_status=task_status)

        path = await nursery.start(serve)
        ended = await trio.run_process(
            [sys.executable, "-c", script, path, UPGRADE_CALL[:-1].decode()],
            capture_stdout=True,
        )
        nursery.cancel_scope.cancel()
    reply = wire.parse_reply(ended.stdout.strip())
    assert reply.error == f"{wire.INTERFACE}.NotPermitted"
    assert reply.parameters["uid"] == (65534 if root else os.geteuid())
    assert backend.submitted == []


async def test_ending_the_server_removes_the_file_and_leaves_no_descriptor(
    folder: Path, backend: FakeBackend
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    settings = ControlSettings(socket=str(folder / "s"))
    backend.hold()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await serve_control(
                settings,
                backend,
                gate=gate_for(os.geteuid()),
                task_status=task_status,
            )

        path = await nursery.start(serve)
        async with client(path) as stream:
            await stream.send_all(UPGRADE_CALL)
            for _ in backend.events:
                assert await receive(stream) is not None
            nursery.cancel_scope.cancel()
    assert not Path(path).exists()
    assert backend.listeners == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_killed_server_leaves_a_socket_that_the_next_one_replaces(folder: Path) -> None:
    path = folder / "s"
    command = [sys.executable, "-m", "tests.control.fake_backend", str(path)]
    for _ in range(2):
        with subprocess.Popen(command) as server:
            try:
                connect(path, server)
            finally:
                server.kill()
        assert path.exists()


def connect(path: Path, server: subprocess.Popen[bytes]) -> None:
    """Return once `server` has answered; its start has no event that could be waited for."""
    while server.poll() is None:
        with socket.socket(socket.AF_UNIX) as stream:
            if stream.connect_ex(str(path)) == 0:
                stream.sendall(STATUS_CALL)
                assert stream.recv(10).startswith(b'{"paramete')
                return
    pytest.fail("the server ended")
