"""What nginx writes into its error logs, and to the supervisor's syslog socket, as evidence.

It is watched always, since what the serving generation writes is the reference for the next one;
the kernel tells when there is something, so that it costs nothing while nobody writes.

A line belongs to the generation whose process has its pid: of a message over syslog the kernel says
which that is, of a file's line the line itself. A pid that is nobody's that we know is looked for
again a little later (a worker may write before it was seen); then the line is nobody's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.core.error_log import Entry, Found, Scan, kind_of
from supervisor.core.errors import ConfigError
from supervisor.core.seen import BEFORE, LINES
from supervisor.core.signals import LogLine, Severity, from_data, to_data
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.handover import HandOver, Parcel, close_all
from supervisor.edges.log_files import LogFiles, News
from supervisor.edges.syslog_socket import SyslogSocket

if TYPE_CHECKING:
    from supervisor.core.settings import SyslogSettings
    from supervisor.operations.world import World

PAUSE = 0.02
"""Seconds between two looks at logs that are written to all the time."""
RETRY = 5.0
"""Seconds after which logs are looked at again that could not be, for a reason nobody foresaw."""
ENDED = 60.0
"""Seconds for which the pids of processes that ended are known."""
UNKNOWN = 1.5
"""Seconds after which a line is nobody's if nobody with its pid was seen."""
OTHERS = 0.25
"""Seconds that the other generation has to write what a candidate wrote: then it is the host's."""
TELL = 10.0
"""Seconds between two words about what was passed over."""
SYSLOG = "syslog"
STDERR = "its standard error"
STDOUT = "its standard output"

_PENDING = 256
_RECENT = 10
_AT_ONCE = 8  # about a millisecond; then others have their turn
_TOLD = 512


@dataclass(frozen=True, slots=True)
class _Pending:
    entry: Entry
    pid: int
    log: str
    at: float


class LogWatch:
    """Reads the logs of all generations; `run` is its one task."""

    def __init__(
        self, world: World, signal: Callable[[LogLine], None], hand_over: HandOver | None = None
    ) -> None:
        self._world = world
        self._signal = signal
        self._files: LogFiles | None = None
        self._socket: SyslogSocket | None = None
        self._wanted: tuple[str, ...] = ()
        self._followed: tuple[str, ...] = ()
        self._wake = trio.Event()
        self._output, self._stdout = Scan(), Scan()
        self._known: dict[int, tuple[int, float]] = {}  # generation, and when it was seen last
        self._pending: deque[_Pending] = deque(maxlen=_PENDING)
        self._late: list[LogLine] = []  # the candidate's, in the order in which they came
        self._late_came = trio.Event()
        self._told: set[tuple[int | None, str]] = set()
        self._recent: deque[object] = deque(maxlen=_RECENT)
        self._passed_over: dict[tuple[str, str], int] = {}
        self._told_at = -math.inf
        self._second = -math.inf  # when this one began
        self._heard: dict[tuple[int, str], int] = {}  # lines in it
        self._places: dict[str, object] = {}
        self._inherited: tuple[int, ...] = ()
        self._replaces = False
        if hand_over is not None:
            self._replaces = "error_logs" in hand_over.names
            before = hand_over.take("error_logs") or Parcel()
            self._inherited = before.fds
            places = before.fields.get("places")
            self._places = dict(places) if isinstance(places, dict) else {}
            lines = before.fields.get("lines")
            self._recent.extend(lines if isinstance(lines, list) else ())
            self._take_late(before.fields.get("late"))
            hand_over.register("error_logs", self._give)

    def _take_late(self, late: object) -> None:
        """What a predecessor had held back; none of it where it cannot be understood."""
        try:
            lines = [from_data(one, now=trio.current_time()) for one in late or ()]  # type: ignore[attr-defined]  # else TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        self._late = [one for one in lines if isinstance(one, LogLine)]
        self._late_came.set()

    @property
    def followed(self) -> tuple[str, ...]:
        """The files that are read."""
        return () if self._files is None else self._files.followed

    def report(self) -> dict[str, object]:
        """The logs as `status` shows them."""
        unread = {} if self._files is None else self._files.unread
        return {
            "followed": list(self.followed),
            "unread": [{"path": path, "detail": detail} for path, detail in unread.items()],
            "syslog": None if self._socket is None else self._socket.path,
            "lines": list(self._recent),
        }

    def _give(self) -> Parcel:
        return Parcel(
            fds=() if self._socket is None else (self._socket.fd,),
            data={
                "places": {} if self._files is None else self._files.places,
                "lines": list(self._recent),
                "late": [to_data(one, now=trio.current_time()) for one in self._late],
            },
        )

    # --- who writes ---------------------------------------------------------------------------

    def look(self) -> None:
        """Somebody may be new: note who belongs to which generation, and which logs they have."""
        now = trio.current_time()
        for one in self._world.generations:
            for pid in (one.master.pid, *one.workers):
                self._known[pid] = (one.id, now)
        for pid in [pid for pid, (_, seen) in self._known.items() if now - seen > ENDED]:
            del self._known[pid]
        self._want()
        self._give_socket()
        waiting, self._pending = self._pending, deque(maxlen=_PENDING)
        for line in waiting:
            self._hear(line.entry, line.pid, line.log, at=line.at)

    def _want(self) -> None:
        programs = [one.program for one in self._world.generations]
        if self._world.run is not None and self._world.run.program is not None:
            programs.append(self._world.run.program)
        wanted = tuple(dict.fromkeys(path for one in programs for path in one.error_logs))
        if wanted and wanted != self._wanted:  # without any nginx its last logs will do
            self._wanted = wanted
            self._wake.set()

    def _generation_of(self, pid: int) -> Generation | None:
        """Whose process `pid` is now; the candidate's master is nobody's worker."""
        newest_first = sorted(self._world.generations, key=lambda one: -one.id)
        for one in newest_first:
            if one.master.pid == pid:
                return one
        stat = procfs.read_stat(pid)
        if stat is not None and stat.has_execed:
            return None
        for one in newest_first:
            if pid in one.workers:
                return one
        for one in newest_first:
            if stat is not None and one.alive and stat.parent == one.master.pid:
                return one
        return None

    def _hear(self, entry: Entry, pid: int, log: str, *, at: float) -> None:
        """One line, once it is known whose it is, or that nobody knows."""
        generation = self._generation_of(pid)
        number = None if generation is None else generation.id
        if number is None and pid in self._known and not procfs.is_alive(pid):
            number = self._known[pid][0]
        if number is None and trio.current_time() - at < UNKNOWN:
            self._pending.append(_Pending(entry, pid, log, at))
            return
        line = LogLine(
            generation=number, pid=pid, level=entry.severity, text=entry.text, at=at, log=log
        )
        self._tell(line, generation)
        if generation is not None and generation.role is Role.CANDIDATE:
            self._late.append(line)
            self._late_came.set()
        else:
            self._signal(line)

    def settle(self) -> None:
        """What was held back counts now."""
        late, self._late = self._late, []
        for line in late:
            self._signal(line)

    async def _let_others_speak_first(self) -> None:
        """A candidate's line counts a moment later: what befalls the host has both write it."""
        while True:
            await self._late_came.wait()
            self._late_came = trio.Event()
            while self._late:
                await trio.sleep_until(self._late[0].at + OTHERS)
                if self._late:
                    self._signal(self._late.pop(0))

    def _tell(self, line: LogLine, generation: Generation | None) -> None:
        """The first line of each kind is told, of each generation."""
        key = (line.generation, kind_of(line.text))
        if key in self._told:
            return
        if len(self._told) >= _TOLD:
            self._told.clear()
        self._told.add(key)
        candidate = generation is not None and generation.role is Role.CANDIDATE
        tell = self._world.log.warning if candidate else self._world.log.info
        fields = {
            "generation": None if line.generation is None else f"g{line.generation}",
            "pid": line.pid,
            "severity": line.level.name.lower(),
            "line": line.text,
            "log": line.log,
        }
        tell("nginx.error_line", **fields)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._recent.append({"time": now, **fields})

    def hear_output(self, lines: Iterable[bytes], more: bool = False) -> None:  # noqa: FBT001, FBT002 - see World
        """What nginx has written to its standard error, as `error_log stderr` does.

        `more`: the next lines come at once, and a message may go on in them.
        """
        piece = b"".join(one + b"\n" for one in lines)
        self._hear_stream(self._output.take(piece, more=more), STDERR)

    def hear_stdout(self, lines: bytes) -> None:
        """Whole lines that nginx has written to its standard output: mostly an access log."""
        if self._files is not None and self._files.on_stdout:
            self._hear_stream(self._stdout.take(lines), STDOUT)

    def _hear_stream(self, found: Found, log: str) -> None:
        for entry in found.entries:
            self._hear(entry, entry.pid, log, at=trio.current_time())
        self._count("doubtful", log, found.doubtful)

    # --- the tasks ----------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled; the socket is there when this has started.

        Raises ConfigError where the syslog socket cannot be made; a supervisor that has replaced
        another one goes without it then.
        """
        settings = self._world.settings.syslog
        self._open_socket(settings)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_files)
                nursery.start_soon(self._let_others_speak_first)
                if self._socket is not None:
                    nursery.start_soon(self._hear_socket, self._socket)
                task_status.started()
        finally:
            if self._socket is not None:
                self._socket.close()

    async def _read_files(self) -> None:
        try:
            self._files = files = LogFiles()
        except OSError as exc:
            detail = (
                f"cannot be told what is written into nginx's error logs: {exc.strerror}; raise "
                "fs.inotify.max_user_instances (sysctl), then restart the supervisor"
            )
            self._world.log.error("error_log.not_followed", detail=detail)  # noqa: TRY400 - it is known
            return
        limiter = trio.CapacityLimiter(1)
        try:
            while True:
                await self._until_news(files)
                self._wake = trio.Event()
                try:
                    # A file may be on a network file system that hangs.
                    news = await trio.to_thread.run_sync(
                        self._next(files), abandon_on_cancel=True, limiter=limiter
                    )
                except OSError as exc:  # or on a disk that fails just now
                    self._world.log.warning("error_log.not_read", detail=f"{exc}")
                    await trio.sleep(RETRY)
                    continue
                await self._take(news)
                if not files.behind:
                    await trio.sleep(PAUSE)
        finally:
            if not limiter.borrowed_tokens:  # else a thread is at it still, and this is the end
                files.close()

    def _next(self, files: LogFiles) -> Callable[[], list[News]]:
        """What is to be done now, in a thread."""
        now = trio.current_time()
        if self._wanted == self._followed:
            return partial(files.turn, at=now)
        self._followed = self._wanted
        places, self._places = self._places, {}
        return partial(files.follow, self._wanted, places, at=now)

    async def _until_news(self, files: LogFiles) -> None:
        if files.behind or self._wanted != self._followed:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(math.inf if files.due is None else files.due):
            async with trio.open_nursery() as nursery:

                async def written() -> None:
                    await trio.lowlevel.wait_readable(files.fd)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(written)
                await self._wake.wait()
                nursery.cancel_scope.cancel()

    async def _take(self, news: Iterable[News]) -> None:
        now = trio.current_time()
        for one in news:
            await trio.lowlevel.checkpoint()
            if one.problem:
                self._world.log.warning("error_log.not_followed", path=one.path, detail=one.problem)
            for number, entry in enumerate(one.entries, 1):
                if number % _AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                if self._is_flood(entry, now):
                    self._count("lines", one.path, 1)
                elif one.past:
                    self._signal(
                        LogLine(
                            generation=BEFORE, pid=entry.pid, level=entry.severity, log=one.path,
                            text=entry.text, at=now,
                        )
                    )  # fmt: skip
                else:
                    self._hear(entry, entry.pid, one.path, at=now)
            self._count("bytes", one.path, one.dropped)
            self._count("lines", one.path, one.more)
            self._count("doubtful", one.path, one.doubtful)

    def _is_flood(self, entry: Entry, now: float) -> bool:
        """One process writes one kind of line so often that one more says nothing new.

        nginx may write ten thousand of them a second, and each takes its time here.
        """
        if now - self._second >= 1.0:
            self._second = now
            self._heard.clear()
        key = (entry.pid, kind_of(entry.text))
        self._heard[key] = heard = self._heard.get(key, 0) + 1
        return heard > LINES

    # --- syslog -------------------------------------------------------------------------------

    def _open_socket(self, settings: SyslogSettings) -> None:
        fds, self._inherited = self._inherited, ()
        if settings.socket is None:
            close_all(fds)
            return
        self._socket = SyslogSocket.inherit(settings.socket, settings.mode, fds)
        if self._socket is not None:
            return
        try:
            self._socket = SyslogSocket.bind(settings.socket, settings.mode)
        except ConfigError as exc:
            if not self._replaces:
                raise
            # nginx is owned already, and that matters more.
            self._world.log.error("syslog.not_open", detail=exc.detail)  # noqa: TRY400 - it is known

    def _give_socket(self) -> None:
        """It is the workers' user's, once one of them was seen."""
        owner = None if self._socket is None else self._world.worker_identity()
        if self._socket is not None and owner is not None:
            try:
                self._socket.give_to(owner)
            except OSError as exc:
                self._world.log.warning(
                    "syslog.not_given", path=self._socket.path, detail=f"{exc.strerror}"
                )

    async def _hear_socket(self, socket: SyslogSocket) -> None:
        while True:
            await trio.lowlevel.wait_readable(socket.fd)
            try:
                heard = socket.receive()
            except OSError as exc:  # the kernel has no memory left
                self._world.log.warning("syslog.not_read", path=socket.path, detail=f"{exc}")
                await trio.sleep(RETRY)
                continue
            now = trio.current_time()
            for one in heard:
                if one.entry.severity > Severity.CRIT:
                    continue
                if self._is_flood(one.entry, now):
                    self._count("lines", SYSLOG, 1)
                else:
                    self._hear(one.entry, one.pid, SYSLOG, at=now)
            if not heard:  # somebody sends what is none of nginx's
                await trio.sleep(PAUSE)

    # --- what was passed over -----------------------------------------------------------------

    def _count(self, what: str, log: str, number: int) -> None:
        """Told now and then, with its sum."""
        if number:
            key = (what, log)
            self._passed_over[key] = self._passed_over.get(key, 0) + number
        now = trio.current_time()
        if not self._passed_over or now - self._told_at < TELL:
            return
        self._told_at = now
        for (kind, path), count in self._passed_over.items():
            self._world.log.warning(_PASSED_OVER[kind], path=path, count=count, detail=_WHY[kind])
        self._passed_over.clear()


_PASSED_OVER = {
    "bytes": "error_log.bytes_dropped",
    "lines": "error_log.lines_dropped",
    "doubtful": "error_log.lines_doubted",
}
_WHY = {
    "bytes": "nginx writes more than can be read in time; the oldest was passed over",
    "lines": "there were too many severe lines at once; these were counted only",
    "doubtful": "a client may have made these lines up: a message just before them, or at their "
    "end, holds a line break; they condemn nobody. `error_log syslog:` has no such doubt",
}
