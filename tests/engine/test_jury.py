"""The jury of a reload: whom it asks, how long it waits, and what it makes of the workers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from supervisor.core.actions import Watch
from supervisor.core.settings import ReloadSettings
from supervisor.edges.linux import UNKNOWN_EXIT, ExitStatus
from supervisor.edges.probes import Prober
from supervisor.jury import Jury
from supervisor.operations.reload import Heard
from supervisor.operations.world import World
from supervisor.watch import Counted, WorkerExited
from tests.engine.test_evidence import FAIL, HOME, OLD, OTHER, PASS, UNSURE, Scene

WORKERS = frozenset({21, 22})
HOME = replace(HOME, rise=2, fall=3)


class Court:
    """A scene whose active generation has workers, and a jury."""

    def __init__(self) -> None:
        self.scene = Scene(HOME, OTHER)
        self.accepting = WORKERS
        self.scene.world.active = SimpleNamespace(
            id=OLD,
            look=self._brood,
            brood=self._brood,
            told_to_stop=False,
            quitting=False,
            master=SimpleNamespace(pid=8),
        )
        self.scene.world.settings.reload = ReloadSettings(answer_within=10.0)
        self.jury = Jury(
            cast(World, self.scene.world), self.scene.evidence, cast(Prober, self.scene.prober)
        )
        self.said: list[Heard] = []

    def _brood(self) -> SimpleNamespace:
        return SimpleNamespace(
            accepting=self.accepting, workers=self.accepting, starting=frozenset()
        )

    async def hear(self, *names: str, seconds: float = 0.0) -> None:
        self.said.append(await self.jury.hear(frozenset(names), WORKERS, seconds))

    def exits(self, pid: int, status: ExitStatus) -> None:
        self.scene.evidence.see(
            WorkerExited(
                generation=OLD, pid=pid, status=status, draining=False, at=trio.current_time()
            )
        )

    def counts(self, *accepting: int, generation: int = OLD) -> None:
        brood = SimpleNamespace(accepting=frozenset(accepting), starting=frozenset(), masters=())
        self.scene.evidence.see(
            Counted(
                generation=generation, brood=brood, master_stopped=False,  # type: ignore[arg-type]
                at=trio.current_time(),
            )
        )  # fmt: skip


@pytest.fixture
async def court() -> Court:
    return Court()


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_without_witnesses_only_the_workers_are_watched(
    autojump_clock: MockClock, court: Court
) -> None:
    began = trio.current_time()
    await court.hear()
    assert court.said == [Heard()]
    assert trio.current_time() == began
    await court.hear(seconds=5.0)
    assert trio.current_time() == began + 5.0
    assert len(court.scene.prober.aims) == 1  # as before


async def test_passes_end_it(autojump_clock: MockClock, court: Court) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(court.hear, "home", "unknown")
        await quiet()
        aim = court.scene.last_aim
        assert (aim.generation, aim.cover, aim.prove_within) == (OLD, WORKERS, 10.0)
        assert aim.workers is not None
        assert aim.workers() == WORKERS
        court.scene.see(PASS, generation=OLD)
        court.scene.see(UNSURE, generation=OLD)
        await quiet()
        assert court.said == []
        court.scene.see(PASS, generation=OLD)
    (said,) = court.said
    assert said.objection is None
    assert said.judged
    assert said.note == "; the probes pass (0 of 2 workers were seen answering)"
    assert court.scene.last_aim.cover == frozenset()  # asked as usual from then on


async def test_failures_end_it(autojump_clock: MockClock, court: Court) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: court.hear("home", seconds=60.0))
        await quiet()
        court.scene.see(FAIL, generation=OLD, times=3)
    (said,) = court.said
    assert said.objection is not None
    assert said.objection.reason == "reload_probes_failed"


async def test_a_window_is_kept_and_a_doubt_at_its_end_is_cleared(
    autojump_clock: MockClock, court: Court
) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: court.hear("home", seconds=5.0))
        await quiet()
        court.scene.see(PASS, generation=OLD, times=2)
        court.scene.see(FAIL, generation=OLD)
        await trio.sleep(6.0)
        assert court.said == []
        court.scene.see(PASS, generation=OLD)
    assert trio.current_time() == began + 6.0
    assert court.said[0].objection is None


async def test_silence_ends_it_some_time(autojump_clock: MockClock, court: Court) -> None:
    began = trio.current_time()
    await court.hear("home")
    assert trio.current_time() == began + 10.0
    (said,) = court.said
    assert said.objection is not None
    assert said.objection.reason == "reload_inconclusive"
    assert not said.judged
    assert said.note == ""


async def test_a_worker_dies(autojump_clock: MockClock, court: Court) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: court.hear(seconds=60.0))
        await quiet()
        court.counts(generation=7)
        court.exits(21, ExitStatus(signal=11))
    assert court.said[0].objection is not None
    assert court.said[0].objection.reason == "reload_worker_died"


async def test_a_worker_is_dead_before_anybody_listens(
    autojump_clock: MockClock, court: Court
) -> None:
    court.accepting = frozenset({22, 23})
    await court.hear()
    assert court.said[0].objection is not None
    assert court.said[0].objection.reason == "reload_worker_died"


async def test_an_end_that_nobody_tells_is_understood_with_the_next_count(
    autojump_clock: MockClock, court: Court
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: court.hear(seconds=60.0))
        await quiet()
        court.exits(21, UNKNOWN_EXIT)
        await quiet()
        assert court.said == []
        court.counts(22, 23)
    assert court.said[0].objection is not None


@pytest.mark.parametrize("by", ["aim", "hearing"])
async def test_something_else_begins(autojump_clock: MockClock, court: Court, by: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: court.hear("home", seconds=60.0))
        await quiet()
        if by == "aim":
            court.scene.evidence.aim(Watch.NOTHING)
        else:
            nursery.start_soon(court.hear)
    assert court.said[0].interrupted or court.said[1].interrupted
    if by == "aim":
        assert await court.jury.hear(frozenset({"home"}), WORKERS, 60.0) == Heard(interrupted=True)
        assert await court.jury.passing() == frozenset()


async def test_who_passes_before(autojump_clock: MockClock, court: Court) -> None:
    async with trio.open_nursery() as nursery:
        court.scene.prober.answer = lambda name: nursery.start_soon(
            court.scene._reply, name, PASS if name == "home" else FAIL
        )
        assert await court.jury.passing() == {"home"}


async def test_who_was_up_at_a_moment(autojump_clock: MockClock, court: Court) -> None:
    began = trio.current_time()
    await trio.sleep(1.0)
    court.scene.see(PASS, generation=OLD, times=2)
    await trio.sleep(1.0)
    court.scene.see(FAIL, generation=OLD, times=3)
    await trio.sleep(1.0)
    assert court.jury.passing_at(began + 1.5) == {"home"}
    assert court.jury.passing_at(began + 2.5) == frozenset()
