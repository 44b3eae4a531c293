"""The machine through an upgrade that goes well, from its preflight to the end of the drain.

tests/core/test_machine_back.py has the ways back, test_machine_commands.py the commands that come
meanwhile, test_machine_serving.py the rest of its life.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from supervisor.core import commands, events
from supervisor.core.actions import (
    Aim,
    Arm,
    Attach,
    BeginUpgrade,
    Complete,
    HastenDrain,
    Operation,
    Pronounce,
    Refuse,
    ReloadActive,
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
    LeaveRequested,
    ProbeFailed,
    ReloadEnded,
    RulesChanged,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.machine import TABLE, Column, column_of, step
from supervisor.core.model import Goal, OnForeignStop, Phase, State, Timer, Verdict
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import OnInconclusive
from tests.core.story import (
    DRAINING,
    HEALTHY,
    IDLE,
    NOTHING,
    ON_ACTIVE,
    RULES,
    STARTED,
    UNDERWAY,
    UPGRADE,
    Story,
    asked,
    exited,
    of,
)

# --- totality ------------------------------------------------------------------------------


def test_every_phase_has_a_cell_for_every_column() -> None:
    assert set(TABLE) == set(Phase)
    for phase, cells in TABLE.items():
        assert set(cells) == set(Column), phase


def test_every_event_has_a_column() -> None:
    made: list[Event] = [asked(kind()) for kind in get_args(commands.Command)]
    made += [exited(generation) for generation in (1, 2, 3)]
    made += [
        TerminateRequested(), LeaveRequested(), Succeeded(), CandidateHealthy(),
        Failed(reason="r", detail="d"),
        Triggered(reason="r", detail="d"), TimerFired(Timer.SOAK), ReloadEnded(),
        ProbeFailed(generation=1, detail="d", at=0.0), GenerationGone(generation=1),
        RulesChanged(rules=RULES, restarts=RestartPolicy()),
    ]  # fmt: skip
    assert {type(one) for one in made} == set(get_args(events.Event))
    assert {column_of(UNDERWAY[Phase.CANARY], one) for one in made} == set(Column)


def test_every_cell_says_what_it_does() -> None:
    for cells in TABLE.values():
        for cell in cells.values():
            assert (cell.__doc__ or "").splitlines()[0].endswith((".", "`."))


# --- forward -------------------------------------------------------------------------------


def test_a_clean_upgrade() -> None:
    story = Story(IDLE)
    command = commands.Upgrade()
    story.tell(
        asked(command, upgrade_id="u1"),
        BeginUpgrade(7), Run(operation=Operation.PREFLIGHT, command=command),
        phase=Phase.PREFLIGHT, upgrade=UPGRADE,
    )  # fmt: skip
    story.tell(
        Succeeded(generation=2),
        Arm(timer=Timer.START, seconds=10.0), Run(operation=Operation.SPAWN),
        phase=Phase.SPAWNING, candidate=2,
    )  # fmt: skip
    story.tell(
        Succeeded(),
        Arm(timer=Timer.CANARY, seconds=5.0), Arm(timer=Timer.CANARY_LIMIT, seconds=15.0),
        Aim(Watch.CANARY),
        phase=Phase.CANARY,
    )  # fmt: skip
    story.tell(CandidateHealthy(), upgrade=replace(UPGRADE, healthy=True))
    passed = replace(UPGRADE, healthy=True, canary_elapsed=True)
    story.tell(
        TimerFired(Timer.CANARY), Run(operation=Operation.SHIFT),
        phase=Phase.SHIFTING, upgrade=passed,
    )  # fmt: skip
    story.ignores(CandidateHealthy())
    story.tell(
        Succeeded(), Aim(Watch.SOAK), Arm(timer=Timer.SOAK, seconds=30.0), phase=Phase.SOAKING
    )
    story.tell(TimerFired(Timer.SOAK), Run(operation=Operation.COMMIT), phase=Phase.COMMITTING)
    story.tell(
        Succeeded(at=50.0), HEALTHY, Retire(generation=1), ON_ACTIVE,
        phase=Phase.DRAINING, active=2, candidate=None, upgrade=None, retiring=frozenset({1}),
        rescuable=True,
    )  # fmt: skip
    story.ignores(exited(1, orderly=True))
    story.tell(
        GenerationGone(generation=1),
        Settle(ok=True, reason="drained", detail="no old connections are left"),
        phase=Phase.IDLE, retiring=frozenset(), rescuable=False,
    )  # fmt: skip


def test_the_canary_waits_for_evidence_after_its_time() -> None:
    story = Story(UNDERWAY[Phase.CANARY])
    story.tell(TimerFired(Timer.CANARY), upgrade=replace(UPGRADE, canary_elapsed=True))
    story.tell(
        CandidateHealthy(), Run(operation=Operation.SHIFT),
        phase=Phase.SHIFTING, upgrade=replace(UPGRADE, canary_elapsed=True, healthy=True),
    )  # fmt: skip


def test_the_command_s_own_times_and_hold() -> None:
    story = Story(IDLE)
    command = commands.Upgrade(canary=0.0, soak=1.0, hold=True)
    story.tell(
        asked(command, upgrade_id="u1"),
        BeginUpgrade(7), Run(operation=Operation.PREFLIGHT, command=command),
        phase=Phase.PREFLIGHT, upgrade=replace(UPGRADE, canary=0.0, soak=1.0, hold=True),
    )  # fmt: skip


def test_a_rollback_of_a_committed_upgrade_is_an_upgrade() -> None:
    command = commands.Rollback(to="1.22.1")
    Story(IDLE).tell(
        asked(command, upgrade_id="u1"),
        BeginUpgrade(7), Run(operation=Operation.PREFLIGHT, command=command),
        phase=Phase.PREFLIGHT, upgrade=UPGRADE,
    )  # fmt: skip


def test_hold_and_promote() -> None:
    held = replace(UPGRADE, hold=True)
    story = Story(replace(UNDERWAY[Phase.SOAKING], upgrade=held))
    story.tell(TimerFired(Timer.SOAK), phase=Phase.HELD)
    story.ignores(TimerFired(Timer.SOAK))
    story.tell(
        asked(commands.Reload(), 8),
        Refuse(
            request=8, reason="upgrade_held",
            detail="cannot reload: upgrade u1 is held until someone decides; "
            "nginxctl promote or nginxctl rollback first",
        ),
    )  # fmt: skip
    story.tell(
        asked(commands.Promote(), 9), Attach(9), Run(operation=Operation.COMMIT, overruled=True),
        phase=Phase.COMMITTING,
    )  # fmt: skip
    story.tell(asked(commands.Promote(), 10), Attach(10))
    waits = commands.Reload()
    story.tell(asked(waits, 11), waiting=((11, waits),))
    story.tell(
        Succeeded(), HEALTHY, Retire(generation=1), ON_ACTIVE, ReloadActive(11),
        phase=Phase.DRAINING, active=2, candidate=None, upgrade=None, retiring=frozenset({1}),
        rescuable=True, waiting=(), reloading=True,
    )  # fmt: skip


def test_promote_ends_the_soak_early() -> None:
    story = Story(UNDERWAY[Phase.SOAKING])
    story.tell(
        asked(commands.Promote()), Attach(7), Run(operation=Operation.COMMIT, overruled=True),
        phase=Phase.COMMITTING,
    )  # fmt: skip


@pytest.mark.parametrize("state", of(Phase.PREFLIGHT, Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING))
def test_promote_before_the_soak_is_refused(state: State) -> None:
    detail = "cannot promote: no upgrade is held or soaking"
    Story(state).tell(
        asked(commands.Promote()), Refuse(request=7, reason="not_held", detail=detail)
    )


def test_promote_of_what_is_rolled_back_is_refused() -> None:
    detail = "cannot promote: the upgrade is being rolled back"
    Story(UNDERWAY[Phase.ROLLING_BACK]).tell(
        asked(commands.Promote()), Refuse(request=7, reason="rolling_back", detail=detail)
    )


# --- preflight -----------------------------------------------------------------------------


def test_preflight_refuses() -> None:
    Story(UNDERWAY[Phase.PREFLIGHT]).tell(
        Failed(reason="binary_missing", detail="no such file"),
        Pronounce(verdict=Verdict.REFUSED, reason="binary_missing", detail="no such file"),
        phase=Phase.IDLE, upgrade=None,
    )  # fmt: skip


def test_a_dry_run_ends_in_preflight() -> None:
    Story(UNDERWAY[Phase.PREFLIGHT]).tell(
        Succeeded(nothing_to_do=True, dry_run=True, note="would do"),
        Pronounce(verdict=Verdict.DONE, reason="dry_run", detail="would do"),
        phase=Phase.IDLE, upgrade=None,
    )  # fmt: skip


def test_if_changed_ends_in_preflight() -> None:
    Story(UNDERWAY[Phase.PREFLIGHT]).tell(
        Succeeded(nothing_to_do=True, note="runs already"),
        Pronounce(verdict=Verdict.DONE, reason="unchanged", detail="runs already"),
        phase=Phase.IDLE, upgrade=None,
    )  # fmt: skip


def test_an_operator_cancels_in_preflight() -> None:
    text = "cancelled by an operator before anything was changed"
    Story(UNDERWAY[Phase.PREFLIGHT]).tell(
        asked(commands.Rollback()),
        Pronounce(verdict=Verdict.REFUSED, reason="cancelled_by_operator", detail=text),
        Complete(request=7, detail=text),
        phase=Phase.IDLE, upgrade=None,
    )  # fmt: skip


def test_nginx_dies_in_preflight() -> None:
    story = Story(UNDERWAY[Phase.PREFLIGHT])
    waits = commands.Reload()
    story.tell(asked(waits, 8), waiting=((8, waits),))
    story.tell(
        exited(1),
        Pronounce(
            verdict=Verdict.REFUSED, reason="active_exited",
            detail="cannot upgrade: master of g1",
        ),
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx ended first"),
        ReportIncident(reason="master_exited", detail="master of g1"),
        NOTHING, Run(operation=Operation.START),
        phase=Phase.STARTING, upgrade=None, active=None, reason="master_exited",
        detail="master of g1", waiting=(),
        restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip


@pytest.mark.parametrize("event", [
    CandidateHealthy(), Triggered(reason="r", detail="d"), TimerFired(Timer.SOAK), exited(9),
])  # fmt: skip
def test_evidence_of_another_time_is_ignored_in_preflight(event: Event) -> None:
    Story(UNDERWAY[Phase.PREFLIGHT]).ignores(event)


# --- draining ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [commands.Upgrade(), commands.Rollback()])
def test_draining_refuses_an_upgrade(command: commands.Command) -> None:
    _, (answer,) = step(DRAINING, asked(command, upgrade_id="u2"))
    assert isinstance(answer, Refuse)
    assert answer.reason == "previous_generation_draining"
    assert "nginxctl drain --now" in answer.detail


def test_drain_now() -> None:
    story = Story(replace(DRAINING, retiring=frozenset({1, 5})))
    story.tell(asked(commands.Drain()), Attach(7), HastenDrain())
    story.tell(GenerationGone(generation=5), retiring=frozenset({1}))
    story.tell(
        GenerationGone(generation=1),
        Settle(ok=True, reason="drained", detail="no old connections are left"),
        phase=Phase.IDLE, retiring=frozenset(), rescuable=False,
    )  # fmt: skip


def test_the_new_generation_dies_in_the_drain() -> None:
    story = Story(DRAINING)
    story.tell(
        exited(2), ReportIncident(reason="candidate_exited_in_drain", detail="master of g2"),
        NOTHING, Run(operation=Operation.RESCUE),
        phase=Phase.STARTING, active=None, rescuable=False, reason="candidate_exited_in_drain",
        detail="master of g2", restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip
    story.tell(GenerationGone(generation=1), retiring=frozenset())
    story.tell(
        Succeeded(generation=3), STARTED, ON_ACTIVE,
        phase=Phase.IDLE, active=3, reason=None, detail="",
    )  # fmt: skip


def test_the_rescuer_dies_in_the_drain_as_well() -> None:
    """Only the generation that was committed is replaced by the version before it."""
    Story(replace(DRAINING, active=3, rescuable=False)).tell(
        exited(3), ReportIncident(reason="master_exited", detail="master of g3"),
        NOTHING, Run(operation=Operation.START),
        phase=Phase.STARTING, active=None, reason="master_exited", detail="master of g3",
        restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip


def test_a_foreign_stop_in_the_drain() -> None:
    rules = replace(RULES, on_foreign_stop=OnForeignStop.STOP)
    story = Story(replace(DRAINING, rules=rules))
    story.tell(
        exited(2, orderly=True), NOTHING,
        ReportIncident(reason="foreign_stop", detail="master of g2"),
        Settle(ok=False, reason="foreign_stop", detail="master of g2"),
        phase=Phase.STOPPED, goal=Goal.STOP, active=None, reason="foreign_stop",
        detail="master of g2",
    )  # fmt: skip
    story.tell(
        TerminateRequested(), NOTHING, Run(operation=Operation.STOP),
        phase=Phase.STOPPING, goal=Goal.EXIT, reason="stopping", detail="",
    )  # fmt: skip


@pytest.mark.parametrize("event", [TimerFired(Timer.SOAK), Succeeded(), CandidateHealthy()])
def test_idle_and_draining_ignore_what_comes_too_late(event: Event) -> None:
    Story(DRAINING).ignores(event)
    Story(IDLE).ignores(event)


# --- evidence that proves nothing ---


def inconclusive(what: OnInconclusive, phase: Phase) -> Story:
    state = UNDERWAY[phase]
    policy = replace(state.rules.policy, on_inconclusive=what)
    return Story(replace(state, rules=replace(state.rules, policy=policy)))


UNPROVED = "the candidate was not proved healthy within the canary and start_timeout"
SILENT = Failed(reason="soak_inconclusive", detail="home is silent")


def test_a_canary_that_proves_nothing_may_wait_for_a_person() -> None:
    story = inconclusive(OnInconclusive.HOLD, Phase.CANARY)
    waits = replace(UPGRADE, doubt=UNPROVED, waits=True)
    text = (
        f"{UNPROVED}; nginxctl promote goes on with it all the same, nginxctl rollback takes it "
        "back"
    )
    story.tell(
        TimerFired(Timer.CANARY_LIMIT),
        ReportIncident(reason="canary_inconclusive", detail=text),
        upgrade=waits,
    )
    detail = (
        "cannot reload: upgrade u1 has proved nothing in its canary and waits until someone "
        "decides; nginxctl promote or nginxctl rollback first"
    )
    story.tell(asked(commands.Reload(), 8), Refuse(request=8, reason="upgrade_held", detail=detail))
    story.tell(
        asked(commands.Promote(), 9), Attach(9), Run(operation=Operation.SHIFT),
        phase=Phase.SHIFTING, upgrade=replace(waits, waits=False),
    )  # fmt: skip
    story.tell(
        Succeeded(), Aim(Watch.SOAK), Arm(timer=Timer.SOAK, seconds=30.0), phase=Phase.SOAKING
    )
    story.tell(TimerFired(Timer.SOAK), Run(operation=Operation.COMMIT), phase=Phase.COMMITTING)
    assert committed_as(story, Succeeded()) == (
        "healthy", f"the candidate serves alone; its canary was inconclusive: {UNPROVED}"
    )  # fmt: skip


def test_what_is_proved_late_goes_on_by_itself() -> None:
    story = inconclusive(OnInconclusive.HOLD, Phase.CANARY)
    story.tell(TimerFired(Timer.CANARY), upgrade=replace(UPGRADE, canary_elapsed=True))
    story.state, _ = step(story.state, TimerFired(Timer.CANARY_LIMIT))
    story.tell(
        CandidateHealthy(), Run(operation=Operation.SHIFT),
        phase=Phase.SHIFTING, upgrade=replace(UPGRADE, canary_elapsed=True, healthy=True),
    )  # fmt: skip


def test_a_canary_that_proves_nothing_may_be_enough() -> None:
    story = inconclusive(OnInconclusive.COMMIT, Phase.CANARY)
    story.tell(
        TimerFired(Timer.CANARY_LIMIT), Run(operation=Operation.SHIFT),
        phase=Phase.SHIFTING, upgrade=replace(UPGRADE, doubt=UNPROVED),
    )  # fmt: skip


def test_a_soak_that_proves_nothing_may_wait_for_a_person() -> None:
    story = inconclusive(OnInconclusive.HOLD, Phase.COMMITTING)
    text = "home is silent; nginxctl promote commits it, nginxctl rollback takes it back"
    waits = replace(UPGRADE, doubt="home is silent", waits=True)
    story.tell(
        SILENT, ReportIncident(reason="soak_inconclusive", detail=text),
        phase=Phase.HELD, upgrade=waits,
    )  # fmt: skip
    story.tell(
        asked(commands.Promote(), 9), Attach(9), Run(operation=Operation.COMMIT, overruled=True),
        phase=Phase.COMMITTING, upgrade=replace(waits, waits=False),
    )  # fmt: skip
    assert committed_as(story, Succeeded(doubt="still silent")) == (
        "inconclusive",
        "the candidate serves alone, although nothing was proved: still silent",
    )


def test_a_failure_in_the_last_look_waits_for_nobody() -> None:
    story = inconclusive(OnInconclusive.HOLD, Phase.COMMITTING)
    failed = Failed(reason="probe_failed", detail="home is down")
    state, actions = step(story.state, failed)
    assert state.phase is Phase.ROLLING_BACK
    assert Run(operation=Operation.ROLL_BACK) in actions


def test_a_soak_that_proves_nothing_may_be_enough() -> None:
    story = inconclusive(OnInconclusive.COMMIT, Phase.SOAKING)
    story.tell(
        TimerFired(Timer.SOAK), Run(operation=Operation.COMMIT, overruled=True),
        phase=Phase.COMMITTING,
    )  # fmt: skip


def test_what_no_probe_has_judged_says_so() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    assert committed_as(story, Succeeded(judged=False)) == (
        "unjudged", "the candidate serves alone; no probe has judged it"
    )  # fmt: skip


def committed_as(story: Story, done: Succeeded) -> tuple[str, str]:
    _, actions = step(story.state, done)
    (verdict,) = [one for one in actions if isinstance(one, Pronounce)]
    assert verdict.verdict is Verdict.COMMITTED
    return verdict.reason, verdict.detail
