"""Does each worker go on answering? Fresh connections to the candidate's private listener.

What the public shows of one bad worker among many is a request that fails now and then, and a probe
meets that worker as seldom as users do: a row of `fall` failures never comes together. So the
patrol connects again and again until every worker has answered, in rounds, and keeps a row for each
worker. Two things condemn:

- `worker_failing`: a worker failed `fall` times in a row, an interval of the probe apart at least,
  and between each two of these failures others answered, and well more often than badly. Where
  they do not it is no matter of one worker, and the probe's own rows decide.
- `worker_not_answering`: a worker that hangs accepts nothing, so nobody can say that a connection
  was for it. But the kernel spreads new connections over the workers by chance: when so many have
  been answered that each worker should have had its turn several times over, and all the others
  have had it, and connections were left without an answer, then those were for the one that is
  missing. It has to be missing for a while (`silence`): a worker may be held up by a slow disk.

A site that limits requests (limit_req) answers badly by whichever worker, just since it is asked so
often: a round in which several workers fail is over, and the next one comes later and later.

A host in trouble slows down every worker, so that some answers of each are missing, and not all
answers of one. Without a way to tell whose an answer is the patrol ends and condemns nobody.

No clock: times are monotonic seconds that come with the facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from supervisor.core.observation import Observation, Outcome
from supervisor.core.triggers import Trigger

LONGEST_ROW = 4
"""Doublings of the pause at most."""
USELESS = 8
"""Answers in a round that prove nothing, after which the round is over."""


@dataclass(slots=True)
class _Row:
    """One worker: when it last answered well, and its failures since."""

    answered: float
    failures: list[float] = field(default_factory=list)
    others: int = 0  # good answers of others less their bad ones, since the last of these failures


class Patrol:
    """The rounds of one candidate; what condemns it is told once for each observation."""

    def __init__(self, *, candidate: int, fall: int, interval: float, silence: float) -> None:
        self._candidate = candidate
        self._fall = fall
        self._interval = interval
        self._silence = silence
        self._rows: dict[int, _Row] = {}
        self._missing: set[int] = set()
        self._failed_in_round: set[int] = set()
        self._passes = self._nobody = self._useless = 0
        self._cut_short = 0  # rounds in a row in which several failed
        self._rounds = 0  # that were begun

    # --- rounds ---

    def census(self, accepting: frozenset[int], *, at: float) -> None:
        """The workers that accept now; where others do than before, a new round begins."""
        if accepting == self._rows.keys():
            return
        self._rows = {pid: self._rows.get(pid) or _Row(answered=at) for pid in accepting}
        self._rounds = 0
        self.begin()

    def begin(self) -> None:
        """A new round: every worker is to answer again."""
        self._rounds += 1
        self._cut_short = self._cut_short + 1 if self._several_fail else 0
        self._failed_in_round = set()
        self._missing = set(self._rows)
        self._passes = self._nobody = self._useless = 0

    @property
    def wants_more(self) -> bool:
        """Another connection may still show something in this round."""
        if len(self._rows) < 2 or self._useless >= USELESS or self._several_fail:
            return False
        return bool(self._missing) and self._passes + self._nobody < 2 * self._enough

    @property
    def has_asked_all(self) -> bool:
        """A round is over: every worker had its turn, as far as that can be had."""
        return self._rounds > 2 or not self.wants_more

    def pause(self, usual: float) -> float:
        """Seconds until the next round."""
        cut_short = min(self._cut_short + self._several_fail, LONGEST_ROW)
        return float(usual * 2**cut_short)

    @property
    def suspect(self) -> int | None:
        """The worker that failed when it was last asked, where that is one alone."""
        failing = [pid for pid, row in self._rows.items() if row.failures]
        return failing[0] if len(failing) == 1 else None

    @property
    def _several_fail(self) -> bool:
        return len(self._failed_in_round) > 1

    @property
    def _enough(self) -> int:
        """Answers after which chance has found each worker (coupon collector, twice over)."""
        number = len(self._rows)
        return math.ceil(2 * number * math.log(number)) + 16

    # --- evidence ---

    def take(self, seen: Observation, *, at: float) -> Trigger | None:
        """One more answer, or none; what condemns the candidate with it."""
        pid, passed = seen.worker_pid, seen.outcome is Outcome.PASS
        row = None if pid is None else self._rows.get(pid)
        if seen.outcome is Outcome.INCONCLUSIVE or seen.generation != self._candidate:
            self._useless += 1
        elif row is not None and pid is not None:
            return self._passed(pid, row, at) if passed else self._failed(pid, row, seen.detail, at)
        elif passed:
            self._useless += 1  # somebody's, and nobody can say whose
        else:
            self._nobody += 1
            return self._silent(at)
        return None

    def _passed(self, pid: int, row: _Row, at: float) -> Trigger | None:
        row.answered, row.failures = at, []
        self._missing.discard(pid)
        self._passes += 1
        for other, one in self._rows.items():
            one.others += other != pid
        return self._silent(at)

    def _failed(self, pid: int, row: _Row, said: str, at: float) -> Trigger | None:
        self._failed_in_round.add(pid)
        for other, one in self._rows.items():
            one.others -= other != pid
        if row.failures and at - row.failures[-1] < self._interval:
            return None
        row.failures = [*row.failures, at] if row.others > 0 else [at]
        row.others = 0
        if len(row.failures) < self._fall:
            return None
        detail = (
            f"worker {pid}, one of {len(self._rows)}, failed {len(row.failures)} times in a row "
            f"while others answered well: {said}"
        )
        return Trigger(reason="worker_failing", detail=detail)

    def _silent(self, at: float) -> Trigger | None:
        if not self._silence or self._nobody < self._fall or self._passes < self._enough:
            return None
        silent = sorted(
            pid
            for pid in self._missing
            if not self._rows[pid].failures and at - self._rows[pid].answered >= self._silence
        )
        if not silent:
            return None
        names = ", ".join(map(str, silent))
        several = len(silent) > 1
        detail = (
            f"worker{'s' if several else ''} {names} of {len(self._rows)} "
            f"{'answer' if several else 'answers'} no new connection: all others were asked and "
            f"answered ({self._passes} answers), and {self._nobody} connections got none"
        )
        return Trigger(reason="worker_not_answering", detail=detail)
