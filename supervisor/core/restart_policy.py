"""Is nginx to be started again? The limits, and what was seen of them.

No clock: times come with the facts, as monotonic seconds.

A generation that had been ready is started again at once. The pause, doubling, begins with a start
that did not become ready, or with one crash more than `crash_limit` within `crash_interval`. Where
`start_limit` starts were made within `start_limit_interval`, the first one included, the next
failure is the last. With the defaults a start that fails at once is tried ten times in 51 s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from supervisor.core.recent import recent


@dataclass(frozen=True, slots=True)
class RestartNow:
    """Start nginx again at once."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Start nginx again after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start nginx again until a person says so."""

    reason: str
    detail: str


RestartDecision = RestartNow | Backoff | GiveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The limits, and what has been seen of them. `start_limit` 0: never give up."""

    backoff_initial: float = 0.1
    backoff_max: float = 30.0
    crash_limit: int = 5
    crash_interval: float = 10.0
    start_limit: int = 10
    start_limit_interval: float = 60.0
    starts: tuple[float, ...] = field(default=())
    crashes: tuple[float, ...] = field(default=())
    last_delay: float = 0.0

    def failed(
        self, *, at: float, was_ready: bool, started: float = -math.inf
    ) -> tuple[RestartPolicy, RestartDecision]:
        """What to do after a start failed (`was_ready` False) or a serving nginx ended.

        The start that the decision asks for is counted already; its failure is reported next. The
        first start is nobody's decision: it counts by when the nginx that ended was `started`.
        """
        starts = recent(self.starts, at, self.start_limit_interval)
        if not starts:
            first = started if was_ready else at
            starts = recent((first,), at, self.start_limit_interval)
        crashes = recent(self.crashes, at, self.crash_interval)
        if was_ready:
            crashes = (*crashes, at)
        if self.start_limit and len(starts) >= self.start_limit:
            return replace(self, starts=starts, crashes=crashes), self._give_up()
        if was_ready and len(crashes) <= self.crash_limit:
            after = replace(self, starts=(*starts, at), crashes=crashes, last_delay=0.0)
            return after, RestartNow()
        delay = min(self.backoff_max, 2 * self.last_delay or self.backoff_initial)
        after = replace(self, starts=(*starts, at + delay), crashes=crashes, last_delay=delay)
        return after, Backoff(delay)

    def forget(self) -> RestartPolicy:
        """As new: what an operator's own start deserves."""
        return replace(self, starts=(), crashes=(), last_delay=0.0)

    def _give_up(self) -> GiveUp:
        return GiveUp(
            "start_limit",
            f"cannot keep nginx running: it was started {self.start_limit} times within "
            f"{self.start_limit_interval:g} s; its error log tells why; then nginxctl start",
        )
