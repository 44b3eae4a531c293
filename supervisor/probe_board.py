"""What each probe says of the nginx that it looks at now: the rows behind `status`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from supervisor.core.health import Health, HealthState
from supervisor.core.observation import Attribution, Observation
from supervisor.core.probe_settings import ProbeSettings


@dataclass(slots=True)
class Row:
    """One probe: its health, and the last that it saw."""

    health: Health = field(default_factory=Health)
    since: str | None = None  # UTC; of the last change of state
    detail: str | None = None
    generation: int | None = None
    heard_at: float | None = None  # monotonic seconds
    attribution: Attribution | None = None
    worker: int | None = None
    changed_at: float = -math.inf  # the same; of the last change of state
    before: HealthState = HealthState.UNKNOWN  # ... and what it was until then

    def was_up(self, at: float) -> bool:
        """Whether it was up then; a change before the last one is not known any more."""
        state = self.health.state if at >= self.changed_at else self.before
        return state is HealthState.UP


class Board:
    """The rows of all probes that are configured."""

    def __init__(self, probes: Iterable[ProbeSettings]) -> None:
        self.probes: dict[str, ProbeSettings] = {probe.name: probe for probe in probes}
        self.rows: dict[str, Row] = {name: Row() for name in self.probes}

    def forget(self) -> None:
        """What was seen is of an nginx that is gone: `status` must not show it as news."""
        self.rows = {name: Row() for name in self.probes}

    def reconfigure(self, probes: Iterable[ProbeSettings]) -> frozenset[str]:
        """Other probes from now on; those that are as they were keep their rows: their names."""
        before, old = self.probes, self.rows
        self.probes = {probe.name: probe for probe in probes}
        same = frozenset(n for n, probe in self.probes.items() if before.get(n) == probe)
        self.rows = {name: old[name] if name in same else Row() for name in self.probes}
        return same

    def take(self, seen: Observation, *, at: float) -> bool:
        """One more result of a probe that is configured; whether its state is another one now."""
        probe, row = self.probes[seen.probe], self.rows[seen.probe]
        before = row.health.state
        row.health = row.health.observe(seen.outcome, rise=probe.rise, fall=probe.fall)
        row.heard_at, row.detail, row.generation = at, seen.detail, seen.generation
        row.attribution, row.worker = seen.attribution, seen.worker_pid
        if row.health.state is before:
            return False
        row.changed_at, row.before = at, before
        row.since = datetime.now(UTC).isoformat(timespec="milliseconds")
        return True

    def passes(self, name: str) -> bool:
        """Whether it is up, or on the way there, and its last answer was a pass."""
        health = self.rows[name].health
        return health.passes > 0 and health.state is not HealthState.DOWN

    def up_at(self, at: float) -> frozenset[str]:
        """The probes that were up at this moment, as far as their last change tells."""
        return frozenset(name for name, row in self.rows.items() if row.was_up(at))

    def heard_since(self, name: str, at: float) -> bool:
        """Whether anything was heard of it after `at`."""
        heard_at = self.rows[name].heard_at
        return heard_at is not None and heard_at > at

    # --- telling ---

    def report(self) -> list[dict[str, object]]:
        """The probes as `status` shows them."""
        return [
            {
                "name": name,
                "type": self.probes[name].type,
                "state": row.health.state.value,
                "generation": None if row.generation is None else f"g{row.generation}",
                "attribution": None if row.attribution is None else row.attribution.value,
                "worker": row.worker,
                "since": row.since,
                "detail": row.detail,
            }
            for name, row in self.rows.items()
        ]

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process."""
        return {
            name: {
                "health": [row.health.state.value, row.health.passes, row.health.failures],
                "since": row.since,
                "detail": row.detail,
                "generation": row.generation,
                "attribution": None if row.attribution is None else row.attribution.value,
                "worker": row.worker,
            }
            for name, row in self.rows.items()
        }

    def from_data(self, data: Mapping[str, Any]) -> None:
        """Go on from the rows of another one; of a probe that is not configured nothing is taken.

        Raises KeyError, TypeError or ValueError where `data` is no such thing.
        """
        for name in self.rows.keys() & data.keys():
            seen = data[name]
            state, passes, failures = seen["health"]
            health = Health(state=HealthState(state), passes=passes, failures=failures)
            row = Row(health, seen["since"], seen["detail"], seen["generation"])
            if seen["attribution"] is not None:
                row.attribution, row.worker = Attribution(seen["attribution"]), seen["worker"]
            self.rows[name] = row
