"""Who asks for a detach is told what is left, after that is let go and before the end."""

from __future__ import annotations

import os

import pytest
from trio.testing import MockClock

from supervisor import backend
from supervisor.core import commands
from supervisor.core.events import LeaveRequested
from supervisor.core.leaving import DETACHED
from tests.engine.conftest import engine_with
from tests.fakes import FakeEffects


async def test_what_is_left_is_told(autojump_clock: MockClock, effects: FakeEffects) -> None:
    async with engine_with(effects) as running:
        told = await running.ask(commands.Detach()).verdict()
        assert (told["verdict"], told["reason"]) == ("done", "detached")
        assert told["detail"] == "nginx serves on"
        assert running.engine.exit_code == DETACHED
        assert ("let_go", True) in effects.calls


async def test_a_signal_tells_nobody(autojump_clock: MockClock, effects: FakeEffects) -> None:
    async with engine_with(effects) as running:
        await running.tell(LeaveRequested())
        assert running.engine.exit_code == DETACHED
        assert ("let_go", False) in effects.calls


def test_pid_1_cannot_leave_anybody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.detachable() is None
    monkeypatch.setattr(os, "getpid", lambda: 1)
    problem = backend.detachable()
    assert problem is not None
    assert problem.reason == "pid_1"
