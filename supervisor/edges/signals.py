"""Signals to the supervisor, one after the other, and none lost when it is replaced.

As trio's own receiver, with one difference: what has come and has not been taken can be asked for.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

import trio


class SignalInbox:
    """Receives `wanted` while the block lasts; the same signal twice before it is taken is one.

    To be used in the main thread, by one task. Handlers from before are back at the end.
    """

    def __init__(self, wanted: Iterable[signal.Signals]) -> None:
        self._wanted = tuple(wanted)
        self._before: dict[signal.Signals, Any] = {}
        self._come: dict[int, None] = {}
        self._wake = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def unheard(self) -> tuple[int, ...]:
        """What has come and has not been taken, the first first."""
        return tuple(self._come)

    def __enter__(self) -> Self:
        self._token = trio.lowlevel.current_trio_token()
        for number in self._wanted:
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    async def next(self) -> int:
        """The next signal; waits for one."""
        while not self._come:
            self._wake = trio.Event()
            await self._wake.wait()
        number = next(iter(self._come))
        del self._come[number]
        await trio.lowlevel.cancel_shielded_checkpoint()  # the others have their turn
        return number

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        """In the main thread, between any two steps of whatever runs there."""
        self._come[number] = None
        assert self._token is not None
        self._token.run_sync_soon(self._stir, idempotent=True)

    def _stir(self) -> None:
        self._wake.set()
