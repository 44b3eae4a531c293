"""When the supervisor may be replaced by another program, and what of the machine goes along.

Theory
------
The replacement is an execve: between it and the new program's first look nobody reacts for about
half a second. What the machine knows can be carried over wherever it only waits, for an event, a
timer or a person. While an operation runs (a start, a preflight, a shift, a commit, a rollback, a
stop) part of the state is in that operation, so those are waited for: each has a limit of its own.

By default an upgrade is waited for until its verdict. One that is held, or will be, is not: nobody
knows when a person decides, so the replacement is refused, as a reload is.

A time is carried as the seconds from it to the moment of the hand-over, since the clocks of two
processes have nothing in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from supervisor.core.cell import upgrade_text
from supervisor.core.commands import Reload
from supervisor.core.model import Goal, Phase, Rules, State, Upgrade
from supervisor.core.restart_policy import RestartPolicy

_AT_REST = frozenset({Phase.IDLE, Phase.DRAINING, Phase.BACKOFF, Phase.STOPPED, Phase.DEGRADED})
_ONLY_WAITING = frozenset({Phase.CANARY, Phase.SOAKING, Phase.HELD})
"""The phases of an upgrade without an operation."""
_DECIDED = (Phase.COMMITTING, Phase.ROLLING_BACK)


class Moment(Enum):
    """Whether the supervisor may be replaced at this moment."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What is to be done with a wish to replace the supervisor, and why not at once."""

    moment: Moment
    reason: str = ""
    detail: str = ""


def rule(state: State, *, now: bool) -> Ruling:
    """Whether the supervisor may be replaced; `now` is for not to wait for an upgrade's verdict."""
    if state.goal is Goal.EXIT or state.leaving:
        text = "cannot replace the supervisor: it has been told to end"
        return Ruling(moment=Moment.NEVER, reason="stopping", detail=text)
    upgrade = state.upgrade
    held = upgrade is not None and (upgrade.hold or upgrade.waits)
    if not now and held and state.phase not in _DECIDED:
        text = (
            f"cannot replace the supervisor: {upgrade_text(state)}; nginxctl promote or nginxctl "
            "rollback first, or nginxctl self-upgrade --now, after which the upgrade goes on"
        )
        return Ruling(moment=Moment.NEVER, reason="upgrade_held", detail=text)
    if state.reloading:
        return Ruling(moment=Moment.LATER, detail="a reload runs")
    if state.phase in _AT_REST or (now and state.phase in _ONLY_WAITING):
        return Ruling(moment=Moment.NOW)
    if upgrade is not None:
        return Ruling(moment=Moment.LATER, detail=upgrade_text(state))
    return Ruling(moment=Moment.LATER, detail=f"nginx is {state.phase.value}")


def state_to_data(state: State, *, at: float) -> dict[str, object]:
    """What `state_from_data` needs, for JSON; rules and limits are the settings', not in it."""
    restarts = state.restarts
    return {
        "phase": state.phase.value,
        "goal": state.goal.value,
        "active": state.active,
        "candidate": state.candidate,
        "retiring": sorted(state.retiring),
        "upgrade": None if state.upgrade is None else asdict(state.upgrade),
        "reason": state.reason,
        "detail": state.detail,
        "served": state.served,
        "rescuable": state.rescuable,
        "waiting": [number for number, _ in state.waiting],
        "starts": [at - one for one in restarts.starts],
        "crashes": [at - one for one in restarts.crashes],
        "last_delay": restarts.last_delay,
    }


def state_from_data(
    data: Mapping[str, Any], *, rules: Rules, restarts: RestartPolicy, at: float
) -> State:
    """The state that `state_to_data` was given, under other rules; `at` is the same moment.

    Raises KeyError, TypeError or ValueError where `data` is no such thing.
    """
    upgrade = data["upgrade"]
    return State(
        rules=rules,
        restarts=replace(
            restarts,
            starts=tuple(at - ago for ago in data["starts"]),
            crashes=tuple(at - ago for ago in data["crashes"]),
            last_delay=data["last_delay"],
        ),
        phase=Phase(data["phase"]),
        goal=Goal(data["goal"]),
        active=data["active"],
        candidate=data["candidate"],
        retiring=frozenset(data["retiring"]),
        upgrade=None if upgrade is None else Upgrade(**upgrade),
        reason=data["reason"],
        detail=data["detail"],
        served=data["served"],
        rescuable=data["rescuable"],
        waiting=tuple((number, Reload()) for number in data["waiting"]),
    )
