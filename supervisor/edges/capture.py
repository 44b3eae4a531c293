"""Where nginx's standard output and error go: memory that never blocks the writer.

nginx's writes to stderr block. Into a pipe that nobody reads, `error_log stderr` or `access_log
/dev/stdout` would stop all workers, and a stopped supervisor would stop nginx. So both go to a
memfd opened O_APPEND (memfd_create(2)); what has been read is given back by punching a hole
(fallocate(2)), which no writer can notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_NAME = "nginx-output"
_MOST_AT_ONCE = 65536
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Capture:
    """The output of one launch and of every generation that inherits its descriptors."""

    def __init__(self, fd: int, read_up_to: int = 0) -> None:
        self.fd = fd
        self._read_up_to = read_up_to

    @classmethod
    def create(cls) -> Capture:
        """A new, empty one."""
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            return cls(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        finally:
            os.close(fd)

    @classmethod
    def reattach(cls, pid: int) -> Capture | None:
        """The capture that process `pid` writes to, from its end on; None where it has none.

        Standard output first: nginx puts its error log in the place of its standard error
        (ngx_log.c, ngx_log_redirect_stderr).
        """
        for number in (1, 2):
            path = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith(f"/memfd:{_NAME}"):
                    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                    return cls(fd, os.fstat(fd).st_size)
        return None

    def tail(self, most: int = 4096) -> str:
        """The end of what has been written and not yet been drained; empty when closed."""
        if self.fd < 0:
            return ""
        size = os.fstat(self.fd).st_size
        start = max(self._read_up_to, size - most)
        return os.pread(self.fd, size - start, start).decode(errors="replace").strip()

    def drain(self) -> list[str]:
        """The complete lines since the last drain; their memory is given back. Empty when closed.

        A number that was closed may be another file's by now, and a hole in that would be a loss.
        """
        if self.fd < 0:
            return []
        raw = os.pread(self.fd, _MOST_AT_ONCE, self._read_up_to)
        end = raw.rfind(b"\n") + 1
        if not end and len(raw) == _MOST_AT_ONCE:
            end = len(raw)  # a line longer than the bound is cut
        if not end:
            return []
        # Whole pages up to here; a hole in part of a page only zeroes it.
        _libc.fallocate(self.fd, _PUNCH, 0, self._read_up_to + end)
        self._read_up_to += end
        return raw[:end].decode(errors="replace").splitlines()

    def close(self) -> None:
        """Let go of it; nginx keeps its own descriptors."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
