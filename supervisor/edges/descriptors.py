"""Descriptors in reserve: whom nginx is and what becomes of it can be seen when no other is left.

A process that has used up its descriptors (EMFILE), or a system that has (ENFILE), cannot even look
into /proc, and a supervisor that cannot look must not take that for a death. So a few are held open
for nothing, and given up one by one to what cannot wait: reading /proc, holding a process, starting
nginx, putting files back. Everything else (probes, clients) fails, says so, and is tried again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
SIZE = 48


class Reserve:
    """`size` descriptors of nothing; threads may use it at once."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._held: list[int] = []
        self._needed = False

    def was_needed(self) -> bool:
        """Whether some of it had to be given up since this was asked last, or is not back yet."""
        needed, self._needed = self._needed, False
        return needed or 0 < len(self._held) < self._size

    def fill(self) -> None:
        """Hold as many as there should be, as far as that can be done."""
        with suppress(OSError):
            while len(self._held) < self._size:
                self._held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def open(self, make: Callable[[], T]) -> T:
        """What `make` opens, with descriptors of the reserve where there are no others."""
        while True:
            try:
                return make()
            except OSError as exc:
                if exc.errno not in NO_DESCRIPTOR:
                    raise
                try:
                    spare = self._held.pop()
                except IndexError:
                    raise exc from None
                self._needed = True
                os.close(spare)

    @contextmanager
    def borrowed(self, make: Callable[[], T]) -> Iterator[T]:
        """`make` in a block that closes what it opened; the reserve is as full afterwards."""
        before = len(self._held)
        try:
            yield self.open(make)
        finally:
            if len(self._held) < before:
                self.fill()

    def make_room(self, count: int) -> None:
        """At least `count` can be opened now, as far as the reserve goes."""
        room: list[int] = []
        try:
            while len(room) < count:
                room.append(self.open(lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)))
        except OSError:
            pass
        finally:
            for fd in room:
                os.close(fd)

    def close(self) -> None:
        """Hold nothing any more."""
        while self._held:
            os.close(self._held.pop())


def open_standard_descriptors() -> None:
    """Descriptors 0 to 2 lead somewhere: a file that got such a number would be written into.

    To be called before anything else is opened.
    """
    opened = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while opened <= 2:
        os.set_inheritable(opened, True)
        opened = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.close(opened)


RESERVE = Reserve()
"""The supervisor's own; empty until it is filled at its start."""
