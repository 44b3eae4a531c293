"""The ends of nginx's error logs: what is appended to them, over every way of rotation.

A file is read from its end on, and one that comes later from its beginning. The kernel tells of
what is written (inotify(7)) to the file, and of names that come in its folder; so an idle log costs
nothing, and neither does an access log in the same folder. A rotated file is read until nginx has
had time to reopen its logs, then let go of; a deleted one is not kept open for longer than
`DELETED` seconds. Where a file, or its folder, is missing, the nearest folder that exists is
watched.

Nothing but regular files is opened, without waiting (a fifo), and no link of anybody but root and
the supervisor's own user is followed: who can write into a folder of logs could otherwise have any
file read. What is read is bounded: where more has been written than can be read in time, the oldest
is passed over and counted.

All of it is for one thread at a time; a file on a network file system may take its time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.error_log import MESSAGE, Entry, Scan, severe
from supervisor.edges.inotify import EXHAUSTED, Happened, Inotify

PIECE = 65536
"""Bytes that are read of one log at a time."""
TURN = 4 * PIECE
"""Bytes that are read of all logs in one turn."""
BACKLOG = 2**20
"""Bytes that may be unread; where there are more, all but the last `KEPT` are passed over."""
KEPT = 2**17
PAST = 2**18
"""Bytes of a log that is new to us that are looked at as well, as what was there before."""
ROTATED = 5.0
"""Seconds for which a file is read on after another one has its name."""
DELETED = 60.0
"""Seconds for which a deleted file is read on that no other one has followed."""
MOST = 256
"""Logs that are followed at once."""

_FILE = Happened.MODIFY | Happened.ATTRIB | Happened.MOVE_SELF | Happened.DELETE_SELF
_FOLDER = (
    Happened.CREATE
    | Happened.MOVED_TO
    | Happened.MOVED_FROM
    | Happened.DELETE
    | Happened.MOVE_SELF
    | Happened.DELETE_SELF
    | Happened.ONLYDIR
)
_ABOVE = Happened.MOVE_SELF | Happened.DELETE_SELF | Happened.ONLYDIR
_MORE = Happened.MASK_ADD  # a folder may be the one of a log, and above another's
_MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
_NO_FILE = ("/dev/", "/proc/")
_OF_NOBODY = ("/dev/null", "/dev/stderr", "/dev/stdout", "/proc/self/fd/1", "/proc/self/fd/2")
_STDOUT = ("/dev/stdout", "/proc/self/fd/1")
_TOO_MANY = "; raise fs.inotify.max_user_watches and the limit of open files"
_NO_RIGHT = (
    "; give the supervisor's user the right to read it, or have nginx write to [syslog] as well"
)
_REMEDY = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    **dict.fromkeys(EXHAUSTED, _TOO_MANY),
}


class _HeardElsewhere(Exception):  # noqa: N818 - says what is the case
    """It leads to nginx's standard output or error, which is read otherwise, or to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one log has brought in one turn."""

    path: str
    entries: tuple[Entry, ...] = ()
    past: bool = False  # it was there before anybody watched
    more: int = 0  # severe lines that were counted only
    doubtful: int = 0  # lines that a client may have made up
    dropped: int = 0  # bytes that were passed over
    problem: str = ""  # why it cannot be followed


@dataclass(slots=True, eq=False)
class _File:
    """One open file; several may have had the same path one after the other."""

    path: str
    fd: int
    wd: int
    at: int  # what is before has been read
    identity: tuple[int, int]
    scan: Scan = field(default_factory=Scan)
    rest: bytes = b""  # the beginning of a line that has no end yet
    skipping: bool = False  # the rest of a line that is too long
    until: float | None = None  # it has lost its name


@dataclass(slots=True)
class _Log:
    """One path that is followed."""

    path: str
    file: _File | None = None
    problem: str = ""
    elsewhere: str = ""  # the standard output or error that it leads to
    known: bool = False  # it was looked for before: a file that comes now is new altogether
    folders: frozenset[int] = field(default=frozenset())  # the watches of where it may come


class LogFiles:
    """Follows any number of paths; whoever made it closes it."""

    def __init__(self) -> None:
        """Raises OSError where the kernel gives no inotify instance."""
        self._inotify = Inotify()
        self._logs: dict[str, _Log] = {}
        self._left: list[_File] = []  # rotated or deleted
        self._folders: set[int] = set()  # watches
        self._stale = True  # names may lead elsewhere by now
        self._busy = False

    @property
    def fd(self) -> int:
        """Readable where something has happened."""
        return self._inotify.fd

    @property
    def followed(self) -> tuple[str, ...]:
        """The logs that are open now."""
        return tuple(path for path, log in self._logs.items() if log.file is not None)

    @property
    def unread(self) -> dict[str, str]:
        """The logs that cannot be followed, and why."""
        return {path: log.problem for path, log in self._logs.items() if log.problem}

    @property
    def on_stdout(self) -> bool:
        """One of the logs leads to nginx's standard output."""
        return any(log.elsewhere in _STDOUT for log in self._logs.values())

    @property
    def places(self) -> dict[str, list[int]]:
        """How far each log has been read, for a successor's `follow`."""
        return {
            path: [*log.file.identity, log.file.at - len(log.file.scan.held + log.file.rest)]
            for path, log in self._logs.items()
            if log.file is not None
        }

    @property
    def behind(self) -> bool:
        """There was more to read than one turn takes: another one is due."""
        return self._busy

    @property
    def due(self) -> float | None:
        """When a file has to be let go of; a turn then does it."""
        return min((one.until for one in self._left if one.until is not None), default=None)

    def follow(
        self, paths: Iterable[str], places: Mapping[str, object] | None = None, *, at: float
    ) -> list[News]:
        """Follow exactly these from now on; what is new among them is opened, and its past told.

        `places` are how far a predecessor has read; then there is no past.
        """
        wanted = list(dict.fromkeys(paths))
        news = [
            News(path=path, problem=f"only {MOST} error logs are followed")
            for path in wanted[MOST:]
        ]
        wanted = wanted[:MOST]
        for path in self._logs.keys() - wanted:
            log = self._logs.pop(path)
            if log.file is not None:
                self._leave(log.file, at)
        for path in wanted:
            self._logs.setdefault(path, _Log(path))
        self._busy = True  # of what is there by now nobody will tell
        return news + self._look(at, places or {})

    def turn(self, *, at: float) -> list[News]:
        """What has happened since the last turn, as far as one turn goes; `at` is now."""
        for event in self._inotify.read():
            if event.mask not in (Happened.MODIFY, Happened.IGNORED):
                self._stale = True
        news = self._look(at, {}) if self._stale else []
        room = TURN
        self._busy = False
        for file in self._all():
            try:
                got, room = self._read(file, room)
                news += got
            except OSError as exc:  # of its disk, or of a file system that is somewhere else
                news += self._give_up(file, exc)
        for file in [one for one in self._left if one.until is not None and one.until <= at]:
            self._left.remove(file)
            self._close(file)
        return news

    def close(self) -> None:
        """Let go of everything."""
        for file in self._all():
            os.close(file.fd)
        self._logs.clear()
        self._left.clear()
        self._inotify.close()

    # --- names --------------------------------------------------------------------------------

    def _look(self, at: float, places: Mapping[str, object]) -> list[News]:
        """Open what a path leads to now, where that is another file than before."""
        self._stale = False
        news = []
        for log in self._logs.values():
            log.elsewhere = ""
            try:
                self._watch_folders(log)  # first: what comes after it is told
                found = self._find(log)
                if found is None:
                    self._name_lost(log, at)
            except OSError as exc:
                news += self._tell(log, exc)
                continue
            except _HeardElsewhere as exc:
                log.elsewhere = str(exc)
                left, log.file = log.file, None
                if left is not None:
                    self._leave(left, at)
                found = None
            if found is not None:
                news += self._take(log, found, at, places)
            log.known = True
        self._forget_folders()
        return news

    def _find(self, log: _Log) -> tuple[str, os.stat_result] | None:
        """The file that the path leads to, and None where it is missing. Raises OSError."""
        real = _followed(log.path)
        try:
            found = os.stat(real, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return real, _expect_regular(found)

    def _take(
        self,
        log: _Log,
        found: tuple[str, os.stat_result],
        at: float,
        places: Mapping[str, object],
    ) -> list[News]:
        real, seen = found
        identity = (seen.st_dev, seen.st_ino)
        before = log.file
        if before is not None and before.identity == identity:
            return []
        file = next((one for one in self._all() if one.identity == identity), None)
        if file is not None:  # it has its name again, or one more
            file.until = None
            if file in self._left:
                self._left.remove(file)
        else:
            try:
                file = self._open(log.path, real)
            except OSError as exc:
                return self._tell(log, exc)
        new, log.file, log.problem = before is not None or log.known, file, ""
        if before is not None:
            self._leave(before, at)
        for earlier in self._left:
            if earlier.path == log.path and earlier.until is not None:
                earlier.until = min(earlier.until, at + ROTATED)
        return [] if new or file.at else self._begin(file, places.get(log.path))

    def _begin(self, file: _File, place: object) -> list[News]:
        """Where to read on in a file that was there before it was followed; its past."""
        size = os.fstat(file.fd).st_size
        if isinstance(place, list) and tuple(place[:2]) == file.identity:
            file.at = max(0, min(place[2], size))
            file.scan.before = _context(file)
            return []
        file.at = max(0, size - PAST)
        past = os.pread(file.fd, PAST, file.at)
        file.at += len(past)
        whole = past[: past.rfind(b"\n") + 1]
        if len(past) - len(whole) <= MESSAGE:
            file.rest = past[len(whole) :]
        else:
            file.skipping = True
        file.scan.before = whole[-MESSAGE:]
        return [
            News(path=file.path, entries=severe(piece).entries, past=True)
            for piece in _pieces(whole)
        ]

    def _open(self, path: str, real: str) -> _File:
        """Without waiting for a writer of a fifo, and without following a link that came since."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(real, flags)
        try:
            opened = _expect_regular(os.fstat(fd))
            wd = self._inotify.add(f"/proc/self/fd/{fd}", _FILE)
        except BaseException:
            os.close(fd)
            raise
        return _File(path, fd, wd, 0, (opened.st_dev, opened.st_ino))

    def _name_lost(self, log: _Log, at: float) -> None:
        """Renamed and not made anew: nginx writes to it still. Deleted: for a while."""
        file = log.file
        if file is not None and os.fstat(file.fd).st_nlink == 0:
            log.file = None
            self._leave(file, at, DELETED)

    def _leave(self, file: _File, at: float, seconds: float = ROTATED) -> None:
        """Let go of it after a while, unless another path leads to it as well."""
        if file not in self._all():
            file.until = at + seconds
            self._left.append(file)

    def _all(self) -> list[_File]:
        """The open files; several paths may lead to one."""
        named = (log.file for log in self._logs.values() if log.file is not None)
        return list(dict.fromkeys([*self._left, *named]))

    def _close(self, file: _File) -> None:
        if all(one.wd != file.wd for one in self._all()):  # one inode has one watch
            self._inotify.remove(file.wd)
        os.close(file.fd)

    def _watch_folders(self, log: _Log) -> None:
        """Where the path stands, and where it leads to; or the nearest folder that exists."""
        wds = set()
        try:
            real = _followed(log.path)
        except (OSError, _HeardElsewhere):
            real = log.path
        for path in {log.path, real}:
            what = _FOLDER
            for folder in Path(path).parents:
                try:
                    wds.add(self._inotify.add(str(folder), what | _MORE))
                except OSError as exc:
                    if exc.errno in EXHAUSTED:
                        raise
                else:
                    what = _ABOVE  # that it goes away is all that matters
        log.folders = frozenset(wds)

    def _forget_folders(self) -> None:
        """The watches of folders that no path needs any more are removed."""
        needed = {wd for log in self._logs.values() for wd in log.folders}
        for wd in self._folders - needed:
            self._inotify.remove(wd)
        self._folders = needed

    def _tell(self, log: _Log, cause: OSError) -> list[News]:
        """Once for each problem."""
        log.known = True
        problem = f"{cause.strerror}{_REMEDY.get(cause.errno or 0, '')}"
        if log.problem == problem:
            return []
        log.problem = problem
        return [News(path=log.path, problem=problem)]

    def _give_up(self, file: _File, cause: OSError) -> list[News]:
        """It cannot be read any more; it is tried again when something happens to its name."""
        logs = [log for log in self._logs.values() if log.file is file]
        for log in logs:
            log.file = None
        if file in self._left:
            self._left.remove(file)
        self._close(file)
        return [one for log in logs for one in self._tell(log, cause)]

    # --- content ------------------------------------------------------------------------------

    def _read(self, file: _File, room: int) -> tuple[list[News], int]:
        """What is new in one file; at most `room` bytes of it. What is left of the room, too."""
        news: list[News] = []
        size = os.fstat(file.fd).st_size
        if size < file.at:  # it was cut (copytruncate)
            file.at, file.scan, file.rest, file.skipping = 0, Scan(), b"", False
        if size - file.at > BACKLOG:
            dropped = size - file.at - KEPT
            file.at += dropped
            file.scan, file.rest, file.skipping = Scan(_context(file)), b"", True
            news.append(News(path=file.path, dropped=dropped))
        while file.at < size:
            if room <= 0:
                self._busy = True
                break
            raw = os.pread(file.fd, min(PIECE, room, size - file.at), file.at)
            if not raw:
                break
            file.at += len(raw)
            room -= len(raw)
            found = _digest(file, raw, more=file.at < size)
            if found is not None:
                news.append(found)
        return news, room


def _context(file: _File) -> bytes:
    """What stands before the place from which a file is read on."""
    start = max(0, file.at - MESSAGE)
    return os.pread(file.fd, file.at - start, start)


def _digest(file: _File, raw: bytes, *, more: bool) -> News | None:
    """The severe lines in what was read; a line without an end waits for it."""
    if file.skipping:
        end = raw.find(b"\n") + 1
        passed = raw[:end] if end else raw
        file.scan.before = (file.scan.before + passed)[-MESSAGE:]
        if not end:
            return None
        raw, file.skipping = raw[end:], False
    raw = file.rest + raw
    end = raw.rfind(b"\n") + 1
    whole, file.rest = raw[:end], raw[end:]
    if len(file.rest) > MESSAGE:
        # No message is so long: its beginning is all of it that may count.
        whole += file.rest[: MESSAGE - 1] + b"\n"
        file.rest, file.skipping = b"", True
    found = file.scan.take(whole, more=more and not file.skipping)
    if not (found.entries or found.more or found.doubtful):
        return None
    return News(path=file.path, entries=found.entries, more=found.more, doubtful=found.doubtful)


def _pieces(whole: bytes) -> Iterable[bytes]:
    """Parts of about `PIECE` bytes, each of whole lines."""
    start = 0
    while start < len(whole):
        end = whole.find(b"\n", start + PIECE) + 1 or len(whole)
        yield whole[start:end]
        start = end


def _expect_regular(found: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no regular file")
    return found


def _followed(path: str) -> str:
    """Where the last component of `path` leads to, or would, by links that can be trusted.

    Raises OSError where a link is somebody else's, or leads to a
    device or a process's descriptor (`/dev/stderr`).
    """
    trusted = {0, os.geteuid()}
    for _ in range(_MOST_LINKS):
        if path in _OF_NOBODY:
            raise _HeardElsewhere(path)
        if path.startswith(_NO_FILE):
            raise OSError(0, f"it leads to {path}, which is no file of its own")
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return path
        if not stat.S_ISLNK(found.st_mode):
            return path
        if found.st_uid not in trusted:
            raise OSError(0, f"{path} is a link that uid {found.st_uid} has made")
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    raise OSError(0, "too many links")
