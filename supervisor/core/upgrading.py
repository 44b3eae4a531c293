"""The cells of an upgrade: the way forward, and the way back."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import commands
from supervisor.core.actions import (
    Aim,
    Arm,
    Attach,
    BeginUpgrade,
    Complete,
    Operation,
    Pronounce,
    Refuse,
    ReportIncident,
    Retire,
    Run,
    Watch,
)
from supervisor.core.cell import (
    DECIDE,
    GO_ON,
    Step,
    drop_waiting,
    narrow,
    release_waiting,
    settle_phase,
)
from supervisor.core.events import (
    Event,
    Failed,
    MasterExited,
    Requested,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.model import Goal, Phase, State, Timer, Upgrade, Verdict
from supervisor.core.serving import (
    active_lost,
    active_lost_in_drain,
    rest,
    stop_with,
)
from supervisor.core.verdict_policy import INCONCLUSIVE, OnInconclusive

NOT_HELD = "cannot promote: no upgrade is held or soaking"


def begin(state: State, event: Event) -> Step:
    """Accepted: check everything that can be checked before any signal."""
    asked = narrow(event, Requested)
    if state.reloading:
        detail = "cannot upgrade: a reload runs; wait for it to end and try again"
        return state, (Refuse(request=asked.request, reason="reload_in_progress", detail=detail),)
    canary, soak, hold = state.rules.policy.canary, state.rules.policy.soak, False
    if isinstance(asked.command, commands.Upgrade):
        canary = canary if asked.command.canary is None else asked.command.canary
        soak = soak if asked.command.soak is None else asked.command.soak
        hold = asked.command.hold
    upgrade = Upgrade(id=asked.upgrade_id, canary=canary, soak=soak, hold=hold)
    begun = replace(state, phase=Phase.PREFLIGHT, upgrade=upgrade)
    run = Run(operation=Operation.PREFLIGHT, command=asked.command)
    return begun, (BeginUpgrade(asked.request), run)


def refused(state: State, event: Event) -> Step:
    """Preflight found a reason not to begin; nothing was changed."""
    failed = narrow(event, Failed)
    return end_unchanged(
        state, Pronounce(verdict=Verdict.REFUSED, reason=failed.reason, detail=failed.detail)
    )


def cancelled(state: State, event: Event) -> Step:
    """An operator takes the upgrade back before anything was changed."""
    text = "cancelled by an operator before anything was changed"
    ended, actions = end_unchanged(
        state, Pronounce(verdict=Verdict.REFUSED, reason="cancelled_by_operator", detail=text)
    )
    request = narrow(event, Requested).request
    return ended, (*actions, Complete(request=request, detail=text))


def end_unchanged(state: State, verdict: Pronounce) -> Step:
    """The upgrade ends before any signal was sent."""
    rested, reloads = release_waiting(settle_phase(state))
    return rested, (verdict, *reloads)


def active_lost_in_preflight(state: State, event: Event) -> Step:
    """Nginx died of itself: the upgrade is refused and the crash is handled as always."""
    detail = f"cannot upgrade: {narrow(event, MasterExited).detail}"
    verdict = Pronounce(verdict=Verdict.REFUSED, reason="active_exited", detail=detail)
    after, actions = active_lost(replace(state, upgrade=None), event)
    return after, (verdict, *actions)


def preflight_passed(state: State, event: Event) -> Step:
    """Nothing speaks against it: put the binary in place and send USR2."""
    passed = narrow(event, Succeeded)
    if passed.nothing_to_do:
        return end_unchanged(state, nothing_to_do(passed))
    spawning = replace(state, phase=Phase.SPAWNING, candidate=passed.generation)
    return spawning, (
        Arm(timer=Timer.START, seconds=state.rules.policy.come_up),
        Run(operation=Operation.SPAWN),
    )


def nothing_to_do(passed: Succeeded) -> Pronounce:
    """A dry run ends here, and so does an upgrade to what runs already."""
    if passed.dry_run:
        return Pronounce(verdict=Verdict.DONE, reason="dry_run", detail=passed.note)
    return Pronounce(verdict=Verdict.DONE, reason="unchanged", detail=passed.note)


def candidate_ready(state: State, _event: Event) -> Step:
    """Both generations accept; the probes look at the candidate alone."""
    assert state.upgrade is not None
    watching = replace(state, phase=Phase.CANARY)
    return watching, (
        Arm(timer=Timer.CANARY, seconds=state.upgrade.canary),
        Arm(
            timer=Timer.CANARY_LIMIT,
            seconds=state.rules.policy.canary_limit(state.upgrade.canary),
        ),
        Aim(Watch.CANARY),
    )


def canary_timer(state: State, event: Event) -> Step:
    """The canary has lasted long enough, or too long."""
    assert state.upgrade is not None
    fired = narrow(event, TimerFired)
    if fired.timer is Timer.CANARY_LIMIT:
        detail = "the candidate was not proved healthy within the canary and start_timeout"
        if fired.lacking:
            detail = f"{detail}: {fired.lacking}"
        return canary_inconclusive(state, detail)
    return shift_when_due(replace(state, upgrade=replace(state.upgrade, canary_elapsed=True)))


def canary_inconclusive(state: State, detail: str) -> Step:
    """Nothing was proved in time: the policy says whether that is enough, and for what."""
    assert state.upgrade is not None
    what = state.rules.policy.on_inconclusive
    if what is OnInconclusive.ROLLBACK:
        return roll_back(state, "canary_inconclusive", detail)
    if what is OnInconclusive.HOLD:
        waiting = replace(state.upgrade, doubt=detail, waits=True)
        incident = ReportIncident(reason="canary_inconclusive", detail=f"{detail}; {GO_ON}")
        return replace(state, upgrade=waiting), (incident,)
    return shift(replace(state, upgrade=replace(state.upgrade, doubt=detail)))


def healthy(state: State, _event: Event) -> Step:
    """The candidate has answered all that was asked, late or not."""
    assert state.upgrade is not None
    proved = replace(state.upgrade, healthy=True, doubt="", waits=False)
    return shift_when_due(replace(state, upgrade=proved))


def go_on(state: State, event: Event) -> Step:
    """An operator decides that an inconclusive canary is enough; else there is nothing to decide.

    What follows is as always: the shift, and the soak.
    """
    assert state.upgrade is not None
    asked = narrow(event, Requested)
    if not state.upgrade.waits:
        return state, (Refuse(request=asked.request, reason="not_held", detail=NOT_HELD),)
    shifting, actions = shift(replace(state, upgrade=replace(state.upgrade, waits=False)))
    return shifting, (Attach(asked.request), *actions)


def shift_when_due(state: State) -> Step:
    """Shift once the canary has lasted long enough and has shown enough."""
    assert state.upgrade is not None
    if not (state.upgrade.healthy and state.upgrade.canary_elapsed):
        return state, ()
    return shift(state)


def shift(state: State) -> Step:
    """From now on the candidate is to serve alone."""
    return replace(state, phase=Phase.SHIFTING), (Run(operation=Operation.SHIFT),)


def shifted(state: State, _event: Event) -> Step:
    """Only the candidate accepts; the old master stands by without workers."""
    assert state.upgrade is not None
    soaking = replace(state, phase=Phase.SOAKING)
    return soaking, (Aim(Watch.SOAK), Arm(timer=Timer.SOAK, seconds=state.upgrade.soak))


def soak_over(state: State, _event: Event) -> Step:
    """The soak is over: wait for a person, or commit."""
    assert state.upgrade is not None
    if state.upgrade.hold:
        return replace(state, phase=Phase.HELD), ()
    return commit(state)


def commit(state: State, *, overruled: bool = False) -> Step:
    """Commit now; `overruled`: also where the soak has proved nothing."""
    overruled = overruled or state.rules.policy.on_inconclusive is OnInconclusive.COMMIT
    run = Run(operation=Operation.COMMIT, overruled=overruled)
    return replace(state, phase=Phase.COMMITTING), (run,)


def promote(state: State, event: Event) -> Step:
    """An operator decides: commit now, unless something speaks against the candidate."""
    assert state.upgrade is not None
    decided = replace(state, upgrade=replace(state.upgrade, waits=False))
    committing, actions = commit(decided, overruled=True)
    return committing, (Attach(narrow(event, Requested).request), *actions)


def candidate_lost_in_commit(state: State, event: Event) -> Step:
    """Remember it: the commit's last look, or what follows the commit, acts on it."""
    assert state.upgrade is not None
    gone = narrow(event, MasterExited)
    upgrade = replace(state.upgrade, reason="candidate_exited", detail=gone.detail)
    return replace(state, upgrade=upgrade), ()


def committed(state: State, event: Event) -> Step:
    """QUIT was sent to the old master: the verdict is `committed`, come what may."""
    assert state.upgrade is not None
    assert state.candidate is not None
    old, lost = state.active, state.upgrade.reason
    retiring = state.retiring | ({old} if old is not None else frozenset())
    verdict = _commitment(state.upgrade, narrow(event, Succeeded))
    retire = tuple(Retire(generation=one) for one in sorted(retiring - state.retiring))
    serving = replace(
        state, phase=Phase.DRAINING, active=state.candidate, candidate=None, upgrade=None,
        retiring=retiring, reason=None, detail="", rescuable=True,
    )  # fmt: skip
    if state.goal is not Goal.RUN:
        stopping, actions = stop_with(state.goal)(serving, TerminateRequested())
        return stopping, (verdict, *retire, *actions)
    if lost is not None:
        gone = MasterExited(
            generation=state.candidate, orderly=False, detail=state.upgrade.detail,
            at=narrow(event, Succeeded).at,
        )  # fmt: skip
        after, actions = active_lost_in_drain(serving, gone)
        return after, (verdict, *retire, *actions)
    rested, reloads = release_waiting(serving)
    return rested, (verdict, *retire, Aim(Watch.ACTIVE), *reloads)


def _commitment(upgrade: Upgrade, done: Succeeded) -> Pronounce:
    """What is said of a commit: never more than was seen."""
    reason, detail = "healthy", "the candidate serves alone"
    if done.doubt:
        reason, detail = "inconclusive", f"{detail}, although nothing was proved: {done.doubt}"
    elif not done.judged:
        reason, detail = "unjudged", f"{detail}; no probe has judged it"
    elif upgrade.doubt:
        detail = f"{detail}; its canary was inconclusive: {upgrade.doubt}"
    return Pronounce(verdict=Verdict.COMMITTED, reason=reason, detail=detail)


def commit_failed(state: State, event: Event) -> Step:
    """The last look was against it; a stop that was asked for meanwhile comes first.

    Where it was only inconclusive, the policy may have a person decide.
    """
    assert state.upgrade is not None
    failed = narrow(event, Failed)
    if state.goal is Goal.RUN:
        wait = state.rules.policy.on_inconclusive is OnInconclusive.HOLD
        if failed.reason not in INCONCLUSIVE or not wait:
            return operation_failed(state, event)
        waiting = replace(state.upgrade, doubt=failed.detail, waits=True)
        incident = ReportIncident(reason=failed.reason, detail=f"{failed.detail}; {DECIDE}")
        return replace(state, phase=Phase.HELD, upgrade=waiting), (incident,)
    upgrade = replace(state.upgrade, reason=failed.reason, detail=failed.detail)
    return stop_with(state.goal)(replace(state, upgrade=upgrade), TerminateRequested())


def roll_back(state: State, reason: str, detail: str) -> Step:
    """Return to the old generation because of `reason`."""
    assert state.upgrade is not None
    upgrade = replace(state.upgrade, reason=reason, detail=detail)
    back = replace(
        state, phase=Phase.ROLLING_BACK, upgrade=upgrade, goal=state.goal, reason=reason,
        detail=detail,
    )  # fmt: skip
    return back, (Aim(Watch.NOTHING), Run(operation=Operation.ROLL_BACK))


def operation_failed(state: State, event: Event) -> Step:
    """Roll back: the operation of this phase failed."""
    failed = narrow(event, Failed)
    return roll_back(state, failed.reason, failed.detail)


def trigger(state: State, event: Event) -> Step:
    """Roll back: the evidence is against the candidate."""
    seen = narrow(event, Triggered)
    return roll_back(state, seen.reason, seen.detail)


def start_timed_out(state: State, _event: Event) -> Step:
    """Roll back: the candidate did not become ready in time."""
    text = f"the candidate was not ready within start_timeout ({state.rules.policy.come_up:g} s)"
    return roll_back(state, "start_timeout", text)


def candidate_lost(state: State, event: Event) -> Step:
    """Roll back: the candidate's master is gone."""
    return roll_back(state, "candidate_exited", narrow(event, MasterExited).detail)


def standby_lost_early(state: State, event: Event) -> Step:
    """Roll back to a fresh start of the old version: the old master died and nothing is proved."""
    return roll_back(state, "active_exited", narrow(event, MasterExited).detail)


def standby_lost(state: State, event: Event) -> Step:
    """The candidate serves alone and goes on being judged; a rollback would start afresh."""
    detail = narrow(event, MasterExited).detail
    return state, (ReportIncident(reason="standby_exited", detail=detail),)


def operator_rollback(state: State, event: Event) -> Step:
    """Roll back: an operator says so."""
    back, actions = roll_back(state, "operator", "rolled back by an operator")
    return back, (Attach(narrow(event, Requested).request), *actions)


def rolled_back(state: State, event: Event) -> Step:
    """The old generation (or a fresh start of its version) serves; the candidate is gone."""
    assert state.upgrade is not None
    done = narrow(event, Succeeded)
    verdict = Pronounce(
        verdict=Verdict.ROLLED_BACK,
        reason=state.upgrade.reason or "operator",
        detail=f"{state.upgrade.detail}; {done.note}" if done.note else state.upgrade.detail,
    )
    active = state.active if done.generation is None else done.generation
    retire = tuple(Retire(generation=one) for one in sorted(done.retiring))
    serving, after = rest(
        replace(state, active=active, candidate=None, retiring=state.retiring | done.retiring)
    )
    rested, reloads = release_waiting(serving)
    return rested, (verdict, *retire, *after, *reloads)


def rollback_failed(state: State, event: Event) -> Step:
    """No generation could be proved good: a person is needed."""
    assert state.upgrade is not None
    failed = narrow(event, Failed)
    detail = f"{failed.detail} (rolled back because: {state.upgrade.detail})"
    verdict = Pronounce(verdict=Verdict.FAILED, reason=failed.reason, detail=detail)
    dropped, refusals = drop_waiting(state, "degraded")
    lost = replace(
        dropped, phase=Phase.DEGRADED, upgrade=None, candidate=None, reason=failed.reason,
        detail=failed.detail,
    )  # fmt: skip
    return lost, (verdict, *refusals)
