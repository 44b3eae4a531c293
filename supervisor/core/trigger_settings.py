"""The settings of the triggers: the `[triggers]` table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.seen import LINES
from supervisor.core.settings_table import Table
from supervisor.core.signals import Severity
from supervisor.core.usage_settings import UsageSettings, parse_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSettings:
    """How much of what condemns a candidate; the defaults never fire on a healthy upgrade."""

    worker_deaths: int = 1
    """Ends of workers by a signal or with nginx's fatal code that condemn; 0: never."""
    respawns: int = 3
    """Unexpected ends of workers that are a loop; 0: never."""
    respawn_interval: float = 10.0
    """Seconds in which they have to come."""
    patrol: bool = True
    """Each worker is asked again and again on the private listener."""
    worker_silence: float = 5.0
    """Seconds without an answer of one worker that condemn, while all others answer; 0: never."""
    error_log_emerg: int = 1
    """Lines of one new kind at this level that condemn; 0: none do."""
    error_log_alert: int = 1
    error_log_crit: int = 5
    error_log_ignore: tuple[str, ...] = ()
    """Regular expressions of lines that condemn nobody, besides the built-in ones."""
    usage: UsageSettings = field(default_factory=UsageSettings)

    @property
    def error_log_lines(self) -> Mapping[Severity, int]:
        """How many lines of one new kind condemn, by level."""
        return {
            Severity.EMERG: self.error_log_emerg,
            Severity.ALERT: self.error_log_alert,
            Severity.CRIT: self.error_log_crit,
        }


DEFAULT_TRIGGERS = TriggerSettings()


def parse_triggers(table: Table) -> TriggerSettings:
    """The settings in a table. Raises ConfigError."""
    default = DEFAULT_TRIGGERS
    return TriggerSettings(
        worker_deaths=table.integer("worker_deaths", default.worker_deaths, least=0, most=1000),
        respawns=table.integer("respawns", default.respawns, least=0, most=1000),
        respawn_interval=table.duration(
            "respawn_interval", default.respawn_interval, positive=True
        ),
        error_log_emerg=table.integer(
            "error_log_emerg", default.error_log_emerg, least=0, most=LINES
        ),
        error_log_alert=table.integer(
            "error_log_alert", default.error_log_alert, least=0, most=LINES
        ),
        error_log_crit=table.integer("error_log_crit", default.error_log_crit, least=0, most=LINES),
        error_log_ignore=tuple(
            _expression(table, one) for one in table.texts("error_log_ignore", default=())
        ),
        patrol=table.flag("patrol", default=default.patrol),
        worker_silence=table.duration("worker_silence", default.worker_silence),
        usage=parse_usage(table),
    )


def _expression(table: Table, text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        problem = f"{text!r} is no regular expression: {exc}"
        raise table.error("error_log_ignore", problem) from exc
    return text
