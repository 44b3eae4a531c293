"""The machine: which event leads from which phase to which phase, and what is then to be done.

Theory
------
`step(state, event)` is pure and total: every pair of a phase and a column has a cell in `TABLE`.
A column is the kind of an event: one for each command, one for each kind of fact. A cell returns
the next state and the actions, or leaves the state as it is.

Three rules keep the table short.

1. A phase runs at most one operation (`Run`); its answer is `SUCCEEDED` or `FAILED`. Entering
   another phase cancels it, and the engine drops what it still says. So a cell never asks "which
   operation was that?".
2. Timers belong to a phase: the engine disarms all of them when the phase changes.
3. An exit is told by the role of the generation (active, candidate), because one and the same
   death means a crash, a failed candidate or nothing at all depending on the role.

Who decides when several things are true: an operator's `stop` before everything else, a trigger
before a timer, and after QUIT was sent to the old master nothing but what the processes do.

A rollback is a race with nginx, which restores part of the old generation by itself. The machine
therefore only says *that* it rolls back; how, step by step and by what is seen, is decided in
`supervisor.core.rollback`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from supervisor.core import commands
from supervisor.core.cell import (
    Cell,
    Step,
    attach,
    busy_text,
    down_text,
    note_exit,
    refuse,
    reopen,
    rules_changed,
    running_text,
    stay,
    undrained_text,
)
from supervisor.core.events import (
    CandidateHealthy,
    Event,
    Failed,
    GenerationGone,
    LeaveRequested,
    MasterExited,
    ProbeFailed,
    ReloadEnded,
    Requested,
    RulesChanged,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.leaving import detach, leave, on_the_way_out
from supervisor.core.model import Goal, Phase, State
from supervisor.core.serving import (
    active_lost,
    active_lost_in_drain,
    adopt,
    backoff_over,
    drained,
    goal_exit,
    gone,
    hasten,
    probe_failed,
    reload,
    reload_ended,
    reload_later,
    start_failed,
    start_now,
    started,
    stop_after_commit,
    stop_again,
    stop_failed,
    stop_with,
    stopped,
    take_over_failed,
    taken_over,
)
from supervisor.core.upgrading import (
    NOT_HELD,
    active_lost_in_preflight,
    begin,
    canary_timer,
    cancelled,
    candidate_lost,
    candidate_lost_in_commit,
    candidate_ready,
    commit_failed,
    committed,
    go_on,
    healthy,
    operation_failed,
    operator_rollback,
    preflight_passed,
    promote,
    refused,
    rollback_failed,
    rolled_back,
    shifted,
    soak_over,
    standby_lost,
    standby_lost_early,
    start_timed_out,
    trigger,
)


class Column(Enum):
    """The kinds of events that the table tells apart."""

    UPGRADE = "upgrade"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    RELOAD = "reload"
    REOPEN = "reopen"
    DRAIN = "drain"
    STOP = "stop"
    START = "start"
    RESTART = "restart"
    ADOPT = "adopt"
    DETACH = "detach"
    TERMINATE = "terminate"
    LEAVE = "leave"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ACTIVE_EXITED = "active exited"
    CANDIDATE_EXITED = "candidate exited"
    OTHER_EXITED = "other exited"
    GONE = "generation gone"
    HEALTHY = "candidate healthy"
    TRIGGERED = "triggered"
    PROBE_FAILED = "probe failed"
    TIMER = "timer"
    RELOADED = "reload ended"
    RULES = "rules changed"


_COMMAND_COLUMNS: Mapping[type[commands.Command], Column] = {
    commands.Upgrade: Column.UPGRADE,
    commands.Promote: Column.PROMOTE,
    commands.Rollback: Column.ROLLBACK,
    commands.Reload: Column.RELOAD,
    commands.Reopen: Column.REOPEN,
    commands.Drain: Column.DRAIN,
    commands.Stop: Column.STOP,
    commands.Start: Column.START,
    commands.Restart: Column.RESTART,
    commands.Adopt: Column.ADOPT,
    commands.Detach: Column.DETACH,
}

_FACT_COLUMNS: Mapping[type[Event], Column] = {
    TerminateRequested: Column.TERMINATE,
    LeaveRequested: Column.LEAVE,
    Succeeded: Column.SUCCEEDED,
    Failed: Column.FAILED,
    GenerationGone: Column.GONE,
    CandidateHealthy: Column.HEALTHY,
    Triggered: Column.TRIGGERED,
    ProbeFailed: Column.PROBE_FAILED,
    TimerFired: Column.TIMER,
    ReloadEnded: Column.RELOADED,
    RulesChanged: Column.RULES,
}


def column_of(state: State, event: Event) -> Column:
    """The column of `event`; an exit is told by the role that its generation has in `state`."""
    if isinstance(event, Requested):
        return _COMMAND_COLUMNS[type(event.command)]
    if isinstance(event, MasterExited):
        if event.generation == state.active:
            return Column.ACTIVE_EXITED
        if event.generation == state.candidate:
            return Column.CANDIDATE_EXITED
        return Column.OTHER_EXITED
    return _FACT_COLUMNS[type(event)]


def step(state: State, event: Event) -> Step:
    """The next state and the actions that lead there; never raises, never waits."""
    return on_the_way_out(*TABLE[state.phase][column_of(state, event)](state, event))


# --- the table -----------------------------------------------------------------------------

_not_running = refuse("not_running", down_text)
_not_ready = refuse("starting", "cannot do this: nginx is starting; try again shortly")
_taking_over = refuse(
    "taking_over", "cannot do this: another master takes nginx over; try again shortly"
)
_draining = refuse(
    "previous_generation_draining",
    "cannot do this: connections of the previous generation are still open, and nginx ignores "
    "USR2 until they end; wait (nginxctl status), or nginxctl drain --now",
)
_draining_alone = refuse(
    "previous_generation_draining",
    "cannot detach: connections of the previous generation are still open, and nobody would end "
    "them in time; wait (nginxctl status), or nginxctl drain --now",
)
_nothing_draining = refuse("nothing_draining", undrained_text)
_not_held = refuse("not_held", NOT_HELD)
_already = refuse("already_running", running_text)
_busy = refuse("upgrade_in_progress", busy_text)
_committing = refuse(
    "upgrade_committing", "cannot roll back: the upgrade is being committed at this moment"
)
_rolling_back = refuse("rolling_back", "cannot promote: the upgrade is being rolled back")
_stopping = refuse("stopping", "cannot do this: nginx is being stopped")

C = Column


def _ignored(*columns: Column) -> dict[Column, Cell]:
    """Cells that change nothing, named one by one so that none is forgotten."""
    return dict.fromkeys(columns, stay)


_EVERYWHERE: dict[Column, Cell] = {
    C.STOP: stop_with(Goal.STOP),
    C.TERMINATE: stop_with(Goal.EXIT),
    C.LEAVE: leave,
    C.RELOADED: reload_ended,
    C.RULES: rules_changed,
    C.PROBE_FAILED: stay,
}

_AT_REST: dict[Column, Cell] = {
    **_EVERYWHERE,
    C.RESTART: stop_with(Goal.RESTART),
    C.PROMOTE: _not_held,
    C.REOPEN: reopen,
    C.OTHER_EXITED: stay,
}

_IN_UPGRADE: dict[Column, Cell] = {
    **_EVERYWHERE,
    C.UPGRADE: _busy,
    C.RESTART: _busy,
    C.ADOPT: _busy,
    C.DETACH: _busy,
    C.START: _already,
    C.DRAIN: _nothing_draining,
    C.RELOAD: reload_later,
    C.REOPEN: reopen,
    C.PROMOTE: _not_held,
    C.ROLLBACK: operator_rollback,
    C.CANDIDATE_EXITED: candidate_lost,
    C.FAILED: operation_failed,
    C.TRIGGERED: trigger,
    C.GONE: gone,
    C.OTHER_EXITED: stay,
}

_NO_EVIDENCE = _ignored(C.HEALTHY, C.TRIGGERED, C.CANDIDATE_EXITED)

TABLE: Mapping[Phase, Mapping[Column, Cell]] = {
    Phase.STARTING: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.TIMER),
        C.ACTIVE_EXITED: note_exit, C.OTHER_EXITED: note_exit,
        C.UPGRADE: _not_ready, C.ROLLBACK: _not_ready, C.RELOAD: _not_ready,
        C.DRAIN: _nothing_draining, C.START: attach, C.ADOPT: _not_ready,
        C.DETACH: _not_ready,
        C.SUCCEEDED: started, C.FAILED: start_failed, C.GONE: gone,
    },
    Phase.IDLE: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.TIMER, C.SUCCEEDED, C.FAILED),
        C.UPGRADE: begin, C.ROLLBACK: begin, C.RELOAD: reload,
        C.DRAIN: _nothing_draining, C.START: _already, C.ADOPT: adopt,
        C.DETACH: detach,
        C.ACTIVE_EXITED: active_lost, C.GONE: gone, C.PROBE_FAILED: probe_failed,
    },
    Phase.BACKOFF: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.ACTIVE_EXITED, C.SUCCEEDED, C.FAILED),
        C.UPGRADE: _not_running, C.ROLLBACK: _not_running, C.RELOAD: _not_running,
        C.DRAIN: _nothing_draining, C.START: start_now, C.ADOPT: start_now,
        C.TIMER: backoff_over, C.GONE: gone, C.DETACH: _not_running,
    },
    Phase.STOPPING: {
        **_EVERYWHERE, **_NO_EVIDENCE, **_ignored(C.ACTIVE_EXITED, C.OTHER_EXITED, C.TIMER),
        C.UPGRADE: _stopping, C.ROLLBACK: _stopping, C.RELOAD: _stopping, C.PROMOTE: _stopping,
        C.DRAIN: _stopping, C.START: _stopping, C.RESTART: _stopping, C.REOPEN: _stopping,
        C.ADOPT: _stopping, C.DETACH: _stopping,
        C.STOP: stop_again, C.TERMINATE: goal_exit,
        C.SUCCEEDED: stopped, C.FAILED: stop_failed, C.GONE: gone,
    },
    Phase.STOPPED: {
        **_EVERYWHERE, **_NO_EVIDENCE, **_ignored(C.ACTIVE_EXITED, C.OTHER_EXITED, C.TIMER),
        **_ignored(C.SUCCEEDED, C.FAILED),
        C.UPGRADE: _not_running, C.ROLLBACK: _not_running, C.RELOAD: _not_running,
        C.PROMOTE: _not_held, C.DRAIN: _nothing_draining, C.REOPEN: _not_running,
        C.START: start_now, C.RESTART: start_now, C.ADOPT: start_now, C.GONE: gone,
        C.DETACH: _not_running,
    },
    Phase.DEGRADED: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.ACTIVE_EXITED, C.TIMER, C.SUCCEEDED, C.FAILED),
        C.UPGRADE: _not_running, C.ROLLBACK: _not_running, C.RELOAD: _not_running,
        C.DRAIN: _nothing_draining, C.START: start_now, C.ADOPT: start_now, C.GONE: gone,
        C.DETACH: _not_running,
    },
    Phase.TAKING_OVER: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.TIMER),
        C.UPGRADE: _taking_over, C.ROLLBACK: _taking_over, C.RELOAD: _taking_over,
        C.DRAIN: _nothing_draining, C.START: _already, C.ADOPT: attach,
        C.DETACH: _taking_over,
        C.ACTIVE_EXITED: note_exit, C.OTHER_EXITED: note_exit,
        C.SUCCEEDED: taken_over, C.FAILED: take_over_failed, C.GONE: gone,
    },
    Phase.PREFLIGHT: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY, C.TRIGGERED, C.CANDIDATE_EXITED, C.TIMER),
        C.ROLLBACK: cancelled, C.ACTIVE_EXITED: active_lost_in_preflight,
        C.SUCCEEDED: preflight_passed, C.FAILED: refused,
    },
    Phase.SPAWNING: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY), C.ACTIVE_EXITED: standby_lost_early,
        C.SUCCEEDED: candidate_ready, C.TIMER: start_timed_out,
    },
    Phase.CANARY: {
        **_IN_UPGRADE, **_ignored(C.SUCCEEDED, C.FAILED), C.ACTIVE_EXITED: standby_lost_early,
        C.HEALTHY: healthy, C.TIMER: canary_timer, C.PROMOTE: go_on,
    },
    Phase.SHIFTING: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY, C.TIMER), C.ACTIVE_EXITED: standby_lost_early,
        C.SUCCEEDED: shifted,
    },
    Phase.SOAKING: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY, C.SUCCEEDED, C.FAILED),
        C.ACTIVE_EXITED: standby_lost, C.TIMER: soak_over, C.PROMOTE: promote,
    },
    Phase.HELD: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY, C.SUCCEEDED, C.FAILED, C.TIMER),
        C.ACTIVE_EXITED: standby_lost, C.PROMOTE: promote,
    },
    Phase.COMMITTING: {
        **_IN_UPGRADE, **_ignored(C.HEALTHY, C.TRIGGERED, C.TIMER, C.ACTIVE_EXITED),
        C.ROLLBACK: _committing, C.PROMOTE: attach, C.SUCCEEDED: committed,
        C.FAILED: commit_failed, C.CANDIDATE_EXITED: candidate_lost_in_commit,
        C.STOP: stop_after_commit(Goal.STOP), C.TERMINATE: stop_after_commit(Goal.EXIT),
    },
    Phase.DRAINING: {
        **_AT_REST, **_NO_EVIDENCE, **_ignored(C.TIMER, C.SUCCEEDED, C.FAILED),
        C.UPGRADE: _draining, C.ROLLBACK: _draining, C.RELOAD: reload,
        C.DRAIN: hasten, C.START: _already, C.ADOPT: _draining,
        C.DETACH: _draining_alone,
        C.ACTIVE_EXITED: active_lost_in_drain, C.GONE: drained,
    },
    Phase.ROLLING_BACK: {
        **_IN_UPGRADE,
        **_ignored(C.HEALTHY, C.TRIGGERED, C.TIMER, C.CANDIDATE_EXITED),
        C.ACTIVE_EXITED: note_exit, C.OTHER_EXITED: note_exit,
        C.ROLLBACK: attach, C.PROMOTE: _rolling_back, C.DRAIN: hasten,
        C.SUCCEEDED: rolled_back, C.FAILED: rollback_failed,
    },
}  # fmt: skip
