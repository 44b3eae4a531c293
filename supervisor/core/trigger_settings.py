"""The settings of the triggers: the `[triggers]` table."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.settings_table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSettings:
    """How much of what condemns a candidate; the defaults never fire on a healthy upgrade."""

    respawns: int = 3
    """Unexpected ends of workers that are a loop; 0: never."""
    respawn_interval: float = 10.0
    """Seconds in which they have to come."""


DEFAULT_TRIGGERS = TriggerSettings()


def parse_triggers(table: Table) -> TriggerSettings:
    """The settings in a table. Raises ConfigError."""
    default = DEFAULT_TRIGGERS
    return TriggerSettings(
        respawns=table.integer("respawns", default.respawns, least=0, most=1000),
        respawn_interval=table.duration(
            "respawn_interval", default.respawn_interval, positive=True
        ),
    )
