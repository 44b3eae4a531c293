"""What may come of a case of the matrix: its verdict, and what the load may lose."""

from __future__ import annotations

from enum import Enum

from tests.e2e.harness.cases import AT_REST, Case, Scenario, Victim

COMMITTED, ROLLED_BACK, REFUSED = "committed", "rolled_back", "refused"
NONE = "none"

ENDING = ("KILL", "SEGV", "TERM")

_NO_UPGRADE = (
    Scenario.REST, Scenario.CRASH_ALL, Scenario.CRASH_MASTER, Scenario.BACKOFF, Scenario.STOP,
    Scenario.DEGRADED, Scenario.TAKE_OVER, Scenario.REPLACED,
)  # fmt: skip
_WAY_BACK = (Scenario.ROLLBACK, Scenario.REJECTED, Scenario.RECOVER)
_FORWARD = (Scenario.UPGRADE, Scenario.HELD, Scenario.REPLACED_HELD)

_IN_PREFLIGHT = ("state.preflight", "stage.before", "stage.written", "stage.after",
                 "include.before", "include.after")  # fmt: skip
_NO_CANDIDATE = (*_IN_PREFLIGHT, AT_REST, "state.spawning", "install.before", "install.after",
                 "SIGUSR2.before", "SIGUSR2.after")  # fmt: skip
_UNSHIFTED = (*_NO_CANDIDATE, "join.after", "ready.after", "state.canary")
_SHIFTED_MAYBE = ("state.shifting", "SIGWINCH.before", "SIGWINCH.after", "leaving.before")
_LAST_LOOK_IS_OVER = ("SIGQUIT.before", "SIGQUIT.after", "state.draining")


def is_past_the_last_look(case: Case) -> bool:
    """The candidate holds the place: whatever happens to it now, the verdict is `committed`."""
    put_away = case.point.startswith(("history", "closed"))
    return put_away or case.point in _LAST_LOOK_IS_OVER or (
        case.point.startswith("masters") and case.number == 2
    )  # fmt: skip


def is_past_return(case: Case) -> bool:
    """QUIT was sent to the old master."""
    return is_past_the_last_look(case) and case.point != "SIGQUIT.before"


def verdicts(case: Case) -> frozenset[str]:
    """The verdicts that are right; several where the supervisor may notice sooner or later."""
    if case.scenario in _NO_UPGRADE:
        return frozenset({NONE})
    if case.scenario in _WAY_BACK:
        return frozenset({ROLLED_BACK})
    if case.scenario is Scenario.RECOVER_COMMITTED:
        if case.victim is Victim.NEW_MASTER:
            return frozenset({COMMITTED, ROLLED_BACK})  # nobody had been told of the commit
        return frozenset({COMMITTED})
    return frozenset(_of_an_upgrade(case))


def _of_an_upgrade(case: Case) -> set[str]:
    if is_past_return(case):
        return {COMMITTED}
    match case.victim:
        case Victim.SUPERVISOR:
            return _supervisor(case)
        case Victim.OLD_MASTER:
            return _old_master(case)
        case Victim.OLD_WORKERS | Victim.OLD_WORKER:
            # Those that are stopped do not leave when they are told to.
            return {COMMITTED, ROLLED_BACK} if case.signal == "STOP" else {COMMITTED}
        case Victim.NEW_MASTER:
            return {COMMITTED} if is_past_the_last_look(case) else {ROLLED_BACK}
        case Victim.NEW_WORKERS | Victim.NEW_WORKER:
            return _new_workers(case)


def _supervisor(case: Case) -> set[str]:
    if case.signal == "STOP":
        return {COMMITTED}
    if case.signal == "TERM":
        # It goes on first: the signal is seen at its next turn.
        return {ROLLED_BACK, REFUSED, COMMITTED}
    if case.point == "journal.before" and case.number == 1:
        return {NONE}
    return {ROLLED_BACK}


def _old_master(case: Case) -> set[str]:
    if case.point in _IN_PREFLIGHT:
        return {REFUSED, ROLLED_BACK}
    if case.point in _UNSHIFTED:
        return {ROLLED_BACK}
    return {COMMITTED, ROLLED_BACK} if case.point in _SHIFTED_MAYBE else {COMMITTED}


def _new_workers(case: Case) -> set[str]:
    if is_past_the_last_look(case):
        return {COMMITTED}
    if case.signal == "TERM":
        return {COMMITTED, ROLLED_BACK}  # a worker that leaves in order is replaced
    if case.signal == "STOP" and (
        case.victim is Victim.NEW_WORKER or case.point == "state.committing"
    ):
        return {COMMITTED, ROLLED_BACK}  # the other one answers, or no probe was due any more
    return {ROLLED_BACK}


class Cost(Enum):
    """What the load may lose."""

    NOTHING = "nothing"
    CUT = "connections that an ended worker had accepted"
    OUTAGE = "all of nginx ended, or was stopped"


CAUSES = {
    Cost.NOTHING: frozenset[str](),
    Cost.CUT: frozenset({"reset", "truncated"}),
    Cost.OUTAGE: frozenset({"reset", "truncated", "refused"}),
}


BAD_ANSWERS = "status"
"""Of the candidate that is rejected for them: it shares the public listeners in its canary."""


def causes(case: Case) -> frozenset[str]:
    """The causes for which requests may fail."""
    bad = {BAD_ANSWERS} if case.scenario is Scenario.REJECTED else set()
    return CAUSES[cost_of(case)] | bad


def cost_of(case: Case) -> Cost:
    """The most that the fault itself costs."""
    if case.scenario is Scenario.CRASH_ALL:
        # The supervisor holds the listeners, unless it is killed as well.
        return Cost.OUTAGE if case.victim is Victim.SUPERVISOR else Cost.CUT
    if case.scenario is Scenario.STOP:
        return Cost.OUTAGE
    match case.victim:
        case Victim.SUPERVISOR:
            return Cost.OUTAGE if case.signal == "TERM" else Cost.NOTHING
        case Victim.OLD_MASTER | Victim.NEW_MASTER:
            return _of_a_master(case)
        case _:
            orphans = case.scenario in (
                Scenario.CRASH_MASTER, Scenario.BACKOFF, Scenario.DEGRADED,
            )  # fmt: skip
            sole = orphans and case.victim is Victim.OLD_WORKERS and case.signal in ENDING
            return Cost.OUTAGE if sole else Cost.CUT


def _of_a_master(case: Case) -> Cost:
    if case.signal != "TERM":
        # One that was killed while it came up takes its workers with it.
        starts = case.scenario in (Scenario.CRASH_MASTER, Scenario.TAKE_OVER)
        return Cost.CUT if starts else Cost.NOTHING
    alone = case.point in (*_NO_CANDIDATE, "state.taking_over")
    if case.victim is Victim.NEW_MASTER:
        alone = case.scenario in _FORWARD and is_past_the_last_look(case)
    return Cost.OUTAGE if alone or case.point.startswith("SIGQUIT") else Cost.CUT
