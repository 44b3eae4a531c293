"""What the exchanges over HTTP/1.1 and HTTP/2 share: how much is read, and how a bad end is told.

A candidate may send anything, in any amount, at any pace. Time is bounded by the probe's timeout,
memory and work by what is here; and since the engine lives in the same thread, nobody parses for
long without letting others run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from supervisor.core.observation import Outcome
from supervisor.core.probe_settings import HttpProbe

MOST_BODY = 1024 * 1024
"""Bytes of a body that are read; a longer one is a failure."""
MOST_HEADER = 65536
"""Bytes of a header that are read."""
MOST_RECEIVED = 8 * MOST_BODY
"""Bytes of an answer as they come, with all that is wrapped around its body."""
EVENTS_AT_ONCE = 32
"""Parts of an answer that are taken from what has come before others get their turn."""


MOST_WORDS = 200
"""Characters of what a library says about an answer: it may quote it whole."""


class BadAnswerError(Exception):
    """What the server sent is no answer; the text says why, `outcome` what follows from it."""

    def __init__(self, text: str, outcome: Outcome = Outcome.FAIL) -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(slots=True)
class Intake:
    """The bytes of one answer from `stream`, at most `MOST_RECEIVED`."""

    stream: trio.abc.Stream
    received: int = 0
    _events: int = 0

    async def more(self, most: int) -> bytes:
        """The next bytes, at most so many; empty at the end. Raises BadAnswerError beyond all."""
        data = bytes(await self.stream.receive_some(most))
        self.received += len(data)
        if self.received > MOST_RECEIVED:
            raise BadAnswerError(f"more than {MOST_RECEIVED} bytes came, and no end of the answer")
        return data

    async def breathe(self) -> None:
        """One more part was taken: let others run every now and then."""
        self._events += 1
        if self._events % EVENTS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class Body:
    """A body as it comes."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, part: bytes) -> None:
        """Keep it. Raises BadAnswerError where it becomes too large."""
        self.data += part
        if len(self.data) > MOST_BODY:
            raise BadAnswerError(f"body too large: more than {MOST_BODY} bytes")


def headers_of(probe: HttpProbe) -> list[tuple[str, str]]:
    """The headers that are sent besides Host."""
    headers = list(probe.headers.items())
    given = {name.lower() for name, _ in headers}
    for name, value in (("User-Agent", "nginx-supervisor"), ("Accept", "*/*")):
        if name.lower() not in given:
            headers.append((name, value))
    return headers
