"""Turns what is seen into what the machine must know: healthy, or a trigger with its reason.

Owns the aim of the probes and the judge of the running upgrade. Decisions are in
`supervisor.core.judge` and `supervisor.core.triggers`; here observations, sightings and signals are
brought to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from supervisor.aiming import Ports, ports_of, private_aim, public_aim, shared_port
from supervisor.audience import Audience
from supervisor.core.actions import Watch
from supervisor.core.errors import OperationFailed
from supervisor.core.events import CandidateHealthy, Event, ProbeFailed, Triggered
from supervisor.core.health import HealthState
from supervisor.core.judge import SETTLE, Criterion, Judge
from supervisor.core.observation import Observation, Outcome
from supervisor.core.probe_settings import OnFailure
from supervisor.core.seen import Seen
from supervisor.core.server_blocks import why_not_traceable
from supervisor.core.signals import ProcessEnded, ProcessKind, Signal
from supervisor.core.triggers import Case, Trigger, weigh
from supervisor.core.verdict_policy import Conclusion, Finding
from supervisor.edges.generation import Generation
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.probes import Aim, Beside, Prober
from supervisor.lookout import Lookout
from supervisor.operations.world import World
from supervisor.probe_board import Board
from supervisor.vacancy import Vacancy
from supervisor.watch import Counted, Sighting, WorkerExited, tell_output_now

if TYPE_CHECKING:
    from supervisor.core.settings import ProbeSettings


GRACE = 0.25
"""Seconds beyond the longest timeout after which a silent probe is not waited for."""
BASELINE_LOOKS = 2
"""How often a probe is asked before an upgrade until it passes."""


def _ended(gone: WorkerExited) -> ProcessEnded:
    return ProcessEnded(
        generation=gone.generation, pid=gone.pid, kind=gone.kind, code=gone.status.code,
        signal=gone.status.signal, draining=gone.draining, at=gone.at, lived=gone.lived,
    )  # fmt: skip


class Evidence:
    """Everything that is seen arrives here, in the one thread of the supervisor."""

    def __init__(
        self,
        world: World,
        probes: tuple[ProbeSettings, ...],
        prober: Prober,
        post: Callable[[Event], None],
        progress: Callable[[dict[str, object]], None],
        revive: Callable[[], None] = lambda: None,
    ) -> None:
        self._world = world
        self._board = Board(probes)
        self._seen = Seen()
        self.lookout = Lookout(self._patrolled)
        self._prober = prober
        self._post = post
        self._progress = progress
        self._watch = Watch.NOTHING
        self._judge: Judge | None = None
        self._told_of: Judge | None = None  # what it has seen is in the log
        self._unjudged: list[WorkerExited] = []  # of the candidate, before it had a judge
        self._up_before: frozenset[str] = frozenset()
        self.doubt = ""  # what the last look did not prove, where that was overruled
        self.not_observed = ""  # why no probe has looked at the candidate in its canary
        self._not_asked: Mapping[str, str] = {}  # the probes that did not, and why
        self._postponed: Callable[[], None] | None = None
        self._heard = trio.Event()
        self._vacancy = Vacancy(world, revive)
        self._told_healthy = False
        self._told_trigger = False
        self._passed: dict[str, int] = {}  # the generation with which each probe was up
        self.audience = Audience()
        self._memory: tuple[Mapping[str, Any], float] | None = None  # of a predecessor's judge

    # --- aiming -----------------------------------------------------------------------------

    def aim(self, watch: Watch) -> None:
        """Look at something else from now on; a fresh round of probes starts at once."""
        self._tell_observed()
        before, self._watch = self._watch, watch
        self.audience.aimed()
        if watch is Watch.CANARY:
            self._begin_canary()
        elif watch is Watch.SOAK:
            if before is Watch.CANARY:
                self._end_canary()
            self._begin_soak()
        elif watch is Watch.ACTIVE:
            self._dismiss_judge()
            active = self._world.active
            if active is not None:
                self._prober.aim(Aim(generation=active.id, processes=lambda: active.workers))
        else:
            self._dismiss_judge()
            self._prober.pause()
            self._board.forget()

    @property
    def lacking(self) -> str:
        """What the candidate lacks to be proved healthy, for people; empty where there is none."""
        if self._judge is None:
            return ""
        asked = self.lookout.has_asked_all
        return self._judge.lacking or ("" if asked else "not every worker has been asked yet")

    def _tell_observed(self) -> None:
        """What was seen of the candidate, once for each window, when that ends."""
        judge, candidate = self._judge, self._world.candidate
        if judge is None or judge is self._told_of:
            return
        self._told_of = judge
        self._world.log.info(
            "candidate.observed", window="canary" if self._watch is Watch.CANARY else "soak",
            generation=None if candidate is None else f"g{candidate.id}", detail=judge.account,
        )  # fmt: skip

    def _dismiss_judge(self) -> None:
        self._judge = None
        self.lookout.end()
        self._seen.keep_only({one.id for one in self._world.generations})
        postponed, self._postponed = self._postponed, None
        if postponed is not None:
            postponed()

    def when_undisturbed(self, take: Callable[[], None]) -> bool:
        """Call `take` at once, or while a candidate is being judged after that; whether at once.

        A judge keeps the probes that it has, else a candidate would be asked for answers that
        nobody gives any more.
        """
        if self._judge is not None:
            self._postponed = take
            return False
        take()
        return True

    def reconfigure(self, probes: tuple[ProbeSettings, ...]) -> None:
        """Other probes from now on; what was seen stays with a probe that is as it was."""
        self._up_before &= self._board.reconfigure(probes)

    async def baseline(self) -> None:
        """Remember which probes pass before the upgrade: only those can condemn the candidate.

        Each is asked once more for that, and one that does not pass then a second time; one that
        is down is not waited for. A silent one is given its timeout.
        """
        self.not_observed = ""
        self.lookout.expect()
        for one in self._world.generations:
            one.changed.set()  # what it uses before the upgrade is what a candidate is held against
        self._up_before = await self.passing()
        for name in self._board.probes.keys() - self._up_before:
            self._world.log.warning(
                "probe.cannot_judge", probe=name,
                detail="it does not pass before the upgrade: "
                f"{self._board.rows[name].detail or 'no answer'}",
            )  # fmt: skip

    async def passing(self) -> frozenset[str]:
        """The probes that pass, each asked once more for that; see `baseline`."""
        rows = self._board.rows
        asked = {n for n, one in rows.items() if one.health.state is not HealthState.DOWN}
        for _ in range(BASELINE_LOOKS):
            await self._ask_now(asked)
            asked = {name for name in self._known(asked) if not self._board.passes(name)}
        return frozenset(name for name in self._board.probes if self._board.passes(name))

    @property
    def watching(self) -> Watch:
        """What the probes are aimed at."""
        return self._watch

    @property
    def board(self) -> Board:
        """What each probe says now."""
        return self._board

    async def _ask_now(self, names: set[str]) -> None:
        began = trio.current_time()
        self._prober.ask(names)
        await self._hear(
            names,
            lambda: not all(self._board.heard_since(one, began) for one in self._known(names)),
        )

    def _known(self, names: set[str]) -> set[str]:
        """Those of `names` that are still configured."""
        return names & self._board.probes.keys()

    async def _hear(self, names: Iterable[str], silent: Callable[[], bool]) -> None:
        """Return when `silent()` is over, at most a while after the longest timeout of `names`."""
        longest = max((self._board.probes[name].timeout for name in names), default=SETTLE)
        with trio.move_on_after(longest + GRACE):
            while silent():
                await self._heard.wait()

    def _begin_canary(self) -> None:
        candidate, run = self._world.candidate, self._world.run
        assert candidate is not None
        assert run is not None
        self._told_healthy = self._told_trigger = False
        unjudged, self._unjudged = self._unjudged, []
        if self._memory is None:
            why_not = why_not_traceable
            if run.port is not None:
                why_not = partial(self._world.listener.why_not, tls=run.tls_port is not None)
            reasons = ((name, why_not(probe)) for name, probe in self._board.probes.items())
            self._not_asked = {name: why for name, why in reasons if why is not None}
            for name, why in self._not_asked.items():
                self._world.log.info("canary.not_asked", probe=name, detail=why)
            self.lookout.begin_canary(candidate.id, candidate.look().accepting)
        else:
            self.lookout.go_on(candidate.id, candidate.look().accepting)
        self._judge = self._judge_of(candidate, Watch.CANARY, awaited=run.port is not None)
        ports = ports_of(run)
        if ports is None:
            self._prober.aim(public_aim(candidate, self._not_asked))
        else:
            self._aim_in_private(candidate, ports)
        for exited in unjudged:
            if exited.generation == candidate.id:
                self._judge_exit(self._judge, exited)
        self._weigh()
        self._conclude()

    def _aim_in_private(self, candidate: Generation, ports: Ports) -> None:
        """Ask the candidate alone, at the addresses that only it listens on."""
        shared = shared_port(self._world, candidate, ports)
        if shared is not None:
            self._told_trigger = True
            detail = (
                f"the private probe listener on port {shared} is open in both generations: nginx "
                "was reloaded by someone else while the upgrade began; try again"
            )
            self._post(Triggered(reason="probe_listener_shared", detail=detail))
        private = private_aim(self._world, candidate, ports, self._not_asked)
        self._prober.aim(replace(private, beside=self._patrol(private)))

    def _patrol(self, private: Aim) -> Beside | None:
        return self.lookout.beside(
            private, self._board.probes, self._up_before, self._world.settings.triggers
        )

    def _patrolled(self, seen: Observation, found: Trigger | None) -> None:
        """What the patrol saw, which is no part of any probe's row."""
        if self._judge is None:
            return
        self.lookout.observe(seen, in_canary=self._watch is Watch.CANARY)
        self._judge.patrolled(seen, suspect=self.lookout.suspect)
        if found is not None:
            self._judge.condemn(found)
        self._conclude()

    def _end_canary(self) -> None:
        """Say so where no probe has looked at the candidate, although some could have judged it."""
        if self._judge is None or self._judge.judged or not self._up_before:
            return
        run, candidate = self._world.run, self._world.candidate
        why = [f"probe {name}: {self._not_asked[name]}" for name in sorted(self._not_asked)]
        if run is not None and run.port is None:
            why.insert(0, "without a private listener no answer was the candidate's")
        self.not_observed = f"the canary was not observed ({'; '.join(why) or 'it was too short'})"
        self._world.log.warning(
            "canary.not_observed", detail=self.not_observed,
            generation=None if candidate is None else f"g{candidate.id}",
        )  # fmt: skip

    def _judge_of(self, candidate: Generation, window: Watch, *, awaited: bool) -> Judge:
        """A judge with new rows; the workers that accept now are its first count."""
        criteria = [
            Criterion(
                name=name, rise=one.rise, fall=one.fall, up_before=name in self._up_before,
                awaited=awaited,
            )
            for name, one in self._board.probes.items()
            if window is Watch.SOAK or name not in self._not_asked
        ]  # fmt: skip
        judge = Judge(
            candidate=candidate.id, criteria=criteria, expected_workers=candidate.program.workers,
            triggers=self._world.settings.triggers,
            min_samples=self._world.settings.upgrade.min_samples,
        )  # fmt: skip
        if self._memory is not None:
            memory, at = self._memory
            judge.recall(memory, at=at)
        judge.census(candidate.look().accepting, at=trio.current_time())
        return judge

    def _begin_soak(self) -> None:
        candidate = self._world.candidate
        if candidate is None:
            return
        self._judge = self._judge_of(candidate, Watch.SOAK, awaited=True)
        self.lookout.go_on(candidate.id, candidate.look().accepting)
        ports, beside = ports_of(self._world.run), None
        if ports is not None:
            beside = self._patrol(private_aim(self._world, candidate, ports, self._not_asked))
        self._prober.aim(
            Aim(
                generation=candidate.id, workers=lambda: candidate.brood().workers,
                processes=lambda: candidate.workers, beside=beside,
            )
        )  # fmt: skip

    async def last_look(self, *, overruled: bool = False) -> None:
        """Return when the evidence of the soak is for a commit; raises OperationFailed.

        `overruled`: return as well where it proves nothing; `doubt` then says what. One that was
        heard, and not often enough, is asked again for at most `start_timeout`.

        A probe that has not been heard since the shift, as the soak was too short for that, is
        asking already: it gets its timeout. One whose last answer was a failure is asked until it
        passes, or has failed as often as condemns at any time: a single failure may be the host's,
        or of a supervisor that was stopped meanwhile. The end of a worker is waited for until it
        is understood. Where no probe judges and no worker has ended, this takes no time.
        """
        judge = self._judge
        if judge is not None:
            await self._hear_of_ends()
            if self._world.candidate is not None:
                tell_output_now(self._world, self._world.candidate)
                self._world.settle_logs()
            await self._hear(judge.unheard, lambda: judge.undecided)
            with trio.move_on_after(self._world.settings.upgrade.start_timeout):
                while judge.trigger is None and judge.few - judge.unheard:
                    await self._ask_now(set(judge.few - judge.unheard))
            for _ in range(max((one.fall for one in self._board.probes.values()), default=0)):
                if judge.trigger is not None or not judge.doubted:
                    break
                await self._ask_now(set(judge.doubted))
        self._tell_observed()
        self.expect_good(overruled=overruled)

    async def _hear_of_ends(self) -> None:
        """Return when each worker that is dead by now was judged: its watcher may be behind."""
        candidate = self._world.candidate
        with trio.move_on_after(GRACE):
            while candidate and any(not one.alive for one in candidate.workers.values()):
                await self._heard.wait()

    def expect_good(self, *, overruled: bool = False) -> None:
        """Raise OperationFailed where the evidence is against a commit at this moment."""
        self.doubt = ""
        found = Finding(conclusion=Conclusion.PASS)
        if self._judge is not None:
            found = self._judge.conclude()
        if found.conclusion is Conclusion.INCONCLUSIVE and overruled:
            self.doubt = found.detail
        elif found.conclusion is not Conclusion.PASS:
            self._progress({"event": "trigger", "reason": found.reason, "detail": found.detail})
            raise OperationFailed(found.reason, found.detail)

    # --- seeing -----------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """One result of one probe."""
        probe = self._board.probes.get(seen.probe)
        if probe is None:
            return  # it is of a configuration that was replaced
        if self._board.take(seen, at=trio.current_time()):
            self._tell_change(seen)
        if self._judge is not None:
            self.lookout.observe(seen, in_canary=self._watch is Watch.CANARY)
            self._judge.observe(seen)
            self._conclude()
        self._see_failure(probe, seen)
        self.audience.observe(seen)
        self._stir()

    def _see_failure(self, probe: ProbeSettings, seen: Observation) -> None:
        """Tell the machine where the serving generation is to be restarted for what was seen.

        Only one that had passed the probe: else a wrong probe, or a site that was never well,
        would have nginx restarted for nothing, and again after each restart.
        """
        if seen.generation is None:
            return
        health = self._board.rows[probe.name].health
        if seen.outcome is Outcome.PASS and health.state is HealthState.UP:
            self._passed[probe.name] = seen.generation
        active = self._world.active
        if (
            probe.on_failure is OnFailure.RESTART
            and self._watch is Watch.ACTIVE
            and seen.outcome is Outcome.FAIL
            and health.state is HealthState.DOWN
            and active is not None
            and seen.generation == active.id == self._passed.get(probe.name)
        ):
            detail = f"probe {probe.name} fails, which g{active.id} had passed: {seen.detail}"
            self._post(ProbeFailed(generation=active.id, detail=detail, at=trio.current_time()))

    def expect_new_passes(self) -> None:
        """Whoever serves next has to pass a probe before its failure has nginx restarted."""
        self._passed.clear()

    def _stir(self) -> None:
        """Whoever waits for an answer looks again."""
        self._heard.set()
        self._heard = trio.Event()

    def _tell_change(self, seen: Observation) -> None:
        state = self._board.rows[seen.probe].health.state
        tell = self._world.log.warning if state is HealthState.DOWN else self._world.log.info
        generation = None if seen.generation is None else f"g{seen.generation}"
        tell(
            "probe.state_changed", probe=seen.probe, to_state=state.value, generation=generation,
            detail=seen.detail,
        )  # fmt: skip

    def signal(self, one: Signal) -> None:
        """Something that nginx gave away; remembered, also where nobody is judged."""
        self.signals((one,))

    def signals(self, several: Sequence[Signal]) -> None:
        """The same of a whole look: the triggers are asked once, when all of it is there."""
        for one in several:
            self._seen.add(one)
            self._world.hear_signal(one)
        for news in dict.fromkeys(type(one) for one in several):
            self._weigh(news)

    def _weigh(self, news: type[Signal] | None = None) -> None:
        """Ask the triggers that look at this kind of news, all of them without one."""
        judge, candidate = self._judge, self._world.candidate
        if judge is None or candidate is None or judge.trigger is not None:
            return
        active = self._world.active
        case = Case(
            candidate=candidate.id, reference=None if active is None else active.id,
            seen=self._seen, alone=self._watch is Watch.SOAK, at=trio.current_time(),
        )  # fmt: skip
        try:
            found = weigh(case, self._world.settings.triggers, news=news)
        except Exception:  # a bug of ours must not end the supervisor
            self._world.log.exception("operation.bug", operation="weigh")
            return
        if found is not None:
            judge.condemn(found)
            self._conclude()

    def see(self, sighting: Sighting) -> None:
        """A worker's exit, or a count of workers."""
        self.audience.see(sighting)
        if isinstance(sighting, WorkerExited):
            self._see_exit(sighting)
            self.signal(_ended(sighting))
            if sighting.kind is not ProcessKind.WORKER:
                self._stir()  # it accepts nothing and is not asked to answer
                return
        elif self._watch is Watch.ACTIVE:
            self._vacancy.see(sighting)
        candidate = self._world.candidate
        if candidate is None or sighting.generation != candidate.id:
            return
        if self._judge is None:
            if isinstance(sighting, WorkerExited) and candidate.ready:
                self._unjudged.append(sighting)  # between its readiness and its canary
            return
        if isinstance(sighting, WorkerExited):
            self._judge_exit(self._judge, sighting)
        elif candidate.ready:
            brood = sighting.brood
            self.lookout.census(brood.accepting)
            self._judge.census(brood.accepting, at=sighting.at, starting=len(brood.starting))
            self._see_stopped(sighting)
        self._conclude()
        self._stir()

    @staticmethod
    def _judge_exit(judge: Judge, gone: WorkerExited) -> None:
        judge.worker_exited(
            gone.pid, code=gone.status.code, signal=gone.status.signal, draining=gone.draining,
            at=gone.at,
        )  # fmt: skip

    def _see_exit(self, gone: WorkerExited) -> None:
        generation = self._world.generations.get(gone.generation)
        expected = gone.draining or (generation is not None and generation.told_to_stop)
        tell = self._world.log.info
        if not expected and not gone.status.orderly and gone.status != UNKNOWN_EXIT:
            tell = self._world.log.warning
        tell(
            f"{gone.kind.value}.exited", generation=f"g{gone.generation}", pid=gone.pid,
            detail=str(gone.status), draining=gone.draining,
        )  # fmt: skip

    def _see_stopped(self, count: Counted) -> None:
        if count.master_stopped and not self._told_trigger:
            self._told_trigger = True
            detail = "the candidate's master is stopped (SIGSTOP): it could not react to anything"
            self._post(Triggered(reason="candidate_stopped", detail=detail))

    def _conclude(self) -> None:
        judge, run = self._judge, self._world.run
        if judge is None or run is None:
            return
        run.judged = run.judged or judge.judged
        if judge.trigger is not None and not self._told_trigger:
            self._told_trigger = True
            trigger = judge.trigger
            self._progress(
                {
                    "event": "trigger", "reason": trigger.reason, "detail": trigger.detail,
                    "attribution": self.lookout.observed.ways,
                }
            )  # fmt: skip
            self._post(Triggered(reason=trigger.reason, detail=trigger.detail))
        healthy = judge.healthy and self.lookout.has_asked_all
        if self._watch is Watch.CANARY and healthy and not self._told_healthy:
            self._told_healthy = True
            self._post(CandidateHealthy())

    # --- over the replacement of the supervisor -----------------------------------------------

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process; times as seconds before now."""
        now = trio.current_time()
        return {
            "watch": self._watch.value,
            "up_before": sorted(self._up_before),
            "not_asked": dict(self._not_asked),
            "not_observed": self.not_observed,
            "lookout": self.lookout.to_data(),
            "told_healthy": self._told_healthy,
            "told_trigger": self._told_trigger,
            "passed": self._passed,
            "judge": None if self._judge is None else self._judge.memory(at=now),
            "probes": self._board.to_data(),
            "seen": self._seen.to_data(now=now),
        }

    def from_data(self, data: Mapping[str, Any], *, at: float) -> None:
        """Go on from what another one saw until `at`: aim the probes as they were, keep the rows.

        Probes that were not configured then begin anew. Raises KeyError, TypeError or ValueError
        where `data` is no such thing.
        """
        watch = Watch(data["watch"])
        self._board.from_data(data["probes"])
        self._seen = Seen.from_data(data["seen"], now=at)
        self._up_before = frozenset(data["up_before"]) & self._board.probes.keys()
        self._not_asked = {str(name): str(why) for name, why in data["not_asked"].items()}
        self._passed = {str(name): int(one) for name, one in data["passed"].items()}
        self.lookout.from_data(data["lookout"])
        self._memory = None if data["judge"] is None else (data["judge"], at)
        try:
            self.aim(watch)
        finally:
            self._memory = None
        self.not_observed = data["not_observed"]
        self._told_healthy, self._told_trigger = data["told_healthy"], data["told_trigger"]

    # --- telling ----------------------------------------------------------------------------

    def report(self) -> list[dict[str, object]]:
        """The probes as `status` shows them."""
        return self._board.report()
