"""How much each guard is to say: the `[guards]` table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from supervisor.core.settings_table import Table


class Guard(Enum):
    """What is compared between the generation that serves and the one that is to come."""

    LISTENERS = "listeners"
    REUSEPORT = "reuseport"
    SHARED_ZONES = "shared_zones"
    QUIC = "quic"
    CERTIFICATES = "certificates"
    SESSION_TICKETS = "session_tickets"
    MODULES = "modules"


class Level(Enum):
    """What follows from a warning; notes are told, whatever else is refused."""

    OFF = "off"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """The level of each guard: told, but for what is sure to do harm."""

    listeners: Level = Level.WARN
    reuseport: Level = Level.REFUSE
    shared_zones: Level = Level.WARN
    quic: Level = Level.WARN
    certificates: Level = Level.WARN
    session_tickets: Level = Level.WARN
    modules: Level = Level.WARN

    def of(self, guard: Guard) -> Level:
        """The level of `guard`."""
        level = getattr(self, guard.value)
        assert isinstance(level, Level)
        return level

    def on_the_way_back(self) -> GuardSettings:
        """For an upgrade back to what ran before: whoever needs that is told, and not kept from it.

        But for `reuseport`, which would let clients hang.
        """
        levels = {
            guard.value: Level.WARN
            for guard in Guard
            if self.of(guard) is Level.REFUSE and guard is not Guard.REUSEPORT
        }
        return replace(self, **levels)


DEFAULT_GUARDS = GuardSettings()


def parse_guards(table: Table) -> GuardSettings:
    """The levels in the table. Raises ConfigError."""
    words = {one.value: one for one in Level}
    return GuardSettings(
        **{
            guard.value: table.choice(guard.value, DEFAULT_GUARDS.of(guard), words)
            for guard in Guard
        }
    )
