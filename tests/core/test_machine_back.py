"""Every way back: a rollback, a commit that fails, and what a dead supervisor left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import commands, events
from supervisor.core.actions import (
    Attach,
    HastenDrain,
    Operation,
    Pronounce,
    Refuse,
    ReportIncident,
    Retire,
    Run,
    Settle,
)
from supervisor.core.events import (
    CandidateHealthy,
    Event,
    Failed,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.model import Goal, Phase, State, Timer, Verdict
from supervisor.core.restart_policy import RestartPolicy
from tests.core.story import (
    CANDIDATE,
    FORWARD,
    FRESH,
    HEALTHY,
    NOTHING,
    ON_ACTIVE,
    ROLL_BACK,
    STARTED,
    UNDERWAY,
    UPGRADE,
    Story,
    asked,
    exited,
    of,
)

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
    late = TimerFired(Timer.CANARY_LIMIT, lacking="1 of 2 workers have answered well")
    text = f"{text}: 1 of 2 workers have answered well"
    rolls_back(UNDERWAY[Phase.CANARY], late, "canary_inconclusive", text)


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
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx ended first"),
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
        Refuse(
            request=8, reason="degraded",
            detail="cannot reload: the upgrade that it waited for has failed; see nginxctl status",
        ),
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
        Refuse(request=8, reason="not_running", detail="cannot reload: nginx ended first"),
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
        Pronounce(
            verdict=Verdict.ROLLED_BACK, reason="stopped",
            detail="nginx was stopped while the upgrade was being rolled back (no_workers: none)",
        ),
        Settle(ok=True, reason="stopped", detail="nothing is left"),
        phase=Phase.STOPPED, active=None, candidate=None, upgrade=None, reason="stopped",
    )  # fmt: skip


def test_a_stop_does_not_take_back_an_exit() -> None:
    story = Story(UNDERWAY[Phase.COMMITTING])
    story.tell(TerminateRequested(), goal=Goal.EXIT)
    story.tell(asked(commands.Stop()), Attach(7))


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
