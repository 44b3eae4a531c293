"""What was seen lately of each generation: the memory that the triggers look into.

It goes back to before an upgrade: what the generation that serves did is the reference for what a
candidate does. It is bounded: the newest of each kind of signal, by what it speaks of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from supervisor.core.error_log import kind_of
from supervisor.core.signals import (
    LogLine,
    ProcessEnded,
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
SUBJECTS = 1024
"""Processes or queues that are remembered of all generations; the oldest one goes first."""

One = TypeVar("One", bound=Signal)


class Seen:
    """The newest signals of each generation, in the order in which they came."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, deque[LogLine]]] = {}
        self._ends: dict[int, deque[ProcessEnded]] = {}
        self._usage: dict[tuple[int, int], deque[Usage]] = {}
        self._queues: dict[tuple[int, str], deque[Queue]] = {}

    def add(self, one: Signal) -> None:
        """Remember it; a log line that is nobody's is forgotten at once."""
        if isinstance(one, LogLine):
            if one.generation is not None:
                self._add_line(one.generation, one)
        elif isinstance(one, ProcessEnded):
            _append(self._ends, one.generation, one, ENDS)
        elif isinstance(one, Usage):
            _append(self._usage, (one.generation, one.pid), one, SAMPLES)
        else:
            _append(self._queues, (one.generation, one.address), one, SAMPLES)

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
        for process in [one for one in self._usage if one[0] not in generations]:
            del self._usage[process]
        for queue in [one for one in self._queues if one[0] not in generations]:
            del self._queues[queue]

    def lines(self, generation: int) -> Mapping[str, Sequence[LogLine]]:
        """The log lines of one generation, by their kind."""
        return {kind: tuple(row) for kind, row in self._lines.get(generation, {}).items()}

    def ends(self, generation: int) -> Sequence[ProcessEnded]:
        """The processes of one generation that ended."""
        return tuple(self._ends.get(generation, ()))

    def usage(self, generation: int) -> Mapping[int, Sequence[Usage]]:
        """What each process of one generation used, by its pid."""
        return {pid: tuple(row) for (one, pid), row in self._usage.items() if one == generation}

    def queues(self, generation: int) -> Mapping[str, Sequence[Queue]]:
        """The queues in front of one generation, by their address."""
        return {
            address: tuple(row) for (one, address), row in self._queues.items() if one == generation
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
        for memory in (self._ends, self._usage, self._queues):
            for row in memory.values():
                yield from row


Key = TypeVar("Key")


def _append(memory: dict[Key, deque[One]], key: Key, one: One, most: int) -> None:
    row = memory.get(key)
    if row is None:
        if len(memory) >= SUBJECTS:
            del memory[next(iter(memory))]
        row = memory[key] = deque(maxlen=most)
    row.append(one)
