"""A pause of less than a millisecond.

trio waits in epoll_wait(2), whose timeout counts milliseconds: a `trio.sleep` of half of one takes
a whole one and more. A timerfd (timerfd_create(2)) wakes it when the time is really up.
"""

from __future__ import annotations

import ctypes
import os

import trio

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC have these values
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


async def pause(seconds: float) -> None:
    """Return after `seconds`, to some ten microseconds; less than a second. A checkpoint."""
    fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
    if fd < 0:
        await trio.sleep(seconds)  # no descriptor left: later is better than never
        return
    try:
        due = _Spec(0, 0, 0, max(1, int(seconds * 1e9)))
        if _libc.timerfd_settime(fd, 0, ctypes.byref(due), None) != 0:
            await trio.sleep(seconds)
            return
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
