"""What a person reads at night: why a command is refused, in words of nginxctl, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import commands
from supervisor.core.actions import Refuse
from supervisor.core.cell import drop_waiting
from supervisor.core.machine import TABLE, Column, step
from supervisor.core.model import Phase, State
from tests.core.story import DRAINING, IDLE, UNDERWAY, UPGRADE, asked

STOPPED = replace(IDLE, phase=Phase.STOPPED, active=None, reason="stopped")
BACKOFF = replace(IDLE, phase=Phase.BACKOFF, active=None, reason="start_failed", detail="bind()")
DEGRADED = replace(BACKOFF, phase=Phase.DEGRADED, reason="start_limit", detail="ten times")
WILL_BE_HELD = replace(UNDERWAY[Phase.CANARY], upgrade=replace(UPGRADE, hold=True))


def refusal(state: State, command: commands.Command) -> str:
    after, (refuse,) = step(state, asked(command))
    assert after == state
    assert isinstance(refuse, Refuse)
    return refuse.detail


@pytest.mark.parametrize(("state", "command", "text"), [
    (STOPPED, commands.Reload(), "nginx is stopped; nginxctl start starts it"),
    (
        replace(STOPPED, reason="foreign_stop", detail="somebody sent QUIT"), commands.Upgrade(),
        "nginx is stopped (foreign_stop: somebody sent QUIT); nginxctl start starts it",
    ),
    (
        BACKOFF, commands.Upgrade(),
        "nginx is down (start_failed: bind()) and will be started again; "
        "nginxctl start does that now",
    ),
    (
        DEGRADED, commands.Reload(),
        "the supervisor has given up on nginx (start_limit: ten times); mend that, then "
        "nginxctl start",
    ),
    (IDLE, commands.Start(), "nginx runs already"),
    (DRAINING, commands.Start(), "nginx runs already"),
    (UNDERWAY[Phase.HELD], commands.Start(), "nginx runs already, and upgrade u1 is held until"),
    (
        UNDERWAY[Phase.CANARY], commands.Upgrade(),
        "upgrade u1 is in canary; wait for its verdict (nginxctl status), or end it with "
        "nginxctl rollback",
    ),
    (
        UNDERWAY[Phase.HELD], commands.Upgrade(),
        "upgrade u1 is held until someone decides; nginxctl promote commits it, "
        "nginxctl rollback takes it back",
    ),
    (
        WILL_BE_HELD, commands.Upgrade(),
        "upgrade u1 is in canary and will be held until someone decides; nginxctl promote "
        "commits it, nginxctl rollback takes it back",
    ),
    (
        UNDERWAY[Phase.ROLLING_BACK], commands.Upgrade(),
        "upgrade u1 is being rolled back; wait for its verdict (nginxctl status)",
    ),
    (
        UNDERWAY[Phase.HELD], commands.Drain(),
        "upgrade u1 is held until someone decides, and the old generation stays until then; "
        "nginxctl promote commits it",
    ),
    (
        UNDERWAY[Phase.CANARY], commands.Drain(),
        "upgrade u1 is in canary, and the old generation stays until then",
    ),
    (
        WILL_BE_HELD, commands.Reload(),
        "upgrade u1 is in canary and will be held until someone decides; nginxctl promote or",
    ),
    (IDLE, commands.Drain(), "no old generation is left"),
    (
        replace(BACKOFF, retiring=frozenset({1})), commands.Drain(),
        "nginx is backoff; once it serves, nginxctl drain --now ends the rest",
    ),
])  # fmt: skip
def test_it_says_why_and_what_to_do(state: State, command: commands.Command, text: str) -> None:
    assert text in refusal(state, command)


def test_no_refusal_speaks_of_the_machine() -> None:
    """`idle` is no word of nginxctl's."""
    states = [*UNDERWAY.values(), DRAINING, IDLE, STOPPED, BACKOFF, DEGRADED]
    for state in states:
        for command in (commands.Upgrade(), commands.Start(), commands.Drain(), commands.Promote()):
            for action in step(state, asked(command))[1]:
                if isinstance(action, Refuse):
                    assert action.detail.startswith("cannot ")
                    assert "idle" not in action.detail
                    assert "is in held" not in action.detail
    assert TABLE[Phase.IDLE].keys() == set(Column)


@pytest.mark.parametrize("reason", ["not_running", "stopping", "degraded"])
def test_a_reload_that_has_waited_in_vain_is_told_why(reason: str) -> None:
    waiting = replace(IDLE, waiting=((8, commands.Reload()),))
    _, (refuse,) = drop_waiting(waiting, reason)
    assert isinstance(refuse, Refuse)
    assert refuse.reason == reason
    assert reason not in refuse.detail
