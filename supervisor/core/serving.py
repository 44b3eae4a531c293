"""The cells for what is no upgrade: starting, crashing, stopping, reloading, draining."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import commands
from supervisor.core.actions import (
    Action,
    Aim,
    Arm,
    Attach,
    Complete,
    Exit,
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
from supervisor.core.cell import (
    Cell,
    Step,
    drop_waiting,
    exit_of_active,
    narrow,
    settle_phase,
    upgrade_text,
)
from supervisor.core.events import (
    Event,
    Failed,
    GenerationGone,
    InterruptedUpgrade,
    MasterExited,
    ProbeFailed,
    Requested,
    Succeeded,
)
from supervisor.core.model import Goal, OnForeignStop, Phase, State, Timer, Upgrade, Verdict
from supervisor.core.restart_policy import Backoff, GiveUp, RestartDecision, RestartNow


def start(state: State, operation: Operation = Operation.START) -> Step:
    """Start nginx; nothing is aimed at meanwhile."""
    starting = replace(
        state, phase=Phase.STARTING, goal=Goal.RUN, candidate=None, upgrade=None, exits=()
    )
    return starting, (Aim(Watch.NOTHING), Run(operation=operation))


def start_now(state: State, event: Event) -> Step:
    """Start nginx; the requester waits."""
    fresh = replace(state, reason=None, detail="", restarts=state.restarts.forget())
    starting, actions = start(fresh)
    return starting, (Attach(narrow(event, Requested).request), *actions)


def started(state: State, event: Event) -> Step:
    """Nginx serves: started, adopted, or adopted with an upgrade that a dead supervisor left."""
    done = narrow(event, Succeeded)
    serving = replace(
        state, active=done.generation, served=True, retiring=state.retiring | done.retiring
    )
    retire = tuple(Retire(generation=one) for one in sorted(done.retiring))
    settle = Settle(ok=True, reason="started", detail=done.note or "nginx serves")
    if done.interrupted is not None:
        resumed, more = resume(serving, done.interrupted)
        return resumed, (*retire, settle, *more)
    rested, aim = rest(serving)
    return rested, (*retire, settle, *aim)


def rest(state: State) -> Step:
    """Serve; where the generation that was brought up is dead already, that is acted on now."""
    gone = exit_of_active(state)
    rested = settle_phase(state)
    if gone is not None:
        return active_lost_in_drain(rested, gone)
    return rested, (Aim(Watch.ACTIVE),)


def resume(state: State, left: InterruptedUpgrade) -> Step:
    """End the upgrade that a dead supervisor left behind: it was committed, or goes back."""
    if left.committed:
        serving, aim = rest(replace(state, rescuable=True))
        verdict = Pronounce(verdict=Verdict.COMMITTED, reason="supervisor_died", detail=left.detail)
        return serving, (verdict, *aim)
    upgrade = Upgrade(
        id=left.upgrade_id, canary=0, soak=0, reason="supervisor_died", detail=left.detail
    )
    back = replace(
        state, phase=Phase.ROLLING_BACK, candidate=left.candidate, upgrade=upgrade,
        reason="supervisor_died", detail=left.detail,
    )  # fmt: skip
    return back, (Run(operation=Operation.ROLL_BACK),)


def start_failed(state: State, event: Event) -> Step:
    """A first start that fails ends the supervisor; later ones back off, up to the limit."""
    failed = narrow(event, Failed)
    settle = Settle(ok=False, reason=failed.reason, detail=failed.detail)
    failing = replace(state, active=None, reason=failed.reason, detail=failed.detail)
    if not state.served:
        return replace(failing, phase=Phase.DEGRADED), (settle, Exit(1))
    restarts, decision = failing.restarts.failed(at=failed.at, was_ready=False)
    waiting, actions = try_again(replace(failing, restarts=restarts), decision)
    return waiting, (settle, *actions)


def restart(state: State, gone: MasterExited, *, rescue: bool = False) -> Step:
    """The generation that ended had been ready."""
    restarts, decision = state.restarts.failed(at=gone.at, was_ready=True, started=gone.started)
    return try_again(replace(state, restarts=restarts), decision, rescue=rescue)


def try_again(state: State, decision: RestartDecision, *, rescue: bool = False) -> Step:
    """Start at once, after a while, or not at all: the restart policy has decided."""
    if isinstance(decision, GiveUp):
        detail = f"{decision.detail} (the last failure: {state.detail})"
        lost = replace(
            state, phase=Phase.DEGRADED, reason=decision.reason, detail=detail, candidate=None
        )
        return lost, (
            Aim(Watch.NOTHING),
            ReportIncident(reason=decision.reason, detail=detail),
            Settle(ok=False, reason=decision.reason, detail=detail),
        )
    if isinstance(decision, Backoff):
        waiting = replace(state, phase=Phase.BACKOFF, candidate=None, upgrade=None)
        return waiting, (Aim(Watch.NOTHING), Arm(timer=Timer.BACKOFF, seconds=decision.delay))
    return start(state, Operation.RESCUE if rescue else Operation.START)


def backoff_over(state: State, _event: Event) -> Step:
    """Try to start again."""
    return start(state)


def active_lost(state: State, event: Event) -> Step:
    """The serving master is gone: restart it, or accept that someone stopped or replaced it."""
    gone = narrow(event, MasterExited)
    dropped, refusals = drop_waiting(state, "not_running")
    if gone.replaced:
        incident = ReportIncident(reason="foreign_upgrade", detail=gone.detail)
        left = replace(
            dropped, active=None, reason=incident.reason, detail=gone.detail, rescuable=False
        )
        taking, actions = start(left)
        return taking, (*refusals, incident, *actions)
    if gone.orderly:
        incident = ReportIncident(reason="foreign_stop", detail=gone.detail)
        if state.rules.on_foreign_stop is OnForeignStop.STOP:
            stopped = replace(
                dropped, phase=Phase.STOPPED, goal=Goal.STOP, active=None, upgrade=None,
                candidate=None, reason="foreign_stop", detail=gone.detail,
            )  # fmt: skip
            settle = Settle(ok=False, reason=incident.reason, detail=gone.detail)
            return stopped, (*refusals, Aim(Watch.NOTHING), incident, settle)
    else:
        incident = ReportIncident(reason="master_exited", detail=gone.detail)
    lost = replace(dropped, active=None, reason=incident.reason, detail=gone.detail)
    after, actions = restart(lost, gone)
    return after, (*refusals, incident, *actions)


def active_lost_in_drain(state: State, event: Event) -> Step:
    """The new generation died while the old one drains: bring the previous version back now."""
    gone = narrow(event, MasterExited)
    stopped = gone.orderly and state.rules.on_foreign_stop is OnForeignStop.STOP
    if stopped or gone.replaced or not state.rescuable:
        return active_lost(state, event)
    dropped, refusals = drop_waiting(state, "not_running")
    incident = ReportIncident(reason="candidate_exited_in_drain", detail=gone.detail)
    lost = replace(
        dropped, active=None, reason=incident.reason, detail=gone.detail, rescuable=False
    )
    after, actions = restart(lost, gone, rescue=True)
    return after, (*refusals, incident, *actions)


_NOT_ANY_MORE = Settle(
    ok=False, reason="stopping", detail="cannot start: nginx was told to stop meanwhile"
)


def stop_with(goal: Goal) -> Cell:
    """A cell that stops nginx and then does what `goal` says."""

    def stop(state: State, event: Event) -> Step:
        answers: tuple[Action, ...] = ()
        command: commands.Command | None = None
        if state.phase is Phase.STARTING and goal is not Goal.RESTART:
            answers = (_NOT_ANY_MORE,)
        if isinstance(event, Requested):
            answers = (*answers, Attach(event.request))
            command = event.command
        dropped, refusals = drop_waiting(state, "stopping")
        stopping = replace(dropped, phase=Phase.STOPPING, goal=goal, reason="stopping", detail="")
        aim = Aim(Watch.NOTHING)
        return stopping, (*answers, *refusals, aim, Run(operation=Operation.STOP, command=command))

    stop.__doc__ = f"Stop nginx (candidate first), then: {goal.value}."
    return stop


def stop_after_commit(goal: Goal) -> Cell:
    """A cell that remembers a stop that comes while QUIT is on its way to the old master."""

    def stop_later(state: State, event: Event) -> Step:
        attach = (Attach(event.request),) if isinstance(event, Requested) else ()
        return replace(state, goal=Goal.EXIT if state.goal is Goal.EXIT else goal), attach

    stop_later.__doc__ = f"After the commit, which takes moments: stop nginx, then: {goal.value}."
    return stop_later


def stopped(state: State, event: Event) -> Step:
    """Nothing of nginx is left; an upgrade that was under way ends as rolled back."""
    done = narrow(event, Succeeded)
    verdict = verdict_of_stopped(state, Verdict.ROLLED_BACK)
    settle = Settle(ok=True, reason="stopped", detail=done.note or "nginx is stopped")
    still = replace(
        state, active=None, candidate=None, upgrade=None, retiring=frozenset(), rescuable=False
    )
    if state.goal is Goal.RESTART:
        starting, actions = start(replace(still, reason=None, restarts=state.restarts.forget()))
        return starting, (*verdict, *actions)
    stopped = replace(still, phase=Phase.STOPPED, reason="stopped")
    after: tuple[Action, ...] = (Exit(0),) if state.goal is Goal.EXIT else ()
    return stopped, (*verdict, settle, *after)


def stop_failed(state: State, event: Event) -> Step:
    """Something of nginx could not be ended; a person is needed."""
    failed = narrow(event, Failed)
    verdict = verdict_of_stopped(state, Verdict.FAILED)
    settle = Settle(ok=False, reason=failed.reason, detail=failed.detail)
    lost = replace(
        state, phase=Phase.DEGRADED, reason=failed.reason, detail=failed.detail, upgrade=None,
        candidate=None,
    )  # fmt: skip
    after: tuple[Action, ...] = (Exit(1),) if state.goal is Goal.EXIT else ()
    return lost, (*verdict, settle, *after)


def verdict_of_stopped(state: State, verdict: Verdict) -> tuple[Action, ...]:
    """The verdict of an upgrade that a stop has ended, where there is one."""
    if state.upgrade is None:
        return ()
    detail = "nginx was stopped before the upgrade was decided"
    if state.upgrade.reason:
        # What it was rolled back for; but the old generation does not serve now.
        why = f"{state.upgrade.reason}: {state.upgrade.detail}"
        detail = f"nginx was stopped while the upgrade was being rolled back ({why})"
    return (Pronounce(verdict=verdict, reason="stopped", detail=detail),)


def goal_exit(state: State, _event: Event) -> Step:
    """Already stopping: then exit."""
    return replace(state, goal=Goal.EXIT), _dropped_restart(state)


def _dropped_restart(state: State) -> tuple[Action, ...]:
    return (_NOT_ANY_MORE,) if state.goal is Goal.RESTART else ()


def stop_again(state: State, event: Event) -> Step:
    """Wait for the stop that runs; `--now` makes it insist."""
    asked = narrow(event, Requested)
    goal = Goal.STOP if state.goal is Goal.RESTART else state.goal
    answers = (*_dropped_restart(state), Attach(asked.request))
    if isinstance(asked.command, commands.Stop) and asked.command.now:
        run = Run(operation=Operation.STOP, command=asked.command)
        return replace(state, goal=goal), (*answers, run)
    return replace(state, goal=goal), answers


def adopt(state: State, event: Event) -> Step:
    """What serves is adopted already; with `take_over` a master of our own takes its place."""
    asked = narrow(event, Requested)
    assert isinstance(asked.command, commands.Adopt)
    if not asked.command.take_over:
        detail = f"g{state.active} is the supervisor's already"
        return state, (Complete(request=asked.request, detail=detail),)
    if state.reloading:
        detail = "cannot take over: a reload runs; wait for it to end and try again"
        return state, (Refuse(request=asked.request, reason="reload_in_progress", detail=detail),)
    taking = replace(state, phase=Phase.TAKING_OVER, reason="taking_over", detail="")
    run = Run(operation=Operation.TAKE_OVER, command=asked.command)
    return taking, (Attach(asked.request), run)


def probe_failed(state: State, event: Event) -> Step:
    """Have a master of our own take the place of the one that fails, on the same sockets.

    As often as a crash would be followed by a start at once, and no more: beyond that it is left
    as it is, since what fails serves perhaps, and nothing would.
    """
    seen = narrow(event, ProbeFailed)
    if seen.generation != state.active or state.reloading:
        return state, ()
    restarts, decision = state.restarts.failed(at=seen.at, was_ready=True)
    if not isinstance(decision, RestartNow):
        return state, ()
    taking = replace(
        state, phase=Phase.TAKING_OVER, reason="unhealthy", detail=seen.detail,
        restarts=restarts,
    )  # fmt: skip
    incident = ReportIncident(reason="unhealthy", detail=seen.detail)
    run = Run(operation=Operation.TAKE_OVER, command=commands.Adopt(take_over=True))
    return taking, (incident, run)


def taken_over(state: State, event: Event) -> Step:
    """Another master serves on the same sockets; the workers of the one before it drain."""
    done = narrow(event, Succeeded)
    serving = replace(state, active=done.generation, retiring=state.retiring | done.retiring)
    retire = tuple(Retire(generation=one) for one in sorted(done.retiring))
    rested, aim = rest(serving)
    return rested, (*retire, Settle(ok=True, reason="taken_over", detail=done.note), *aim)


def take_over_failed(state: State, event: Event) -> Step:
    """The master that served goes on; where it is dead by now, that is acted on."""
    failed = narrow(event, Failed)
    rested, actions = rest(state)
    settle = Settle(ok=False, reason=failed.reason, detail=failed.detail, unchanged=True)
    if state.reason == "unhealthy":  # nobody asked for it: nobody else would be told
        detail = f"g{state.active} is not restarted, and serves on: {failed.detail}"
        return rested, (ReportIncident(reason=failed.reason, detail=detail), settle, *actions)
    return rested, (settle, *actions)


def reload(state: State, event: Event) -> Step:
    """Reload the active generation."""
    asked = narrow(event, Requested)
    assert isinstance(asked.command, commands.Reload)
    if state.reloading:
        detail = "cannot reload: a reload runs; wait for it to end and try again"
        return state, (Refuse(request=asked.request, reason="reload_in_progress", detail=detail),)
    return replace(state, reloading=True), (ReloadActive(asked.request, asked.command),)


def reload_later(state: State, event: Event) -> Step:
    """Wait for the verdict and reload whoever serves then; refused when it may be held."""
    asked = narrow(event, Requested)
    assert state.upgrade is not None
    assert isinstance(asked.command, commands.Reload)
    held = state.upgrade.hold or state.upgrade.waits
    if held and state.phase not in (Phase.COMMITTING, Phase.ROLLING_BACK):
        detail = (
            f"cannot reload: {upgrade_text(state)}; nginxctl promote or nginxctl rollback first"
        )
        return state, (Refuse(request=asked.request, reason="upgrade_held", detail=detail),)
    return replace(state, waiting=(*state.waiting, (asked.request, asked.command))), ()


def reload_ended(state: State, _event: Event) -> Step:
    """The next reload or upgrade may come."""
    return replace(state, reloading=False), ()


def hasten(state: State, event: Event) -> Step:
    """End what drains now."""
    return state, (Attach(narrow(event, Requested).request), HastenDrain())


def gone(state: State, event: Event) -> Step:
    """A retiring generation is gone."""
    return replace(state, retiring=state.retiring - {narrow(event, GenerationGone).generation}), ()


def drained(state: State, event: Event) -> Step:
    """A retiring generation is gone; with the last one the drain is over."""
    left, _ = gone(state, event)
    if left.retiring:
        return left, ()
    settle = Settle(ok=True, reason="drained", detail="no old connections are left")
    return settle_phase(left), (settle,)
