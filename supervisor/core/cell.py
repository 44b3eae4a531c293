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


def refuse(reason: str, text: str) -> Cell:
    """A cell that refuses a command with a fixed reason."""

    def refuse(state: State, event: Event) -> Step:
        request = narrow(event, Requested).request
        return state, (Refuse(request=request, reason=reason, detail=text.format(s=state)),)

    refuse.__doc__ = f"Refused: `{reason}`."
    return refuse


def upgrade_text(state: State) -> str:
    """The upgrade that runs, in words."""
    assert state.upgrade is not None
    return f"upgrade {state.upgrade.id} is in {state.phase.value}"


def refuse_busy(state: State, event: Event) -> Step:
    """Refused: `upgrade_in_progress`."""
    detail = (
        f"cannot do this now: {upgrade_text(state)}; wait for its verdict (nginxctl status), "
        "or end it with nginxctl rollback"
    )
    request = narrow(event, Requested).request
    return state, (Refuse(request=request, reason="upgrade_in_progress", detail=detail),)


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
    """Reloads that waited for a verdict run now on whoever serves; only one is needed."""
    if not state.waiting:
        return state, ()
    first, *rest = state.waiting
    more = tuple(
        Complete(request=request, detail="covered by the reload that runs now")
        for request, _ in rest
    )
    return replace(state, waiting=(), reloading=True), (ReloadActive(first[0]), *more)


def drop_waiting(state: State, reason: str) -> Step:
    """Reloads that waited have nothing to reload any more."""
    refusals = tuple(
        Refuse(request=request, reason=reason, detail=f"cannot reload: nginx is {reason}")
        for request, _ in state.waiting
    )
    return replace(state, waiting=()), refusals
