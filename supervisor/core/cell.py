"""What the cells of the machine are made of, and the ones that every phase uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from supervisor.core.actions import Action, Attach, Complete, Refuse, ReloadActive, ReopenLogs
from supervisor.core.events import Event, MasterExited, Requested, RulesChanged
from supervisor.core.model import Phase, State

Step = tuple[State, tuple[Action, ...]]
Cell = Callable[[State, Event], Step]

E = TypeVar("E")


def narrow(event: Event, kind: type[E]) -> E:
    """`event` narrowed to the type that its column stands for."""
    assert isinstance(event, kind)
    return event


def stay(state: State, _event: Event) -> Step:
    """Ignored: the phase's own operation sees it in the processes, or it comes too late."""
    return state, ()


def note_exit(state: State, event: Event) -> Step:
    """Remember it: what the operation reports as serving may be dead by the time it is heard."""
    return replace(state, exits=(*state.exits, narrow(event, MasterExited))), ()


def exit_of_active(state: State) -> MasterExited | None:
    """How the active generation's master ended, where that was seen while it was brought up."""
    return next((one for one in state.exits if one.generation == state.active), None)


def refuse(reason: str, text: str | Callable[[State], str]) -> Cell:
    """A cell that refuses a command with a fixed reason; `text` may depend on the state."""

    def refuse(state: State, event: Event) -> Step:
        request = narrow(event, Requested).request
        detail = text if isinstance(text, str) else text(state)
        return state, (Refuse(request=request, reason=reason, detail=detail),)

    refuse.__doc__ = f"Refused: `{reason}`."
    return refuse


_UNDERWAY = {
    Phase.HELD: "is held until someone decides",
    Phase.COMMITTING: "is being committed",
    Phase.ROLLING_BACK: "is being rolled back",
}
DECIDE = "nginxctl promote commits it, nginxctl rollback takes it back"
GO_ON = "nginxctl promote goes on with it all the same, nginxctl rollback takes it back"


def upgrade_text(state: State) -> str:
    """The upgrade that runs, in words."""
    assert state.upgrade is not None
    where = _UNDERWAY.get(state.phase)
    if where is None and state.upgrade.waits:
        where = f"has proved nothing in its {state.phase.value} and waits until someone decides"
    if where is None:
        where = f"is in {state.phase.value}"
        if state.upgrade.hold:
            where += " and will be held until someone decides"
    return f"upgrade {state.upgrade.id} {where}"


def busy_text(state: State) -> str:
    """Why nothing else may begin, and what ends that: a verdict comes by itself, unless held."""
    assert state.upgrade is not None
    now = f"cannot do this now: {upgrade_text(state)}"
    if state.phase in (Phase.COMMITTING, Phase.ROLLING_BACK):
        return f"{now}; wait for its verdict (nginxctl status)"
    if state.phase is Phase.CANARY and state.upgrade.waits:
        return f"{now}; {GO_ON}"
    if state.phase is Phase.HELD or state.upgrade.hold:
        return f"{now}; {DECIDE}"
    return f"{now}; wait for its verdict (nginxctl status), or end it with nginxctl rollback"


def down_text(state: State) -> str:
    """Why nginx does not run, and what starts it."""
    why = f"{state.reason}: {state.detail}" if state.detail else state.reason
    match state.phase:
        case Phase.BACKOFF:
            text = f"nginx is down ({why}) and will be started again; nginxctl start does that now"
        case Phase.DEGRADED:
            text = f"the supervisor has given up on nginx ({why}); mend that, then nginxctl start"
        case _:
            stopped = f"nginx is stopped ({why})" if state.detail else "nginx is stopped"
            text = f"{stopped}; nginxctl start starts it"
    return f"cannot do this: {text}"


def running_text(state: State) -> str:
    """Why there is nothing to start."""
    if state.upgrade is not None:
        return f"cannot start: nginx runs already, and {upgrade_text(state)}"
    return "cannot start: nginx runs already"


def undrained_text(state: State) -> str:
    """Why there is no old generation that could be ended."""
    if state.upgrade is not None:
        text = f"cannot drain: {upgrade_text(state)}, and the old generation stays until then"
        decided = state.phase in (Phase.SOAKING, Phase.HELD)
        return f"{text}; {DECIDE}" if decided else text
    if state.retiring:
        word = state.phase.value
        return f"cannot drain: nginx is {word}; once it serves, nginxctl drain --now ends the rest"
    return "cannot drain: no old generation is left"


def attach(state: State, event: Event) -> Step:
    """The requester waits for the end of what runs already."""
    return state, (Attach(narrow(event, Requested).request),)


def reopen(state: State, event: Event) -> Step:
    """Every living master reopens its logs."""
    return state, (ReopenLogs(narrow(event, Requested).request),)


def rules_changed(state: State, event: Event) -> Step:
    """The new rules hold from now on; crashes that were counted stay counted."""
    changed = narrow(event, RulesChanged)
    restarts = replace(
        changed.restarts, starts=state.restarts.starts, crashes=state.restarts.crashes,
        last_delay=state.restarts.last_delay,
    )  # fmt: skip
    return replace(state, rules=changed.rules, restarts=restarts), ()


def settle_phase(state: State) -> State:
    """`state` in the phase in which it rests once nothing runs: draining or idle."""
    phase = Phase.DRAINING if state.retiring else Phase.IDLE
    return replace(
        state, phase=phase, upgrade=None, candidate=None, reason=None, detail="", exits=(),
        rescuable=state.rescuable and bool(state.retiring),
    )  # fmt: skip


def release_waiting(state: State) -> Step:
    """Reloads that waited for a verdict run now on whoever serves; only one is needed.

    One that is to be guarded is the one that runs: it covers the others, and not the reverse.
    """
    if not state.waiting:
        return state, ()
    first = next((one for one in state.waiting if one[1].guard), state.waiting[0])
    more = tuple(
        Complete(request=request, detail="covered by the reload that runs now")
        for request, _ in state.waiting
        if request != first[0]
    )
    return replace(state, waiting=(), reloading=True), (ReloadActive(*first), *more)


_DROPPED = {
    "not_running": "nginx ended first",
    "stopping": "nginx is being stopped",
    "degraded": "the upgrade that it waited for has failed; see nginxctl status",
}


def drop_waiting(state: State, reason: str) -> Step:
    """Reloads that waited have nothing to reload any more."""
    refusals = tuple(
        Refuse(request=request, reason=reason, detail=f"cannot reload: {_DROPPED[reason]}")
        for request, _ in state.waiting
    )
    return replace(state, waiting=()), refusals
