"""What is seen of a generation while it runs: its output, and a master that is stopped."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from typing import Any

import pytest
import trio

from supervisor.edges import procfs
from supervisor.edges.generation import Generation
from supervisor.operations.foreign import note_foreign_master
from supervisor.operations.reload import learn_reload
from supervisor.watch import OUTPUT_BACKLOG
from tests.operations.lab import LIMIT, Lab, lab
from tools.nginx_cache import Build

BLOCK = 512  # of st_blocks, whatever the file system
FLOOD = 32 * OUTPUT_BACKLOG
LONG = "x" * 4000
ACCESS_LOG = "access_log /dev/stderr; keepalive_requests 100000;"


def _memory(generation: Generation) -> int:
    assert generation.output is not None
    return os.fstat(generation.output.fd).st_blocks * BLOCK


def _events(made: Lab, name: str) -> list[dict[str, Any]]:
    return [one for one in made.log if one["event"] == name]


async def _hammer(port: int) -> None:
    """Pipelined requests with long lines, as fast as one connection takes them; until cancelled."""
    requests = f"GET /{LONG} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 100
    while True:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream, trio.open_nursery() as nursery:

            async def read(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
                while await stream.receive_some(2**20):
                    pass
                scope.cancel()

            nursery.start_soon(read, stream, nursery.cancel_scope)
            try:
                while True:
                    await stream.send_all(requests)
            except trio.BrokenResourceError:
                continue


async def test_an_access_log_on_standard_error_does_not_fill_the_memory(oldest: Build) -> None:
    """However much nginx writes: a second's worth of it may be there at most."""
    async with lab(oldest, listens=ACCESS_LOG) as made:
        active = await made.start()
        assert active.output is not None
        most, turns = 0, 0
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(_hammer, made.port)
                while turns < 200 or os.fstat(active.output.fd).st_size < FLOOD:
                    await trio.sleep(0.01)
                    turns += 1
                    if turns > 100:
                        most = max(most, _memory(active))
                nursery.cancel_scope.cancel()
        written = os.fstat(active.output.fd).st_size
        dropped = sum(one["bytes"] for one in _events(made, "nginx.output_dropped"))
        assert most < written / 2
        await made.until("all of it given back", lambda: _memory(active) <= 8192)
        dropped = sum(one["bytes"] for one in _events(made, "nginx.output_dropped"))
        told = _events(made, "nginx.output")
        assert 0 < dropped < written
        assert told
        assert all(LONG[:900] in one["line"] for one in told)  # no line was torn
        await made.assert_serves_alone(active)


async def test_all_lines_are_told_where_that_can_be_done(oldest: Build) -> None:
    """Much more than one piece a second, and the last words of an nginx that is killed."""
    async with lab(oldest, listens=ACCESS_LOG) as made:
        active = await made.start()
        await trio.to_thread.run_sync(_ask_often, made.port, 900)
        await made.until("told", lambda: len(_events(made, "nginx.output")) >= 900)
        await trio.to_thread.run_sync(_ask_often, made.port, 50)
        for pid in (active.master.pid, *active.workers):
            os.kill(pid, signal.SIGKILL)
        await made.until("it is gone", lambda: made.events)
        assert len(_events(made, "nginx.output")) == 950
        assert not _events(made, "nginx.output_dropped")


def _ask_often(port: int, times: int) -> None:
    request = f"GET /{LONG[:500]} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request * times)
        client.shutdown(socket.SHUT_WR)
        while client.recv(2**20):
            pass


async def test_a_stopped_master_is_told_once_and_again_when_it_goes_on(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        os.kill(active.master.pid, signal.SIGSTOP)
        await made.until("told", lambda: _events(made, "generation.master_stopped"))
        active.changed.set()
        await trio.sleep(0.1)
        (told,) = _events(made, "generation.master_stopped")
        assert told["level"] == "warning"
        assert told["generation"] == f"g{active.id}"
        assert told["pid"] == active.master.pid
        os.kill(active.master.pid, signal.SIGCONT)
        await made.until("it goes on", lambda: _events(made, "generation.master_continued"))
        assert len(_events(made, "generation.master_stopped")) == 1
        await made.assert_serves_alone(active)


async def test_a_worker_that_runs_another_program_is_no_new_master(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a successor runs is run as root, to be asked: it must be of the master's own user."""
    async with lab(oldest) as made:
        active = await made.start()
        with subprocess.Popen(["sleep", "600"]) as process:
            with monkeypatch.context() as somebody:
                somebody.setattr(os, "geteuid", lambda: 4711)
                assert procfs.classify(process.pid) is procfs.ChildKind.STRANGER
                brood = procfs.brood_of([process.pid])
                assert brood == procfs.brood_of([])
                note_foreign_master(made.world, active, brood)
            assert active.foreign is None
            brood = procfs.brood_of([process.pid])
            assert brood.masters == {process.pid}
            note_foreign_master(made.world, active, brood)
            assert active.foreign is not None
            assert active.foreign.pid == process.pid
            process.kill()


async def test_a_fault_in_looking_at_a_reload_ends_nothing(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(oldest) as made:
        active = await made.start()

        async def fails(*_: object) -> None:
            raise OSError(errno.EIO, "a fault")

        monkeypatch.setattr("supervisor.operations.reload.facts_of_running", fails)
        await learn_reload(made.world, active)
        (said,) = _events(made, "operation.bug")
        assert said["operation"] == "learn_reload"
