"""What the machine wants done, in the imperative. The engine carries actions out in order.

`Run` starts the operation of the new phase and cancels the one before it; everything else is
short. A change of phase within an upgrade is in the journal before the first of its actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supervisor.core import commands
from supervisor.core.model import Timer, Verdict


class Operation(Enum):
    """The long procedures; each answers with exactly one `Succeeded` or `Failed`."""

    RECOVER = "recover"  # find a living nginx and adopt it, else start one
    START = "start"
    RESCUE = "rescue"  # start the version before the active one, at once
    PREFLIGHT = "preflight"
    SPAWN = "spawn"
    SHIFT = "shift"
    COMMIT = "commit"
    ROLL_BACK = "roll_back"
    STOP = "stop"
    TAKE_OVER = "take_over"  # a new master of our own in the place of the one that serves


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Start `operation`; `command` is the request that it serves, where there is one."""

    operation: Operation
    command: commands.Command | None = None
    overruled: bool = False  # of a commit: evidence that proves nothing does not stop it


class Watch(Enum):
    """What the probes are aimed at."""

    ACTIVE = "active"
    CANARY = "canary"
    SOAK = "soak"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Aim:
    """Aim the probes."""

    watch: Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Arm `timer` for `seconds` from now."""

    timer: Timer
    seconds: float


@dataclass(frozen=True, slots=True)
class BeginUpgrade:
    """An upgrade was accepted: open its journal and let `request` wait for its verdict."""

    request: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Let `request` wait for the end of what runs now (the verdict, or the stop)."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Answer `request`: nothing was changed."""

    request: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Answer `request`: done."""

    request: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Answer all attached requests that do not wait for a verdict."""

    ok: bool
    reason: str
    detail: str
    unchanged: bool = False  # not ok, and everything is as it was: a refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Pronounce:
    """Write the verdict of the running upgrade to disk, then tell everyone who waits for it."""

    verdict: Verdict
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportIncident:
    """Record something that an operator must know and that is no verdict."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReloadActive:
    """Test the configuration and reload the active generation for `request`."""

    request: int
    command: commands.Reload = commands.Reload()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Have every living master reopen its logs, then answer `request`."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """See `generation` off: wait for its connections up to the drain deadline, then insist."""

    generation: int


@dataclass(frozen=True, slots=True)
class HastenDrain:
    """End all retiring generations now."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """Hold nothing of nginx any more and put on record what is left serving; tell `request`."""

    request: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """End the supervisor with `code`."""

    code: int


Action = (
    Run
    | Aim
    | Arm
    | BeginUpgrade
    | Attach
    | Refuse
    | Complete
    | Settle
    | Pronounce
    | ReportIncident
    | ReloadActive
    | ReopenLogs
    | Retire
    | HastenDrain
    | LetGo
    | Exit
)
