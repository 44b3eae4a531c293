"""The one line that a service manager shows of the supervisor: who serves, and what happens to it.

Theory
------
`systemctl status` is where people look first, at night and on a phone. So the line begins with the
word of `nginxctl status`, then names each generation with its version, then the phase, and last why
it is so. It changes whenever one of these does, so an upgrade can be followed in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.core.model import Goal, Phase, State, public_state


def service_status(
    state: State,
    versions: Mapping[int, str],
    *,
    told: str | None = None,
    reason: str | None = None,
    note: str = "",
) -> str:
    """The line; `versions` are those of the generations that are known.

    `told` is the word for the state where what is seen differs from what the machine is in, with
    `reason` for that; `note` is what is to be said besides.
    """
    word = told or public_state(state)
    phase = "reloading" if state.reloading and state.phase is Phase.IDLE else state.phase.value
    line = f"{word}:{_generations(state, versions)} ({phase})"
    why = reason or _reason(state)
    return "; ".join(filter(None, (line, why, note)))


def _generations(state: State, versions: Mapping[int, str]) -> str:
    active = _named(state.active, versions)
    if state.candidate is not None and state.candidate != state.active:
        arrow = "<-" if state.phase is Phase.ROLLING_BACK else "->"
        return f"{active} {arrow}{_named(state.candidate, versions)}"
    leaving = [_named(one, versions) for one in sorted(state.retiring) if one in versions]
    if leaving and state.phase is Phase.DRAINING:
        return f"{active}, connections of{' and'.join(leaving)} finish"
    return active


def _named(generation: int | None, versions: Mapping[int, str]) -> str:
    if generation is None:
        return ""
    version = versions.get(generation)
    return f" g{generation}" if version is None else f" g{generation} nginx {version}"


def _reason(state: State) -> str:
    if state.upgrade is not None and state.upgrade.reason:
        return state.upgrade.reason
    if state.upgrade is not None and state.upgrade.waits:
        return "waits for nginxctl promote or rollback"
    if state.phase in (Phase.STOPPING, Phase.STOPPED) and state.goal is not Goal.RUN:
        return ""
    return state.reason or ""


def may_serve(state: State) -> bool:
    """Whether, with a worker that accepts, the service is up: nginx is neither being brought up nor
    being taken down."""
    return state.phase not in (Phase.STARTING, Phase.STOPPING, Phase.STOPPED)


def is_ending(state: State) -> bool:
    """Whether the supervisor itself will end, and not nginx alone."""
    stops = state.goal is Goal.EXIT and state.phase in (Phase.STOPPING, Phase.STOPPED)
    return stops or state.leaving
