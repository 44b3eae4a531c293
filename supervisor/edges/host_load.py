"""How long the supervisor and nginx's processes waited for a CPU while a probe looked.

Source: /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst): nanoseconds on a CPU, and
nanoseconds in its run queue, of the thread with that id. Ten microseconds for each process; where
the kernel does not have it nobody is seen waiting, and nothing is excused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import trio

from supervisor.core.host_trouble import Load

MOST_PROCESSES = 64
"""Of one generation that are looked at: with more, too much of our own time would go there."""


@dataclass(frozen=True, slots=True)
class _Used:
    worked: float
    waited: float


class LoadMeter:
    """Counts from its making on, in the thread that makes it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._began = trio.current_time()
        self._itself = os.getpid()
        self._before = {pid: _used(pid) for pid in islice(pids, MOST_PROCESSES)}
        self._own_before = _used(self._itself)

    def load(self, *, timeout: float, asked: int | None, aside: float) -> Load:
        """What was counted until now; `asked` is the worker, where it is known.

        `aside` are the seconds that have to be taken off, as they were our own doing.
        """
        own = _since(self._own_before, _used(self._itself))
        each = {pid: _since(before, _used(pid)) for pid, before in self._before.items()}
        return Load(
            took=trio.current_time() - self._began - aside,
            timeout=timeout,
            waited=own.waited,
            worked=own.worked,
            server_waited=_waited(each, asked),
            server_worked=sum(one.worked for one in each.values()),
            cpus=len(os.sched_getaffinity(0)),
        )


def _waited(each: Mapping[int, _Used], asked: int | None) -> float:
    known = None if asked is None else each.get(asked)
    if known is not None:
        return known.waited
    return max((one.waited for one in each.values()), default=0.0)


def _since(before: _Used, now: _Used) -> _Used:
    """The difference; a pid that is somebody else's by now has used nothing that we know of."""
    worked, waited = now.worked - before.worked, now.waited - before.waited
    return _Used(worked, waited) if worked >= 0 and waited >= 0 else _Used(0.0, 0.0)


def _used(pid: int) -> _Used:
    try:
        with open(f"/proc/{pid}/schedstat", "rb", buffering=0) as file:
            fields = file.read(128).split()
        return _Used(int(fields[0]) / 1e9, int(fields[1]) / 1e9)
    except (OSError, ValueError, IndexError):
        return _Used(0.0, 0.0)
