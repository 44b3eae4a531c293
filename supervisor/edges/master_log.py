"""What a master writes to its error logs from a moment on; told by inotify, and bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.error_log import MESSAGE, Entry, severe
from supervisor.edges.descriptors import RESERVE
from supervisor.edges.inotify import Happened, Inotify

READ_AT_ONCE = 2**20
"""Bytes of one log that are read in one look; a log that grows faster is read from its end."""

LONGEST_LINE = 2**14
"""Bytes that an unfinished line is kept for."""


@dataclass(slots=True)
class _Followed:
    fd: int
    at: int
    before: bytes = b""  # the end of what was looked at: it tells which lines a client has made up
    begun: bytes = b""

    def read(self) -> tuple[Entry, ...]:
        size = os.fstat(self.fd).st_size
        if size < self.at:  # somebody has emptied it
            self.at, self.before, self.begun = 0, b"", b""
        if size - self.at > READ_AT_ONCE:
            self.at, self.before, self.begun = size - READ_AT_ONCE, b"", b""
        data = os.pread(self.fd, size - self.at, self.at)
        self.at += len(data)
        whole, newline, begun = (self.begun + data).rpartition(b"\n")
        piece, start = self.before + whole + newline, len(self.before)
        self.before, self.begun = piece[-MESSAGE:], begun[-LONGEST_LINE:]
        return severe(piece, start=start).entries


@dataclass(slots=True)
class MasterLog:
    """The error logs of a reload, from their ends at `follow` on; closed by its user.

    A log that appears only later is read from its beginning. `unreadable` says which cannot be
    read, and why. `fd` is readable once there may be something new.
    """

    unreadable: list[str] = field(default_factory=list)
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _awaited: list[str] = field(default_factory=list)
    _inotify: Inotify | None = None

    @property
    def fd(self) -> int:
        """To wait for, while at least one log is readable."""
        assert self._inotify is not None
        return self._inotify.fd

    @property
    def readable(self) -> bool:
        """At least one log is, or will be, read."""
        return bool(self._followed or self._awaited)

    def follow(self, names: Iterable[str]) -> None:
        """Read these from now on; blocks on the disk. What is no path of a file is said instead."""
        try:
            self._inotify = RESERVE.open(Inotify)
        except OSError as exc:
            self.unreadable.append(f"no log can be followed: {exc.strerror}")
            return
        for name in dict.fromkeys(names):
            if not name.startswith("/"):
                self.unreadable.append(f"it goes to {name}")
                continue
            try:
                self._take(name, from_its_end=True)
            except FileNotFoundError:
                self._await(name)
            except OSError as exc:
                self.unreadable.append(f"{name}: {exc.strerror or exc}")

    def _take(self, name: str, *, from_its_end: bool) -> None:
        assert self._inotify is not None
        fd = _open(Path(name))
        try:
            self._inotify.add(f"/proc/self/fd/{fd}", Happened.MODIFY)
            at = os.fstat(fd).st_size if from_its_end else 0
        except OSError:
            os.close(fd)
            raise
        self._followed[name] = _Followed(fd, at)

    def _await(self, name: str) -> None:
        assert self._inotify is not None
        try:
            self._inotify.add(os.path.dirname(name), Happened.CREATE | Happened.MOVED_TO)
        except OSError as exc:
            self.unreadable.append(f"{name}: {exc.strerror}")
        else:
            self._awaited.append(name)

    def read(self) -> list[Entry]:
        """The severe messages since the last call; blocks on the disk. Never raises."""
        if self._inotify is not None:
            self._inotify.read()  # before the files: what comes after this is told again
        for name in list(self._awaited):
            with suppress(OSError):
                self._take(name, from_its_end=False)
                self._awaited.remove(name)
        entries: list[Entry] = []
        for one in self._followed.values():
            with suppress(OSError):
                entries += one.read()
        return entries

    def close(self) -> None:
        """Let go of the files."""
        for one in self._followed.values():
            os.close(one.fd)
        self._followed.clear()
        self._awaited.clear()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


def _open(path: Path) -> int:
    """A regular file, also behind a link; a fifo or a device is none that could be read again."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    fd = RESERVE.open(lambda: os.open(path, flags))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file")
    return fd
