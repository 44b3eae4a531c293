"""Is a candidate good? Collects the evidence about one; the first trigger stays.

No clock: times come with the facts, as monotonic seconds.

Theory
------
The judge counts only observations that carry the candidate's generation. A probe
that did not pass before the upgrade cannot condemn and is not waited for; where no probe can
judge, the triggers that need no configuration judge alone. Those come from the processes:

- A worker that ends by a signal, or with the code that nginx calls fatal (2: its initialisation
  failed, ngx_worker_process_init), condemns at once, unless `worker_deaths` allows for some: then
  it counts as unexpected.
- A worker that was seen leaving and then ends is a reload's business.
- An end with code 0, or one that the kernel would not tell (the workers are the master's children,
  not ours), may belong to a reload whose leaving was too short to be seen. In a reload as many new
  workers are there before the old ones leave: where as many are left as there should be, it was
  one. Else such an end waits until the workers have been counted again. All are new: that was a
  reload too, or all have ended, which `process_rules.workers_lost` tells apart. Some are not: an
  unknown end is taken for a death, one with code 0 counts as unexpected.
- Any other code counts as unexpected. Some unexpected ends in a short time are a loop.

The shared listener shows some workers never, so "the candidate is healthy" also asks that each of
its workers has answered, where an answer can be traced to a worker at all. Where only chance can
bring a probe to the candidate (the canary of a site without the private listener), nothing is
waited for: such a probe can condemn, and its silence says nothing.

Nothing condemns after fewer than `fall` failures, and a soak lasts exactly its duration: in a short
one a candidate that never answers well would not be condemned. So there is a last look before the
commit: each probe that judges has to have been heard since the shift, and well at last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.core.health import Health, HealthState
from supervisor.core.observation import Observation, Outcome
from supervisor.core.recent import recent
from supervisor.core.trigger_settings import DEFAULT_TRIGGERS, TriggerSettings
from supervisor.core.triggers import Trigger
from supervisor.core.verdict_policy import Conclusion, Finding

FATAL_CODE = 2
"""nginx's exit code of a worker that could not initialise and is not started again."""
SETTLE = 0.25
"""Seconds after the end of a worker until a count of the workers tells what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One probe as the judge needs it; only one that was up before the upgrade can condemn."""

    name: str
    rise: int
    fall: int
    up_before: bool
    awaited: bool = True  # the candidate is healthy only once this has passed often enough


def _failed(reason: str, detail: str) -> Finding:
    return Finding(conclusion=Conclusion.FAIL, reason=reason, detail=detail)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A worker's end that is not yet understood."""

    pid: int
    unknown: bool
    at: float
    before: frozenset[int]  # the other workers that accepted when it ended


class Judge:
    """Collects the evidence about one candidate; the first trigger stays."""

    def __init__(
        self,
        *,
        candidate: int,
        criteria: Iterable[Criterion],
        expected_workers: int | None = None,
        triggers: TriggerSettings = DEFAULT_TRIGGERS,
        min_samples: int = 1,
    ) -> None:
        self._candidate = candidate
        self._triggers = triggers
        self._min_samples = min_samples
        self._judging = {one.name: one for one in criteria if one.up_before}
        self._expected = expected_workers
        self._health = {name: Health() for name in self._judging}
        self._last = dict.fromkeys(self._judging, "no answer yet")
        self._heard: dict[str, Outcome] = {}  # the last outcome that counts, by probe
        self._hazy: dict[str, int] = {}  # looks in a row that proved nothing, by probe
        self._samples = dict.fromkeys(self._judging, 0)  # outcomes that count
        self._workers: frozenset[int] = frozenset()
        self._answered: set[int] = set()
        self._failing: dict[int, str] = {}  # workers and what they answered last, where not well
        self._suspect: int | None = None  # the one worker that failed when the patrol asked it last
        self._traceable = False  # some answer could be traced to a worker
        self._ended: list[_Ended] = []
        self._deaths = 0  # workers that ended by a signal, with the fatal code, or nobody knows how
        self._unexpected: list[float] = []
        self._empty_since: float | None = None
        self.trigger: Trigger | None = None
        self.judged = False

    # --- evidence ---

    def observe(self, seen: Observation) -> None:
        """Count an observation, where it is the candidate's and proves something."""
        if seen.outcome is Outcome.INCONCLUSIVE:
            if seen.probe in self._last:
                self._last[seen.probe] = seen.detail
                self._hazy[seen.probe] = self._hazy.get(seen.probe, 0) + 1
            return
        if seen.generation != self._candidate:
            return
        passed = seen.outcome is Outcome.PASS
        if passed and seen.worker_pid is not None:
            self._answered.add(seen.worker_pid)
        elif seen.worker_pid is not None:
            self._failing[seen.worker_pid] = seen.detail
        criterion = self._judging.get(seen.probe)
        if criterion is None:
            return
        self.judged = True
        if criterion.awaited and passed and seen.worker_pid is not None:
            self._traceable = True
        self._last[seen.probe] = seen.detail
        self._heard[seen.probe] = seen.outcome
        self._hazy.pop(seen.probe, None)
        self._samples[seen.probe] += 1
        health = self._health[seen.probe].observe(
            seen.outcome, rise=criterion.rise, fall=criterion.fall
        )
        self._health[seen.probe] = health
        if health.failures >= criterion.fall:
            self._condemn(
                "probe_failed", f"probe {seen.probe} failed {health.failures} times: {seen.detail}"
            )

    def patrolled(self, seen: Observation, *, suspect: int | None = None) -> None:
        """Whether a worker answers, seen beside the probes: that is no part of a probe's row.

        A canary does not end while one worker alone is a suspect, whatever it answers to others.
        """
        self._suspect = suspect
        if seen.generation != self._candidate or seen.worker_pid is None:
            return
        if seen.outcome is Outcome.PASS:
            self._answered.add(seen.worker_pid)
        else:
            self._failing[seen.worker_pid] = seen.detail

    def worker_exited(
        self, pid: int, *, code: int | None, signal: int | None, draining: bool, at: float
    ) -> None:
        """A worker of the candidate is gone; `code` and `signal` both None: nobody knows how."""
        if signal is not None:
            text = f"worker {pid} was ended by signal {signal}"
            self._note_death("worker_died", text, at)
        elif code == FATAL_CODE:
            text = (
                f"worker {pid} could not initialise (exit code {FATAL_CODE}); "
                "nginx's error log says why"
            )
            self._note_death("worker_fatal", text, at)
        elif draining:
            return
        elif code:
            self._note_unexpected(at)
        else:
            self._workers -= {pid}
            if self._expected is None or len(self._workers) < self._expected:
                self._ended.append(_Ended(pid, code is None, at, self._workers))

    def census(self, accepting: frozenset[int], *, at: float, starting: int = 0) -> None:
        """Count the candidate's workers; `starting` ones are forked and not yet initialised."""
        self._workers = accepting
        self._answered &= accepting
        self._understand_ends(at)
        if accepting or starting:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = at
        elif at - self._empty_since >= SETTLE:
            self._condemn("no_workers", "the candidate has had no worker for a while")

    # --- over the replacement of the supervisor ---

    def memory(self, *, at: float) -> dict[str, object]:
        """What was seen so far, for `recall` in another process; times as seconds before `at`."""
        return {
            "health": {
                name: [one.state.value, one.passes, one.failures]
                for name, one in self._health.items()
            },
            "last": dict(self._last),
            "samples": dict(self._samples),
            "heard": {name: outcome.value for name, outcome in self._heard.items()},
            "hazy": dict(self._hazy),
            "workers": sorted(self._workers),
            "answered": sorted(self._answered),
            "failing": [[pid, said] for pid, said in self._failing.items()],
            "traceable": self._traceable,
            "ended": [
                [one.pid, one.unknown, at - one.at, sorted(one.before)] for one in self._ended
            ],
            "deaths": self._deaths,
            "unexpected": [at - one for one in self._unexpected],
            "empty_for": None if self._empty_since is None else at - self._empty_since,
            "judged": self.judged,
        }

    def recall(self, memory: Mapping[str, Any], *, at: float) -> None:
        """Go on from what another judge of the same candidate saw; `at` is its `at`.

        Of probes that this one does not know nothing is taken over. Raises KeyError, TypeError or
        ValueError where `memory` is no such thing.
        """
        for name in self._judging.keys() & memory["health"].keys():
            state, passes, failures = memory["health"][name]
            self._health[name] = Health(state=HealthState(state), passes=passes, failures=failures)
            self._last[name] = memory["last"][name]
            self._samples[name] = int(memory["samples"][name])
            if name in memory["heard"]:
                self._heard[name] = Outcome(memory["heard"][name])
        known = self._judging.keys()
        self._hazy = {name: int(many) for name, many in memory["hazy"].items() if name in known}
        self._workers = frozenset(memory["workers"])
        self._answered = set(memory["answered"])
        self._failing = {int(pid): str(said) for pid, said in memory["failing"]}
        self._traceable = memory["traceable"]
        self._ended = [
            _Ended(pid, unknown, at - ago, frozenset(before))
            for pid, unknown, ago, before in memory["ended"]
        ]
        self._deaths = int(memory["deaths"])
        self._unexpected = [at - ago for ago in memory["unexpected"]]
        empty_for = memory["empty_for"]
        self._empty_since = None if empty_for is None else at - empty_for
        self.judged = memory["judged"]

    # --- conclusions ---

    @property
    def healthy(self) -> bool:
        """Every probe that was up before passed `rise` times, and every worker has answered."""
        return self.trigger is None and not self._lacking()

    @property
    def lacking(self) -> str:
        """What keeps the candidate from being healthy, for people."""
        return "; ".join(self._lacking())

    @property
    def missing_workers(self) -> frozenset[int]:
        """The accepting workers that have not answered; also where answers cannot be traced."""
        return self._workers - (self._answered - {self._suspect})

    @property
    def covered(self) -> tuple[int, int]:
        """How many of how many accepting workers have answered."""
        return len(self._workers - self.missing_workers), len(self._workers)

    @property
    def account(self) -> str:
        """How well the candidate was looked at and what it answered, for people."""
        told = [
            f"probe {name} was heard {many} times, at last: {self._last[name]}"
            if many
            else f"probe {name} was not heard ({self._last[name]})"
            for name, many in self._samples.items()
        ]
        workers = "{} of {} workers have answered well".format(*self.covered)
        return "; ".join((*(told or ["no probe judges it"]), workers))

    @property
    def unheard(self) -> frozenset[str]:
        """The probes that judge and have not been heard of."""
        return frozenset(self._judging) - self._heard.keys()

    @property
    def few(self) -> frozenset[str]:
        """The probes that judge and have not been heard often enough, or not at all."""
        return frozenset(n for n, many in self._samples.items() if many < self._min_samples)

    @property
    def doubted(self) -> frozenset[str]:
        """The probes that were heard, and whose last answer was a failure or proved nothing."""
        failed = (name for name, last in self._heard.items() if last is Outcome.FAIL)
        return frozenset(failed) | (self._hazy.keys() & self._heard.keys())

    @property
    def undecided(self) -> bool:
        """A little more time may still show something: a first answer, or why a worker ended."""
        return self.trigger is None and bool(self.unheard or self._ended)

    def conclude(self) -> Finding:
        """What the soak comes to: more speaks against a commit now than at any other time."""
        if self.trigger is not None:
            return _failed(self.trigger.reason, self.trigger.detail)
        for name in self._judging:
            last = self._last[name]
            if self._heard.get(name) is Outcome.FAIL:
                failures = self._health[name].failures
                text = f"probe {name} failed at the last look, {failures} in a row: {last}"
                return _failed("probe_failed", text)
        for name in self._judging:
            if name in self.few:
                text = (
                    f"probe {name} passed before the upgrade, and {self._often(name)} since the "
                    f"shift: {self._last[name]}"
                )
                return Finding(
                    conclusion=Conclusion.INCONCLUSIVE, reason="soak_inconclusive", detail=text
                )
        for name, many in self._hazy.items():
            if many >= self._judging[name].fall:
                text = (
                    f"probe {name} passed since the shift, and its last {many} looks proved "
                    f"nothing: {self._last[name]}"
                )
                return Finding(
                    conclusion=Conclusion.INCONCLUSIVE, reason="soak_inconclusive", detail=text
                )
        return Finding(conclusion=Conclusion.PASS)

    def _often(self, name: str) -> str:
        many = self._samples[name]
        return f"was heard {many} of {self._min_samples} times" if many else "not"

    def _lacking(self) -> list[str]:
        lacking = [
            f"probe {name} passed {self._health[name].passes} of {one.rise} times "
            f"({self._last[name]})"
            for name, one in self._judging.items()
            if one.awaited and self._health[name].state is not HealthState.UP
        ]
        lacking += [
            f"probe {name} {self._often(name)}"
            for name, one in self._judging.items()
            if one.awaited and 0 < self._samples[name] < self._min_samples
        ]
        if self._expected is not None and len(self._workers) < self._expected:
            lacking.append(f"{len(self._workers)} of {self._expected} workers are up")
        if self._ended:
            lacking.append(f"the end of worker {self._ended[0].pid} is not understood yet")
        if self._traceable and self.missing_workers:
            lacking.append("{} of {} workers have answered well".format(*self.covered))
            lacking += [
                f"worker {pid} did not: {self._failing[pid]}"
                for pid in sorted(self.missing_workers & self._failing.keys())
            ]
        return lacking

    def _understand_ends(self, at: float) -> None:
        waiting: list[_Ended] = []
        for one in self._ended:
            if self._workers and not self._workers & one.before:
                continue
            if at - one.at < SETTLE:
                waiting.append(one)
            elif one.unknown:
                text = f"worker {one.pid} ended, and it was not told to"
                self._note_death("worker_died", text, one.at)
            else:
                self._note_unexpected(one.at)
        self._ended = waiting

    def _note_death(self, reason: str, text: str, at: float) -> None:
        """What does not condemn by itself is an unexpected end like others."""
        self._deaths += 1
        most = self._triggers.worker_deaths
        if most and self._deaths >= most:
            more = f"; so did {self._deaths} in all" if self._deaths > 1 else ""
            self._condemn(reason, f"{text}{more}")
        else:
            self._note_unexpected(at)

    def _note_unexpected(self, at: float) -> None:
        most, interval = self._triggers.respawns, self._triggers.respawn_interval
        self._unexpected = [*recent(self._unexpected, at, interval), at]
        if most and len(self._unexpected) >= most:
            self._condemn("workers_respawning", f"workers ended {most} times within {interval:g} s")

    def _condemn(self, reason: str, detail: str) -> None:
        self.condemn(Trigger(reason=reason, detail=detail))

    def condemn(self, trigger: Trigger) -> None:
        """Something else than probes and ends of workers speaks against the candidate."""
        if self.trigger is None:
            self.trigger = trigger
