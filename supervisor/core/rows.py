"""Rows of samples: those of the newest look, the last of them over some seconds, what has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from supervisor.core.signals import ProcessKind, Progress, Queue, Usage

LEAST = 3
"""Samples that show that something lasts: two may be an accident."""

Sample = TypeVar("Sample", Usage, Progress)
Timed = TypeVar("Timed", Usage, Progress, Queue)


def current(rows: Mapping[int, Sequence[Sample]], kind: ProcessKind) -> list[Sequence[Sample]]:
    """The rows of the processes that the newest look has seen, by their age."""
    newest = max((row[-1].at for row in rows.values()), default=0.0)
    found = [row for row in rows.values() if row[-1].at == newest and row[-1].kind is kind]
    return sorted(found, key=lambda row: row[-1].pid)


def lately(row: Sequence[Timed], seconds: float) -> Sequence[Timed]:
    """The newest samples, which reach back `seconds` at least; empty where the row is too short."""
    ends = row[-1].at
    begin = next((i for i in range(len(row) - 1, -1, -1) if ends - row[i].at >= seconds), None)
    if begin is None or len(row) < LEAST:
        return ()
    return row[min(begin, len(row) - LEAST) :]


def awake_share(samples: Sequence[Progress]) -> float | None:
    """The part of the time in which the busiest thread ran, or waited for a processor."""
    if not samples:
        return None
    first, last = samples[0], samples[-1]
    if first.awake is None or last.awake is None or last.at <= first.at:
        return None
    return (last.awake - first.awake) / (last.at - first.at)


def rise(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How long (time, value) have grown, and by how much."""
    if not values:
        return 0.0, 0.0
    return values[-1][0] - values[0][0], values[-1][1] - values[0][1]
