"""Commands, and stops, that come while an upgrade is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import commands
from supervisor.core.actions import (
    Attach,
    Complete,
    Exit,
    Operation,
    Pronounce,
    Refuse,
    ReloadActive,
    ReopenLogs,
    Run,
    Settle,
)
from supervisor.core.cell import busy_text, running_text, undrained_text
from supervisor.core.events import (
    Event,
    Failed,
    GenerationGone,
    ReloadEnded,
    Succeeded,
    TerminateRequested,
)
from supervisor.core.machine import step
from supervisor.core.model import UPGRADING, Goal, Phase, State, Verdict
from tests.core.story import NOTHING, ON_ACTIVE, UNDERWAY, UPGRADE, Story, asked, exited, of

EVERY_PHASE = of(*UNDERWAY)


@pytest.mark.parametrize("state", EVERY_PHASE)
@pytest.mark.parametrize("command", [commands.Upgrade(), commands.Restart(), commands.Adopt()])
def test_a_second_upgrade_and_a_restart_are_refused(
    state: State, command: commands.Command
) -> None:
    Story(state).tell(
        asked(command, upgrade_id="u2"),
        Refuse(request=7, reason="upgrade_in_progress", detail=busy_text(state)),
    )


@pytest.mark.parametrize("state", EVERY_PHASE)
def test_the_small_commands(state: State) -> None:
    story = Story(state)
    story.tell(
        asked(commands.Start()),
        Refuse(request=7, reason="already_running", detail=running_text(state)),
    )
    story.tell(asked(commands.Reopen()), ReopenLogs(7))
    if state.phase is not Phase.ROLLING_BACK:
        story.tell(
            asked(commands.Drain()),
            Refuse(request=7, reason="nothing_draining", detail=undrained_text(state)),
        )
        story.ignores(exited(9))


@pytest.mark.parametrize("state", EVERY_PHASE)
def test_a_reload_waits_for_the_verdict(state: State) -> None:
    waits = commands.Reload()
    Story(state).tell(asked(waits, 8), waiting=((8, waits),))


@pytest.mark.parametrize("phase", list(UNDERWAY))
def test_a_reload_does_not_wait_for_a_person(phase: Phase) -> None:
    state = replace(UNDERWAY[phase], upgrade=replace(UPGRADE, hold=True))
    story, waits = Story(state), commands.Reload()
    if phase in (Phase.COMMITTING, Phase.ROLLING_BACK):
        story.tell(asked(waits, 8), waiting=((8, waits),))
        return
    _, (answer,) = step(state, asked(waits, 8))
    assert isinstance(answer, Refuse)
    assert (answer.request, answer.reason) == (8, "upgrade_held")


def test_waiting_reloads_are_released_as_one() -> None:
    story, one = Story(UNDERWAY[Phase.ROLLING_BACK]), commands.Reload()
    story.tell(asked(one, 8), waiting=((8, one),))
    story.tell(asked(one, 9), waiting=((8, one), (9, one)))
    story.tell(
        Succeeded(),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="probe_failed", detail="home"), ON_ACTIVE,
        ReloadActive(8), Complete(request=9, detail="covered by the reload that runs now"),
        phase=Phase.IDLE, candidate=None, upgrade=None, reason=None, detail="", waiting=(),
        reloading=True,
    )  # fmt: skip
    story.tell(ReloadEnded(), reloading=False)


def test_a_guarded_reload_covers_the_others() -> None:
    story, one = Story(UNDERWAY[Phase.ROLLING_BACK]), commands.Reload()
    guarded = commands.Reload(guard=True)
    for number, command in ((8, one), (9, guarded), (10, guarded)):
        story.state, _ = step(story.state, asked(command, number))
    _, (*_, first, covered, also) = step(story.state, Succeeded())
    assert first == ReloadActive(9, guarded)
    assert isinstance(covered, Complete)
    assert isinstance(also, Complete)
    assert (covered.request, also.request) == (8, 10)


@pytest.mark.parametrize("state", EVERY_PHASE)
def test_an_old_generation_that_is_gone_is_forgotten(state: State) -> None:
    Story(replace(state, retiring=frozenset({1, 5}))).tell(
        GenerationGone(generation=5), retiring=frozenset({1})
    )


@pytest.mark.parametrize("phase", [one for one in UNDERWAY if one is not Phase.COMMITTING])
@pytest.mark.parametrize(("event", "answers", "goal"), [
    (asked(commands.Stop(now=True)), (Attach(7),), Goal.STOP),
    (TerminateRequested(), (), Goal.EXIT),
])  # fmt: skip
def test_a_stop_ends_the_upgrade(
    phase: Phase, event: Event, answers: tuple[Attach, ...], goal: Goal
) -> None:
    state, waits = UNDERWAY[phase], commands.Reload()
    assert state.upgrade is not None
    story = Story(state)
    story.tell(asked(waits, 8), waiting=((8, waits),))
    command = None if goal is Goal.EXIT else commands.Stop(now=True)
    story.tell(
        event, *answers,
        Refuse(request=8, reason="stopping", detail="cannot reload: nginx is being stopped"),
        NOTHING, Run(operation=Operation.STOP, command=command),
        phase=Phase.STOPPING, goal=goal, reason="stopping", detail="", waiting=(),
    )  # fmt: skip
    why = "nginx was stopped before the upgrade was decided"
    if phase is Phase.ROLLING_BACK:
        why = "nginx was stopped while the upgrade was being rolled back (probe_failed: home)"
    last = (Exit(0),) if goal is Goal.EXIT else ()
    story.tell(
        Succeeded(),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="stopped", detail=why),
        Settle(ok=True, reason="stopped", detail="nginx is stopped"), *last,
        phase=Phase.STOPPED, active=None, candidate=None, upgrade=None, reason="stopped",
    )  # fmt: skip


def test_a_stop_that_fails_ends_the_upgrade_as_failed() -> None:
    state = replace(UNDERWAY[Phase.SOAKING], phase=Phase.STOPPING, goal=Goal.EXIT)
    Story(state).tell(
        Failed(reason="stop_failed", detail="it hangs"),
        Pronounce(
            verdict=Verdict.FAILED, reason="stopped",
            detail="nginx was stopped before the upgrade was decided",
        ),
        Settle(ok=False, reason="stop_failed", detail="it hangs"), Exit(1),
        phase=Phase.DEGRADED, candidate=None, upgrade=None, reason="stop_failed",
        detail="it hangs",
    )  # fmt: skip


def test_upgrading_phases_are_those_with_an_upgrade() -> None:
    assert set(UNDERWAY) == UPGRADING
