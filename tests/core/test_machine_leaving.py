"""The supervisor ends and nginx serves on: by command, or as soon as nothing is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import commands
from supervisor.core.actions import (
    Arm,
    Exit,
    LetGo,
    Operation,
    Pronounce,
    Refuse,
    ReportIncident,
    Retire,
    Run,
    Settle,
)
from supervisor.core.cell import busy_text, down_text, upgrade_text
from supervisor.core.events import (
    CandidateHealthy,
    Failed,
    LeaveRequested,
    ReloadEnded,
    Succeeded,
    TerminateRequested,
    TimerFired,
)
from supervisor.core.leaving import AT_REST, DETACHED
from supervisor.core.machine import step
from supervisor.core.model import UPGRADING, Goal, Phase, State, Timer, Verdict
from tests.core.story import (
    DRAINING,
    HEALTHY,
    IDLE,
    NOTHING,
    ON_ACTIVE,
    ROLL_BACK,
    UNDERWAY,
    UPGRADE,
    Story,
    asked,
    of,
)

DETACH = commands.Detach()
WHY = "rolled back since the supervisor was told to end, and this would wait for a person"


def later(what: str) -> ReportIncident:
    detail = f"told to end and to leave nginx serving: {what}, and the supervisor ends after that"
    return ReportIncident(reason="detach_waits", detail=detail)


# --- by command ---------------------------------------------------------------------------------


def test_what_serves_is_left() -> None:
    Story(IDLE).tell(asked(DETACH), LetGo(7), Exit(DETACHED), leaving=True)


@pytest.mark.parametrize("state", of(*UNDERWAY))
def test_not_in_an_upgrade(state: State) -> None:
    refused = Refuse(request=7, reason="upgrade_in_progress", detail=busy_text(state))
    Story(state).tell(asked(DETACH), refused)


@pytest.mark.parametrize(("phase", "reason"), [
    (Phase.STARTING, "starting"), (Phase.TAKING_OVER, "taking_over"), (Phase.STOPPING, "stopping"),
    (Phase.DRAINING, "previous_generation_draining"),
    (Phase.BACKOFF, "not_running"), (Phase.STOPPED, "not_running"), (Phase.DEGRADED, "not_running"),
])  # fmt: skip
def test_not_where_nothing_serves_or_something_is_unfinished(phase: Phase, reason: str) -> None:
    state = replace(IDLE, phase=phase, reason="why")
    after, (refused,) = step(state, asked(DETACH))
    assert after == state
    assert isinstance(refused, Refuse)
    assert (refused.request, refused.reason) == (7, reason)
    if reason == "not_running":
        assert refused.detail == down_text(state)


def test_not_beside_a_reload() -> None:
    detail = "cannot detach: a reload runs; wait for it to end and try again"
    refused = Refuse(request=7, reason="reload_in_progress", detail=detail)
    Story(replace(IDLE, reloading=True)).tell(asked(DETACH), refused)


# --- by a signal --------------------------------------------------------------------------------


LEFT = {
    Phase.IDLE: DETACHED, Phase.DRAINING: DETACHED, Phase.STOPPED: DETACHED,
    Phase.BACKOFF: 1, Phase.DEGRADED: 1,  # nobody serves, and a service manager has to start us
}  # fmt: skip


@pytest.mark.parametrize("phase", sorted(AT_REST, key=lambda one: one.value))
def test_at_rest_it_ends_at_once(phase: Phase) -> None:
    left = Exit(LEFT[phase])
    Story(replace(IDLE, phase=phase)).tell(LeaveRequested(), LetGo(), left, leaving=True)


@pytest.mark.parametrize("phase", [one for one in Phase if one not in AT_REST | UPGRADING])
def test_what_is_under_way_ends_first(phase: Phase) -> None:
    story = Story(replace(IDLE, phase=phase))
    story.tell(LeaveRequested(), later(f"nginx is {phase.value}"), leaving=True)
    story.ignores(LeaveRequested())
    after, actions = step(story.state, Failed(reason="r", detail="d"))
    assert after.phase in AT_REST
    assert actions[-2:] == (LetGo(), Exit(LEFT[after.phase]))


def test_a_reload_ends_first() -> None:
    story = Story(replace(IDLE, reloading=True))
    story.tell(LeaveRequested(), later("a reload runs"), leaving=True)
    story.tell(ReloadEnded(), LetGo(), Exit(DETACHED), reloading=False)


def test_an_upgrade_ends_first() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    story.tell(LeaveRequested(), later(upgrade_text(story.state)), leaving=True)
    story.tell(
        Succeeded(), HEALTHY, Retire(generation=1), ON_ACTIVE, LetGo(), Exit(DETACHED),
        phase=Phase.DRAINING, active=2, candidate=None, upgrade=None, retiring=frozenset({1}),
        rescuable=True,
    )  # fmt: skip


def test_an_upgrade_may_still_go_forward() -> None:
    story = Story(replace(UNDERWAY[Phase.CANARY], leaving=True))
    after, actions = step(story.state, CandidateHealthy())
    assert after.phase is Phase.CANARY
    assert actions == ()
    after, actions = step(after, TimerFired(Timer.CANARY))
    assert after.phase is Phase.SHIFTING
    assert Run(operation=Operation.SHIFT) in actions


@pytest.mark.parametrize("phase", [Phase.CANARY, Phase.SOAKING, Phase.HELD])
@pytest.mark.parametrize("why", ["hold", "waits"])
def test_what_waits_for_a_person_is_rolled_back(phase: Phase, why: str) -> None:
    upgrade = replace(UPGRADE, hold=why == "hold", waits=why == "waits")
    story = Story(replace(UNDERWAY[phase], upgrade=upgrade))
    story.tell(
        LeaveRequested(), later(upgrade_text(story.state)), NOTHING, ROLL_BACK,
        phase=Phase.ROLLING_BACK, reason="operator", detail=WHY, leaving=True,
        upgrade=replace(upgrade, reason="operator", detail=WHY),
    )  # fmt: skip
    story.tell(
        Succeeded(),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="operator", detail=WHY), ON_ACTIVE,
        LetGo(), Exit(DETACHED),
        phase=Phase.IDLE, candidate=None, upgrade=None, reason=None, detail="",
    )  # fmt: skip


def test_one_that_will_wait_is_rolled_back_when_it_does() -> None:
    held = replace(UNDERWAY[Phase.SHIFTING], upgrade=replace(UPGRADE, hold=True), leaving=True)
    after, actions = step(held, Succeeded())
    assert after.phase is Phase.ROLLING_BACK
    assert any(isinstance(one, Arm) for one in actions)  # of the soak, which is over
    assert actions[-1] == ROLL_BACK


def test_a_stop_goes_before() -> None:
    story = Story(replace(UNDERWAY[Phase.SOAKING], leaving=True))
    story.tell(
        TerminateRequested(), NOTHING, Run(operation=Operation.STOP),
        phase=Phase.STOPPING, goal=Goal.EXIT, reason="stopping", detail="",
    )  # fmt: skip
    _, actions = step(story.state, Succeeded())
    assert actions[-2:] == (
        Settle(ok=True, reason="stopped", detail="nginx is stopped"), Exit(0),
    )  # fmt: skip


def test_draining_is_left_to_itself() -> None:
    Story(DRAINING).tell(LeaveRequested(), LetGo(), Exit(DETACHED), leaving=True)
