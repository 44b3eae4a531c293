"""The supervisor ends and leaves nginx serving: at once by command, else as soon as it can be.

Theory
------
Whoever asks by `nginxctl detach` can be told no, so it is refused wherever something of nginx is
unfinished. A service manager that restarts the unit (SIGRTMIN) cannot: it waits for a while, and
kills the supervisor then, which is no harm to nginx either. So the wish is remembered (`leaving`),
and the supervisor ends in the first state in which nothing is under way: after the verdict of an
upgrade, after a start, a reload, a stop. What waits for a person would last for ever, and is rolled
back first.
"""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.actions import Action, Exit, LetGo, Refuse, ReportIncident
from supervisor.core.cell import Step, narrow, upgrade_text
from supervisor.core.events import Event, Requested
from supervisor.core.model import Phase, State
from supervisor.core.upgrading import roll_back

AT_REST = frozenset({Phase.IDLE, Phase.DRAINING, Phase.BACKOFF, Phase.STOPPED, Phase.DEGRADED})
"""Nothing of nginx is half done: whoever comes next finds all there is to know."""

DETACHED = 3
"""The exit code: neither a failure nor the end of nginx, so that a service manager can tell it."""
NOT_SERVING = 1
"""The exit code where nginx ought to run and may not: a service manager starts us again."""

_WITHOUT_NGINX = frozenset({Phase.BACKOFF, Phase.DEGRADED})

_ONLY_WAITING = frozenset({Phase.CANARY, Phase.SOAKING, Phase.HELD})


def detach(state: State, event: Event) -> Step:
    """Leave nginx serving and end."""
    request = narrow(event, Requested).request
    if state.reloading:
        detail = "cannot detach: a reload runs; wait for it to end and try again"
        return state, (Refuse(request=request, reason="reload_in_progress", detail=detail),)
    return replace(state, leaving=True), (LetGo(request), Exit(DETACHED))


def leave(state: State, _event: Event) -> Step:
    """End as soon as nothing is under way, and leave nginx as it is then."""
    if state.leaving:
        return state, ()
    leaving = replace(state, leaving=True)
    if state.phase in AT_REST and not state.reloading:
        return leaving, ()
    now = "a reload runs" if state.reloading else f"nginx is {state.phase.value}"
    what = now if state.upgrade is None else upgrade_text(state)
    detail = f"told to end and to leave nginx serving: {what}, and the supervisor ends after that"
    return leaving, (ReportIncident(reason="detach_waits", detail=detail),)


def on_the_way_out(state: State, actions: tuple[Action, ...]) -> Step:
    """What follows from `leaving` once an event has led to `state` by `actions`."""
    if not state.leaving or any(isinstance(one, Exit) for one in actions):
        return state, actions
    if state.phase in AT_REST and not state.reloading:
        # Where it was stopped on purpose it stays so, and the service with it.
        code = NOT_SERVING if state.phase in _WITHOUT_NGINX else DETACHED
        return state, (*actions, LetGo(), Exit(code))
    upgrade = state.upgrade
    if upgrade is None or state.phase not in _ONLY_WAITING or not (upgrade.hold or upgrade.waits):
        return state, actions
    detail = "rolled back since the supervisor was told to end, and this would wait for a person"
    back, more = roll_back(state, "operator", detail)
    return back, (*actions, *more)
