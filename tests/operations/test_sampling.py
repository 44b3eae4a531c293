"""Who is looked at and when, on a real nginx."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from supervisor import sampling, watch
from supervisor.core.signals import ProcessKind, Progress, Queue, Signal, Usage
from supervisor.edges.usage import Sampler
from supervisor.operations import shift
from supervisor.sampling import watch_usage
from tests.operations.lab import LIMIT, Lab, lab
from tools.nginx_cache import Build


@dataclass
class Told:
    """What was told of one generation, look by look."""

    looks: list[Sequence[Signal]] = field(default_factory=list)
    come: trio.Event = field(default_factory=trio.Event)

    def tell(self, look: Sequence[Signal]) -> None:
        self.looks.append(look)
        self.come.set()
        self.come = trio.Event()

    async def more(self, number: int = 1) -> Sequence[Signal]:
        """The newest of so many looks that are still to come."""
        wanted = len(self.looks) + number
        with trio.fail_after(LIMIT):
            while len(self.looks) < wanted:
                await self.come.wait()
        return self.looks[-1]

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT):
            while not holds():
                await self.come.wait()

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.looks[-1] if isinstance(one, kind)]


def hasten(made: Lab, interval: float = 0.02) -> None:
    settings = made.world.settings
    usage = replace(settings.triggers.usage, interval=interval)
    triggers = replace(settings.triggers, usage=usage)
    made.world.settings = replace(settings, triggers=triggers)


async def test_young_processes_are_looked_at_when_they_reach_an_age(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two workers and their master were started together, and so each age is one look."""
    async with lab(oldest) as made, trio.open_nursery() as nursery:
        active, told = await made.start(), Told()
        now = active.master.age
        monkeypatch.setattr(sampling, "AGES", (now + 0.2, now + 0.4))
        nursery.start_soon(watch_usage, made.world, active, told.tell)
        await made.until("they are old", lambda: told.looks and active.master.age > now + 2)
        looks = len(told.looks)
        assert 1 <= looks <= 6  # at most one for each age of each process
        used = told.of(Usage)
        assert [one.kind for one in used].count(ProcessKind.WORKER) == 2
        assert all(one.generation == active.id and one.memory for one in used)
        assert not told.of(Queue)
        await trio.sleep(0.3)
        assert len(told.looks) == looks
        nursery.cancel_scope.cancel()


async def test_whoever_waits_for_a_change_is_told_after_many_counts(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old generation is looked at as soon as an upgrade begins, which is told by this."""
    counts = 0

    def count(*_: object) -> None:
        nonlocal counts
        counts += 1

    monkeypatch.setattr(watch, "CENSUS", 0.02)
    monkeypatch.setattr(watch, "note_foreign_master", count)
    async with lab(oldest) as made, trio.open_nursery() as nursery:
        active = await made.start()
        await made.until("it is counted", lambda: counts > 2)
        waiting = trio.Event()

        async def wait() -> None:
            change = active.changed
            waiting.set()
            with trio.fail_after(LIMIT):
                await change.wait()

        nursery.start_soon(wait)
        await waiting.wait()
        now = counts
        await made.until("it is counted again", lambda: counts > now + 3)
        active.changed.set()


async def test_an_upgrade_is_looked_at_all_the_time(oldest: Build, newest: Build) -> None:
    async with lab(oldest) as made, trio.open_nursery() as nursery:
        hasten(made)
        await made.start()
        old, candidate = await made.to_canary(newest.path, newest.version)
        of_old, of_new = Told(), Told()
        nursery.start_soon(watch_usage, made.world, old, of_old.tell)
        nursery.start_soon(watch_usage, made.world, candidate, of_new.tell)
        await of_new.more(3)
        assert {one.pid for one in of_new.of(Progress)} >= {candidate.master.pid}
        # Both accept there: those that wait speak of neither.
        assert not of_new.of(Queue)
        assert not of_old.of(Queue)
        with trio.fail_after(LIMIT):
            await shift.shift(made.world)
        await of_new.more(2)
        assert not of_new.of(Queue)  # nobody waits
        workers = sorted(candidate.brood().accepting)
        candidate.signal_workers(signal.SIGSTOP, workers)
        with socket.create_connection(("127.0.0.1", made.port)):
            await of_new.until(lambda: of_new.of(Queue))
            (queue,) = of_new.of(Queue)
            assert (queue.address, queue.waiting) == (f"127.0.0.1:{made.port}", 1)
            assert (queue.generation, queue.siblings) == (candidate.id, 0)
            candidate.signal_workers(signal.SIGCONT, workers)
            await of_new.until(lambda: [one.waiting for one in of_new.of(Queue)] == [0])
        nursery.cancel_scope.cancel()
        await made.roll_back()


async def test_a_look_that_hangs_is_given_up_and_the_next_one_measures_less(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that waits for the memory of a process which hangs in the kernel."""
    hangs, exact = threading.Event(), []
    look = Sampler.look

    def slow(self: Sampler, *given: Any, **named: Any) -> Any:
        exact.append(named["exact"])
        if named["exact"]:
            hangs.wait(LIMIT)
        return look(self, *given, **named)

    monkeypatch.setattr(Sampler, "look", slow)
    monkeypatch.setattr(sampling, "LOOK_LIMIT", 0.05)
    async with lab(oldest) as made, trio.open_nursery() as nursery:
        hasten(made)
        active, told = await made.start(), Told()
        made.offer(oldest.path, oldest.version)
        nursery.start_soon(watch_usage, made.world, active, told.tell)
        await told.more()
        assert told.looks[-1] == []
        monkeypatch.setattr(sampling, "LOOK_LIMIT", LIMIT)
        await told.more(2)
        assert told.of(Usage)
        await made.until("the first has begun, perhaps late", lambda: True in exact)
        assert exact.count(True) == 1
        assert False in exact
        assert any(one["event"] == "generation.usage_not_seen" for one in made.log)
        hangs.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [OSError(24, "no descriptor"), RuntimeError("a bug")])
async def test_a_look_that_fails_ends_nothing(
    oldest: Build, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Sampler, "look", fails)
    async with lab(oldest) as made, trio.open_nursery() as nursery:
        hasten(made)
        active, told = await made.start(), Told()
        made.offer(oldest.path, oldest.version)
        nursery.start_soon(watch_usage, made.world, active, told.tell)
        assert await told.more(2) == []
        bugs = [one for one in made.log if one["event"] == "operation.bug"]
        assert bool(bugs) == isinstance(error, RuntimeError)
        nursery.cancel_scope.cancel()


async def test_it_ends_with_the_master(oldest: Build) -> None:
    async with lab(oldest) as made:
        active, told = await made.start(), Told()
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_usage, made.world, active, told.tell)
                await trio.sleep(0)
                active.master.send(signal.SIGKILL)
