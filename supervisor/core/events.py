"""What can happen to the machine, in the past tense.

An operation that the machine started answers with `Succeeded` or `Failed`; the engine drops the
answer of an operation that has been replaced, so a phase only ever sees its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from supervisor.core.commands import Command
from supervisor.core.model import Rules, Timer
from supervisor.core.restart_policy import RestartPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """An operator asked for `command`; `request` names the waiter, `upgrade_id` is fresh."""

    request: int
    command: Command
    upgrade_id: str = ""


@dataclass(frozen=True, slots=True)
class TerminateRequested:
    """The supervisor itself was told to end (SIGTERM, SIGINT)."""


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The supervisor was told to end and to leave nginx serving (SIGRTMIN): it is restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterExited:
    """The master of `generation` is gone; `orderly` where it left by itself with code 0."""

    generation: int
    orderly: bool
    detail: str
    at: float  # monotonic seconds
    started: float = -math.inf  # the same; when the master was started, if that is known
    replaced: bool = False  # somebody else upgraded nginx: another master serves by now


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationGone:
    """A retiring generation has neither master nor workers any more."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """The operation of this phase is done; `generation` is the one that it brought up."""

    generation: int | None = None
    interrupted: InterruptedUpgrade | None = None
    retiring: frozenset[int] = frozenset()
    note: str = ""
    nothing_to_do: bool = False
    dry_run: bool = False
    judged: bool = True  # of a commit: a probe that passed before has looked at the candidate
    doubt: str = ""  # of a commit: what was not proved
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedUpgrade:
    """An upgrade that a dead supervisor left behind; `committed`: its verdict was on disk."""

    upgrade_id: str
    candidate: int | None
    detail: str
    committed: bool = False  # QUIT was intended and the candidate holds up: it is past return


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The operation of this phase could not do its work."""

    reason: str
    detail: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class CandidateHealthy:
    """Every probe has passed often enough and every worker of the candidate has answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    """The evidence says that the candidate misbehaves."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFailed:
    """The serving `generation` fails a probe that it had passed, and that is to restart it.

    Told again with each further failure.
    """

    generation: int
    detail: str
    at: float  # monotonic seconds


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that was armed in this phase has run out.

    `lacking`, of a canary's limit: what the candidate lacked then to be proved healthy, for people.
    """

    timer: Timer
    lacking: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesChanged:
    """The supervisor's own settings were read again; `restarts` has the new limits."""

    rules: Rules
    restarts: RestartPolicy


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """The reload that ran beside the phase is over; its requester has been answered."""


Event = (
    Requested
    | TerminateRequested
    | LeaveRequested
    | MasterExited
    | GenerationGone
    | Succeeded
    | Failed
    | CandidateHealthy
    | Triggered
    | ProbeFailed
    | TimerFired
    | ReloadEnded
    | RulesChanged
)
