"""Whether a master has given a reload up, by what it writes to its error log.

Theory
------
A master that cannot use a new configuration says so at `emerg` and goes on with the old one; no
signal and no process tells (ngx_init_cycle, src/core/ngx_cycle.c). Nearly always the first such
line is also the end of the attempt. Two things make it less simple:

- An address that is in use is tried again: five times in 2.5 s, each failure an `emerg` of its own,
  and only "still could not bind()" is the end (ngx_open_listening_sockets). A `bind()` that fails
  for another reason is not tried again.
- Some lines at `emerg` are about what is left behind after a success (a `close()` that fails). New
  workers then come at once. So a line counts only when it has stood for `SETTLE` seconds.

Lines are the master's by their pid: workers of both sets write to the same file. Those that a
client may have made up are left out before (`supervisor.core.error_log`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from supervisor.core.error_log import Entry
from supervisor.core.signals import Severity

SETTLE = 0.2
"""Seconds after the last line at `emerg` in which new workers would have come."""

MOST = 16
"""Lines that are kept."""

_RETRIED = re.compile(r"\b(?:bind|listen)\(\) .*failed \(98: ")
_GIVEN_UP = "still could not bind()"


@dataclass(slots=True)
class Complaints:
    """What the master with this pid has written at `emerg` since it was told to reload."""

    pid: int
    lines: list[str] = field(default_factory=list)
    _last: float = 0.0
    _newest: str = ""

    def hear(self, entry: Entry, *, at: float) -> None:
        """One message of an error log, whoever wrote it; `at` in monotonic seconds."""
        if entry.pid != self.pid or entry.severity is not Severity.EMERG:
            return
        if len(self.lines) < MOST and entry.text != (self.lines or [""])[-1]:  # five times the same
            self.lines.append(entry.text)
        self._last, self._newest = at, entry.text

    def final(self, *, at: float) -> str:
        """nginx's own words where it has given up by `at`; empty where it may still succeed."""
        if not self.lines:
            return ""
        if _GIVEN_UP in self._newest:
            return self.cause
        if _RETRIED.search(self._newest) or at - self._last < SETTLE:
            return ""
        return self.cause

    @property
    def cause(self) -> str:
        """The line that says most: the first one, not the summary after it."""
        return f"[emerg] {self.lines[0]}" if self.lines else ""
