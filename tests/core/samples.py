"""Rows of samples of two generations, as a look every second would give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from supervisor.core.case import Case, Trigger
from supervisor.core.seen import Seen
from supervisor.core.signals import ProcessKind, Progress, Queue, Signal, Usage

OLD, NEW = 1, 2
WORKER, MASTER, CACHE = ProcessKind.WORKER, ProcessKind.MASTER, ProcessKind.CACHE
BORN = 1000.0
"""When the candidate was started."""

Rule = Callable[[Case, Any], Trigger | None]
At = Callable[[int], Any]


def always(value: Any) -> At:
    return lambda _: value


_MEMORY, _DESCRIPTORS, _SOCKETS = always(6_000_000), always(20), always(10)


def usage(
    generation: int = NEW,
    *,
    pid: int = 7,
    seconds: Iterable[int] = range(1, 11),
    memory: At = _MEMORY,
    descriptors: At = _DESCRIPTORS,
    sockets: At = _SOCKETS,
    kind: ProcessKind = WORKER,
    begin: float = BORN,
    age: float = 0.0,
) -> list[Signal]:
    """One process, once a second from `begin` on, when it was `age` old."""
    return [
        Usage(
            generation=generation, pid=pid, kind=kind, age=age + second, memory=memory(second),
            descriptors=descriptors(second), sockets=sockets(second), cpu=0.0, at=begin + second,
        )
        for second in seconds
    ]  # fmt: skip


def progress(
    generation: int = NEW,
    *,
    pid: int = 7,
    seconds: Iterable[int] = range(1, 16),
    awake: At = lambda second: 0.02 + 0.01 * second,
    calls: At = lambda second: 50 * second,
    turns: At = lambda second: 10 * second,
    kind: ProcessKind = WORKER,
    begin: float = BORN,
    age: float = 0.0,
    **fixed: Any,
) -> list[Signal]:
    """One process, once a second; a worker that has little to do, if nothing else is said."""
    quiet: dict[str, Any] = {"state": "S", "place": "ep_poll", "unfetched": False, **fixed}
    return [
        Progress(
            generation=generation, pid=pid, kind=kind, age=age + second, awake=awake(second),
            calls=calls(second), turns=turns(second), at=begin + second, **quiet,
        )
        for second in seconds
    ]  # fmt: skip


def queue(
    waiting: At,
    generation: int = NEW,
    *,
    address: str = "127.0.0.1:80",
    socket: int = 1,
    siblings: int = 0,
    seconds: Iterable[int] = range(1, 16),
    begin: float = BORN,
) -> list[Signal]:
    return [
        Queue(
            generation=generation, address=address, socket=socket, siblings=siblings,
            waiting=waiting(second),
            limit=511, at=begin + second,
        )
        for second in seconds
    ]  # fmt: skip


def old_workers(count: int = 1, **given: Any) -> list[Signal]:
    """The old generation's: a day old, until just before the candidate serves alone."""
    return [
        one
        for pid in range(100, 100 + count)
        for one in usage(OLD, pid=pid, age=86400.0, begin=BORN - 5, seconds=range(6), **given)
    ]


def case_of(*rows: Iterable[Signal], reference: int | None = OLD, at: float = BORN + 15) -> Case:
    seen = Seen()
    for one in sorted((one for row in rows for one in row), key=lambda one: one.at):
        seen.add(one)
    return Case(candidate=NEW, reference=reference, seen=seen, alone=True, at=at)


def reason(found: Trigger | None) -> str | None:
    return None if found is None else found.reason
