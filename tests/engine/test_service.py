"""What the service manager hears, with an engine in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.errors import ConfigError, OperationFailed, Refusal, SupervisorError
from supervisor.core.events import Succeeded, TerminateRequested
from supervisor.core.model import Phase
from supervisor.edges.notify import Watchdog
from supervisor.service import EXTEND_EVERY, EXTENSION, Service, errno_of
from tests.engine.conftest import Running, engine_with
from tests.fakes import FakeEffects, Held

PERIOD = 30.0


class Said:
    """Takes the place of the edge: what was said, and when."""

    def __init__(self, period: float | None = PERIOD) -> None:
        self.words: list[tuple[Any, ...]] = []
        self.watchdog = Watchdog(seconds=period)
        self.listened_to = True
        self.environment = {"NOTIFY_SOCKET": "@x"}

    def __getattr__(self, word: str) -> Any:
        return lambda *given, **named: self.words.append((word, *given, *named.values()))

    def alive(self, *, extend: float | None = None) -> None:
        self.words.append(("alive", extend, trio.current_time()))

    def told(self, word: str) -> list[tuple[Any, ...]]:
        return [one for one in self.words if one[0] == word]


class Effects(FakeEffects):
    """Tells a service what has changed, as the real ones do."""

    service: Service | None = None

    def settled(self, state: Any) -> None:
        if self.service is not None:
            self.service.settled(state)


class Generation(SimpleNamespace):
    def __init__(self, *, accepting: bool = True) -> None:
        super().__init__(
            id=1, alive=True, foreign=None, bystander=False, accepting=accepting,
            program=SimpleNamespace(version="1.22.1"), master=SimpleNamespace(pid=7),
        )  # fmt: skip

    def brood(self) -> Any:
        return SimpleNamespace(accepting={8} if self.accepting else set())


class Scene:
    def __init__(self, one: Running, effects: Effects, said: Said, generation: Generation) -> None:
        self.one, self.effects, self.said, self.generation = one, effects, said, generation
        self.world = SimpleNamespace(generations=[generation], active=generation, run=None)
        self.service = effects.service = Service(cast(Any, self.world), cast(Any, said))
        self.start = trio.current_time()

    def begin(self) -> None:
        self.service.settled(self.one.engine.state)
        self.one.nursery.start_soon(self.service.keep_alive, self.one.engine)

    def signs(self) -> list[float]:
        return [at - self.start for _, _, at in self.said.told("alive")]


@asynccontextmanager
async def scene(
    first: Succeeded | Held | None = None, *, period: float | None = PERIOD, accepting: bool = True
) -> AsyncIterator[Scene]:
    effects = Effects()
    async with engine_with(effects, first) as one:
        yield Scene(one, effects, Said(period), Generation(accepting=accepting))


async def test_signs_of_life_come_three_times_in_a_period(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.begin()
        await trio.sleep(PERIOD + 1)
        assert the.said.words[0] == ("ready", "running: g1 nginx 1.22.1 (idle)")
        assert the.signs() == [0, PERIOD / 3, 2 * PERIOD / 3, PERIOD]
        assert {extend for _, extend, _ in the.said.told("alive")} == {None}


async def test_an_engine_that_is_stuck_gives_none(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.begin()
        await trio.sleep(1)
        stuck = trio.Event()
        real = the.effects.record

        async def record(*states: Any) -> None:
            await stuck.wait()  # as a disk that never answers
            await real(*states)

        the.effects.record = record  # type: ignore[method-assign]
        the.effects.expect(Operation.PREFLIGHT, OperationFailed("no_space", "full"))
        the.one.ask(commands.Upgrade())
        await trio.sleep(10 * PERIOD)
        assert the.signs() == [0]
        stuck.set()
        await trio.sleep(PERIOD)
        assert len(the.signs()) > 2


async def test_without_a_watchdog_there_is_nothing_to_do_once_it_serves(
    autojump_clock: MockClock,
) -> None:
    async with scene(period=None) as the:
        the.begin()
        await trio.sleep(1000)
        assert the.signs() == [0]


async def test_nobody_listens(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.said.listened_to = False
        await the.service.keep_alive(the.one.engine)
        assert the.said.words == []


async def test_the_time_outs_are_extended_until_it_serves(autojump_clock: MockClock) -> None:
    start = Held(Succeeded(generation=1))
    async with scene(start, period=None) as the:
        the.begin()
        await trio.sleep(2 * EXTEND_EVERY + 1)
        assert the.said.words[0] == ("status", "starting: (starting)")
        assert [one[1] for one in the.said.told("alive")] == [EXTENSION] * 3
        assert not the.said.told("ready")
        start.release.set()
        await trio.sleep(5 * EXTEND_EVERY)
        assert the.said.told("ready") == [("ready", "running: g1 nginx 1.22.1 (idle)")]
        assert the.said.told("alive")[3:] == [("alive", None, the.start + 3 * EXTEND_EVERY)]


async def test_ready_is_said_when_a_worker_accepts_and_not_before(
    autojump_clock: MockClock,
) -> None:
    async with scene(accepting=False, period=None) as the:
        the.begin()
        await trio.sleep(2 * EXTEND_EVERY + 1)
        assert the.said.words[0] == ("status", "degraded: g1 nginx 1.22.1 (idle); no_workers")
        assert not the.said.told("ready")
        the.service.reloading()  # a READY that ended it would be a lie
        the.service.reloaded(the.one.engine.state, None)
        the.service.ready_again()
        assert not the.said.told("ready")
        assert not the.said.told("reloading")
        the.generation.accepting = True  # by what somebody else did
        await trio.sleep(EXTEND_EVERY)
        assert the.said.told("ready") == [("ready", "running: g1 nginx 1.22.1 (idle)")]


async def test_stopping_is_said_at_its_begin_and_the_drain_extends_the_time_out(
    autojump_clock: MockClock,
) -> None:
    async with scene(period=None) as the:
        the.begin()
        await trio.sleep(1)
        stop = Held(Succeeded(note="nginx is stopped"))
        the.effects.expect(Operation.STOP, stop)
        await the.one.tell(TerminateRequested())
        assert the.said.words[-2:] == [
            ("stopping", "draining: g1 nginx 1.22.1 (stopping)"),
            ("alive", EXTENSION, the.start + 1),
        ]
        await trio.sleep(3 * EXTEND_EVERY + 1)
        assert the.signs()[1:] == [1, 11, 21, 31]
        stop.release.set()
        await the.one.over.wait()
        assert len(the.said.told("stopping")) == 1


async def test_a_stop_of_nginx_alone_is_no_stop_of_the_service(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.begin()
        the.effects.expect(Operation.STOP, Succeeded(note="nginx is stopped"))
        await the.one.ask(commands.Stop()).verdict()
        assert not the.said.told("stopping")
        assert the.said.told("status")[-1] == ("status", "stopped: (stopped)")


async def test_a_reload_of_the_own_configuration(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.begin()
        state = the.one.engine.state
        the.service.reloading()
        the.service.reloaded(state, "line 3")
        line = "running: g1 nginx 1.22.1 (idle)"
        rejected = f"{line}; the configuration on disk is rejected: line 3"
        assert the.said.words[-2:] == [("reloading",), ("ready", rejected, 22)]
        the.service.settled(state)
        assert the.said.words[-1] == ("ready", rejected, 22)  # nothing new
        the.service.reloading()
        the.service.reloaded(state, None)
        assert the.said.words[-2:] == [("reloading",), ("ready", line, 0)]
        the.service.reloading()
        the.service.ready_again()
        assert the.said.words[-2:] == [("reloading",), ("ready", line)]


async def test_a_successor_ends_the_reloading_of_its_predecessor(
    autojump_clock: MockClock,
) -> None:
    async with scene() as the:
        the.service.inherit(told_ready=True)
        the.begin()
        line = "running: g1 nginx 1.22.1 (idle)"
        assert the.said.words == [("ready", line)]
        assert the.service.environment == {"NOTIFY_SOCKET": "@x"}


async def test_a_candidate_that_is_being_started_has_its_version(
    autojump_clock: MockClock,
) -> None:
    async with scene() as the:
        the.begin()
        the.world.run = SimpleNamespace(to_version="1.26.3")
        state = the.one.engine.state
        the.service.settled(replace(state, phase=Phase.SPAWNING, candidate=2))
        line = "upgrading: g1 nginx 1.22.1 -> g2 nginx 1.26.3 (spawning)"
        assert the.said.words[-1] == ("status", line)


async def test_an_upgrade_by_somebody_else_is_told(autojump_clock: MockClock) -> None:
    async with scene() as the:
        the.begin()
        the.generation.foreign = SimpleNamespace(alive=True, pid=9)
        await trio.sleep(PERIOD)
        assert the.said.told("status")[-1] == (
            "status",
            "upgrading: g1 nginx 1.22.1 (idle); foreign_upgrade",
        )


def _caused(cause: OSError) -> SupervisorError:
    problem = Refusal("state_not_writable", "cannot write")
    problem.__cause__ = cause
    return problem


@pytest.mark.parametrize(
    ("problem", "number"),
    [
        (_caused(OSError(30, "Read-only file system")), 30),
        (_caused(OSError("no number")), 125),
        (OperationFailed("start_failed", "bind() to :80 failed (98: Address already in use)"), 98),
        (OperationFailed("start_failed", "no word"), 125),
        (ConfigError("cannot read"), 22),
        (Refusal("already_supervised", "by 7"), 16),
    ],
)
def test_the_number_of_an_error(problem: SupervisorError, number: int) -> None:
    assert errno_of(problem) == number
