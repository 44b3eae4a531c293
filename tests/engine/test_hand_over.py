"""What engine, evidence and waiters know goes on in another program, in virtual time."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor.core import commands
from supervisor.core.actions import Action, Operation
from supervisor.core.events import CandidateHealthy, Succeeded
from supervisor.core.model import Phase
from supervisor.edges.handover import HandOver, Parcel
from supervisor.engine import Engine
from supervisor.inheritance import take_what_can_be
from supervisor.waiters import Reply
from tests.engine.conftest import FRESH, Running, engine_with
from tests.fakes import FakeEffects, Held

AGE = 0.5
"""Seconds that the replacement takes."""


def handed(engine: Engine) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(engine.to_data(), allow_nan=False))
    return data


class Successor:
    """The engine of the program that comes."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.effects = FakeEffects()
        logger = structlog.wrap_logger(
            None, processors=[LogCapture()],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )  # fmt: skip
        self.engine = Engine(
            FRESH, self.effects, logger, new_upgrade_id=lambda: "u9",
            clock=trio.current_time,
        )  # fmt: skip
        self.first: tuple[Action, ...] = self.engine.from_data(data, at=trio.current_time() - AGE)
        self.replies: list[Reply] = []

    async def follow(self, number: int) -> None:
        async with self.engine.waiters.resume(number, [{"event": "undelivered"}]) as replies:
            async for reply in replies:
                self.replies.append(reply)


async def to_soak(one: Running) -> Any:
    """An upgrade in its soak, of which 10 of 30 s are over; who asked for it."""
    one.effects.expect(Operation.PREFLIGHT, Succeeded(generation=2))
    one.effects.expect(Operation.SPAWN, Succeeded())
    one.effects.expect(Operation.SHIFT, Succeeded())
    client = one.ask(commands.Upgrade())
    await one.quiet()
    await one.tell(CandidateHealthy())
    await trio.sleep(5)
    await one.quiet()
    assert one.phase == "soaking"
    await trio.sleep(10)
    return client


async def test_the_soak_ends_when_it_would_have_ended(autojump_clock: MockClock) -> None:
    async with engine_with(FakeEffects()) as one:
        client = await to_soak(one)
        assert one.engine.quiet
        data = handed(one.engine)
        (number,) = [waiting[0] for waiting in data["waiters"]["waiting"]]
        client.hang_up()

    await trio.sleep(AGE)
    next_one = Successor(data)
    next_one.effects.expect(Operation.COMMIT, Succeeded())
    next_one.effects.expect("retire", Succeeded())
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_one.engine.run, *next_one.first)
        nursery.start_soon(next_one.follow, number)
        await wait_all_tasks_blocked()
        await trio.sleep(20 - AGE - 0.01)
        assert next_one.engine.state.phase is Phase.SOAKING
        assert next_one.engine.elapsed()[1] == pytest.approx(30 - 0.01)
        await trio.sleep(0.02)
        await wait_all_tasks_blocked()
        assert trio.current_time() - began == pytest.approx(20 - AGE + 0.01)
        nursery.cancel_scope.cancel()
    assert next_one.effects.unexpected == []
    assert next_one.replies[0] == {"event": "undelivered"}
    verdict = next_one.replies[-1]
    assert verdict["verdict"] == "committed"
    assert verdict["phases"]["soaking"] == pytest.approx(30)  # type: ignore[index]
    assert verdict["phases"]["canary"] == pytest.approx(5)  # type: ignore[index]


async def test_a_verdict_that_comes_before_its_caller_is_back_is_kept(
    autojump_clock: MockClock,
) -> None:
    async with engine_with(FakeEffects()) as one:
        await to_soak(one)
        data = handed(one.engine)
    next_one = Successor(data)
    (number,) = [waiting[0] for waiting in data["waiters"]["waiting"]]
    next_one.engine.waiters.answer(number, "done", "done", "at once", at=trio.current_time())
    await next_one.follow(number)
    assert [reply["event"] for reply in next_one.replies] == ["undelivered", "verdict"]
    assert next_one.engine.waiters.to_data(at=0.0)["waiting"] == []
    next_one.replies.clear()
    await next_one.follow(number)  # it had everything
    assert [reply["event"] for reply in next_one.replies] == ["undelivered"]


async def test_a_drain_is_gone_on_with(autojump_clock: MockClock) -> None:
    async with engine_with(FakeEffects()) as one:
        await to_soak(one)
        one.effects.expect(Operation.COMMIT, Succeeded())
        one.effects.expect("retire", Held())
        await trio.sleep(20)
        await one.quiet()
        assert one.phase == "draining"
        data = handed(one.engine)
    next_one = Successor(data)
    next_one.effects.expect("retire", Succeeded())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_one.engine.run, *next_one.first)
        await wait_all_tasks_blocked()
        assert next_one.effects.names()[0] == "retire"
        assert next_one.engine.state.phase is Phase.IDLE
        nursery.cancel_scope.cancel()


async def test_quiet_is_only_when_nothing_is_under_way(autojump_clock: MockClock) -> None:
    async with engine_with(FakeEffects()) as one:
        asked: list[str] = []

        async def interlude() -> bool:
            await trio.lowlevel.checkpoint()
            asked.append(one.phase)
            return one.phase == "soaking"

        preflight = Held(Succeeded(generation=2))
        one.effects.expect(Operation.PREFLIGHT, preflight)
        one.effects.expect(Operation.SPAWN, Succeeded())
        one.effects.expect(Operation.SHIFT, Succeeded())
        one.ask(commands.Upgrade())
        await one.quiet()
        assert not one.engine.quiet
        one.engine.when_quiet(interlude)
        await one.quiet()
        assert asked == []
        preflight.release.set()
        await one.quiet()
        assert set(asked) == {"canary"}
        await one.tell(CandidateHealthy())
        await trio.sleep(6)
        assert asked[-1] == "soaking"
        count = len(asked)
        await one.tell(CandidateHealthy())
        assert len(asked) == count  # it was told enough


@pytest.mark.parametrize("broken", ["evidence", "effects"])
async def test_a_part_that_cannot_be_understood_begins_anew(broken: str) -> None:
    """nginx is held by then: there is no way back to looking around for it."""
    taken: list[str] = []
    log = LogCapture()

    def part(name: str) -> Any:
        def from_data(_data: object, **_times: float) -> None:
            if name == broken:
                raise KeyError("a key of tomorrow")
            taken.append(name)

        return SimpleNamespace(from_data=from_data)

    world = SimpleNamespace(log=structlog.wrap_logger(None, processors=[log]))
    estate: Any = SimpleNamespace(evidence=part("evidence"), effects=part("effects"), world=world)
    take_what_can_be({name: Parcel() for name in ("evidence", "effects")}, HandOver(), estate)
    assert [name for name in ("evidence", "effects") if name != broken] == taken
    (told,) = log.entries
    assert (told["event"], told["part"]) == ("supervisor.part_begins_anew", broken)
