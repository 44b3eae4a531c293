"""What happens to files and folders, told by the kernel (inotify(7)); nothing is polled.

Three calls that Python's standard library does not have, and the layout of their events.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_ROOM = 65536


class Happened(IntFlag):
    """Why an event came, and what to be told of (sys/inotify.h)."""

    MODIFY = 0x2
    ATTRIB = 0x4
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    MASK_ADD = 0x20000000


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the watch `wd`; -1 where the queue was full, and anything may have happened."""

    wd: int
    mask: Happened
    name: bytes = b""


class Inotify:
    """One inotify instance; whoever made it closes it. Its descriptor is readable on events."""

    def __init__(self) -> None:
        """Raises OSError where the user has too many of them (fs.inotify.max_user_instances)."""
        self.fd: Final = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: Happened) -> int:
        """Watch what `path` leads to; the same thing twice is one watch.

        Raises OSError: there is nothing, or there are too many (fs.inotify.max_user_watches).
        """
        return _checked(_libc.inotify_add_watch(self.fd, os.fsencode(path), int(mask)))

    def remove(self, wd: int) -> None:
        """Watch it no more; no error where the kernel has removed the watch already."""
        _libc.inotify_rm_watch(self.fd, wd)

    def read(self) -> list[Event]:
        """The events so far, at most a few thousand; never blocks."""
        try:
            raw = os.read(self.fd, _ROOM)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(raw):
            wd, mask, _, length = _EVENT.unpack_from(raw, at)
            name = raw[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            events.append(Event(wd, Happened(mask), name))
            at += _EVENT.size + length
        return events

    def close(self) -> None:
        """Give it back, with all its watches."""
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM})
"""What the kernel says where a user has no more instances or watches."""
