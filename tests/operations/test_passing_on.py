"""What nginx writes to its standard output reaches ours, and nginx never waits for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from supervisor.edges.capture import Capture
from supervisor.edges.passing_on import BACKLOG, KEPT, PassingOn, StandardOutput
from tests.operations.lab import LIMIT, Lab, lab
from tools.nginx_cache import Build

ACCESS_LOG = "access_log /dev/stdout; keepalive_requests 100000;"
LONG = "x" * 500


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The reading end does not wait."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    ends = [reading, writing]
    try:
        yield reading, writing
    finally:
        for fd in ends:
            os.close(fd)


def _read(fd: int) -> bytes:
    read = b""
    try:
        while part := os.read(fd, 65536):
            read += part
    except BlockingIOError:
        pass
    return read


def _events(made: Lab, name: str) -> list[dict[str, Any]]:
    return [one for one in made.log if one["event"] == name]


def _ask(port: int, times: int) -> None:
    request = f"GET /{LONG} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(LIMIT)
        client.sendall(request * times)
        client.shutdown(socket.SHUT_WR)
        while client.recv(2**20):
            pass


async def test_access_lines_come_out_as_they_are_and_errors_do_not(oldest: Build) -> None:
    async with lab(oldest, listens=ACCESS_LOG) as made:
        with pipe() as (reading, writing):
            made.world.stdout = StandardOutput(writing)
            active = await made.start()
            await trio.to_thread.run_sync(_ask, made.port, 40)
            seen = b""

            def all_seen() -> bool:
                nonlocal seen
                seen += _read(reading)
                return seen.count(b"\n") == 40

            await made.until("all passed on", all_seen)
            assert all(line.startswith(b"127.0.0.1 - - [") for line in seen.splitlines())
            await trio.to_thread.run_sync(_ask, made.port, 7)
            # The last words of an nginx that is killed as a whole come out too.
            for pid in (active.master.pid, *active.workers):
                os.kill(pid, signal.SIGKILL)
            await made.until("its last words", lambda: all_seen() or seen.count(b"\n") == 47)
            assert not _events(made, "nginx.output")
            assert not _events(made, "nginx.stdout_dropped")


async def test_nobody_reads(oldest: Build) -> None:
    """nginx does not wait, the memory has a bound, whole lines are dropped and counted."""
    async with lab(oldest, listens=ACCESS_LOG) as made:
        with pipe() as (reading, writing):
            made.world.stdout = StandardOutput(writing)
            active = await made.start()
            assert active.output is not None
            stdout = active.output.stdout
            assert stdout is not None
            with trio.fail_after(LIMIT):
                while os.fstat(stdout.fd).st_size < 3 * BACKLOG:
                    await trio.to_thread.run_sync(_ask, made.port, 1000)
            await made.until("dropped", lambda: stdout.behind <= BACKLOG)
            await made.until("told", lambda: _events(made, "nginx.stdout_dropped"))
            assert os.fstat(stdout.fd).st_blocks * 512 <= BACKLOG + KEPT + 8192
            seen = _read(reading)

            def idle() -> bool:
                nonlocal seen
                seen += _read(reading)
                return stdout.behind == 0

            await made.until("the reader is back, and gets the newest", idle)
            seen += _read(reading)
            assert all(line.startswith(b"127.0.0.1 - - [") for line in seen.splitlines())
            assert all(line.endswith(b'"-" "-"') for line in seen.splitlines())


async def test_a_reader_that_is_gone_ends_nothing(oldest: Build) -> None:
    async with lab(oldest, listens=ACCESS_LOG) as made:
        reading, writing = os.pipe()
        made.world.stdout = StandardOutput(writing)
        active = await made.start()
        os.close(reading)
        await trio.to_thread.run_sync(_ask, made.port, 5)
        await made.until("told", lambda: _events(made, "nginx.stdout_dropped"))
        (told,) = _events(made, "nginx.stdout_dropped")
        assert "Broken pipe" in told["detail"]
        await made.assert_serves_alone(active)
        os.close(writing)


@pytest.mark.parametrize("kind", ["no instance", "no watch"])
async def test_without_inotify_it_is_looked_at_now_and_then(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(24, "no more")

    if kind == "no instance":
        monkeypatch.setattr("supervisor.edges.passing_on.Inotify", fails)
    else:
        monkeypatch.setattr("supervisor.edges.inotify.Inotify.add", fails)
    monkeypatch.setattr("supervisor.edges.passing_on.UNTOLD", 0.01)
    with pipe() as (reading, writing):
        source = Capture.create()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(PassingOn(source, StandardOutput(writing), lost=print).run)
            await trio.sleep(0.03)
            os.write(source.fd, b"a line\nand a half")
            with trio.fail_after(LIMIT):
                while (read := _read(reading)) == b"":
                    await trio.sleep(0.001)
            assert read == b"a line\n"
            nursery.cancel_scope.cancel()
        source.close()


async def test_lines_that_are_longer_than_a_pipe_takes_at_once() -> None:
    long = b"y" * 9000 + b"\n"
    with pipe() as (reading, writing):
        target = StandardOutput(writing)
        assert target.write(b"short\n" + long + b"short\n") == 9013
        assert _read(reading) == b"short\n" + long + b"short\n"
        written = target.write(b"short\n" * 40000)
        assert written % 6 == 0, "it ends with a line"
        assert 0 < written < 240000
        assert target.problem == ""
