"""The vocabulary of the machine: phases, verdicts, timers and the whole state as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from supervisor.core.commands import Reload
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import VerdictPolicy

if TYPE_CHECKING:
    from supervisor.core.events import MasterExited


class Phase(Enum):
    """Where the supervisor is; the phases of an upgrade are public words of the contract."""

    STARTING = "starting"
    IDLE = "idle"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEGRADED = "degraded"
    PREFLIGHT = "preflight"
    SPAWNING = "spawning"
    CANARY = "canary"
    SHIFTING = "shifting"
    SOAKING = "soaking"
    HELD = "held"
    COMMITTING = "committing"
    DRAINING = "draining"
    TAKING_OVER = "taking_over"
    ROLLING_BACK = "rolling_back"


UPGRADING = frozenset(
    {
        Phase.PREFLIGHT,
        Phase.SPAWNING,
        Phase.CANARY,
        Phase.SHIFTING,
        Phase.SOAKING,
        Phase.HELD,
        Phase.COMMITTING,
        Phase.ROLLING_BACK,
    }
)
"""The phases in which an upgrade has no verdict yet."""


class Verdict(Enum):
    """How an upgrade or a rollback ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    FAILED = "failed"
    DONE = "done"  # of a dry run: nothing was to be changed


class Timer(Enum):
    """The machine's timers; all are disarmed when the phase changes."""

    BACKOFF = "backoff"
    START = "start"
    CANARY = "canary"
    CANARY_LIMIT = "canary_limit"
    SOAK = "soak"


class OnForeignStop(Enum):
    """What to do when someone else stopped nginx in an orderly way."""

    RESTART = "restart"
    STOP = "stop"


class Goal(Enum):
    """What the operator wants of nginx, apart from what is (as in dinit's desired state)."""

    RUN = "run"
    STOP = "stop"
    RESTART = "restart"
    EXIT = "exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings that the machine itself needs."""

    policy: VerdictPolicy = field(default_factory=VerdictPolicy)
    on_foreign_stop: OnForeignStop = OnForeignStop.RESTART


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """The upgrade that runs, from its acceptance to its verdict."""

    id: str
    canary: float
    soak: float
    hold: bool = False
    healthy: bool = False  # every probe and every worker of the candidate has answered well
    canary_elapsed: bool = False
    doubt: str = ""  # what could not be proved, where it goes on or waits in spite of that
    waits: bool = False  # for a person, because of the doubt
    reason: str | None = None  # why it is being rolled back
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the machine knows. Generations are their ids; processes are the edges' business."""

    rules: Rules
    restarts: RestartPolicy
    phase: Phase = Phase.STARTING
    goal: Goal = Goal.RUN
    active: int | None = None
    candidate: int | None = None
    retiring: frozenset[int] = frozenset()
    upgrade: Upgrade | None = None
    reason: str | None = None  # why the phase is not idle, in the contract's words
    detail: str = ""
    served: bool = False  # some generation has been ready in this supervisor's life
    rescuable: bool = False  # what drains is the generation that the active one replaced
    reloading: bool = False
    leaving: bool = False  # the supervisor ends once nothing is under way, and nginx serves on
    waiting: tuple[tuple[int, Reload], ...] = field(default=())  # reloads that wait for a verdict
    exits: tuple[MasterExited, ...] = ()  # while an operation runs that brings a generation up


def public_state(state: State) -> str:
    """The word of the contract for what the machine is in."""
    return _PUBLIC[state.phase]


_PUBLIC: Mapping[Phase, str] = {
    Phase.STARTING: "starting",
    Phase.IDLE: "running",
    Phase.BACKOFF: "backoff",
    Phase.STOPPING: "draining",
    Phase.STOPPED: "stopped",
    Phase.DEGRADED: "degraded",
    Phase.DRAINING: "draining",
    Phase.TAKING_OVER: "starting",
    **dict.fromkeys(UPGRADING, "upgrading"),
}
