"""Ends of processes of which one alone condemns nobody: cache processes, workers now and then.

Theory
------
The cache loader ends by itself, with code 0, about a minute after the start; the cache manager
never does, and a master starts another one. So an end by a signal or with an error is the
manager's or the loader's misfortune, and several of them are the binary's. With nginx's fatal
code no other one is started: once is enough.

A worker that ends with code 0 may have been told to by a reload, and too fast to be seen leaving.
In a reload nginx starts all new workers 100 ms before it tells the old ones to leave
(ngx_master_process_cycle): there are as many then as there should be, and none is started just
after one has ended. Where fewer are left, and one is started just then, the master has lost a
worker that it did not send away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.core.case import Case, Trigger
from supervisor.core.signals import ProcessEnded, ProcessKind
from supervisor.core.usage_settings import UsageSettings

FATAL_CODE = 2
BEFORE = 0.05
"""Seconds by which the end of a worker may be noticed after its successor was started ..."""
AFTER = 0.5
"""... and by which a busy master may be late with that."""
START = 0.05
"""Seconds within which a master starts all of its first workers."""


def cache_manager_died(case: Case, settings: UsageSettings) -> Trigger | None:
    """Cache processes end by a signal or with an error, again and again."""
    if not settings.cache_deaths:
        return None
    died = [one for one in _ends(case, case.candidate, settings) if _is_death(one)]
    final = any(one.code == FATAL_CODE for one in died)
    if not final and len(died) < settings.cache_deaths:
        return None
    if case.reference is not None and any(map(_is_death, case.seen.ends(case.reference))):
        return None
    last = died[-1]
    how = f"by signal {last.signal}" if last.signal is not None else f"with code {last.code}"
    return Trigger(
        reason="cache_manager_died",
        detail=f"cache process {last.pid} of the candidate ended {how}"
        + (" and is not started again" if final else f"; so did {len(died)} in a while"),
    )


def workers_lost(case: Case, settings: UsageSettings) -> Trigger | None:
    """Workers end every now and then although nobody told them to."""
    if not settings.losses:
        return None
    lost = _losses(case, case.candidate, settings)
    if lost < settings.losses:
        return None
    if case.reference is not None and _losses(case, case.reference, settings):
        return None
    return Trigger(
        reason="workers_respawning",
        detail=f"{lost} workers of the candidate ended within {settings.loss_interval:g} s "
        "although nobody told them to, and had to be started again",
    )


def _ends(case: Case, generation: int, settings: UsageSettings) -> list[ProcessEnded]:
    since = case.at - settings.loss_interval
    return [one for one in case.seen.ends(generation) if one.at >= since]


def _is_death(one: ProcessEnded) -> bool:
    return one.kind is ProcessKind.CACHE and (one.signal is not None or bool(one.code))


def _losses(case: Case, generation: int, settings: UsageSettings) -> int:
    """The ends of workers after each of which the master has started another one."""
    lives = _lives(case, generation)
    heirs = sorted(life.begin for life in lives.values())
    lost = 0
    for end in _ends(case, generation, settings):
        if end.kind is not ProcessKind.WORKER or end.draining or _are_all_there(lives, end):
            continue
        heir = next((one for one in heirs if -BEFORE <= one - end.at <= AFTER), None)
        if heir is not None:
            heirs.remove(heir)
            lost += 1
    return lost


@dataclass(frozen=True, slots=True)
class _Life:
    """From when to when a worker lived."""

    begin: float
    end: float = math.inf


def _lives(case: Case, generation: int) -> Mapping[int, _Life]:
    """Of the workers that were looked at, or have ended, by their pid."""
    lives = {
        pid: _Life(row[-1].at - row[-1].age)
        for pid, row in case.seen.usage(generation).items()
        if row[-1].kind is ProcessKind.WORKER
    }
    for one in case.seen.ends(generation):
        if one.kind is ProcessKind.WORKER and one.lived is not None:
            lives[one.pid] = _Life(one.at - one.lived, one.at)
    return lives


def _are_all_there(lives: Mapping[int, _Life], end: ProcessEnded) -> bool:
    """Whether as many workers lived beside one when it ended as at the beginning."""
    first = min((life.begin for life in lives.values()), default=end.at)
    usual = sum(life.begin <= first + START for life in lives.values())
    beside = [
        life
        for pid, life in lives.items()
        if pid != end.pid and life.begin < end.at - BEFORE and life.end > end.at
    ]
    return len(beside) >= usual
