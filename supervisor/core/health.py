"""Is a probe up? What the row of its passes and failures says.

A probe is up after `rise` passes in a row and down after `fall` failures in a row. An observation
that proves nothing (INCONCLUSIVE) neither adds to a row nor breaks one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supervisor.core.observation import Outcome


class HealthState(Enum):
    """What the rows of passes and failures say."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of one probe, and the row that it is in."""

    state: HealthState = HealthState.UNKNOWN
    passes: int = 0  # in a row
    failures: int = 0  # in a row

    def observe(self, outcome: Outcome, *, rise: int, fall: int) -> Health:
        """The health after one more outcome."""
        if outcome is Outcome.PASS:
            passes = self.passes + 1
            return Health(state=HealthState.UP if passes >= rise else self.state, passes=passes)
        if outcome is Outcome.FAIL:
            failures = self.failures + 1
            state = HealthState.DOWN if failures >= fall else self.state
            return Health(state=state, failures=failures)
        return self
