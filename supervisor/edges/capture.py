"""Where nginx's standard output and error go: memory that never blocks the writer.

nginx's writes to stderr block. Into a pipe that nobody reads, `error_log stderr` or `access_log
/dev/stdout` would stop all workers, and a stopped supervisor would stop nginx. So each goes to a
memfd opened O_APPEND (memfd_create(2)); what has been read is given back by punching a hole
(fallocate(2)), which no writer can notice. nginx may write faster than anybody can read
(`access_log /dev/stdout`), and what is not read is memory: so the oldest can be dropped unread.

The two are apart, since they have different readers: the errors are told in the supervisor's log,
and are evidence; what goes to the standard output is passed on as it is (`passing_on`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable

_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_NAME = "nginx-output"
_STDOUT = "nginx-stdout"
_PAGE = 4096  # a hole in part of a page only zeroes it
PIECE = 16384
"""Bytes that one drain reads at most; also the longest line."""
_FREED_AT_ONCE = 2**24  # some milliseconds
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Capture:
    """The output of one launch and of every generation that inherits its descriptors.

    `stdout` is the standard output, where that is apart; then this is the standard error alone.
    """

    def __init__(self, fd: int, read_up_to: int = 0, *, stdout: Capture | None = None) -> None:
        self.fd = fd
        self.stdout = stdout
        self._read_up_to = read_up_to
        self._given_back = 0  # everything before this page is a hole
        self.more = False  # there was more to read than the last drain took

    @classmethod
    def create(cls) -> Capture:
        """A new, empty one, with a standard output of its own."""
        stdout = cls(_memory(_STDOUT))
        try:
            return cls(_memory(_NAME), stdout=stdout)
        except BaseException:
            stdout.close()
            raise

    @classmethod
    def reattach(cls, pid: int) -> Capture | None:
        """The capture that process `pid` writes to; None where it has none.

        It goes on where a predecessor stopped: what that has read is a hole, or zeros in the last
        page. nginx puts its error log in the place of its standard error (ngx_log.c,
        ngx_log_redirect_stderr), so of the two there may be the standard output alone.
        """
        stdout = _attach(pid, (1,), _STDOUT)
        # Standard output first: with a supervisor that kept both together it is there as well.
        both = _attach(pid, (1, 2), _NAME)
        if stdout < 0 and both < 0:
            return None
        return cls(
            both,
            _first_unread(both) if both >= 0 else 0,
            stdout=cls(stdout, _first_unread(stdout)) if stdout >= 0 else None,
        )

    @property
    def read_up_to(self) -> int:
        """Where the next drain begins; with the descriptor all that a successor needs."""
        return self._read_up_to

    @property
    def behind(self) -> int:
        """How many bytes have been written and not yet been drained; 0 when closed."""
        return 0 if self.fd < 0 else os.fstat(self.fd).st_size - self._read_up_to

    def tail(self, most: int = 4096) -> str:
        """The end of what has been written and not yet been drained; empty when closed."""
        if self.fd < 0:
            return ""
        size = os.fstat(self.fd).st_size
        start = max(self._read_up_to, size - most)
        return os.pread(self.fd, size - start, start).decode(errors="replace").strip()

    def drain(self) -> list[bytes]:
        """The next complete lines, a few kilobytes of them; their memory is given back.

        As they were written: nothing but a line feed ends a line of nginx's, whatever a client has
        made it write. `more` tells whether the next ones are there already.

        Empty when there are none, and when closed: a number that was closed may be another file's
        by now, and a hole in that would be a loss.
        """
        raw = self.peek()
        self.more = False
        if not raw:
            return []
        size = self.behind
        self.take(len(raw))
        self.more = size >= PIECE and self.behind > 0
        return raw.removesuffix(b"\n").split(b"\n")

    def peek(self) -> bytes:
        """The next complete lines, `PIECE` bytes of them at most; they stay. Empty when closed."""
        if self.fd < 0:
            return b""
        raw = os.pread(self.fd, PIECE, self._read_up_to)
        if raw[:1] == b"\0":  # somebody else has read that: two generations were adopted apart
            self._read_up_to = max(self._read_up_to, _first_unread(self.fd))
            raw = os.pread(self.fd, PIECE, self._read_up_to)
        end = raw.rfind(b"\n") + 1
        if not end and len(raw) == PIECE:
            end = len(raw)  # a line longer than the bound is cut
        return raw[:end]

    def take(self, count: int) -> None:
        """The first `count` bytes of what `peek` gave are done with; their memory is given back."""
        self._give_back(self._read_up_to + count)

    def drop_all_but(self, most: int) -> int:
        """Give the oldest of what is unread back, up to a line's end; how many bytes are lost.

        About `most` bytes stay, or more: to free memory takes time, so a call frees some of it.
        """
        unwanted = min(self.behind - most, _FREED_AT_ONCE)
        if unwanted <= 0:
            return 0
        start = self._read_up_to + unwanted
        start += max(0, os.pread(self.fd, PIECE, start - 1).find(b"\n"))
        lost = start - self._read_up_to
        self._give_back(start)
        return lost

    def _give_back(self, end: int) -> None:
        _libc.fallocate(self.fd, _PUNCH, self._given_back, end - self._given_back)
        self._given_back = end - end % _PAGE
        self._read_up_to = end

    def close(self) -> None:
        """Let go of it; nginx keeps its own descriptors."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.stdout is not None:
            self.stdout.close()


def _memory(name: str) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _attach(pid: int, numbers: Iterable[int], name: str) -> int:
    """The memory `name` behind the first of these descriptors of `pid` that has it; -1: none."""
    for number in numbers:
        path = f"/proc/{pid}/fd/{number}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(f"/memfd:{name}"):
                return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    return -1


def _first_unread(fd: int) -> int:
    """Behind the hole and the zeros that what was read has left."""
    try:
        start = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # ENXIO: no data at all
        return os.fstat(fd).st_size
    raw = os.pread(fd, _PAGE, start)
    return start + len(raw) - len(raw.lstrip(b"\0"))
