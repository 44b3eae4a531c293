"""Ends of processes of which one alone condemns nobody: cache processes, workers now and then.

Theory
------
The cache loader ends by itself, with code 0, about a minute after the start; the cache manager
never does, and a master starts another one. So an end by a signal or with an error is the
manager's or the loader's misfortune, and several of them are the binary's. With nginx's fatal
code no other one is started: once is enough.

A worker that ends with code 0 may have been told to by a reload, and too fast to be seen leaving.
In a reload nginx starts all new workers 100 ms before it tells the old ones to leave
(ngx_master_process_cycle), so no worker is started just after one has ended. Where one is, the
master has lost a worker that it did not send away.
"""

from __future__ import annotations

from supervisor.core.case import Case, Trigger
from supervisor.core.signals import ProcessEnded, ProcessKind
from supervisor.core.usage_settings import UsageSettings

FATAL_CODE = 2
BEFORE = 0.08
"""Seconds by which the end of a worker may be noticed after its successor was started ..."""
AFTER = 1.0
"""... and by which a busy master may be late with that."""


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
    births = sorted(
        row[-1].at - row[-1].age
        for row in case.seen.usage(generation).values()
        if row[-1].kind is ProcessKind.WORKER
    )
    lost = 0
    for end in _ends(case, generation, settings):
        if end.kind is not ProcessKind.WORKER or end.draining:
            continue
        heir = next((one for one in births if -BEFORE <= one - end.at <= AFTER), None)
        if heir is not None:
            births.remove(heir)
            lost += 1
    return lost
