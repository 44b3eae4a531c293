"""Ticks of less than a millisecond, for the few things that can only be looked for.

trio waits in epoll_wait(2), whose timeout counts milliseconds: a `trio.sleep` of half of one takes
a whole one and more. A timerfd (timerfd_create(2)) wakes it when the time is really up, and keeps
its beat whatever a look has cost.
"""

from __future__ import annotations

import ctypes
import os
from types import TracebackType
from typing import Self

import trio

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC have these values
_EXPIRATIONS = 8  # bytes of the counter that a read takes
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Pulse:
    """A beat of `seconds`, less than one, while the block lasts. For one task.

    The kernel arms the next beat when the last one was read: a pulse that nobody waits for costs
    nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._fd = -1

    def __enter__(self) -> Self:
        fd = int(_libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS))
        if fd < 0:
            return self  # no descriptor left: `tick` is then late, which is better than never
        nanoseconds = max(1, int(self._seconds * 1e9))
        beat = _Spec(0, nanoseconds, 0, nanoseconds)
        if _libc.timerfd_settime(fd, 0, ctypes.byref(beat), None) == 0:
            self._fd = fd
        else:
            os.close(fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def tick(self) -> None:
        """Return at the next beat; one that was missed meanwhile counts. A checkpoint."""
        if self._fd < 0:
            await trio.sleep(self._seconds)
            return
        await trio.lowlevel.wait_readable(self._fd)
        os.read(self._fd, _EXPIRATIONS)
