"""The settings of the triggers that look at processes and queues: part of `[triggers]`."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.settings_table import Table

MEGABYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSettings:
    """How much of what processes use or leave undone condemns; 0 switches a trigger off.

    Times are seconds. The defaults never fire on a healthy upgrade, also on a host that is
    overloaded.
    """

    interval: float = 1.0
    """Between two looks at the processes, while an upgrade is judged."""
    memory_factor: int = 3
    """So many times what the old generation used at the same age ..."""
    memory_floor_mb: int = 64
    """... and so much more than that, of which it has grown as much without a pause."""
    descriptors_factor: int = 3
    descriptors_floor: int = 500
    growing_for: float = 3.0
    """Growth has to go on for so long: what is larger and stable is not condemned."""
    master_cpu_for: float = 5.0
    worker_cpu_for: float = 8.0
    stalled_for: float = 5.0
    """A worker that does not come back to its loop, or connections that nobody accepts."""
    deaf_for: float = 10.0
    """A master that does not come back to its loop."""
    cache_deaths: int = 2
    """Ends of cache processes by a signal or with an error, within `loss_interval`."""
    losses: int = 3
    """Workers that ended untold and had to be started again, within `loss_interval`."""
    loss_interval: float = 60.0


def parse_usage(table: Table) -> UsageSettings:
    """The settings in the table of all triggers. Raises ConfigError."""
    default = UsageSettings()
    return UsageSettings(
        interval=table.duration("usage_interval", default.interval, positive=True),
        memory_factor=_number(table, "memory_factor", default.memory_factor),
        memory_floor_mb=_number(table, "memory_floor_mb", default.memory_floor_mb),
        descriptors_factor=_number(table, "descriptors_factor", default.descriptors_factor),
        descriptors_floor=_number(table, "descriptors_floor", default.descriptors_floor),
        growing_for=table.duration("growing_for", default.growing_for),
        master_cpu_for=table.duration("master_cpu_for", default.master_cpu_for),
        worker_cpu_for=table.duration("worker_cpu_for", default.worker_cpu_for),
        stalled_for=table.duration("stalled_for", default.stalled_for),
        deaf_for=table.duration("deaf_for", default.deaf_for),
        cache_deaths=_number(table, "cache_deaths", default.cache_deaths),
        losses=_number(table, "losses", default.losses),
        loss_interval=table.duration("loss_interval", default.loss_interval, positive=True),
    )


def _number(table: Table, key: str, default: int) -> int:
    return table.integer(key, default, least=0, most=1_000_000)
