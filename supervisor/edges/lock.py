"""One supervisor for one nginx.

The lock lies beside nginx's pid file. That is the one place that every supervisor of the same nginx
has in common: state directories, control sockets and mount namespaces (/run, /tmp) may differ, an
unprivileged instance cannot write to /run, but whoever runs that nginx can write where its master
writes its pid. The folder's symlinks are resolved, so that two spellings are one lock.

The lock is flock(2)'s: the kernel drops it with the process that held it, however that ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges.files import REAL_DISK, read_regular, storing

_LARGEST = 32
_ATTEMPTS = 16


def lock_path(pid_file: Path) -> Path:
    """The lock for the nginx whose pid file that is."""
    return pid_file.parent.resolve() / f".{pid_file.name}.supervisor-lock"


class SupervisorLock:
    """Held from `acquire` to `release`; also a context manager. The file is closed on exec."""

    def __init__(self, pid_file: Path) -> None:
        self.path = lock_path(pid_file)
        self._pid_file = pid_file
        self._fd: int | None = None

    @property
    def fd(self) -> int | None:
        """The descriptor that holds the lock, None while it is not held; it survives an execve."""
        return self._fd

    def inherit(self, fds: Iterable[int]) -> bool:
        """Hold on to the lock by one of `fds`, as a predecessor in this process did, if it is one.

        Between the two nobody could take it.
        """
        for fd in fds:
            if _same_file(fd, self.path):
                self._fd = fd
        return self._fd is not None

    def acquire(self) -> None:
        """Takes the lock without waiting.

        Raises Refusal `already_supervised` naming the holder, `lock_not_writable` or `no_space`.
        """
        for _ in range(_ATTEMPTS):
            with storing("lock nginx", self.path, forbidden="lock_not_writable"):
                fd = REAL_DISK.open_append(self.path, mode=0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                os.close(fd)
                raise self._refusal() from exc
            # Between open and flock a leaving supervisor may have removed the name: then this is a
            # lock on a file that nobody else will ever find.
            if _same_file(fd, self.path):
                os.ftruncate(fd, 0)
                os.write(fd, f"{os.getpid()}\n".encode())
                self._fd = fd
                return
            os.close(fd)
        raise OperationFailed(
            "lock_unstable",
            f"cannot lock nginx at {self.path}: it is removed and made again and again by others",
        )

    def release(self) -> None:
        """Gives the lock up and removes its file; nothing if it is not held."""
        if self._fd is None:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> SupervisorLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _refusal(self) -> Refusal:
        try:
            holder = read_regular(self.path, limit=_LARGEST).decode("ascii", "replace").strip()
        except OSError:
            holder = ""
        who = f"process {holder}" if holder.isdigit() else "another process"
        return Refusal(
            "already_supervised",
            f"cannot supervise the nginx of {self._pid_file}: {who} supervises it already and holds"
            f" {self.path}; stop that one first, or give this instance a pid file of its own",
        )


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
