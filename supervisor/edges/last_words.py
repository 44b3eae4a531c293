"""Why a master ended: the last message of it in the files that it logs to."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from supervisor.core.error_log import parse_line, pid_of
from supervisor.core.signals import Severity

_TAIL = 65536
"""Bytes at the end of a log that are looked at: others may have written since."""
_LONGEST = 400


def last_words(pid: int, logs: Iterable[str]) -> str:
    """The last `[emerg]` or `[alert]` message of process `pid`; empty where there is none.

    Blocks for as long as the ends of the files take to read; raises nothing.
    """
    said = ""
    for path in logs:
        with contextlib.suppress(OSError):
            said = _in(path, pid) or said
    return said


def _in(path: str, pid: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ""  # a terminal or a pipe would lose what is read
        tail = os.pread(fd, _TAIL, max(0, found.st_size - _TAIL))
    finally:
        os.close(fd)
    for line in reversed(tail.split(b"\n")):
        if pid_of(line) != pid:
            continue
        entry = parse_line(line)
        if entry is not None and entry.severity in (Severity.EMERG, Severity.ALERT):
            return f"[{entry.severity.name.lower()}] {entry.text}"[:_LONGEST]
    return ""
