"""The planner of a rollback: its single steps, and against a model of nginx."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.rollback import MOST_HUPS, Limits, Step, View, next_step
from tests.core.nginx_model import Candidate, Kind, Old, Rollback, Worker, crashing

LIMITS = Limits(drain=3.0)
AT_MOST = 60.0
"""Simulated seconds for the worst of faults, one after the other."""


# --- single steps --------------------------------------------------------------------------

SHIFTED = View(
    old_alive=True, old_accepting=0, old_expected=2, winch_sent=True, winch_consumed=True,
    candidate_alive=True, candidate_stopped=False, candidate_ready=True, candidate_accepting=2,
    candidate_workers=2, waited=0.0,
)  # fmt: skip
CANARY = replace(SHIFTED, winch_sent=False, old_accepting=2)
BACK = replace(SHIFTED, old_accepting=2, hups=1, hup_ago=0.01)
DEAD = replace(
    CANARY, candidate_alive=False, candidate_accepting=0, candidate_workers=0,
    candidate_gone_for=0.1,
)  # fmt: skip
ORPHANS = replace(DEAD, candidate_accepting=2, candidate_workers=2)
LEAVING = replace(ORPHANS, candidate_accepting=0, workers_quit_ago=0.05)


def table(*rows: tuple[str, View, dict[str, Any], Step]) -> list[Any]:
    return [pytest.param(replace(view, **to), step, id=name) for name, view, to, step in rows]


@pytest.mark.parametrize(("view", "step"), table(
    # the old master
    ("old master gone", CANARY, {"old_alive": False}, Step.RELAUNCH_OLD),
    ("the fresh start gone as well", CANARY,
     {"old_alive": False, "relaunches": 2}, Step.RELAUNCH_OLD),
    ("every fresh start gone", CANARY,
     {"old_alive": False, "relaunches": 3}, Step.GIVE_UP),
    # race A
    ("WINCH is pending", SHIFTED, {"winch_consumed": False}, Step.WAIT),
    ("WINCH is pending for too long, some have left", SHIFTED,
     {"winch_consumed": False, "waited": 2.0, "old_unshifted": 1}, Step.HUP_OLD),
    ("WINCH is ignored", SHIFTED,
     {"winch_consumed": False, "waited": 2.0, "old_unshifted": 2}, Step.QUIT_CANDIDATE),
    ("WINCH is pending, the candidate dead", DEAD,
     {"old_accepting": 0, "winch_sent": True, "winch_consumed": False, "waited": 4.9},
     Step.WAIT),
    # HUP
    ("after the shift", SHIFTED, {}, Step.HUP_OLD),
    ("HUP was sent", SHIFTED, {"hups": 1, "hup_ago": 4.9}, Step.WAIT),
    ("some came back", SHIFTED, {"hups": 1, "hup_ago": 1.0, "old_accepting": 1}, Step.WAIT),
    ("only some came back", SHIFTED,
     {"hups": 1, "hup_ago": 5.0, "old_accepting": 1}, Step.QUIT_CANDIDATE),
    ("none came back", SHIFTED, {"hups": 1, "hup_ago": 5.0}, Step.HUP_OLD),
    ("none ever comes back", SHIFTED, {"hups": MOST_HUPS, "hup_ago": 5.0}, Step.GIVE_UP),
    # before the shift
    ("in the canary", CANARY, {}, Step.QUIT_CANDIDATE),
    ("a worker is being respawned", CANARY, {"old_accepting": 1}, Step.WAIT),
    ("a worker does not come back", CANARY,
     {"old_accepting": 1, "waited": 1.0}, Step.QUIT_CANDIDATE),
    ("no worker in the canary", CANARY, {"old_accepting": 0}, Step.HUP_OLD),
    # races B and C
    ("nginx may revive them", DEAD, {"old_accepting": 0}, Step.WAIT),
    ("nginx has not noticed yet", DEAD,
     {"old_accepting": 0, "candidate_gone_for": 4.9, "candidate_reaped_for": None}, Step.WAIT),
    ("nginx has just noticed", DEAD,
     {"old_accepting": 0, "candidate_gone_for": 4.9, "candidate_reaped_for": 0.9}, Step.WAIT),
    ("nginx does not notice", DEAD,
     {"old_accepting": 0, "candidate_gone_for": 5.0, "candidate_reaped_for": None},
     Step.HUP_OLD),
    ("nginx did not revive them", DEAD,
     {"old_accepting": 0, "candidate_gone_for": 1.0}, Step.HUP_OLD),
    ("there never was a candidate", DEAD,
     {"old_accepting": 0, "candidate_gone_for": None}, Step.HUP_OLD),
    # the candidate
    ("it leaves", BACK, {"quit_ago": 0.1, "candidate_accepting": 0}, Step.WAIT),
    ("it is about to leave", BACK, {"quit_ago": 1.9}, Step.WAIT),
    ("it does not react", BACK, {"quit_ago": 2.0}, Step.QUIT_WORKERS),
    ("its workers are told", BACK, {"quit_ago": 3.0, "workers_quit_ago": 1.0}, Step.WAIT),
    ("its workers have left", BACK,
     {"quit_ago": 3.0, "workers_quit_ago": 1.0, "candidate_accepting": 0},
     Step.KILL_CANDIDATE),
    ("its workers do not leave", BACK,
     {"quit_ago": 5.0, "workers_quit_ago": 2.0}, Step.KILL_CANDIDATE),
    ("it is stopped", BACK, {"candidate_stopped": True}, Step.QUIT_WORKERS),
    ("it is stopped and has no workers", BACK,
     {"candidate_stopped": True, "candidate_accepting": 0, "candidate_workers": 0},
     Step.KILL_CANDIDATE),
    ("it never was ready", BACK,
     {"candidate_ready": False, "candidate_accepting": 0, "candidate_workers": 0},
     Step.KILL_CANDIDATE),
    ("it stays without workers", BACK,
     {"quit_ago": 2.9, "candidate_alone_for": 2.0, "candidate_accepting": 0,
      "candidate_workers": 0},
     Step.KILL_CANDIDATE),
    ("its last worker has only just left", BACK,
     {"quit_ago": 2.9, "candidate_alone_for": 0.1, "candidate_accepting": 0,
      "candidate_workers": 0},
     Step.WAIT),
    ("its connections stay", BACK,
     {"quit_ago": 3.0, "candidate_accepting": 0}, Step.TERM_CANDIDATE),
    ("an operator hastens", BACK,
     {"quit_ago": 0.1, "candidate_accepting": 0, "hasten": True}, Step.TERM_CANDIDATE),
    ("TERM was sent", BACK,
     {"quit_ago": 4.0, "term_ago": 1.0, "candidate_accepting": 0}, Step.WAIT),
    ("TERM does not help", BACK,
     {"quit_ago": 8.0, "term_ago": 5.0, "candidate_accepting": 0}, Step.KILL_CANDIDATE),
    ("KILL was sent", BACK, {"kill_ago": 4.9}, Step.WAIT),
    ("KILL does not help", BACK, {"kill_ago": 5.0}, Step.GIVE_UP),
    # orphans
    ("orphans", ORPHANS, {}, Step.QUIT_WORKERS),
    ("orphans leave", LEAVING, {}, Step.WAIT),
    ("orphans are about to leave", ORPHANS, {"workers_quit_ago": 0.05}, Step.WAIT),
    ("orphans that were forked after the others were told", ORPHANS,
     {"workers_quit_ago": 0.2}, Step.QUIT_WORKERS),
    ("orphans do not react", ORPHANS,
     {"candidate_gone_for": 9.0, "workers_quit_ago": 2.0}, Step.TERM_WORKERS),
    ("orphans' connections stay", LEAVING, {"workers_quit_ago": 3.0}, Step.TERM_WORKERS),
    ("an operator hastens orphans", LEAVING, {"hasten": True}, Step.TERM_WORKERS),
    ("an earlier TERM to the master", LEAVING,
     {"workers_quit_ago": 3.0, "term_ago": 4.0}, Step.TERM_WORKERS),
    ("orphans were sent TERM", LEAVING, {"workers_quit_ago": 3.1, "term_ago": 0.1}, Step.WAIT),
    ("TERM does not end orphans", LEAVING,
     {"workers_quit_ago": 8.0, "term_ago": 5.0, "kill_ago": 8.1}, Step.KILL_WORKERS),
    ("orphans were sent KILL", LEAVING,
     {"workers_quit_ago": 9.0, "term_ago": 6.0, "kill_ago": 1.0}, Step.WAIT),
    ("KILL does not end orphans", LEAVING,
     {"workers_quit_ago": 13.0, "term_ago": 10.0, "kill_ago": 5.0}, Step.GIVE_UP),
    # the end
    ("over", DEAD, {}, Step.DONE),
    ("over, without a candidate", DEAD, {"candidate_gone_for": None}, Step.DONE),
    ("dead this moment", DEAD, {"candidate_gone_for": 0.01}, Step.WAIT),
    ("not yet reaped", DEAD, {"candidate_reaped_for": None}, Step.WAIT),
    ("never reaped", DEAD,
     {"candidate_gone_for": 5.0, "candidate_reaped_for": None}, Step.DONE),
    ("a true reload may go on", DEAD, {"hups": 1, "hup_ago": 1.0}, Step.WAIT),
    ("HUP came before our QUIT", DEAD,
     {"hups": 1, "hup_ago": 0.2, "quit_ago": 0.15}, Step.DONE),
    ("HUP came before our KILL", DEAD,
     {"hups": 1, "hup_ago": 0.2, "kill_ago": 0.15}, Step.DONE),
    ("HUP may have come with the end of a candidate that was told to quit before", DEAD,
     {"hups": 1, "hup_ago": 0.2, "quit_ago": 0.5, "candidate_gone_for": 0.4,
      "candidate_reaped_for": 0.4}, Step.WAIT),
    ("that reload is over", DEAD,
     {"hups": 1, "hup_ago": 0.3, "quit_ago": 0.5, "candidate_gone_for": 0.4,
      "candidate_reaped_for": 0.4}, Step.DONE),
    ("workers start", DEAD, {"old_starting": 1}, Step.WAIT),
    ("workers start after HUP", DEAD,
     {"old_starting": 1, "waited": 9.0, "hup_ago": 4.0, "quit_ago": 3.0}, Step.WAIT),
    ("a worker that never gets ready", DEAD, {"old_starting": 1, "waited": 5.0}, Step.DONE),
    ("too many workers", DEAD, {"old_accepting": 4}, Step.RELOAD_OLD),
    ("too many, WINCH was ignored", DEAD,
     {"old_accepting": 2, "old_unshifted": 2}, Step.RELOAD_OLD),
    ("the surplus leaves", DEAD,
     {"old_accepting": 4, "reloaded": True, "hup_ago": 0.5, "quit_ago": 3.0}, Step.WAIT),
    ("the surplus stays", DEAD,
     {"old_accepting": 4, "reloaded": True, "hup_ago": 5.0, "candidate_gone_for": 6.0}, Step.DONE),
))  # fmt: skip
def test_next_step(view: View, step: Step) -> None:
    assert next_step(view, LIMITS) is step


# --- against the model ---------------------------------------------------------------------


class Case:
    """How things are when the rollback begins, at time 0."""

    PHASES = ("spawning", "canary", "shifting", "soaking", "resumed")

    def __init__(
        self,
        phase: str = "canary",
        kind: Kind = Kind.HEALTHY,
        *,
        workers: int = 2,
        latency: float = 0.002,
        died: float | None = None,
        old_died: float | None = None,
        hold: float = 0.0,
        hanging: int = 0,
        config_good: bool = True,
        obeys_winch: bool = True,
        left_over: bool = False,
        hasten: float | None = None,
    ) -> None:
        self.arguments = {k: v for k, v in locals().items() if k != "self"}
        self.config_good, self.hanging = config_good, hanging
        mine = [Worker(-10.0) for _ in range(workers)]
        old = Old(
            workers=list(mine), expected=workers, latency=latency, config_good=config_good,
            obeys_winch=obeys_winch, dies_at=old_died,
            noaccepting=left_over and obeys_winch,  # of an earlier upgrade: see Old.reap
        )  # fmt: skip
        candidate = self.candidate(kind, old, workers, hold, died)
        had = None
        if kind is Kind.ABSENT:
            old.new_binary = False
        if phase in ("shifting", "soaking", "resumed"):
            old.signal("WINCH", 0.0)
        if phase in ("soaking", "resumed") and obeys_winch:
            old.wake_at, old.noaccepting = None, True
            old.blocked.clear()
            for one in mine:
                one.leaving_at, one.ends_at = -5.0, hold
        if phase in ("shifting", "soaking"):
            had = frozenset(mine)
        self.run = Rollback(old=old, candidate=candidate, had=had, limits=LIMITS, hasten_at=hasten)

    def candidate(
        self, kind: Kind, old: Old, workers: int, hold: float, died: float | None
    ) -> Candidate:
        made: list[Worker] = []
        if kind is Kind.CRASHING:
            made = [crashing(0.0) for _ in range(workers)]
        elif kind not in (Kind.BLOCKED, Kind.FATAL, Kind.ABSENT):
            made = [
                Worker(-1.0, hold=hold, hangs=number < self.hanging) for number in range(workers)
            ]
        alive = kind is not Kind.ABSENT
        return Candidate(kind=kind, workers=made, parent=old, dies_at=died, alive=alive)

    def __repr__(self) -> str:
        return f"Case(**{self.arguments})"


SOON = st.sampled_from([None, 0.0, 0.001, 0.003, 0.006, 0.011, 0.1, 0.5, 1.0, 1.02, 2.0, 2.5])
CASES = st.builds(
    Case,
    st.sampled_from(Case.PHASES),
    st.sampled_from(Kind),
    workers=st.integers(1, 3),
    latency=st.sampled_from([0.001, 0.004, 0.02, 0.2, 0.7, 1.5]),
    died=SOON,
    old_died=st.one_of(st.none(), st.none(), SOON),
    hold=st.sampled_from([0.0, 0.0, 0.3, 2.0, 1e9]),
    hanging=st.sampled_from([0, 0, 0, 1, 2]),
    config_good=st.sampled_from([True, True, True, False]),
    obeys_winch=st.sampled_from([True, True, True, False]),
    left_over=st.booleans(),
    hasten=st.sampled_from([None, None, 0.0, 0.5]),
)


def check(case: Case) -> None:
    """The old generation serves with exactly its workers, and nothing is left of the candidate."""
    run = case.run
    ended = run.run(at_most=AT_MOST)
    old = run.old
    hups = sum(step is Step.HUP_OLD for _, step in run.steps)
    assert hups <= MOST_HUPS
    assert run.reloads <= 1
    if ended is Step.GIVE_UP:
        # Without a candidate it reads its configuration for new workers, and cannot.
        assert not case.config_good
        assert not any(one.accepting(run.now) for one in old.workers)
        return
    old.dies_at = None
    run.advance(2.0)
    assert old.alive
    assert not run.candidate.alive
    assert not run.candidate.workers
    accepting = sum(one.accepting(run.now) for one in old.workers)
    if case.config_good or not run.reloads:
        assert accepting == old.expected
    else:
        assert accepting >= old.expected  # a surplus that only a reload would end
    if not case.hanging:
        assert not run.cut


@given(CASES)
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_any_fault_in_any_phase(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("phase", Case.PHASES)
@pytest.mark.parametrize("kind", list(Kind))
def test_each_fault_in_each_phase(phase: str, kind: Kind) -> None:
    check(Case(phase, kind))


@pytest.mark.parametrize("phase", Case.PHASES)
def test_a_healthy_candidate_is_ended_by_quit_alone(phase: str) -> None:
    case = Case(phase)
    check(case)
    before = [Step.HUP_OLD] if phase in ("shifting", "soaking", "resumed") else []
    assert [step for _, step in case.run.steps] == [*before, Step.QUIT_CANDIDATE]
    assert case.run.now < 2.2


def test_a_candidate_that_dies_after_the_shift_needs_no_hup() -> None:
    """nginx restarts the workers by itself, from the configuration that it has in memory."""
    case = Case("soaking", died=0.0, config_good=False)
    case.run.candidate.advance(0.0)
    check(case)
    assert Step.HUP_OLD not in [step for _, step in case.run.steps]


def test_a_foreground_master_that_ignores_winch_gets_no_second_set() -> None:
    case = Case("shifting", obeys_winch=False)
    check(case)
    assert [step for _, step in case.run.steps] == [Step.QUIT_CANDIDATE]


def test_a_flag_left_over_from_an_earlier_repair() -> None:
    """nginx starts a set too many when the candidate ends; a true reload removes it."""
    case = Case("canary", left_over=True)
    check(case)
    assert [step for _, step in case.run.steps] == [Step.QUIT_CANDIDATE, Step.RELOAD_OLD]
