"""The machine outside of upgrades: start, crash, backoff, stop, reload, foreign stops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import commands
from supervisor.core.actions import (
    Aim,
    Arm,
    Attach,
    Complete,
    Exit,
    HastenDrain,
    Operation,
    Refuse,
    ReloadActive,
    ReopenLogs,
    ReportIncident,
    Retire,
    Run,
    Settle,
    Watch,
)
from supervisor.core.events import (
    CandidateHealthy,
    Event,
    Failed,
    GenerationGone,
    ProbeFailed,
    ReloadEnded,
    RulesChanged,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.machine import step
from supervisor.core.model import Goal, OnForeignStop, Phase, Rules, State, Timer
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import VerdictPolicy
from tests.core.story import DRAINING, FRESH, IDLE, UNDERWAY, Story, asked, exited

NOTHING, ON_ACTIVE = Aim(Watch.NOTHING), Aim(Watch.ACTIVE)
START, STOP = Run(operation=Operation.START), Run(operation=Operation.STOP)
STARTED = Settle(ok=True, reason="started", detail="nginx serves")
STOPPED_OK = Settle(ok=True, reason="stopped", detail="nginx is stopped")
NOT_ANY_MORE = Settle(
    ok=False, reason="stopping", detail="cannot start: nginx was told to stop meanwhile"
)
ONE_CRASH = RestartPolicy(starts=(100.0,), crashes=(100.0,))

STARTING = replace(IDLE, phase=Phase.STARTING, active=None)
BACKOFF = replace(IDLE, phase=Phase.BACKOFF, active=None, reason="bad", detail="it failed")
STOPPED = replace(IDLE, phase=Phase.STOPPED, active=None, goal=Goal.STOP, reason="stopped")
STOPPING = replace(IDLE, phase=Phase.STOPPING, goal=Goal.STOP, reason="stopping")
TAKING_OVER = replace(IDLE, phase=Phase.TAKING_OVER, reason="taking_over")
DEGRADED = replace(IDLE, phase=Phase.DEGRADED, reason="rollback_failed", detail="it failed")

AT_REST = [
    pytest.param(one, id=one.phase.value)
    for one in (STARTING, IDLE, BACKOFF, DEGRADED, DRAINING, TAKING_OVER)
]
ANYWHERE = [*AT_REST, pytest.param(STOPPED, id="stopped"), pytest.param(STOPPING, id="stopping")]


def reason_of(state: State, command: commands.Command) -> str:
    after, (answer,) = step(state, asked(command, upgrade_id="u"))
    assert after == state
    assert isinstance(answer, Refuse)
    assert answer.request == 7
    assert answer.detail.startswith("cannot ")
    return answer.reason


# --- start ---------------------------------------------------------------------------------


def test_a_first_start() -> None:
    Story(FRESH).tell(
        Succeeded(generation=1), STARTED, ON_ACTIVE, phase=Phase.IDLE, active=1, served=True
    )


def test_a_start_beside_what_is_left_of_another() -> None:
    story = Story(FRESH)
    story.tell(
        Succeeded(generation=3, retiring=frozenset({2, 1}), note="adopted"),
        Retire(generation=1), Retire(generation=2),
        Settle(ok=True, reason="started", detail="adopted"), ON_ACTIVE,
        phase=Phase.DRAINING, active=3, served=True, retiring=frozenset({1, 2}),
    )  # fmt: skip


def test_a_first_start_that_fails_ends_the_supervisor() -> None:
    Story(FRESH).tell(
        Failed(reason="config_rejected", detail="no"),
        Settle(ok=False, reason="config_rejected", detail="no"), Exit(1),
        phase=Phase.DEGRADED, reason="config_rejected", detail="no",
    )  # fmt: skip


def test_later_starts_back_off() -> None:
    story = Story(STARTING)
    failed = Settle(ok=False, reason="bad", detail="it failed")
    for at, delay in ((100.0, 0.1), (200.0, 0.2), (300.0, 0.4)):
        story.tell(
            Failed(reason="bad", detail="it failed", at=at), failed, NOTHING,
            Arm(timer=Timer.BACKOFF, seconds=delay),
            phase=Phase.BACKOFF, reason="bad", detail="it failed",
            restarts=story.state.restarts.failed(at=at, was_ready=False)[0],
        )  # fmt: skip
        story.tell(TimerFired(Timer.BACKOFF), NOTHING, START, phase=Phase.STARTING)
    story.tell(
        Succeeded(generation=2), STARTED, ON_ACTIVE,
        phase=Phase.IDLE, active=2, reason=None, detail="",
    )  # fmt: skip


def test_the_start_limit_and_a_person_s_start() -> None:
    limit = RestartPolicy(start_limit=1, starts=(99.0,), last_delay=0.1)
    story = Story(replace(STARTING, restarts=limit))
    detail = (
        "cannot keep nginx running: it was started 1 times within 60 s; its error log tells why; "
        "then nginxctl start (the last failure: it failed)"
    )
    story.tell(
        Failed(reason="bad", detail="it failed", at=100.0),
        Settle(ok=False, reason="bad", detail="it failed"), NOTHING,
        ReportIncident(reason="start_limit", detail=detail),
        Settle(ok=False, reason="start_limit", detail=detail),
        phase=Phase.DEGRADED, reason="start_limit", detail=detail,
    )  # fmt: skip
    story.tell(
        asked(commands.Start()), Attach(7), NOTHING, START,
        phase=Phase.STARTING, reason=None, detail="", restarts=RestartPolicy(start_limit=1),
    )  # fmt: skip


@pytest.mark.parametrize("state", [BACKOFF, STOPPED, DEGRADED])
def test_a_person_starts(state: State) -> None:
    story = Story(state)
    story.tell(
        asked(commands.Start()), Attach(7), NOTHING, START,
        phase=Phase.STARTING, goal=Goal.RUN, reason=None, detail="",
    )  # fmt: skip
    story.tell(asked(commands.Start(), 8), Attach(8))


def test_a_generation_that_dies_before_its_start_is_heard() -> None:
    story = Story(STARTING)
    old, new = exited(1), exited(2)
    story.tell(old, exits=(old,))
    story.tell(new, exits=(old, new))
    story.tell(
        Succeeded(generation=2), STARTED,
        ReportIncident(reason="master_exited", detail="master of g2"), NOTHING, START,
        active=None, exits=(), reason="master_exited", detail="master of g2", restarts=ONE_CRASH,
    )  # fmt: skip


# --- crash ---------------------------------------------------------------------------------


def test_a_crash_restarts_at_once() -> None:
    story = Story(IDLE)
    story.tell(
        exited(1), ReportIncident(reason="master_exited", detail="master of g1"), NOTHING, START,
        phase=Phase.STARTING, active=None, reason="master_exited", detail="master of g1",
        restarts=ONE_CRASH,
    )  # fmt: skip


def test_crashes_in_a_row_back_off() -> None:
    crashing = RestartPolicy(crash_limit=1, crashes=(99.0,))
    story = Story(replace(IDLE, restarts=crashing))
    story.tell(
        exited(1), ReportIncident(reason="master_exited", detail="master of g1"), NOTHING,
        Arm(timer=Timer.BACKOFF, seconds=0.1),
        phase=Phase.BACKOFF, active=None, reason="master_exited", detail="master of g1",
        restarts=crashing.failed(at=100.0, was_ready=True)[0],
    )  # fmt: skip
    for event in (exited(1), Succeeded(), Failed(reason="r", detail="d")):
        story.ignores(event)


def test_who_waits_for_a_drain_is_told_when_nginx_is_given_up() -> None:
    limit = RestartPolicy(start_limit=1, starts=(99.0,))
    story = Story(replace(DRAINING, rescuable=False, restarts=limit))
    story.tell(asked(commands.Drain()), Attach(7), HastenDrain())
    after, actions = step(story.state, exited(2))
    assert after.phase is Phase.DEGRADED
    assert after.active is None
    assert isinstance(actions[-1], Settle)
    assert not actions[-1].ok


def test_a_foreign_stop_is_undone() -> None:
    Story(IDLE).tell(
        exited(1, orderly=True), ReportIncident(reason="foreign_stop", detail="master of g1"),
        NOTHING, START,
        phase=Phase.STARTING, active=None, reason="foreign_stop", detail="master of g1",
        restarts=ONE_CRASH,
    )  # fmt: skip


def test_a_foreign_stop_is_accepted() -> None:
    rules = Rules(on_foreign_stop=OnForeignStop.STOP)
    Story(replace(IDLE, rules=rules)).tell(
        exited(1, orderly=True), NOTHING,
        ReportIncident(reason="foreign_stop", detail="master of g1"),
        Settle(ok=False, reason="foreign_stop", detail="master of g1"),
        phase=Phase.STOPPED, goal=Goal.STOP, active=None, reason="foreign_stop",
        detail="master of g1",
    )  # fmt: skip


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("wanted", list(OnForeignStop))
@pytest.mark.parametrize("state", [IDLE, DRAINING])
def test_a_foreign_upgrade_is_taken_over(
    state: State, wanted: OnForeignStop, *, orderly: bool
) -> None:
    """It is no crash, no stop, and nothing to be rescued: another master serves."""
    assert state.active is not None
    gone = replace(exited(state.active, orderly=orderly), replaced=True)
    story = Story(replace(state, rules=Rules(on_foreign_stop=wanted)))
    story.tell(
        gone, ReportIncident(reason="foreign_upgrade", detail=gone.detail), NOTHING, START,
        phase=Phase.STARTING, active=None, reason="foreign_upgrade", detail=gone.detail,
        rescuable=False,
    )  # fmt: skip


@pytest.mark.parametrize("state", ANYWHERE)
def test_what_others_do_is_ignored(state: State) -> None:
    story = Story(state)
    for event in (
        CandidateHealthy(), Triggered(reason="r", detail="d"), TimerFired(Timer.SOAK),
    ):  # fmt: skip
        if state.phase is not Phase.BACKOFF or not isinstance(event, TimerFired):
            story.ignores(event)
    if state.phase not in (Phase.STARTING, Phase.TAKING_OVER):
        story.ignores(exited(9))


@pytest.mark.parametrize("state", [STOPPED, STOPPING, DEGRADED])
def test_an_exit_that_nothing_depends_on(state: State) -> None:
    Story(replace(state, active=1)).ignores(exited(1))


@pytest.mark.parametrize("state", [IDLE, STOPPED, DEGRADED, DRAINING])
def test_answers_that_nothing_waits_for(state: State) -> None:
    Story(state).ignores(Succeeded())
    Story(state).ignores(Failed(reason="r", detail="d"))


@pytest.mark.parametrize(
    "state", [one for one in ANYWHERE if one.values[0].phase is not Phase.DRAINING]
)
def test_a_retiring_generation_is_gone(state: State) -> None:
    Story(replace(state, retiring=frozenset({1, 5}))).tell(
        GenerationGone(generation=5), retiring=frozenset({1})
    )


# --- stop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [IDLE, BACKOFF, STOPPED, DEGRADED, DRAINING])
def test_stop(state: State) -> None:
    story, command = Story(state), commands.Stop()
    story.tell(
        asked(command), Attach(7), NOTHING, Run(operation=Operation.STOP, command=command),
        phase=Phase.STOPPING, goal=Goal.STOP, reason="stopping", detail="",
    )  # fmt: skip
    story.tell(asked(command, 8), Attach(8))
    now = commands.Stop(now=True)
    story.tell(asked(now, 9), Attach(9), Run(operation=Operation.STOP, command=now))
    story.tell(
        Succeeded(), STOPPED_OK,
        phase=Phase.STOPPED, active=None, retiring=frozenset(), rescuable=False, reason="stopped",
    )  # fmt: skip


@pytest.mark.parametrize("state", [IDLE, BACKOFF, STOPPED, DEGRADED, DRAINING])
def test_terminate(state: State) -> None:
    story = Story(state)
    story.tell(
        TerminateRequested(), NOTHING, STOP,
        phase=Phase.STOPPING, goal=Goal.EXIT, reason="stopping", detail="",
    )  # fmt: skip
    story.tell(asked(commands.Stop(), 8), Attach(8))
    story.tell(
        Succeeded(), STOPPED_OK, Exit(0),
        phase=Phase.STOPPED, active=None, retiring=frozenset(), rescuable=False, reason="stopped",
    )  # fmt: skip


@pytest.mark.parametrize("state", AT_REST)
def test_restart(state: State) -> None:
    story, command = Story(replace(state, restarts=ONE_CRASH)), commands.Restart()
    story.tell(
        asked(command), Attach(7), NOTHING, Run(operation=Operation.STOP, command=command),
        phase=Phase.STOPPING, goal=Goal.RESTART, reason="stopping", detail="",
    )  # fmt: skip
    story.tell(
        Succeeded(), NOTHING, START,
        phase=Phase.STARTING, goal=Goal.RUN, active=None, retiring=frozenset(), rescuable=False,
        reason=None, restarts=RestartPolicy(),
    )  # fmt: skip
    story.tell(Succeeded(generation=4), STARTED, ON_ACTIVE, phase=Phase.IDLE, active=4)


def test_a_restart_of_what_is_stopped() -> None:
    Story(STOPPED).tell(
        asked(commands.Restart()), Attach(7), NOTHING, START,
        phase=Phase.STARTING, goal=Goal.RUN, reason=None,
    )  # fmt: skip


@pytest.mark.parametrize(("event", "answers", "goal"), [
    (asked(commands.Stop()), (Attach(7),), Goal.STOP), (TerminateRequested(), (), Goal.EXIT),
])  # fmt: skip
def test_a_stop_takes_back_a_restart(event: Event, answers: tuple[Attach, ...], goal: Goal) -> None:
    story = Story(replace(STOPPING, goal=Goal.RESTART))
    story.tell(event, NOT_ANY_MORE, *answers, goal=goal)


def test_terminate_while_stopping() -> None:
    story = Story(STOPPING)
    story.tell(TerminateRequested(), goal=Goal.EXIT)
    story.tell(Succeeded(), STOPPED_OK, Exit(0), phase=Phase.STOPPED, active=None, reason="stopped")


@pytest.mark.parametrize(("event", "answers", "goal"), [
    (asked(commands.Stop()), (Attach(7),), Goal.STOP), (TerminateRequested(), (), Goal.EXIT),
])  # fmt: skip
def test_a_stop_takes_back_a_start(event: Event, answers: tuple[Attach, ...], goal: Goal) -> None:
    command = commands.Stop() if goal is Goal.STOP else None
    Story(STARTING).tell(
        event, NOT_ANY_MORE, *answers, NOTHING, Run(operation=Operation.STOP, command=command),
        phase=Phase.STOPPING, goal=goal, reason="stopping",
    )  # fmt: skip


@pytest.mark.parametrize(("goal", "last"), [(Goal.STOP, ()), (Goal.EXIT, (Exit(1),))])
def test_a_stop_that_fails(goal: Goal, last: tuple[Exit, ...]) -> None:
    Story(replace(STOPPING, goal=goal)).tell(
        Failed(reason="stop_failed", detail="it hangs"),
        Settle(ok=False, reason="stop_failed", detail="it hangs"), *last,
        phase=Phase.DEGRADED, reason="stop_failed", detail="it hangs",
    )  # fmt: skip


# --- commands ------------------------------------------------------------------------------


def test_reload() -> None:
    story = Story(IDLE)
    story.tell(asked(commands.Reload()), ReloadActive(7), reloading=True)
    assert reason_of(story.state, commands.Reload()) == "reload_in_progress"
    assert reason_of(story.state, commands.Upgrade()) == "reload_in_progress"
    assert reason_of(story.state, commands.Rollback()) == "reload_in_progress"
    story.tell(ReloadEnded(), reloading=False)


def test_reload_while_an_old_generation_drains() -> None:
    Story(DRAINING).tell(asked(commands.Reload()), ReloadActive(7), reloading=True)


def test_a_reload_goes_on_when_its_master_dies() -> None:
    """Its end is its own: the flag must not be cleared by anything else."""
    story = Story(replace(IDLE, reloading=True))
    story.tell(
        exited(1), ReportIncident(reason="master_exited", detail="master of g1"), NOTHING, START,
        phase=Phase.STARTING, active=None, reason="master_exited", detail="master of g1",
        restarts=ONE_CRASH,
    )  # fmt: skip
    story.tell(ReloadEnded(), reloading=False)


@pytest.mark.parametrize("state", ANYWHERE)
def test_a_reload_ends_anywhere(state: State) -> None:
    Story(replace(state, reloading=True)).tell(ReloadEnded(), reloading=False)


@pytest.mark.parametrize("state", AT_REST)
def test_reopen(state: State) -> None:
    Story(state).tell(asked(commands.Reopen()), ReopenLogs(7))


UPGRADES = (commands.Upgrade(), commands.Rollback())


@pytest.mark.parametrize(("state", "refused", "reason"), [
    (STARTING, (*UPGRADES, commands.Reload()), "starting"),
    (BACKOFF, (*UPGRADES, commands.Reload()), "not_running"),
    (DEGRADED, (*UPGRADES, commands.Reload()), "not_running"),
    (STOPPED, (*UPGRADES, commands.Reload(), commands.Reopen()), "not_running"),
    (STOPPING, (
        *UPGRADES, commands.Reload(), commands.Reopen(), commands.Promote(), commands.Drain(),
        commands.Start(), commands.Restart(),
    ), "stopping"),
    (IDLE, (commands.Start(),), "already_running"),
    (DRAINING, (commands.Start(),), "already_running"),
    (DRAINING, (commands.Adopt(take_over=True),), "previous_generation_draining"),
    (STARTING, (commands.Adopt(),), "starting"),
    (STOPPING, (commands.Adopt(),), "stopping"),
    (TAKING_OVER, (*UPGRADES, commands.Reload()), "taking_over"),
    (TAKING_OVER, (commands.Start(),), "already_running"),
    (replace(IDLE, reloading=True), (commands.Adopt(take_over=True),), "reload_in_progress"),
])  # fmt: skip
def test_refusals(state: State, refused: tuple[commands.Command, ...], reason: str) -> None:
    for command in refused:
        assert reason_of(state, command) == reason


TAKE_OVER = commands.Adopt(take_over=True)


def test_a_take_over() -> None:
    story = Story(IDLE)
    story.tell(
        asked(TAKE_OVER), Attach(7), Run(operation=Operation.TAKE_OVER, command=TAKE_OVER),
        phase=Phase.TAKING_OVER, reason="taking_over",
    )  # fmt: skip
    story.tell(asked(TAKE_OVER, 8), Attach(8))
    story.tell(exited(1), exits=(exited(1),))
    story.tell(
        Succeeded(generation=2, retiring=frozenset({1}), note="taken"),
        Retire(generation=1), Settle(ok=True, reason="taken_over", detail="taken"), ON_ACTIVE,
        phase=Phase.DRAINING, active=2, retiring=frozenset({1}), reason=None, exits=(),
    )  # fmt: skip


def test_a_take_over_that_fails_leaves_the_master_that_served() -> None:
    failed = Settle(ok=False, reason="start_failed", detail="no", unchanged=True)
    Story(TAKING_OVER).tell(
        Failed(reason="start_failed", detail="no"), failed, ON_ACTIVE,
        phase=Phase.IDLE, reason=None,
    )  # fmt: skip
    story = Story(replace(TAKING_OVER, exits=(exited(1),)))
    story.state, did = step(story.state, Failed(reason="start_failed", detail="no"))
    assert did[0] == failed
    assert START in did
    assert story.state.phase is Phase.STARTING


UNWELL = ProbeFailed(generation=1, detail="home", at=100.0)


def test_a_serving_generation_that_fails_its_probe_is_replaced() -> None:
    story = Story(IDLE)
    restarts, _ = IDLE.restarts.failed(at=100.0, was_ready=True)
    assert restarts.crashes == (100.0,), "it counts as a crash does"
    story.tell(
        UNWELL, ReportIncident(reason="unhealthy", detail="home"),
        Run(operation=Operation.TAKE_OVER, command=TAKE_OVER),
        phase=Phase.TAKING_OVER, reason="unhealthy", detail="home", restarts=restarts,
    )  # fmt: skip
    story.ignores(UNWELL)
    story.tell(
        Failed(reason="config_rejected", detail="broken"),
        ReportIncident(
            reason="config_rejected", detail="g1 is not restarted, and serves on: broken"
        ),
        Settle(ok=False, reason="config_rejected", detail="broken", unchanged=True), ON_ACTIVE,
        phase=Phase.IDLE, reason=None, detail="",
    )  # fmt: skip


@pytest.mark.parametrize(
    "state",
    [
        *(state for state in UNDERWAY.values()),
        *(one for one in ANYWHERE if one.values[0].phase is not Phase.IDLE),
        replace(IDLE, active=2),
        replace(IDLE, reloading=True),
        replace(IDLE, restarts=RestartPolicy(crash_limit=0)),
        replace(IDLE, restarts=RestartPolicy(start_limit=1, starts=(99.0,))),
    ],
)
def test_a_failing_probe_restarts_nothing_at_another_moment_or_too_often(state: State) -> None:
    Story(state).ignores(UNWELL)


def test_what_serves_is_adopted_already() -> None:
    Story(IDLE).tell(
        asked(commands.Adopt()), Complete(request=7, detail="g1 is the supervisor's already")
    )


@pytest.mark.parametrize("state", [BACKOFF, STOPPED, DEGRADED])
def test_adopt_where_nothing_is_adopted(state: State) -> None:
    """Whether anything is there was looked at before."""
    story = Story(state)
    story.state, did = step(state, asked(commands.Adopt()))
    assert did == (Attach(7), NOTHING, START)
    assert story.state.phase is Phase.STARTING


@pytest.mark.parametrize("state", [STARTING, IDLE, BACKOFF, DEGRADED, STOPPED, TAKING_OVER])
def test_nothing_to_drain_or_to_promote(state: State) -> None:
    assert reason_of(state, commands.Drain()) == "nothing_draining"
    assert reason_of(state, commands.Promote()) == "not_held"


@pytest.mark.parametrize("state", ANYWHERE)
def test_new_rules_keep_what_was_counted(state: State) -> None:
    rules = Rules(policy=VerdictPolicy(come_up=1.0))
    counted = RestartPolicy(starts=(1.0,), crashes=(2.0,), last_delay=0.2)
    Story(replace(state, restarts=counted)).tell(
        RulesChanged(rules=rules, restarts=RestartPolicy(start_limit=3)),
        rules=rules, restarts=replace(counted, start_limit=3),
    )  # fmt: skip
