"""The machine during an upgrade; tests/core/test_machine_serving.py has the rest of its life."""

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
    Exit,
    HastenDrain,
    Operation,
    Pronounce,
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
    ReloadEnded,
    RulesChanged,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.machine import TABLE, Column, column_of, step
from supervisor.core.model import UPGRADING, Goal, OnForeignStop, Phase, State, Timer, Verdict
from supervisor.core.policy import RestartPolicy
from tests.core.story import (
    CANDIDATE,
    DRAINING,
    FRESH,
    IDLE,
    RULES,
    UNDERWAY,
    UPGRADE,
    Story,
    asked,
    exited,
)

NOTHING, ON_ACTIVE = Aim(Watch.NOTHING), Aim(Watch.ACTIVE)
ROLL_BACK = Run(operation=Operation.ROLL_BACK)
STARTED = Settle(ok=True, reason="started", detail="nginx serves")
HEALTHY = Pronounce(
    verdict=Verdict.COMMITTED, reason="healthy", detail="the candidate serves alone"
)


def of(*phases: Phase) -> list[pytest.param]:
    return [pytest.param(UNDERWAY[phase], id=phase.value) for phase in phases]


LIVE = of(*(phase for phase in UNDERWAY if phase is not Phase.PREFLIGHT))
FORWARD = of(Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD)


# --- totality ------------------------------------------------------------------------------


def test_every_phase_has_a_cell_for_every_column() -> None:
    assert set(TABLE) == set(Phase)
    for phase, cells in TABLE.items():
        assert set(cells) == set(Column), phase


def test_every_event_has_a_column() -> None:
    made: list[Event] = [asked(kind()) for kind in get_args(commands.Command)]
    made += [exited(generation) for generation in (1, 2, 3)]
    made += [
        TerminateRequested(), Succeeded(), Failed(reason="r", detail="d"), CandidateHealthy(),
        Triggered(reason="r", detail="d"), TimerFired(Timer.SOAK), ReloadEnded(),
        GenerationGone(generation=1), RulesChanged(rules=RULES, restarts=RestartPolicy()),
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
            detail="cannot reload: upgrade u1 is in held and will be held until someone decides; "
            "nginxctl promote or nginxctl rollback first",
        ),
    )  # fmt: skip
    story.tell(
        asked(commands.Promote(), 9), Attach(9), Run(operation=Operation.COMMIT),
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
        asked(commands.Promote()), Attach(7), Run(operation=Operation.COMMIT),
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
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx is not_running"),
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


# --- back ----------------------------------------------------------------------------------


def rolls_back(state: State, event: Event, reason: str, detail: str, *before: Attach) -> Story:
    story = Story(state)
    assert state.upgrade is not None
    story.tell(
        event, *before, NOTHING, ROLL_BACK,
        phase=Phase.ROLLING_BACK, reason=reason, detail=detail,
        upgrade=replace(state.upgrade, reason=reason, detail=detail),
    )  # fmt: skip
    return story


@pytest.mark.parametrize("state", FORWARD)
def test_a_trigger_rolls_back(state: State) -> None:
    rolls_back(state, Triggered(reason="probe_failed", detail="home"), "probe_failed", "home")


@pytest.mark.parametrize("state", FORWARD)
def test_an_operator_rolls_back(state: State) -> None:
    event, text = asked(commands.Rollback()), "rolled back by an operator"
    rolls_back(state, event, "operator", text, Attach(7))


@pytest.mark.parametrize("state", FORWARD)
def test_the_candidate_s_exit_rolls_back(state: State) -> None:
    rolls_back(state, exited(CANDIDATE), "candidate_exited", "master of g2")


@pytest.mark.parametrize("state", of(Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING))
def test_the_old_master_s_exit_rolls_back_before_the_candidate_serves_alone(state: State) -> None:
    rolls_back(state, exited(1), "active_exited", "master of g1")


@pytest.mark.parametrize("state", of(Phase.SOAKING, Phase.HELD))
def test_the_old_master_s_exit_is_reported_while_the_candidate_serves_alone(state: State) -> None:
    Story(state).tell(exited(1), ReportIncident(reason="standby_exited", detail="master of g1"))


@pytest.mark.parametrize("state", of(Phase.SPAWNING, Phase.SHIFTING, Phase.COMMITTING))
def test_an_operation_that_fails_rolls_back(state: State) -> None:
    rolls_back(state, Failed(reason="pid_file_wrong", detail="no"), "pid_file_wrong", "no")


def test_a_candidate_that_is_not_ready_in_time() -> None:
    text = "the candidate was not ready within start_timeout (10 s)"
    rolls_back(UNDERWAY[Phase.SPAWNING], TimerFired(Timer.START), "start_timeout", text)


def test_a_canary_that_proves_nothing() -> None:
    text = "the candidate was not proved healthy within the canary and start_timeout"
    rolls_back(UNDERWAY[Phase.CANARY], TimerFired(Timer.CANARY_LIMIT), "canary_inconclusive", text)


def test_a_rollback_that_works() -> None:
    story = rolls_back(
        UNDERWAY[Phase.SOAKING], Triggered(reason="no_workers", detail="none"), "no_workers", "none"
    )
    story.tell(asked(commands.Rollback(), 8), Attach(8))
    for event in (
        exited(CANDIDATE), CandidateHealthy(), Triggered(reason="r", detail="d"),
        TimerFired(Timer.SOAK),
    ):  # fmt: skip
        story.ignores(event)
    story.tell(asked(commands.Drain(), 9), Attach(9), HastenDrain())
    story.tell(
        Succeeded(),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="no_workers", detail="none"), ON_ACTIVE,
        phase=Phase.IDLE, candidate=None, upgrade=None, reason=None, detail="",
    )  # fmt: skip


def test_a_rollback_that_has_more_to_tell() -> None:
    Story(UNDERWAY[Phase.ROLLING_BACK]).tell(
        Succeeded(note="the modules are not back"),
        Pronounce(
            verdict=Verdict.ROLLED_BACK, reason="probe_failed",
            detail="home; the modules are not back",
        ),
        ON_ACTIVE,
        phase=Phase.IDLE, candidate=None, upgrade=None, reason=None, detail="",
    )  # fmt: skip


def test_a_rollback_by_a_fresh_start() -> None:
    story = Story(UNDERWAY[Phase.ROLLING_BACK])
    gone = exited(1)
    story.tell(gone, exits=(gone,))
    story.tell(
        Succeeded(generation=3, retiring=frozenset({1})),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="probe_failed", detail="home"),
        Retire(generation=1), ON_ACTIVE,
        phase=Phase.DRAINING, active=3, candidate=None, upgrade=None, reason=None, detail="",
        retiring=frozenset({1}), exits=(),
    )  # fmt: skip


@pytest.mark.parametrize(("generation", "succeeded"), [(1, None), (3, 3)])
def test_the_generation_that_was_brought_back_dies_before_that_is_heard(
    generation: int, succeeded: int | None
) -> None:
    story = Story(UNDERWAY[Phase.ROLLING_BACK])
    gone, waits = exited(generation), commands.Reload()
    story.tell(asked(waits, 8), waiting=((8, waits),))
    story.tell(gone, exits=(gone,))
    story.tell(
        Succeeded(generation=succeeded),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="probe_failed", detail="home"),
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx is not_running"),
        ReportIncident(reason="master_exited", detail=gone.detail),
        NOTHING, Run(operation=Operation.START),
        phase=Phase.STARTING, active=None, candidate=None, upgrade=None, exits=(), waiting=(),
        reason="master_exited", detail=gone.detail,
        restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip


def test_a_rollback_that_fails() -> None:
    story = Story(UNDERWAY[Phase.ROLLING_BACK])
    waits = commands.Reload()
    story.tell(asked(waits, 8), waiting=((8, waits),))
    story.tell(
        Failed(reason="rollback_failed", detail="no worker came back"),
        Pronounce(
            verdict=Verdict.FAILED, reason="rollback_failed",
            detail="no worker came back (rolled back because: home)",
        ),
        Refuse(request=8, reason="degraded", detail="cannot reload: nginx is degraded"),
        phase=Phase.DEGRADED, upgrade=None, candidate=None, reason="rollback_failed",
        detail="no worker came back", waiting=(),
    )  # fmt: skip


# --- committing ----------------------------------------------------------------------------


def test_nothing_but_its_own_operation_ends_the_commit() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    for event in (
        CandidateHealthy(), Triggered(reason="r", detail="d"), TimerFired(Timer.SOAK), exited(1),
    ):  # fmt: skip
        story.ignores(event)
    story.tell(
        asked(commands.Rollback()),
        Refuse(
            request=7, reason="upgrade_committing",
            detail="cannot roll back: the upgrade is being committed at this moment",
        ),
    )  # fmt: skip


def dies_in_the_commit() -> Story:
    story = Story(UNDERWAY[Phase.COMMITTING])
    dead = replace(UPGRADE, reason="candidate_exited", detail="master of g2")
    story.tell(exited(CANDIDATE), upgrade=dead)
    return story


def test_the_candidate_dies_before_the_last_look() -> None:
    story = dies_in_the_commit()
    assert story.state.upgrade is not None
    rolls_back(
        story.state, Failed(reason="candidate_exited", detail="gone"), "candidate_exited", "gone"
    )


def test_the_candidate_dies_after_the_last_look() -> None:
    """QUIT is irreversible: the verdict stands, and the previous version is brought back."""
    story = dies_in_the_commit()
    waits = commands.Reload()
    story.tell(asked(waits, 8), waiting=((8, waits),))
    story.tell(
        Succeeded(at=100.0), HEALTHY, Retire(generation=1),
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx is not_running"),
        ReportIncident(reason="candidate_exited_in_drain", detail="master of g2"),
        NOTHING, Run(operation=Operation.RESCUE),
        phase=Phase.STARTING, active=None, candidate=None, upgrade=None, waiting=(),
        retiring=frozenset({1}), reason="candidate_exited_in_drain", detail="master of g2",
        restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip
    story.tell(
        Succeeded(generation=3), STARTED, ON_ACTIVE,
        phase=Phase.DRAINING, active=3, reason=None, detail="",
    )  # fmt: skip


@pytest.mark.parametrize(("event", "answers", "goal"), [
    (asked(commands.Stop()), (Attach(7),), Goal.STOP),
    (TerminateRequested(), (), Goal.EXIT),
])  # fmt: skip
@pytest.mark.parametrize("dead", [False, True])
def test_a_stop_waits_for_the_commit(
    event: Event, answers: tuple[Attach, ...], goal: Goal, *, dead: bool
) -> None:
    story = dies_in_the_commit() if dead else Story(UNDERWAY[Phase.COMMITTING])
    story.tell(event, *answers, goal=goal)
    story.tell(
        Succeeded(), HEALTHY, Retire(generation=1), NOTHING, Run(operation=Operation.STOP),
        phase=Phase.STOPPING, active=2, candidate=None, upgrade=None, retiring=frozenset({1}),
        rescuable=True, reason="stopping",
    )  # fmt: skip


def test_a_stop_comes_before_the_rollback_of_a_commit_that_failed() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    story.tell(asked(commands.Stop()), Attach(7), goal=Goal.STOP)
    story.tell(
        Failed(reason="no_workers", detail="none"), NOTHING, Run(operation=Operation.STOP),
        phase=Phase.STOPPING, reason="stopping",
        upgrade=replace(UPGRADE, reason="no_workers", detail="none"),
    )  # fmt: skip
    story.tell(
        Succeeded(note="nothing is left"),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason="no_workers", detail="none"),
        Settle(ok=True, reason="stopped", detail="nothing is left"),
        phase=Phase.STOPPED, active=None, candidate=None, upgrade=None, reason="stopped",
    )  # fmt: skip


def test_a_stop_does_not_take_back_an_exit() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    story.tell(TerminateRequested(), goal=Goal.EXIT)
    story.tell(asked(commands.Stop()), Attach(7))


# --- commands during an upgrade ------------------------------------------------------------


EVERY_PHASE = of(*UNDERWAY)


@pytest.mark.parametrize("state", EVERY_PHASE)
@pytest.mark.parametrize("command", [commands.Upgrade(), commands.Restart()])
def test_a_second_upgrade_and_a_restart_are_refused(
    state: State, command: commands.Command
) -> None:
    detail = (
        f"cannot do this now: upgrade u1 is in {state.phase.value}; wait for its verdict "
        "(nginxctl status), or end it with nginxctl rollback"
    )
    Story(state).tell(
        asked(command, upgrade_id="u2"),
        Refuse(request=7, reason="upgrade_in_progress", detail=detail),
    )


@pytest.mark.parametrize("state", EVERY_PHASE)
def test_the_small_commands(state: State) -> None:
    story = Story(state)
    running = f"cannot start: nginx is {state.phase.value}"
    story.tell(asked(commands.Start()), Refuse(request=7, reason="already_running", detail=running))
    story.tell(asked(commands.Reopen()), ReopenLogs(7))
    if state.phase is not Phase.ROLLING_BACK:
        none = "cannot drain: no old generation is left"
        story.tell(
            asked(commands.Drain()), Refuse(request=7, reason="nothing_draining", detail=none)
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
        Refuse(request=8, reason="stopping", detail="cannot reload: nginx is stopping"),
        NOTHING, Run(operation=Operation.STOP, command=command),
        phase=Phase.STOPPING, goal=goal, reason="stopping", detail="", waiting=(),
    )  # fmt: skip
    why = ("probe_failed", "home") if phase is Phase.ROLLING_BACK else (
        "stopped", "nginx was stopped before the upgrade was decided")  # fmt: skip
    last = (Exit(0),) if goal is Goal.EXIT else ()
    story.tell(
        Succeeded(),
        Pronounce(verdict=Verdict.ROLLED_BACK, reason=why[0], detail=why[1]),
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


# --- what a dead supervisor left behind ----------------------------------------------------


LEFT = events.InterruptedUpgrade(upgrade_id="u0", candidate=2, detail="died in soaking")


def test_an_interrupted_upgrade_is_rolled_back() -> None:
    story = Story(FRESH)
    story.tell(
        Succeeded(generation=1, interrupted=LEFT), STARTED, ROLL_BACK,
        phase=Phase.ROLLING_BACK, active=1, candidate=2, served=True, reason="supervisor_died",
        detail="died in soaking",
        upgrade=replace(
            UPGRADE, id="u0", canary=0, soak=0, reason="supervisor_died", detail="died in soaking"
        ),
    )  # fmt: skip
    story.tell(
        Succeeded(),
        Pronounce(
            verdict=Verdict.ROLLED_BACK, reason="supervisor_died", detail="died in soaking"
        ),
        ON_ACTIVE,
        phase=Phase.IDLE, candidate=None, upgrade=None, reason=None, detail="",
    )  # fmt: skip


def test_an_interrupted_commit_is_committed() -> None:
    left = replace(LEFT, committed=True)
    verdict = Pronounce(
        verdict=Verdict.COMMITTED, reason="supervisor_died", detail="died in soaking"
    )
    story = Story(FRESH)
    story.tell(
        Succeeded(generation=2, retiring=frozenset({1}), interrupted=left),
        Retire(generation=1), STARTED, verdict, ON_ACTIVE,
        phase=Phase.DRAINING, active=2, retiring=frozenset({1}), served=True, rescuable=True,
    )  # fmt: skip


def test_the_active_of_an_interrupted_upgrade_dies_before_it_is_heard() -> None:
    gone = exited(2)
    story = Story(FRESH)
    story.tell(gone, exits=(gone,))
    left = replace(LEFT, committed=True)
    story.tell(
        Succeeded(generation=2, retiring=frozenset({1}), interrupted=left),
        Retire(generation=1), STARTED,
        Pronounce(
            verdict=Verdict.COMMITTED, reason="supervisor_died", detail="died in soaking"
        ),
        ReportIncident(reason="candidate_exited_in_drain", detail="master of g2"),
        NOTHING, Run(operation=Operation.RESCUE),
        active=None, retiring=frozenset({1}), served=True, exits=(),
        reason="candidate_exited_in_drain", detail="master of g2",
        restarts=RestartPolicy(starts=(100.0,), crashes=(100.0,)),
    )  # fmt: skip


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
