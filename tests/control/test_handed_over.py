"""The control socket and its connections, handed from one server to the next as over an execve.

Both run in this process, and the second has duplicates of the first one's descriptors.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor import wire
from supervisor.core import commands
from supervisor.edges.control import ControlSettings, Limits, Peer, serve_control
from supervisor.edges.control_connection import Connection
from supervisor.edges.control_handover import CONNECTIONS, SOCKET, Door
from supervisor.edges.handover import HandOver, Parcel
from tests.control.fake_backend import STATUS, FakeBackend, gate_for, log_event, verdict
from tests.control.test_server import STATUS_CALL, UPGRADE_CALL, client, receive

FOLLOW = wire.encode_call(f"{wire.INTERFACE}.Events", {"follow": True}, more=True)
CHECK_CALL = wire.encode_call(f"{wire.INTERFACE}.Check")
LIMIT = 1.0
NUMBER = 7


class Server:
    """One program's end of the control socket."""

    def __init__(self, folder: Path, received: dict[str, Parcel] | None = None) -> None:
        self.backend = FakeBackend()
        self.hand_over = HandOver(received)
        self.door = Door(self.hand_over, lambda _: NUMBER)
        self.path = str(folder / "control.sock")

    async def serve(self, nursery: trio.Nursery) -> None:
        settings = ControlSettings(socket=self.path)
        serve = partial(
            serve_control, settings, self.backend, gate=gate_for(os.geteuid()), door=self.door
        )
        await nursery.start(serve)

    def given(self) -> dict[str, Parcel]:
        """What a successor gets: the same descriptors under other numbers, and data over JSON."""
        parcels = {}
        for name, parcel in self.hand_over.give().items():
            twins = {fd: os.dup(fd) for fd in parcel.fds}
            data = json.loads(json.dumps(parcel.data))
            for one in data or []:
                one["fd"] = twins[one["fd"]]
            parcels[name] = Parcel(tuple(twins.values()), data)
        return parcels


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Server, trio.Nursery]]:
    async with trio.open_nursery() as nursery:
        first = Server(folder)
        await first.serve(nursery)
        yield first, nursery
        nursery.cancel_scope.cancel()


async def succeed(first: Server, nursery: trio.Nursery, folder: Path) -> Server:
    """The second program takes over; the first one stays as it was at that moment."""
    await first.door.hush(LIMIT)
    second = Server(folder, first.given())
    await second.serve(nursery)
    return second


async def ask_status(stream: trio.SocketStream) -> None:
    await stream.send_all(STATUS_CALL)
    reply = await receive(stream)
    assert reply is not None
    assert reply.parameters == STATUS


async def events_of(stream: trio.SocketStream) -> list[Any]:
    """The progress up to the last reply."""
    told: list[Any] = []
    while True:
        reply = await receive(stream)
        assert reply is not None
        assert reply.error is None
        told.append(reply.parameters["progress"])
        if not reply.continues:
            return told


async def test_idle_connections_and_new_ones_are_answered_by_the_successor(folder: Path) -> None:
    async with serving(folder) as (first, nursery), client(first.path) as idle:
        await ask_status(idle)
        inode = os.stat(first.path).st_ino
        await first.door.hush(LIMIT)
        async with client(first.path) as waits:  # in the backlog
            await waits.send_all(STATUS_CALL)
            await idle.send_all(STATUS_CALL)
            second = Server(folder, first.given())
            await second.serve(nursery)
            for stream in (waits, idle):
                reply = await receive(stream)
                assert reply is not None
                assert reply.parameters == STATUS
        assert os.stat(first.path).st_ino == inode


async def test_half_a_call_is_no_call_and_is_finished_there(folder: Path) -> None:
    async with serving(folder) as (first, nursery), client(first.path) as stream:
        await stream.send_all(STATUS_CALL[:20])
        await trio.testing.wait_all_tasks_blocked()
        await succeed(first, nursery, folder)
        await stream.send_all(STATUS_CALL[20:])
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == STATUS


async def test_who_waits_for_a_verdict_gets_it_on_the_same_connection(folder: Path) -> None:
    """And the calls behind it are answered after it; it is not carried out a second time."""
    async with serving(folder) as (first, nursery), client(first.path) as stream:
        first.backend.hold()
        await stream.send_all(UPGRADE_CALL + STATUS_CALL)
        for _ in first.backend.events:
            assert await receive(stream) is not None
        second = await succeed(first, nursery, folder)
        assert [one["event"] for one in await events_of(stream)][-1] == "verdict"
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == STATUS
        assert second.backend.resumed == [(NUMBER, [])]
        assert second.backend.submitted == []
        assert [type(command) for command, _ in first.backend.submitted] == [commands.Upgrade]


async def test_a_follower_goes_on_without_seeing_anything_twice(folder: Path) -> None:
    async with serving(folder) as (first, nursery), client(first.path) as stream:
        await stream.send_all(FOLLOW)
        assert await receive(stream) is not None
        second = await succeed(first, nursery, folder)
        await trio.testing.wait_all_tasks_blocked()
        second.backend.release(log_event("supervisor.replaced"))
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == {"entries": [log_event("supervisor.replaced")]}


async def test_a_look_that_was_not_answered_is_answered_afresh(folder: Path) -> None:
    async with serving(folder) as (first, nursery), client(first.path) as stream:
        never = trio.Event()

        async def check() -> dict[str, object]:
            await never.wait()
            raise AssertionError

        first.backend.check = check  # type: ignore[method-assign]
        await stream.send_all(CHECK_CALL)
        await trio.testing.wait_all_tasks_blocked()
        second = await succeed(first, nursery, folder)
        reply = await receive(stream)
        assert reply is not None
        assert reply.parameters == second.backend.checked


async def test_handed_on_again_before_it_is_taken_up() -> None:
    """Two replacements in a row: what the first has not looked at goes to the second."""
    here, _ = trio.testing.memory_stream_pair()
    handed = {
        "unread": (STATUS_CALL + b"half").hex(),
        "begun": {"call": UPGRADE_CALL[:-1].hex(), "number": NUMBER, "undelivered": [{"a": 1}]},
    }

    async def nobody(_: object) -> None:
        raise AssertionError

    connection = Connection(
        here, Peer(pid=1, uid=0, gid=0), limits=Limits(), answer=nobody, hung_up=lambda: False,
        handed=handed,
    )  # fmt: skip
    assert connection.to_data(lambda _: None) == handed


async def test_a_replacement_that_fails_leaves_everything_as_it_was(folder: Path) -> None:
    async with serving(folder) as (first, _), client(first.path) as stream:
        first.backend.hold()
        async with client(first.path) as waiting:
            await waiting.send_all(UPGRADE_CALL)
            for _ in first.backend.events:
                assert await receive(waiting) is not None
            await first.door.hush(LIMIT)
            await stream.send_all(STATUS_CALL)
            await trio.testing.wait_all_tasks_blocked()
            first.door.speak()
            reply = await receive(stream)
            assert reply is not None
            assert reply.parameters == STATUS
            async with client(first.path) as another:
                await ask_status(another)
            first.backend.release(verdict("committed"))
            (last,) = await events_of(waiting)
            assert last["verdict"] == "committed"


async def test_who_does_not_take_a_reply_is_not_waited_for(folder: Path) -> None:
    async with serving(folder) as (first, _), client(first.path) as slow:
        first.backend.past = [verdict("committed", time="x" * 1000)] * 5000
        await slow.send_all(wire.encode_call(f"{wire.INTERFACE}.History", {}))
        with trio.fail_after(60):
            while not any(one.speaking for one in first.door._connections):
                await trio.sleep(0.01)
            await first.door.hush(0.1)
        assert first.given()[CONNECTIONS] == Parcel((), [])


async def test_without_their_data_connections_are_closed_and_the_socket_is_kept(
    folder: Path,
) -> None:
    """As a program does that does not know the format."""
    async with serving(folder) as (first, nursery), client(first.path) as stream:
        await ask_status(stream)
        await first.door.hush(LIMIT)
        given = {name: Parcel(fds=one.fds) for name, one in first.given().items()}
        second = Server(folder, given)
        second.door.forget()
        for fd in given[CONNECTIONS].fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        inode = os.stat(first.path).st_ino
        await second.serve(nursery)
        async with client(first.path) as new:
            await ask_status(new)
        assert os.stat(first.path).st_ino == inode


async def test_a_socket_of_another_path_is_not_used(folder: Path) -> None:
    """The settings name another one by now: the old file leads nowhere, and is removed."""
    async with serving(folder) as (first, nursery):
        await first.door.hush(LIMIT)
        second = Server(folder, first.given())
        second.path = str(folder / "other.sock")
        await second.serve(nursery)
        assert not os.path.exists(first.path)
        async with client(second.path) as stream:
            await ask_status(stream)
    assert SOCKET not in second.hand_over.names
