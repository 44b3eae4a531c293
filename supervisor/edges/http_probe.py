"""One GET over HTTP/1.1, judged by its status, its body and its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import h11
import trio

from supervisor.core.observation import Attribution, Outcome
from supervisor.core.probe_settings import Address, HttpProbe
from supervisor.edges.owner_finding import Owner
from supervisor.edges.probe_finding import (
    Finding,
    Progress,
    cause_of,
    connect,
    outcome_of,
    trace,
    within,
)

MOST_BODY = 1024 * 1024
"""Bytes of a body that are read; a longer one is a failure."""
MOST_HEADER = 65536
"""Bytes of a header that are read."""
_SHOWN_BODY = 80


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class _BadAnswerError(Exception):
    """What the server sent is no answer; the text says why."""


async def check_http(
    probe: HttpProbe, address: Address, owner: Owner | None, *, known: Callable[[int], bool]
) -> Finding:
    """Ask once. Never raises; cancelling closes the connection.

    A worker that only a response header names has to be `known`.

    A redirect is an answer like any other. The worker is looked for before the request is sent,
    when it cannot have closed the connection yet, and again after a kept-alive answer; one that
    the answer names itself is not looked for where that would take long.
    """

    async def ask(progress: Progress) -> Finding:
        try:
            stream = await connect(address)
        except OSError as exc:
            return progress.finding(outcome_of(exc), f"cannot connect: {cause_of(exc)}")
        async with stream:
            progress.doing = "waiting for a worker to accept"
            by_header = probe.pid_header is not None
            progress.worker_pid = await trace(
                stream, owner, progress, patient=True, cheaply=by_header
            )
            try:
                answer = await _exchange(stream, probe, progress)
            except _BadAnswerError as exc:
                return progress.finding(Outcome.FAIL, str(exc))
            took = progress.elapsed
            named, worker_by = _pid_in(answer, probe.pid_header), Attribution.RESPONSE_HEADER
            if named is None or not known(named):
                if progress.worker_pid is None:
                    progress.worker_pid = await trace(stream, owner, progress, patient=False)
                named, worker_by = progress.worker_pid, Attribution.SOCKET_OWNER
        outcome, detail = _judge(answer, probe, took)
        return Finding(
            outcome=outcome, detail=detail, latency=took, worker_pid=named,
            worker_by=None if named is None else worker_by,
        )  # fmt: skip

    return await within(probe.timeout, ask)


async def _exchange(stream: trio.SocketStream, probe: HttpProbe, progress: Progress) -> _Answer:
    """Send the request and read the whole answer. Raises _BadAnswerError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEADER)
    headers = [("Host", probe.host), *probe.headers.items()]
    for name, value in (("User-Agent", "nginx-supervisor"), ("Accept", "*/*")):
        if name.lower() not in {given.lower() for given, _ in headers}:
            headers.append((name, value))
    request = connection.send(h11.Request(method="GET", target=probe.target, headers=headers))
    rest = connection.send(h11.EndOfMessage())
    progress.began = trio.current_time()
    progress.doing = "sending the request"
    try:
        await stream.send_all((request or b"") + (rest or b""))
        progress.doing = "waiting for the answer"
        return await _receive(stream, connection, progress)
    except trio.BrokenResourceError as exc:
        raise _BadAnswerError(
            f"the connection broke while {progress.doing}: {cause_of(exc)}"
        ) from exc
    except h11.RemoteProtocolError as exc:
        if "ConnectionClosed" in str(exc):
            raise _BadAnswerError("the connection was closed in the middle of the answer") from exc
        raise _BadAnswerError(f"no HTTP/1.1 answer while {progress.doing}: {exc}") from exc


async def _receive(
    stream: trio.SocketStream, connection: h11.Connection, progress: Progress
) -> _Answer:
    response: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(65536)
            if not data and response is None and not connection.trailing_data[0]:
                raise _BadAnswerError("the connection was closed without an answer")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            response = event
            progress.doing = f"reading the body of an answer with status {event.status_code}"
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MOST_BODY:
                raise _BadAnswerError(f"body too large: more than {MOST_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return _Answer(response.status_code, tuple(response.headers), bytes(body))


def _judge(answer: _Answer, probe: HttpProbe, took: float) -> tuple[Outcome, str]:
    said = f"status {answer.status}"
    if answer.status not in probe.expect_status:
        expected = ", ".join(str(one) for one in sorted(probe.expect_status))
        return Outcome.FAIL, f"{said}, expected {expected}"
    if probe.expect_body is not None:
        body = answer.body.decode("utf-8", "replace")
        if not probe.expect_body.search(body):
            shown = body[:_SHOWN_BODY]
            return Outcome.FAIL, (
                f"{said}, but the body does not match {probe.expect_body.pattern!r}: {shown!r}"
            )
    if probe.max_latency is not None and took > probe.max_latency:
        return Outcome.FAIL, f"{said} after {took:.3f} s, slower than {probe.max_latency:g} s"
    return Outcome.PASS, said


def _pid_in(answer: _Answer, header: str | None) -> int | None:
    """The worker that the answer names; only digits of a sensible length count."""
    if header is None:
        return None
    wanted = header.lower().encode()
    for name, value in answer.headers:
        if name == wanted and value.isdigit() and len(value) <= 10:
            return int(value)
    return None
