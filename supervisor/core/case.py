"""What a trigger is given, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.seen import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What condemns the candidate: a reason of the contract, and a text for people."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Who is judged, against whom, on what, and when."""

    candidate: int
    reference: int | None  # the generation before; None: there is none to compare with
    seen: Seen
    alone: bool  # only the candidate accepts new connections
    at: float
