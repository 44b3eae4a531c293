"""One GET over HTTP/2 on a connection that stands. Imported where a probe asks for it."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio

from supervisor.core.http_answer import Answer
from supervisor.core.probe_settings import HttpProbe
from supervisor.edges.http_exchange import (
    MOST_BODY,
    MOST_HEADER,
    MOST_WORDS,
    BadAnswerError,
    Body,
    Intake,
    headers_of,
)
from supervisor.edges.probe_finding import Progress

_AT_ONCE = 16384
_WINDOW = MOST_BODY + 65536
"""All that is read may be sent at once: no word about it has to go back."""
_HEAD = 9  # bytes of a frame before its payload: length, type, flags, stream (RFC 9113, 4.1)
_LONGEST = 16384  # bytes of a payload, as long as nobody has agreed to more
_SETTINGS, _GOAWAY = 4, 7


async def exchange(
    stream: trio.abc.Stream, probe: HttpProbe, target: str, progress: Progress
) -> Answer:
    """Send the request and read the whole answer.

    Raises BadAnswerError, and trio.BrokenResourceError where the connection broke.
    """
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding=None)
    )
    connection.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MOST_HEADER,
        },
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(_WINDOW)
    number = connection.get_next_available_stream_id()
    connection.send_headers(
        number,
        [
            (":method", "GET"), (":scheme", "https"), (":authority", probe.host),
            (":path", target), *((name.lower(), value) for name, value in headers_of(probe)),
        ],
        end_stream=True,
    )  # fmt: skip
    progress.doing = "sending the request"
    await stream.send_all(connection.data_to_send())
    progress.doing = "waiting for the answer"
    try:
        return await _receive(_Reading(Intake(stream), connection, number), progress)
    except h2.exceptions.ProtocolError as exc:
        why = str(exc)[:MOST_WORDS] or type(exc).__name__
        raise BadAnswerError(f"no HTTP/2 answer while {progress.doing}: {why}") from exc


class Frames:
    """Cuts what comes into frames, so that h2 is given one at a time and no more than it may be.

    h2 itself would collect 16 MiB for a frame before it looks at it, and takes no frame after a
    GOAWAY, with which nginx lets a request end when its worker leaves.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._begun = False

    def feed(self, data: bytes) -> None:
        """More has come."""
        self._data += data

    def next(self) -> bytes | None:
        """The next whole frame. Raises BadAnswerError where there can be none."""
        if len(self._data) < _HEAD:
            return None
        length, kind = int.from_bytes(self._data[:3], "big"), self._data[3]
        if not self._begun and kind != _SETTINGS:
            beginning = bytes(self._data[:20])
            raise BadAnswerError(f"no HTTP/2 answer: it begins with {beginning!r}")
        if length > _LONGEST:
            raise BadAnswerError(f"no HTTP/2 answer: a frame of {length} bytes")
        if len(self._data) < _HEAD + length:
            return None
        self._begun = True
        frame = bytes(self._data[: _HEAD + length])
        del self._data[: _HEAD + length]
        return frame


class _Reading:
    """The answer so far."""

    def __init__(self, intake: Intake, connection: h2.connection.H2Connection, number: int) -> None:
        self.intake = intake
        self.connection = connection
        self.number = number
        self.frames = Frames()
        self.headers: tuple[tuple[bytes, bytes], ...] | None = None
        self.status = 0
        self.body = Body()

    async def more(self) -> None:
        """The next bytes are there. Raises as the exchange does."""
        data = await self.intake.more(_AT_ONCE)
        if not data:
            where = "without an answer" if self.headers is None else "in the middle of the answer"
            raise BadAnswerError(f"the connection was closed {where}")
        self.frames.feed(data)


async def _receive(reading: _Reading, progress: Progress) -> Answer:
    while True:
        await reading.more()
        while (frame := reading.frames.next()) is not None:
            await reading.intake.breathe()
            if frame[3] == _GOAWAY:
                _expect_grace(frame[_HEAD:], reading.number)
                continue
            for event in reading.connection.receive_data(frame):
                if _take(reading, event, progress):
                    assert reading.headers is not None
                    return Answer(reading.status, reading.headers, bytes(reading.body.data))
        if answer := reading.connection.data_to_send():
            await reading.intake.stream.send_all(answer)


def _expect_grace(payload: bytes, number: int) -> None:
    """Raise BadAnswerError unless the server finishes the request before it leaves."""
    last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
    code = int.from_bytes(payload[4:8], "big")
    if code or last < number:
        raise BadAnswerError(f"the server ended the connection: {_code(code)}")


def _take(reading: _Reading, event: h2.events.Event, progress: Progress) -> bool:
    """Whether the answer is whole with this."""
    if getattr(event, "stream_id", None) != reading.number:
        return False
    if isinstance(event, h2.events.StreamReset):
        raise BadAnswerError(f"the server reset the request: {_code(event.error_code)}")
    if isinstance(event, h2.events.ResponseReceived):
        headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        reading.status = _status(dict(headers).get(b":status", b""))
        reading.headers = tuple((name, value) for name, value in headers if name[:1] != b":")
        progress.doing = f"reading the body of an answer with status {reading.status}"
    elif isinstance(event, h2.events.DataReceived):
        reading.body.add(event.data)
    return isinstance(event, h2.events.StreamEnded)


def _status(text: bytes) -> int:
    if len(text) != 3 or not text.isdigit():
        raise BadAnswerError(f"no HTTP/2 answer: {text[:20]!r} is no status")
    return int(text)


def _code(code: int | None) -> str:
    try:
        return h2.errors.ErrorCodes(code or 0).name
    except ValueError:
        return f"error {code}"
