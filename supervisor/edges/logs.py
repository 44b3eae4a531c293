"""The supervisor's log: one line for each event, on standard error, never in anyone's way.

A log that blocks would stop the supervisor, and one that fails would end it, while nginx needs it
most. So a line is written only where the kernel says that it will not block (poll(2)), else it is
dropped and counted; the count is told with the next line that gets through.

Under systemd each event is an entry of the journal, with fields (`journald`). One that the journal
does not take at once goes to standard error like anywhere else, which systemd has connected to the
journal by another way; only what neither takes is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

import structlog
from structlog.typing import FilteringBoundLogger, Processor, WrappedLogger

from supervisor.core.log_text import Event, priority
from supervisor.core.settings import LogFormat, LogLevel, LogSettings
from supervisor.edges import journald

_PIECE = 4096
"""What a writable pipe takes without blocking (PIPE_BUF, pipe(7))."""
_FIRST_KEYS = ("timestamp", "level", "event")
_LEVELS = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}

EventDict = MutableMapping[str, Any]  # structlog's own type of an event


Entry = TypeVar("Entry")
"""What a processor makes of an event, for whoever writes it."""


def configure_logs(
    settings: LogSettings,
    *,
    extra: Sequence[Processor] = (),
    fd: int = 2,
    journal: str = journald.SOCKET,
) -> FilteringBoundLogger:
    """Set the log up for the whole process, also again after a change; a logger to begin with.

    `structlog.get_logger()` elsewhere gives the same. `extra` processors see every event before
    it is rendered, with what was bound for their task (structlog.contextvars). Does not close `fd`.
    """
    form = _form(settings.format, fd)
    close_logs()
    structlog.configure(
        processors=_processors(form, extra, colors=_is_terminal(fd)),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=_writer(form, fd, journal),
        cache_logger_on_first_use=False,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def flush_logs(seconds: float = journald.PATIENCE) -> None:
    """What could not be written at once gets so long."""
    writer = structlog.get_config().get("logger_factory")
    if isinstance(writer, _Writer):
        writer.flush(seconds)


def close_logs() -> None:
    """Give back what the last `configure_logs` opened; what is logged then goes to its `fd`."""
    writer = structlog.get_config().get("logger_factory")
    if isinstance(writer, _Writer):
        writer.close()


def _form(wanted: LogFormat, fd: int) -> LogFormat:
    if wanted is not LogFormat.AUTO:
        return wanted
    if journald.is_journal(fd):
        return LogFormat.JOURNAL
    return LogFormat.CONSOLE if _is_terminal(fd) else LogFormat.JSON


def _processors(form: LogFormat, extra: Sequence[Processor], *, colors: bool) -> list[Processor]:
    stamped: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *extra,
    ]
    if form is LogFormat.CONSOLE:
        return [*stamped, _Unfailing(structlog.dev.ConsoleRenderer(colors=colors))]
    stamped.append(structlog.processors.format_exc_info)
    if form is LogFormat.JOURNAL:
        return [*stamped, _as_it_is]
    return [*stamped, _in_order, _AS_JSON]


def _writer(form: LogFormat, fd: int, journal: str) -> _Writer[Any]:
    lines = _Lines(fd)
    if form is LogFormat.JOURNAL:
        return _ToJournal(journal, lines)
    if form is LogFormat.CONSOLE:
        return _Writer(lines.write, lambda count: f"[warning] log.dropped count={count}")
    return _Writer(lines.write, lambda count: json.dumps(_dropped(count)))


def _dropped(count: int) -> EventDict:
    return {"level": "warning", "event": "log.dropped", "count": count}


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _in_order(_logger: WrappedLogger, _method: str, event: Event) -> EventDict:
    """What every line has comes first."""
    first: EventDict = {key: event[key] for key in _FIRST_KEYS if key in event}
    return dict(first) | {key: value for key, value in event.items() if key not in first}


class _Unfailing:
    """A renderer that always has something to say."""

    def __init__(self, renderer: Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        name = event.get("event")
        try:
            return str(self._renderer(logger, method, event))
        except Exception as exc:  # noqa: BLE001 - a value that cannot be shown must end nothing
            return json.dumps({"event": str(name), "unprintable": type(exc).__name__})


_AS_JSON = _Unfailing(structlog.processors.JSONRenderer(default=repr))


def _as_it_is(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[EventDict], dict[str, Any]]:
    """The event itself, for a logger that knows what to do with it."""
    return (event,), {}


class _Writer(Generic[Entry]):
    """Has entries written, and counts what could not be; also the factory that hands itself out."""

    def __init__(self, write: Callable[[Entry], bool], confession: Callable[[int], Entry]) -> None:
        self._write = write
        self._confession = confession
        self._dropped = 0
        self._lock = threading.Lock()  # workers of trio.to_thread log as well

    def __call__(self, *_args: object) -> _Writer[Entry]:
        return self

    def msg(self, entry: Entry) -> None:
        """Write `entry`, or count it as dropped. Never raises, never blocks."""
        with self._lock:
            if self._dropped and self._write(self._confession(self._dropped)):
                self._dropped = 0
            if self._dropped or not self._write(entry):
                self._dropped += 1

    debug = info = warning = warn = error = critical = fatal = exception = log = msg

    def flush(self, seconds: float) -> None:
        """What waits to be written gets so long; nothing does here."""

    def close(self) -> None:
        """Give everything back but what was given."""


class _ToJournal(_Writer[EventDict]):
    """Writes events to the journal, and what it does not take, to `lines`."""

    def __init__(self, path: str, lines: _Lines) -> None:
        super().__init__(self._send, _dropped)
        self._journald = journald.Journald(path, self._lost)
        self._lines = lines
        self._prefixed = journald.is_journal(lines.fd)

    def flush(self, seconds: float) -> None:
        """What waits to be sent gets so long."""
        self._journald.flush(seconds)

    def close(self) -> None:
        """What waits to be sent gets a moment."""
        self._journald.close()

    def _send(self, event: EventDict) -> bool:
        """Whether the whole event could be written, in whichever form."""
        try:
            self._journald.send(event)
        except Exception as exc:  # noqa: BLE001 - neither the journal nor an odd value may end us
            return self._lines.write(self._as_line(event, exc))
        return True

    def _lost(self, event: Event, cause: Exception) -> None:
        """Called by journald's own thread: it could not be sent after all."""
        with self._lock:
            told = False
            try:
                told = self._lines.write(self._as_line(event, cause))
            finally:
                self._dropped += not told

    def _as_line(self, event: Event, cause: Exception) -> str:
        """The event with why it is no entry; with its priority for systemd (sd-daemon(3))."""
        why = cause.strerror if isinstance(cause, OSError) else type(cause).__name__
        line = str(_AS_JSON(None, "msg", {**_in_order(None, "msg", event), "not_in_journal": why}))
        return f"<{priority(event)}>{line}" if self._prefixed else line


class _Lines:
    """Writes lines to a descriptor where that does not block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._within_line = False  # a line was cut: the next one begins with a newline
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, line: str) -> bool:
        """Whether all of it could be written."""
        start = "\n" if self._within_line else ""
        rest = memoryview(f"{start}{line}\n".encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError, ValueError):
            while rest and self._writable():
                rest = rest[os.write(self.fd, rest[:_PIECE]) :]
                self._within_line = len(rest) > 0
        return not rest

    def _writable(self) -> bool:
        return any(state & select.POLLOUT for _fd, state in self._poll.poll(0))
