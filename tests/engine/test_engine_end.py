"""The end of the engine: nobody waits for ever, and nothing is decided on the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.events import (
    Succeeded,
    TerminateRequested,
)
from supervisor.core.model import Phase, public_state
from tests.engine.conftest import FRESH, engine_with
from tests.fakes import FakeEffects, Held, failed


async def test_terminate_stops_nginx_and_ends(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    effects.expect(Operation.STOP, Succeeded())
    async with engine_with(effects) as running:
        running.engine.post(TerminateRequested())
        await running.over.wait()
        assert running.code == 0
        assert effects.names()[-2:] == ["stop", "settled"]


async def test_a_first_start_that_fails_ends_the_supervisor(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    async with engine_with(effects, failed("config_rejected")) as running:
        await running.over.wait()
        assert running.code == 1
        late = running.ask(commands.Start())
        await late.ended.wait()
        assert late.replies == []


async def test_those_who_wait_at_the_end_are_let_go(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    """Their channel ends without a final reply: the supervisor ended."""
    effects.expect("reload", Held())
    effects.expect(Operation.STOP, Succeeded())
    async with engine_with(effects) as running:
        client = running.ask(commands.Reload())
        await running.quiet()
        running.engine.post(TerminateRequested())
        await running.over.wait()
        await client.ended.wait()
        assert client.events() == ["accepted", "shifting"]
        await running.engine.wait_told(5.0)


async def test_the_end_waits_for_those_who_read_slowly_but_not_for_ever(
    autojump_clock: MockClock,
    effects: FakeEffects,
) -> None:
    async with engine_with(effects) as running, running.engine.submit(commands.Reopen()):
        began = trio.current_time()
        await running.engine.wait_told(5.0)
        assert trio.current_time() - began == pytest.approx(5)


async def test_cancelling_the_engine_decides_nothing(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    effects.expect(Operation.PREFLIGHT, Succeeded(generation=2))
    spawning = Held()
    effects.expect(Operation.SPAWN, spawning)
    async with engine_with(effects) as running:
        client = running.ask(commands.Upgrade())
        await spawning.started.wait()
        assert running.engine._nursery is not None
        running.nursery.cancel_scope.cancel()
    assert spawning.cancelled
    assert effects.history == []
    assert "roll_back" not in effects.names()
    assert all(one["event"] != "verdict" for one in client.replies)


def test_every_phase_has_a_public_word() -> None:
    words = {public_state(replace(FRESH, phase=phase)) for phase in Phase}
    assert words == {
        "starting", "running", "upgrading", "draining", "backoff", "stopped", "degraded"
    }  # fmt: skip
