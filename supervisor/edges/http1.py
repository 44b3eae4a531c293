"""One GET over HTTP/1.1 on a connection that stands."""

from __future__ import annotations

import h11
import trio

from supervisor.core.http_answer import Answer
from supervisor.core.probe_settings import HttpProbe
from supervisor.edges.http_exchange import (
    MOST_HEADER,
    MOST_WORDS,
    BadAnswerError,
    Body,
    Intake,
    headers_of,
)
from supervisor.edges.probe_finding import Progress

_AT_ONCE = 16384


async def exchange(
    stream: trio.abc.Stream, probe: HttpProbe, target: str, progress: Progress
) -> Answer:
    """Send the request and read the whole answer.

    Raises BadAnswerError, and trio.BrokenResourceError where the connection broke.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEADER)
    headers = [("Host", probe.host), *headers_of(probe)]
    request = connection.send(h11.Request(method="GET", target=target, headers=headers))
    rest = connection.send(h11.EndOfMessage())
    progress.doing = "sending the request"
    await stream.send_all((request or b"") + (rest or b""))
    progress.doing = "waiting for the answer"
    try:
        return await _receive(Intake(stream), connection, progress)
    except h11.RemoteProtocolError as exc:
        if "ConnectionClosed" in str(exc):
            raise BadAnswerError("the connection was closed in the middle of the answer") from exc
        why = str(exc)[:MOST_WORDS]
        raise BadAnswerError(f"no HTTP/1.1 answer while {progress.doing}: {why}") from exc


async def _receive(intake: Intake, connection: h11.Connection, progress: Progress) -> Answer:
    response: h11.Response | None = None
    body = Body()
    while True:
        event = connection.next_event()
        await intake.breathe()
        if event is h11.NEED_DATA:
            data = await intake.more(_AT_ONCE)
            if not data and response is None and not connection.trailing_data[0]:
                raise BadAnswerError("the connection was closed without an answer")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            response = event
            progress.doing = f"reading the body of an answer with status {event.status_code}"
        elif isinstance(event, h11.Data):
            body.add(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return Answer(response.status_code, tuple(response.headers), bytes(body.data))
