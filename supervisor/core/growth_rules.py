"""A candidate whose workers grow: memory and descriptors beside those of the generation before.

Theory
------
A leak shows as growth without a pause, far beyond what the old generation's workers use. Neither
alone is one: a new version may be larger and stable, and every worker grows while it gets busy. So
all of these have to hold, for one worker or for the sum of all:

- it grows from sample to sample, for `growing_for` at least, and by the floor at least;
- it uses more than the floor, and more than the factor, beyond the reference.

The reference is what the old generation's workers used at the same age, where that was seen, and
never less than what they use at present: they carried the same load a moment ago. Where there are
fewer workers than before, each may have the share of those that are missing.

More connections need more memory, so each descriptor beyond the old generation's explains a part.
Connections are descriptors too, and their number is the clients' doing, not the worker's: only
those count that are no sockets, beyond two files for each socket (what is sent, and what is
stored).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.case import Case, Trigger
from supervisor.core.rows import current, rise
from supervisor.core.seen import AGES
from supervisor.core.signals import ProcessKind, Usage
from supervisor.core.usage_settings import MEGABYTE, UsageSettings

PER_DESCRIPTOR = 256 * 1024
"""Bytes of memory that a connection more explains: buffers for its request and its answer, TLS."""
ALL = 4
"""So many floors for all workers together."""
LATE = 1.2
"""A sample is taken somewhat after the age that it is for."""

Value = Callable[[Usage], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """What grows, and how much of it is too much."""

    reason: str
    value: Value
    factor: int
    floor: float
    show: Callable[[float], str]


def memory_grows(case: Case, settings: UsageSettings) -> Trigger | None:
    """Workers of the candidate that need more and more memory."""
    before = _workers(case.seen.usage(case.reference)) if case.reference is not None else []
    most = max((one.descriptors or 0 for row in before for one in row), default=0)

    def value(one: Usage) -> float | None:
        if one.memory is None:
            return None
        more = max(0, (one.descriptors or 0) - most)
        return max(0.0, one.memory - more * PER_DESCRIPTOR)

    return _grows(
        case, settings, before,
        _Measure(
            reason="memory_grows", value=value, factor=settings.memory_factor,
            floor=settings.memory_floor_mb * MEGABYTE,
            show=lambda bytes_: f"{bytes_ / MEGABYTE:.0f} MB of memory",
        ),
    )  # fmt: skip


def descriptors_grow(case: Case, settings: UsageSettings) -> Trigger | None:
    """Workers of the candidate that open more and more, and not for connections."""
    before = _workers(case.seen.usage(case.reference)) if case.reference is not None else []
    return _grows(
        case, settings, before,
        _Measure(
            reason="descriptors_grow", value=_unexplained, factor=settings.descriptors_factor,
            floor=settings.descriptors_floor,
            show=lambda number: f"{number:.0f} descriptors that are no connections",
        ),
    )  # fmt: skip


def _unexplained(one: Usage) -> float | None:
    """Descriptors that neither are sockets nor belong to any."""
    if one.descriptors is None or one.sockets is None:
        return None
    return max(0.0, one.descriptors - 3 * one.sockets)


def _grows(
    case: Case, settings: UsageSettings, before: list[Sequence[Usage]], measure: _Measure
) -> Trigger | None:
    if not measure.factor or case.reference is None:
        return None
    rows = current(case.seen.usage(case.candidate), ProcessKind.WORKER)
    suspects = [
        (row, values)
        for row in rows
        if _lasts(values := _rising(row, measure.value), settings, measure.floor)
    ]
    together = _rising_together(rows, measure.value)
    all_rise = _lasts(together, settings, ALL * measure.floor)
    if not suspects and not all_rise:
        return None
    ages = _workers(case.seen.ages(case.reference))
    present = max(_sums(before, measure.value), default=None)
    if present is None:
        return None
    at_once = max(_number_at_once(before), 1)
    missing = max(1.0, at_once / len(rows))
    for row, values in suspects:
        alike = _at_age(ages, row[-1].age, measure.value)
        now = max(value for value in _each(before, measure.value))
        reference = max(alike, now) * missing
        if _exceeds(values[-1][1], reference, measure, measure.floor):
            return _condemn(measure, f"worker {row[-1].pid}", values, row[-1].age, reference)
    if all_rise:
        oldest = max(row[-1].age for row in rows)
        reference = max(present, _at_age(ages, oldest, measure.value) * at_once)
        if _exceeds(together[-1][1], reference, measure, ALL * measure.floor):
            return _condemn(measure, f"{len(rows)} workers", together, oldest, reference)
    return None


def _condemn(
    measure: _Measure,
    who: str,
    values: Sequence[tuple[float, float]],
    age: float,
    reference: float,
) -> Trigger:
    seconds, more = rise(values)
    detail = (
        f"{who} of the candidate: {measure.show(values[-1][1])} at the age of {age:.0f} s, "
        f"{measure.show(more)} more than {seconds:.0f} s before, and it goes on; "
        f"the old generation: {measure.show(reference)} at most"
    )
    return Trigger(reason=measure.reason, detail=detail)


def _lasts(values: Sequence[tuple[float, float]], settings: UsageSettings, floor: float) -> bool:
    seconds, more = rise(values)
    return seconds >= settings.growing_for and more > 0 and more >= floor


def _exceeds(value: float, reference: float, measure: _Measure, floor: float) -> bool:
    return value >= measure.factor * reference and value - reference >= floor


def _rising(row: Sequence[Usage], value: Value) -> list[tuple[float, float]]:
    """The newest (time, value) of one process, as far back as they grow from one to the next."""
    return _while_rising((one.at, value(one)) for one in reversed(row))


def _rising_together(rows: list[Sequence[Usage]], value: Value) -> list[tuple[float, float]]:
    """The same of the sum of the processes that live now, as long as all of them have lived."""
    return _while_rising(_sums_backwards(rows, value)) if rows else []


def _sums_backwards(
    rows: list[Sequence[Usage]], value: Value
) -> Iterator[tuple[float, float | None]]:
    for back in range(1, min(map(len, rows)) + 1):
        at = rows[0][-back].at
        if any(row[-back].at != at for row in rows):
            return
        each = [value(row[-back]) for row in rows]
        yield at, None if None in each else sum(one or 0.0 for one in each)


def _while_rising(backwards: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for at, seen in backwards:
        if seen is None or (found and seen >= found[-1][1]):
            break
        found.append((at, seen))
    return found[::-1]


def _workers(rows: Mapping[int, Sequence[Usage]]) -> list[Sequence[Usage]]:
    return [row for row in rows.values() if row[-1].kind is ProcessKind.WORKER]


def _each(rows: Iterable[Sequence[Usage]], value: Value) -> list[float]:
    return [seen for row in rows for one in row if (seen := value(one)) is not None]


def _sums(rows: Iterable[Sequence[Usage]], value: Value) -> list[float]:
    """The sum at each look."""
    sums: dict[float, float] = {}
    for row in rows:
        for one in row:
            seen = value(one)
            if seen is not None:
                sums[one.at] = sums.get(one.at, 0.0) + seen
    return list(sums.values())


def _number_at_once(rows: Iterable[Sequence[Usage]]) -> int:
    counts: dict[float, int] = {}
    for row in rows:
        for one in row:
            counts[one.at] = counts.get(one.at, 0) + 1
    return max(counts.values(), default=0)


def _at_age(rows: Iterable[Sequence[Usage]], age: float, value: Value) -> float:
    """The most that one of the processes used up to this age; 0 where it was not seen then."""
    until = AGES[min(bisect_left(AGES, age), len(AGES) - 1)] * LATE
    return max(
        _each(([one for one in row if one.age <= until] for row in rows), value), default=0.0
    )
