"""The recent log, kept for `nginxctl events`, and what comes after it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio

_RECENT = 500
_BEHIND = 1000
"""Events that a follower may be behind; one that is further behind misses some."""


class LogTap:
    """A structlog processor that remembers what passes and hands it to followers."""

    def __init__(self) -> None:
        self._recent: deque[dict[str, object]] = deque(maxlen=_RECENT)
        self._followers: set[trio.MemorySendChannel[dict[str, object]]] = set()
        self._handed = 0  # of a predecessor's, at the old end

    def __call__(
        self, _logger: object, level: str, event: MutableMapping[str, object]
    ) -> MutableMapping[str, object]:
        """Remember `event`; never blocks, never raises, changes nothing."""
        hidden = {"event", "level", "timestamp"}
        told: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": str(event.get("event", "")),
            "fields": {key: _plain(value) for key, value in event.items() if key not in hidden},
        }
        if len(self._recent) == _RECENT:
            self._handed = max(0, self._handed - 1)
        self._recent.append(told)
        for follower in list(self._followers):
            try:
                follower.send_nowait(told)
            except trio.WouldBlock:
                continue  # a slow follower misses lines rather than hold the supervisor up
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._followers.discard(follower)
        return event

    @property
    def recent(self) -> list[dict[str, object]]:
        """The recent events, to be handed on."""
        return list(self._recent)

    def put_before(self, events: Iterable[dict[str, object]]) -> None:
        """Events that a predecessor has logged, from `recent` of its own."""
        own = list(self._recent)
        handed = list(events)[-(_RECENT - len(own)) :] if len(own) < _RECENT else []
        self._recent.clear()
        self._recent.extend([*handed, *own])
        self._handed = len(handed)

    @asynccontextmanager
    async def follow(
        self, *, new: bool = False
    ) -> AsyncIterator[
        tuple[Sequence[Mapping[str, object]], trio.MemoryReceiveChannel[dict[str, object]]]
    ]:
        """The recent events, and a channel of those after them; none is lost in between.

        With `new` only those of this process's present program.
        """
        send, receive = trio.open_memory_channel[dict[str, object]](_BEHIND)
        self._followers.add(send)
        try:
            async with receive:
                yield list(self._recent)[self._handed if new else 0 :], receive
        finally:
            self._followers.discard(send)
            send.close()


def _plain(value: object) -> object:
    """What JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return str(value)
