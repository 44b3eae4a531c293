"""Looks after each worker of a candidate, and keeps record of how well that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import trio

from supervisor.core.observation import Observation
from supervisor.core.observed import Observed
from supervisor.core.patrol import Patrol
from supervisor.core.probe_settings import HttpProbe, ProbeSettings
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.core.triggers import Trigger
from supervisor.edges.probes import Aim, Beside

PAUSE = 2.0
"""Seconds between two rounds at least: some sixty connections each, where there are 16 workers."""


class Lookout:
    """Of one candidate after the other; in the supervisor's own thread."""

    def __init__(self, condemn: Callable[[Observation, Trigger | None], None]) -> None:
        self._condemn = condemn
        self._patrol: Patrol | None = None
        self._candidate: int | None = None
        self._accepting: frozenset[int] = frozenset()
        self.observed = Observed()

    def expect(self) -> None:
        """A candidate is to come, of which nothing has been seen."""
        self.observed = Observed()

    def begin_canary(self, candidate: int, accepting: frozenset[int]) -> None:
        """Both generations accept; of the candidate nothing has been seen yet."""
        self.observed = Observed()
        self.observed.begin_canary()
        self.go_on(candidate, accepting)

    def go_on(self, candidate: int, accepting: frozenset[int]) -> None:
        """The candidate is looked at from now on, after whatever was seen of it."""
        self._candidate, self._patrol = candidate, None
        self.census(accepting)

    def end(self) -> None:
        """Nobody is judged any more."""
        self._candidate = self._patrol = None

    def beside(
        self,
        private: Aim,
        probes: Mapping[str, ProbeSettings],
        judging: Collection[str],
        settings: TriggerSettings,
    ) -> Beside | None:
        """The patrol on the private listener; None where no probe that judges can be asked there.

        An http probe goes before one of tcp, to which the kernel answers for a worker that hangs.
        """
        able = [
            one
            for name, one in probes.items()
            if name in judging and name not in private.not_asked and isinstance(one, HttpProbe)
        ]
        if not able or not settings.patrol:
            return None
        probe = min(able, key=lambda one: (one.tls is not None, one.timeout))
        self._patrol = patrol = Patrol(
            candidate=private.generation, fall=probe.fall, interval=probe.interval,
            silence=settings.worker_silence,
        )  # fmt: skip
        patrol.census(self._accepting, at=trio.current_time())
        return Beside(
            aim=replace(private, cover=frozenset(), beside=None),
            probe=probe.name,
            report=self._take,
            begin=patrol.begin,
            wants_more=lambda: patrol.wants_more,
            pause=lambda: patrol.pause(max(PAUSE, probe.interval)),
        )

    def observe(self, seen: Observation, *, in_canary: bool) -> None:
        """One result of one probe."""
        if self._candidate is not None:
            self.observed.take(seen, candidate=self._candidate, in_canary=in_canary)

    def census(self, accepting: frozenset[int]) -> None:
        """The candidate's workers that accept now."""
        self._accepting = accepting
        self.observed.census(accepting)
        if self._patrol is not None:
            self._patrol.census(accepting, at=trio.current_time())

    @property
    def has_asked_all(self) -> bool:
        """Every worker had its turn, or there is no patrol that could ask."""
        return self._patrol is None or self._patrol.has_asked_all

    @property
    def suspect(self) -> int | None:
        """See Patrol."""
        return None if self._patrol is None else self._patrol.suspect

    def _take(self, seen: Observation) -> None:
        if self._patrol is not None:
            self._condemn(seen, self._patrol.take(seen, at=trio.current_time()))

    # --- over the replacement of the supervisor ---

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process; the patrol begins anew there."""
        return self.observed.to_data()

    def from_data(self, data: Mapping[str, Any]) -> None:
        """Go on. Raises KeyError, TypeError or ValueError where `data` is no such thing."""
        self.observed = Observed.from_data(data)
