"""What nginx writes to its standard output, passed on to the supervisor's own, as it is.

In a container that is where `access_log /dev/stdout` is looked for (`docker logs`); under systemd
it is the journal. The reader may be slow, or gone: nginx must not notice, nor must the engine. So
nginx writes into memory (`capture`), the kernel tells that there is something (inotify(7)), and
whole lines go out as far as the kernel says that it will not block (poll(2), PIPE_BUF). What nobody
reads in time is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from supervisor.edges.capture import Capture
from supervisor.edges.descriptors import RESERVE
from supervisor.edges.inotify import Happened, Inotify

_PIECE = 4096
"""What a writable pipe takes without blocking (PIPE_BUF, pipe(7))."""
BACKLOG = 2**20
"""Bytes that may wait to be passed on; where there are more, the oldest are dropped ..."""
KEPT = 2**16
"""... but for this many."""
PAUSE = 0.02
"""Seconds between two looks at what is written to all the time."""
TELL = 1.0
"""Seconds between two words about what was dropped ..."""
TELL_AGAIN = 60.0
"""... and where nobody will ever read it."""
SLOW = 0.1
"""Seconds until it is looked again how much waits, while the reader takes nothing."""
UNTOLD = 1.0
"""Seconds between two looks where the kernel does not tell of what is written."""


class StandardOutput:
    """The supervisor's own standard output; not closed by anybody here."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.problem = ""
        """Why nothing can be written any more; empty while that may still be."""

    def write(self, lines: bytes) -> int:
        """How many bytes of `lines` were taken; never blocks, never raises.

        All of them where nobody will ever read them: see `problem`.
        """
        done = 0
        try:
            while done < len(lines) and self._writable():
                done += os.write(self._fd, _piece(lines, done))
        except OSError as exc:  # the reader has gone, or the disk is full
            self.problem = exc.strerror or str(exc)
            return len(lines)
        self.problem = ""
        return done

    def _writable(self) -> bool:
        return bool(self._poll.poll(0))  # also where a write will only tell that it is gone

    async def wait(self, seconds: float) -> None:
        """Return when something may be written again, after `seconds` at the latest."""
        try:
            fd = RESERVE.open(lambda: os.dup(self._fd))  # several may wait: trio wants one a number
        except OSError:
            await trio.sleep(seconds)
            return
        try:
            with trio.move_on_after(seconds), suppress(OSError):
                await trio.lowlevel.wait_writable(fd)
        finally:
            os.close(fd)


def _piece(lines: bytes, start: int) -> memoryview:
    """Whole lines as far as they fit, or a part of one that is longer."""
    end = start + _PIECE
    if end < len(lines):
        end = lines.rfind(b"\n", start, end) + 1 or end
    return memoryview(lines)[start:end]


class PassingOn:
    """Passes one capture on while `run` runs; `lost` is told how many bytes were dropped."""

    def __init__(
        self,
        source: Capture,
        target: StandardOutput,
        *,
        lost: Callable[[int, str], None],
        seen: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._source: Final = source
        self._target: Final = target
        self._lost = lost
        self._seen = seen
        self._dropped = 0
        self._told_at = -TELL_AGAIN

    async def run(self) -> None:
        """Until cancelled; then what is there is passed on as far as nobody has to wait for it."""
        try:
            async with _told_of(self._source) as written:
                while True:
                    await self._pass()
                    await written()
                    await trio.sleep(PAUSE)
        finally:
            self.finish()

    async def _pass(self) -> None:
        while self._source.behind > 0:
            if self._source.behind > BACKLOG:
                while more := self._source.drop_all_but(KEPT):
                    self._dropped += more
                    await trio.lowlevel.checkpoint()
            lines = self._source.peek()
            if not lines:
                break  # the beginning of a line
            done = self._take(lines)
            self._tell()
            await trio.lowlevel.checkpoint()
            if not done:
                await self._target.wait(SLOW)
        self._tell()

    def _take(self, lines: bytes) -> int:
        """Pass on what is taken of `lines`; how many bytes that is."""
        done = self._target.write(lines)
        if done:
            self._seen(lines[:done])
            self._source.take(done)
        if self._target.problem:
            self._dropped += done
        return done

    def finish(self) -> None:
        """Pass on what is there, as far as nobody has to wait; a few milliseconds at most."""
        for _ in range(BACKLOG // _PIECE):
            lines = self._source.peek()
            if not lines or self._take(lines) < len(lines):
                break
        self._tell(last=True)

    def _tell(self, *, last: bool = False) -> None:
        now = trio.current_time()
        pause = TELL_AGAIN if self._target.problem else TELL
        if self._dropped and (last or now - self._told_at >= pause):
            self._lost(self._dropped, self._target.problem)
            self._dropped, self._told_at = 0, now


@asynccontextmanager
async def _told_of(source: Capture) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Something to wait for before the next look, from a moment before the first one on."""
    inotify = None
    with suppress(OSError):
        inotify = RESERVE.open(Inotify)
    try:
        told = False
        with suppress(OSError):
            if inotify is not None:
                inotify.add(f"/proc/self/fd/{source.fd}", Happened.MODIFY)
                told = True

        async def written() -> None:
            if inotify is None or not told:  # fs.inotify.max_user_instances
                await trio.sleep(UNTOLD)
                return
            await trio.lowlevel.wait_readable(inotify.fd)
            inotify.read()  # before the next look: what comes after this is told again

        yield written
    finally:
        if inotify is not None:
            inotify.close()
