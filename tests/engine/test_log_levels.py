"""How loud the engine is: trouble is a warning, what needs a person or refuses clients an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trio.testing import MockClock

from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.events import MasterExited, Succeeded, Triggered
from supervisor.core.restart_policy import RestartPolicy
from tests.engine.conftest import Running, engine_with
from tests.fakes import FakeEffects, failed

BAD = Triggered(reason="probe_failed", detail="home")
CRASH = MasterExited(generation=1, orderly=False, detail="signal 9", at=0.0)


def levels(running: Running, event: str, key: str) -> dict[str, str]:
    """The level of each `event`, by its `key`."""
    return {
        str(one[key]): str(one["log_level"]) for one in running.entries if one["event"] == event
    }


@pytest.mark.parametrize(("orphans", "level"), [(True, "warning"), (False, "error")])
async def test_an_outage_is_no_information(
    autojump_clock: MockClock,
    effects: FakeEffects,
    orphans: bool,  # noqa: FBT001
    level: str,
) -> None:
    effects.expect(Operation.START, failed("start_failed"))
    async with engine_with(effects) as running:
        running.engine._accepts = lambda: orphans
        await running.tell(CRASH)
        assert levels(running, "supervisor.state_changed", "to_state")["backoff"] == level


async def test_giving_up_is_an_error(autojump_clock: MockClock, effects: FakeEffects) -> None:
    async with engine_with(effects) as running:
        running.engine.state = replace(
            running.engine.state, restarts=RestartPolicy(start_limit=1, starts=(0.0,))
        )
        await running.tell(CRASH)
        assert levels(running, "supervisor.state_changed", "to_state")["degraded"] == "error"


@pytest.mark.parametrize(
    ("ended", "verdict", "level"),
    [
        (Succeeded(generation=1), "rolled_back", "warning"),
        (failed("rollback_failed"), "failed", "error"),
    ],
)
async def test_a_rollback_is_heard(
    autojump_clock: MockClock,
    effects: FakeEffects,
    ended: Succeeded | Exception,
    verdict: str,
    level: str,
) -> None:
    effects.expect(Operation.PREFLIGHT, Succeeded(generation=2))
    effects.expect(Operation.SPAWN, Succeeded())
    effects.expect(Operation.ROLL_BACK, ended)
    async with engine_with(effects) as running:
        client = running.ask(commands.Upgrade())
        await running.quiet()
        await running.tell(BAD)
        assert (await client.verdict())["verdict"] == verdict
        assert levels(running, "upgrade.verdict", "verdict") == {verdict: level}
        changes = levels(running, "upgrade.state_changed", "to_state")
        assert (changes["canary"], changes["rolling_back"]) == ("info", "warning")
        assert not any(one.get("detail") == "" for one in running.entries), "nothing is not told"
        assert not any("time" in one for one in running.entries), "each line has its own time"
