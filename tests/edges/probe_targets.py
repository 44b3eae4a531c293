"""What the tests of probes ask: servers that answer as they are told, and the probes themselves."""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from supervisor.core.probe_settings import ExecProbe, HttpProbe, TcpAddress
from supervisor.edges.exec_probe import Identity, check_exec
from supervisor.edges.http_probe import check_http
from supervisor.edges.owner_finding import Owner
from supervisor.edges.probe_finding import Finding

Handler = Callable[[trio.SocketStream], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMIT = 30.0  # seconds; only a hang ever takes as long
SELF = os.getpid()
WORKER = (pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)


def held_by(pid: int | None) -> Owner:
    """Every connection is held by `pid`."""
    return owned_by(lambda: pid)


def owned_by(tell: Callable[[], int | None]) -> Owner:
    """A connection is held by whom `tell` says when it is asked about one."""

    async def owner(here: object, there: object, *, cheaply: bool = False) -> int | None:
        del here, there, cheaply
        return tell()

    return owner


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on a port of its own, each connection handed to `handler`."""

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, guarded, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some(4096)
        if not part:
            return data
        data += part
    return data


def answering(*pieces: bytes, close: bool = True) -> Handler:
    """Reads a request and answers with `pieces`; keeps the connection open unless `close`."""

    async def handle(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            for piece in pieces:
                await stream.send_all(piece)
            if close:
                return

    return handle


def http(port: int, **changes: object) -> HttpProbe:
    probe = HttpProbe(
        name="home", url=f"http://127.0.0.1:{port}/", address=TcpAddress("127.0.0.1", port),
        target="/", host="example.org", timeout=LIMIT,
    )  # fmt: skip
    return replace(probe, **changes)  # type: ignore[arg-type]


async def ask(handler: Handler, **changes: object) -> Finding:
    async with serving(handler) as port:
        probe = http(port, **changes)
        return await check_http(probe, probe.address, None, known=lambda _pid: False)


def script(text: str, **changes: object) -> ExecProbe:
    probe = ExecProbe(name="check", command=("/bin/sh", "-c", text), timeout=LIMIT)
    return replace(probe, **changes)  # type: ignore[arg-type]


async def execute(probe: ExecProbe, **environment: str) -> Finding:
    return await check_exec(probe, Identity(*WORKER), environment)
