"""Asks the probes and watches the workers on behalf of a reload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from supervisor.core.actions import Watch
from supervisor.core.observation import Observation
from supervisor.core.reload_judge import ReloadJudge, Witness
from supervisor.edges.owner_finding import OwnerFinder
from supervisor.edges.probes import Aim, Prober
from supervisor.evidence import Evidence
from supervisor.operations.reload import Heard
from supervisor.operations.world import World
from supervisor.watch import Sighting, WorkerExited


@dataclass(slots=True)
class _Hearing:
    """One judge, and what it is told by the evidence."""

    judge: ReloadJudge
    generation: int
    stirred: trio.Event = field(default_factory=trio.Event)
    interrupted: bool = False

    def observe(self, seen: Observation) -> None:
        self.judge.observe(seen)
        self._stir()

    def see(self, sighting: Sighting) -> None:
        if sighting.generation != self.generation:
            return
        if isinstance(sighting, WorkerExited):
            status = sighting.status
            self.judge.worker_exited(
                sighting.pid, code=status.code, signal=status.signal, draining=sighting.draining
            )
        else:
            self.judge.census(sighting.brood.accepting)
        self._stir()

    def aimed(self) -> None:
        self.interrupted = True
        self._stir()

    def _stir(self) -> None:
        self.stirred.set()
        self.stirred = trio.Event()

    def over(self, *, long_enough: bool) -> bool:
        judge = self.judge
        if judge.objection is not None or self.interrupted:
            return True
        return long_enough and judge.proved and not judge.doubted


class Jury:
    """Implements `operations.reload.Jury`; one hearing at a time."""

    def __init__(self, world: World, evidence: Evidence, prober: Prober) -> None:
        self._world = world
        self._evidence = evidence
        self._prober = prober
        self._dismiss: Callable[[], None] = lambda: None

    async def passing(self) -> frozenset[str]:
        """See `operations.reload.Jury`."""
        if self._evidence.watching is not Watch.ACTIVE:
            return frozenset()
        return await self._evidence.passing()

    def passing_at(self, at: float) -> frozenset[str]:
        """The probes that were up at this moment (monotonic seconds), which is not long ago."""
        return self._evidence.board.up_at(at)

    async def hear(
        self, witnesses: frozenset[str], workers: frozenset[int], seconds: float
    ) -> Heard:
        """See `operations.reload.Jury`. A later hearing interrupts this one."""
        self._dismiss()
        active = self._world.active
        if active is None or self._evidence.watching is not Watch.ACTIVE:
            return Heard(interrupted=True)
        self._evidence.expect_new_passes()  # a restart is no cure for a configuration that fails
        probes = self._evidence.board.probes
        known = [probes[name] for name in witnesses & probes.keys()]
        judge = ReloadJudge(
            generation=active.id, workers=workers,
            witnesses=[Witness(name=one.name, rise=one.rise, fall=one.fall) for one in known],
        )  # fmt: skip
        hearing = _Hearing(judge, active.id)
        self._dismiss = hearing.aimed
        accepting = active.look().accepting
        for pid in sorted(workers - active.brood().workers):  # before anybody listened
            judge.worker_exited(pid, code=None, signal=None, draining=False)
        judge.census(accepting)
        if known:
            self._aim(active.id, accepting)
        with self._evidence.audience.told(hearing):
            await self._wait(hearing, seconds, patient=bool(known))
        if known and not hearing.interrupted:
            self._evidence.aim(Watch.ACTIVE)
        return Heard(
            objection=None if hearing.interrupted else judge.overdue(), judged=judge.judged,
            note=_note(judge, len(workers)), interrupted=hearing.interrupted,
        )  # fmt: skip

    async def _wait(self, hearing: _Hearing, seconds: float, *, patient: bool) -> None:
        ends = trio.current_time() + seconds
        limit = self._world.settings.reload.answer_within if patient else 0.0
        with trio.move_on_at(ends + limit):
            while not hearing.over(long_enough=trio.current_time() >= ends):
                due = ends if trio.current_time() < ends else ends + limit
                with trio.move_on_at(due):
                    await hearing.stirred.wait()

    def _aim(self, generation: int, workers: frozenset[int]) -> None:
        """Ask afresh: what is answered from now on is answered by the workers that accept now."""
        world = self._world

        def pids() -> frozenset[int]:
            active = world.active
            return frozenset() if active is None else active.brood().workers

        self._prober.aim(
            Aim(
                generation=generation,
                owner=OwnerFinder(pids),
                cover=workers,
                workers=pids,
                prove_within=world.settings.reload.answer_within,
            )
        )


def _note(judge: ReloadJudge, workers: int) -> str:
    """Who of the new workers was seen answering, where that was asked for."""
    if not judge.judged:
        return ""
    seen = len(judge.answered)
    return f"; the probes pass ({seen} of {workers} workers were seen answering)"
