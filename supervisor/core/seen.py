"""What was seen lately of each generation: the memory that the triggers look into.

Rows of samples are given as they are, not as copies: the triggers look at them every second, and
there may be some hundred processes. Nobody else keeps them or changes them.

It goes back to before an upgrade: what the generation that serves did is the reference for what a
candidate does. It is bounded: the newest of each kind of signal, by what it speaks of.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from supervisor.core.error_log import kind_of
from supervisor.core.signals import (
    LogLine,
    ProcessEnded,
    Progress,
    Queue,
    Signal,
    Usage,
    from_data,
    to_data,
)

LINES = 64
"""Log lines that are remembered of one kind of a generation."""
KINDS = 256
"""Kinds of log lines that are remembered of a generation; the oldest one goes first."""
BEFORE = 0
"""The number that stands for what a log held before anybody watched; no generation has it."""
ENDS = 64
"""Ends of processes that are remembered of a generation."""
SAMPLES = 64
"""Samples that are remembered of one process or one queue."""
AGES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Ages of a process, in seconds: the first sample after each is kept beside the newest ones."""
SUBJECTS = 1024
"""Processes or queues that are remembered of all generations; the oldest one goes first."""

One = TypeVar("One", bound=Signal)


class Seen:
    """The newest signals of each generation, in the order in which they came."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, deque[LogLine]]] = {}
        self._ends: dict[int, list[ProcessEnded]] = {}
        self._usage: dict[tuple[int, int], list[Usage]] = {}
        self._ages: dict[tuple[int, int], list[Usage]] = {}
        self._progress: dict[tuple[int, int], list[Progress]] = {}
        self._queues: dict[tuple[int, str, int], list[Queue]] = {}

    def add(self, one: Signal) -> None:
        """Remember it; a log line that is nobody's is forgotten at once."""
        if isinstance(one, LogLine):
            if one.generation is not None:
                self._add_line(one.generation, one)
        elif isinstance(one, ProcessEnded):
            _append(self._ends, one.generation, one, ENDS)
        elif isinstance(one, Usage):
            self._add_usage((one.generation, one.pid), one)
        elif isinstance(one, Progress):
            _append(self._progress, (one.generation, one.pid), one, SAMPLES)
        else:
            _append(self._queues, (one.generation, one.address, one.socket), one, SAMPLES)

    def _add_usage(self, process: tuple[int, int], one: Usage) -> None:
        _append(self._usage, process, one, SAMPLES)
        kept = self._ages.get(process)
        reached = bisect_right(AGES, one.age)
        if reached and (not kept or bisect_right(AGES, kept[-1].age) < reached):
            _append(self._ages, process, one, len(AGES))

    def _add_line(self, generation: int, line: LogLine) -> None:
        kinds = self._lines.setdefault(generation, {})
        kind = kind_of(line.text)
        if kind not in kinds and len(kinds) >= KINDS:
            del kinds[next(iter(kinds))]
        kinds.setdefault(kind, deque(maxlen=LINES)).append(line)

    def keep_only(self, generations: Collection[int]) -> None:
        """Forget all others: they are gone and no reference any more."""
        for number in self._lines.keys() - generations - {BEFORE}:
            del self._lines[number]
        for number in self._ends.keys() - generations:
            del self._ends[number]
        _keep_only(self._usage, generations)
        _keep_only(self._ages, generations)
        _keep_only(self._progress, generations)
        _keep_only(self._queues, generations)

    def lines(self, generation: int) -> Mapping[str, Sequence[LogLine]]:
        """The log lines of one generation, by their kind."""
        return {kind: tuple(row) for kind, row in self._lines.get(generation, {}).items()}

    def ends(self, generation: int) -> Sequence[ProcessEnded]:
        """The processes of one generation that ended."""
        return tuple(self._ends.get(generation, ()))

    def usage(self, generation: int) -> Mapping[int, Sequence[Usage]]:
        """What each process of one generation used, by its pid."""
        return {pid: row for (one, pid), row in self._usage.items() if one == generation}

    def ages(self, generation: int) -> Mapping[int, Sequence[Usage]]:
        """What each process of one generation used when it reached each of `AGES`, by its pid."""
        return {pid: row for (one, pid), row in self._ages.items() if one == generation}

    def progress(self, generation: int) -> Mapping[int, Sequence[Progress]]:
        """How each process of one generation got on, by its pid."""
        return {pid: row for (one, pid), row in self._progress.items() if one == generation}

    def queues(self, generation: int) -> Mapping[tuple[str, int], Sequence[Queue]]:
        """The queues in front of one generation, by their address and socket."""
        return {
            (address, socket): row
            for (one, address, socket), row in self._queues.items()
            if one == generation
        }

    # --- over the replacement of the supervisor ---

    def to_data(self, *, now: float) -> list[dict[str, object]]:
        """All of it, for `from_data` in another process."""
        return [to_data(one, now=now) for one in self._all()]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]], *, now: float) -> Seen:
        """The memory of another one. Raises KeyError, TypeError, ValueError, AttributeError."""
        seen = cls()
        for each in data:
            seen.add(from_data(each, now=now))
        return seen

    def _all(self) -> Iterator[Signal]:
        for kinds in self._lines.values():
            for lines in kinds.values():
                yield from lines
        for memory in (self._ends, self._progress, self._queues):
            for row in memory.values():
                yield from row
        for process, samples in self._usage.items():
            kept = {*self._ages.get(process, ()), *samples}
            yield from sorted(kept, key=lambda one: one.at)


Key = TypeVar("Key")
Subject = TypeVar("Subject", bound=tuple[Any, ...])


def _keep_only(memory: dict[Subject, list[One]], generations: Collection[int]) -> None:
    for subject in [one for one in memory if one[0] not in generations]:
        del memory[subject]


def _append(memory: dict[Key, list[One]], key: Key, one: One, most: int) -> None:
    row = memory.get(key)
    if row is None:
        if len(memory) >= SUBJECTS:
            del memory[next(iter(memory))]
        row = memory[key] = []
    row.append(one)
    if len(row) > most:
        del row[0]
