"""Files that must survive a crash or must not be somebody's trap.

Everything that the supervisor writes for itself goes through a `Disk`, the one seam at which a test
can make a write, an fsync or a rename fail or stop. Names that others could plant (a symlink, a
fifo) are opened with O_NOFOLLOW and looked at by fstat, never by a second lookup of the name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Protocol

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges.descriptors import NO_DESCRIPTOR, RESERVE

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Disk(Protocol):
    """What writing needs of an operating system; every method raises OSError."""

    def create(self, path: Path, *, mode: int) -> int:
        """A new file, open for writing; an existing name of any kind is an error."""
        ...

    def open_append(self, path: Path, *, mode: int) -> int:
        """A regular file to append to, made where missing; never through a symlink."""
        ...

    def write(self, fd: int, data: bytes) -> None:
        """All of `data`, or an OSError after a part of it."""
        ...

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def sync(self, fd: int) -> None:
        """The file's content is on disk."""
        ...

    def sync_folder(self, path: Path) -> None:
        """The folder's names are on disk."""
        ...

    def rename(self, source: Path, destination: Path) -> None:
        """Atomically give `source` the name `destination`."""
        ...

    def symlink(self, target: str, path: Path) -> None:
        """A new symbolic link."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove the name; a missing one is no error."""
        ...


class RealDisk:
    """The disk itself."""

    def create(self, path: Path, *, mode: int) -> int:
        """See Disk."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return RESERVE.open(lambda: os.open(path, flags, mode))

    def open_append(self, path: Path, *, mode: int) -> int:
        """See Disk."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = RESERVE.open(lambda: os.open(path, flags, mode))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return fd

    def write(self, fd: int, data: bytes) -> None:
        """See Disk."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def truncate(self, fd: int, size: int) -> None:
        """See Disk."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """See Disk."""
        os.fsync(fd)

    def sync_folder(self, path: Path) -> None:
        """See Disk."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = RESERVE.open(lambda: os.open(path, flags))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, destination: Path) -> None:
        """See Disk."""
        source.rename(destination)

    def symlink(self, target: str, path: Path) -> None:
        """See Disk."""
        path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        """See Disk."""
        path.unlink(missing_ok=True)


REAL_DISK = RealDisk()


@contextmanager
def storing(what: str, path: Path, *, forbidden: str = "state_not_writable") -> Iterator[None]:
    """Translates what a full or a read-only disk says into a Refusal, anything else into a failure.

    `what` completes "cannot ..."; `forbidden` is the reason where the place may not be written to.
    """
    try:
        yield
    except OSError as exc:
        cause = f"cannot {what} at {path}: {exc.strerror or exc}"
        if exc.errno in _FULL:
            raise Refusal("no_space", f"{cause}; free space on its file system") from exc
        if exc.errno in _FORBIDDEN:
            remedy = "make it writable for the supervisor (systemd: ReadWritePaths=)"
            raise Refusal(forbidden, f"{cause}; {remedy}") from exc
        if exc.errno in NO_DESCRIPTOR:
            raise OperationFailed("no_descriptors", f"{cause}; raise LimitNOFILE=") from exc
        raise OperationFailed("disk_error", f"{cause}; see the kernel's log") from exc


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Closes `fd` at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def write_atomically(
    disk: Disk,
    path: Path,
    data: bytes,
    *,
    mode: int = 0o600,
    dress: Callable[[int], None] = lambda _: None,
) -> None:
    """`path` holds all of `data` or what it held before, also after a power failure.

    `dress` may give the file, by its descriptor, what else belongs to it before it is in place. A
    symlink at `path` is replaced, never followed. Raises OSError; the name beside is removed then.
    """
    beside = path.with_name(f".{path.name}.new")
    disk.unlink(beside)  # of a predecessor that was killed
    try:
        with closing(disk.create(beside, mode=mode)) as fd:
            disk.write(fd, data)
            dress(fd)
            disk.sync(fd)
        disk.rename(beside, path)
    except OSError:
        with suppress(OSError):
            disk.unlink(beside)
        raise
    disk.sync_folder(path.parent)


def open_regular(path: Path) -> int:
    """A regular file, open for reading; a symlink, fifo or device raises OSError at once."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = RESERVE.open(lambda: os.open(path, flags))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_regular(path: Path, *, limit: int) -> bytes:
    """Up to `limit` bytes of a regular file. Raises OSError as `open_regular` does."""
    with closing(open_regular(path)) as fd:
        pieces = []
        while limit > 0 and (piece := os.read(fd, limit)):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)


def private_folder(path: Path, *, uid: int) -> None:
    """`path` is a folder that only `uid` (or root) can write to, made with mode 0700 where missing.

    Raises Refusal `state_directory_not_trusted`, `state_not_writable` or `no_space`.
    """
    with storing("make the folder", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
    wrong = []
    if found.st_uid not in (0, uid):
        wrong.append(f"it belongs to uid {found.st_uid} (chown {uid} {path})")
    if found.st_mode & _WRITABLE_BY_OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        wrong.append(f"its mode {mode:04o} lets others write (chmod go-w {path})")
    if wrong:
        raise Refusal(
            "state_directory_not_trusted",
            f"cannot keep state in {path}: {' and '.join(wrong)}",
        )


def parse_json(data: bytes) -> object:
    """What a file of our own holds. Raises ValueError for all that is no JSON.

    That includes what the library takes or gives up on otherwise: NaN and Infinity, and text that
    is nested deeper than the interpreter's stack.
    """
    try:
        return json.loads(data, parse_constant=_no_json)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
