"""What a reload is judged by: the workers that it brought, and the probes that passed before it.

Theory
------
After a reload the master is the same, and only the workers are others. Once no worker of before
accepts any more, whatever answers a new connection is of the new set: the judge is made then, and
hears only answers that were asked for since. A probe counts where it passed before the reload; one
that failed then says nothing about the new configuration.

- A probe that fails `fall` times in a row speaks against the reload.
- So does a worker of the new set that ends by a signal or with any code but 0.
- An end with code 0 is somebody's order. One whose status nobody tells (the workers of an adopted
  master are not our children's children) may belong to another reload: it counts only where others
  of the set still accept, since a reload replaces all of them. They do not leave in one moment; but
  in a reload as many new workers are there before the first one leaves, and else only those that
  came for the ones that ended.
- The reload is proved once each probe that counts has passed `rise` times in a row. A probe that is
  failing at the end of the time is doubted, and asked on; one that has given no answer at all
  leaves the reload inconclusive.

No clock: whoever asks knows how long it takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.core.observation import Observation, Outcome

PROBES_FAILED = "reload_probes_failed"
WORKER_DIED = "reload_worker_died"
INCONCLUSIVE = "reload_inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """What speaks against the configuration that was loaded."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A probe that passed before the reload."""

    name: str
    rise: int
    fall: int


@dataclass(slots=True)
class _Row:
    witness: Witness
    passes: int = 0  # in a row
    failures: int = 0  # in a row
    proved: bool = False
    heard: bool = False
    detail: str = ""  # of the last failure

    def observe(self, outcome: Outcome, detail: str) -> None:
        self.heard = True
        if outcome is Outcome.PASS:
            self.passes, self.failures = self.passes + 1, 0
            self.proved = self.proved or self.passes >= self.witness.rise
        else:
            self.passes, self.failures, self.detail = 0, self.failures + 1, detail


class ReloadJudge:
    """Judges one reload of `generation`; `objection` is the first thing that spoke against it."""

    def __init__(
        self, *, generation: int, witnesses: Iterable[Witness], workers: frozenset[int]
    ) -> None:
        self.objection: Objection | None = None
        self.answered: frozenset[int] = frozenset()  # workers that are known to have answered
        self._generation = generation
        self._rows = {one.name: _Row(one) for one in witnesses}
        self._workers = set(workers)
        self._brought = workers
        self._unexplained: set[int] = set()

    @property
    def judged(self) -> bool:
        """A probe had a part in it."""
        return any(row.heard for row in self._rows.values())

    @property
    def proved(self) -> bool:
        """Every probe that counts has passed as often as makes it up; so too without any."""
        return all(row.proved for row in self._rows.values())

    @property
    def doubted(self) -> frozenset[str]:
        """The probes whose last answer was a failure."""
        return frozenset(name for name, row in self._rows.items() if row.failures)

    def observe(self, seen: Observation) -> None:
        """One result of a probe; what is not this generation's answer says nothing."""
        row = self._rows.get(seen.probe)
        if row is None or seen.generation != self._generation:
            return
        if seen.outcome is Outcome.INCONCLUSIVE:
            return
        row.observe(seen.outcome, seen.detail)
        if seen.worker_pid in self._workers and seen.outcome is Outcome.PASS:
            self.answered |= {seen.worker_pid}
        if row.failures >= row.witness.fall:
            self._object(PROBES_FAILED, _failing(row))

    def worker_exited(
        self, pid: int, *, code: int | None, signal: int | None, draining: bool
    ) -> None:
        """A worker is gone; `code` and `signal` None: nobody tells how."""
        if pid not in self._workers:
            return
        self._workers.discard(pid)
        if draining or code == 0:
            return
        if code is None and signal is None:
            self._unexplained.add(pid)
            return
        how = f"by signal {signal}" if code is None else f"with code {code}"
        self._object(WORKER_DIED, f"worker {pid} of the new configuration ended {how}")

    def census(self, accepting: frozenset[int]) -> None:
        """The workers that accept at this moment."""
        if not self._unexplained:
            return
        replaced = len(accepting - self._brought) >= len(self._brought)
        if accepting & self._workers and not replaced:
            pid = min(self._unexplained)
            self._object(WORKER_DIED, f"worker {pid} of the new configuration ended unexpectedly")
        self._unexplained.clear()

    def overdue(self) -> Objection | None:
        """What to say when the time is up: the objection, where not everything is proved."""
        if self.objection is not None:
            return self.objection
        for name in sorted(self.doubted):
            return Objection(reason=PROBES_FAILED, detail=_failing(self._rows[name]))
        silent = sorted(name for name, row in self._rows.items() if not row.proved)
        if not silent:
            return None
        detail = f"no answer that counts, or too few, came to probe {', '.join(silent)} in time"
        return Objection(reason=INCONCLUSIVE, detail=detail)

    def _object(self, reason: str, detail: str) -> None:
        if self.objection is None:
            self.objection = Objection(reason=reason, detail=detail)


def _failing(row: _Row) -> str:
    times = "once" if row.failures == 1 else f"{row.failures} times"
    return f"probe {row.witness.name}, which passed before the reload, failed {times}: {row.detail}"
