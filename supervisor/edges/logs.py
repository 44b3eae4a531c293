"""The supervisor's log: one line for each event, on standard error, never in anyone's way.

A log that blocks would stop the supervisor, and one that fails would end it, while nginx needs it
most. So a line is written only where the kernel says that it will not block (poll(2)), else it is
dropped and counted; the count is told with the next line that gets through.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
from collections.abc import MutableMapping, Sequence
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger, Processor, WrappedLogger

from supervisor.core.settings import LogFormat, LogLevel, LogSettings

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


def configure_logs(
    settings: LogSettings, *, extra: Sequence[Processor] = (), fd: int = 2
) -> FilteringBoundLogger:
    """Set the log up for the whole process, also again after a change; a logger to begin with.

    `structlog.get_logger()` elsewhere gives the same. `extra` processors see every event before
    it is rendered. Does not close `fd`.
    """
    form = settings.format
    if form is LogFormat.AUTO:
        form = LogFormat.CONSOLE if _is_terminal(fd) else LogFormat.JSON
    structlog.configure(
        processors=_processors(form, extra, colors=_is_terminal(fd)),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=_Lines(fd, form),
        cache_logger_on_first_use=False,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def _processors(form: LogFormat, extra: Sequence[Processor], *, colors: bool) -> list[Processor]:
    stamped: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *extra,
    ]
    if form is LogFormat.CONSOLE:
        return [*stamped, _Unfailing(structlog.dev.ConsoleRenderer(colors=colors))]
    return [
        *stamped,
        structlog.processors.format_exc_info,
        _in_order,
        _Unfailing(structlog.processors.JSONRenderer(default=repr)),
    ]


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What every line has comes first."""
    first = {key: event[key] for key in _FIRST_KEYS if key in event}
    return first | {key: value for key, value in event.items() if key not in first}


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


class _Lines:
    """Writes lines to a descriptor; also the factory that hands itself out."""

    def __init__(self, fd: int, form: LogFormat) -> None:
        self._fd = fd
        self._form = form
        self._dropped = 0
        self._within_line = False  # a line was cut: the next one begins with a newline
        self._lock = threading.Lock()  # workers of trio.to_thread log as well
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __call__(self, *_args: object) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        """Write `line`, or count it as dropped. Never raises, never blocks."""
        with self._lock:
            if self._dropped and self._write(self._confession()):
                self._dropped = 0
            if self._dropped or not self._write(line):
                self._dropped += 1

    debug = info = warning = warn = error = critical = fatal = exception = log = msg

    def _confession(self) -> str:
        if self._form is LogFormat.JSON:
            return json.dumps({"level": "warning", "event": "log.dropped", "count": self._dropped})
        return f"[warning] log.dropped count={self._dropped}"

    def _write(self, line: str) -> bool:
        """Whether all of it could be written."""
        start = "\n" if self._within_line else ""
        rest = memoryview(f"{start}{line}\n".encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError, ValueError):
            while rest and self._writable():
                rest = rest[os.write(self._fd, rest[:_PIECE]) :]
                self._within_line = len(rest) > 0
        return not rest

    def _writable(self) -> bool:
        return any(state & select.POLLOUT for _fd, state in self._poll.poll(0))
