"""Ends of processes: cache processes that die, and workers that are lost now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from supervisor.core.process_rules import cache_manager_died, workers_lost
from supervisor.core.signals import ProcessEnded, ProcessKind, Signal
from supervisor.core.usage_settings import UsageSettings
from tests.core.samples import BORN, CACHE, NEW, OLD, WORKER, case_of, usage

SETTINGS = UsageSettings()


def end(
    at: float,
    *,
    kind: ProcessKind = CACHE,
    code: int | None = None,
    signal: int | None = None,
    draining: bool = False,
    generation: int = NEW,
    pid: int = 9,
    lived: float | None = None,
) -> Signal:
    return ProcessEnded(
        generation=generation, pid=pid, kind=kind, code=code, signal=signal, draining=draining,
        at=BORN + at, lived=lived,
    )  # fmt: skip


# --- cache processes ---


def test_a_cache_manager_that_dies_again_and_again_condemns() -> None:
    found = cache_manager_died(case_of([end(1, signal=11), end(2, signal=11)]), SETTINGS)
    assert found is not None
    assert found.reason == "cache_manager_died"
    assert "by signal 11" in found.detail
    mixed = cache_manager_died(case_of([end(1, signal=11), end(2, code=1)]), SETTINGS)
    assert mixed is not None
    assert "with code 1" in mixed.detail


def test_one_that_is_not_started_again_condemns_at_once() -> None:
    found = cache_manager_died(case_of([end(1, code=2)]), SETTINGS)
    assert found is not None
    assert "not started again" in found.detail


def test_a_loader_that_is_done_and_a_single_misfortune_do_not() -> None:
    healthy = [end(1, code=0), end(2, code=0), end(3), end(4, signal=9)]
    assert cache_manager_died(case_of(healthy), SETTINGS) is None
    workers = [end(1, signal=11, kind=WORKER), end(2, signal=11, kind=WORKER)]
    assert cache_manager_died(case_of(workers), SETTINGS) is None
    long_ago = [end(-70, signal=11), end(2, signal=11)]
    assert cache_manager_died(case_of(long_ago), SETTINGS) is None


def test_a_cache_manager_that_died_before_as_well_does_not() -> None:
    died = [end(1, signal=11), end(2, signal=11)]
    before = [end(-100, signal=11, generation=OLD)]
    assert cache_manager_died(case_of(before, died), SETTINGS) is None
    harmless = [end(-100, code=0, generation=OLD)]
    assert cache_manager_died(case_of(harmless, died), SETTINGS) is not None
    assert cache_manager_died(case_of(died, reference=None), SETTINGS) is not None
    assert cache_manager_died(case_of(died), replace(SETTINGS, cache_deaths=0)) is None


# --- workers ---


def leaving(
    times: Sequence[float], *, later: float = 0.005, workers: int = 2, generation: int = NEW
) -> list[Signal]:
    """At each time all but the first worker have been there for long, and the first one ends.

    Its successor is there so much `later`; where that is negative, before.
    """
    seen = [
        one
        for pid in range(10, 9 + workers)
        for one in usage(generation, pid=pid, seconds=range(16), begin=BORN)
    ]
    born = 0.0
    for turn, at in enumerate(times):
        ended = end(at, kind=WORKER, code=0, generation=generation, pid=30 + turn, lived=at - born)
        born = at + later
        seen += [ended, *usage(generation, pid=31 + turn, begin=BORN + born, seconds=range(3))]
    return seen


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_workers_that_leave_one_by_one_condemn(workers: int) -> None:
    seen = case_of(leaving((1, 6, 11), workers=workers))
    found = workers_lost(seen, SETTINGS)
    assert found is not None
    assert found.reason == "workers_respawning"
    assert "3 workers" in found.detail
    assert workers_lost(seen, replace(SETTINGS, losses=4)) is None
    assert workers_lost(seen, replace(SETTINGS, losses=0)) is None
    assert workers_lost(seen, replace(SETTINGS, loss_interval=10.0)) is None


@pytest.mark.parametrize("times", [(1, 3, 5, 7, 9), (1.0, 1.11, 1.22, 1.33, 1.44)])
def test_reloads_that_were_too_fast_to_be_seen_do_not(times: Sequence[float]) -> None:
    """The new worker is there 100 ms before the old one is told to leave, and then the next one."""
    assert workers_lost(case_of(leaving(times, later=-0.1, workers=1)), SETTINGS) is None


def test_reloads_of_many_workers_do_not() -> None:
    """Each set of four is started, and the one before it leaves, again and again."""
    seen = []
    for turn in range(6):
        begin, leave = 0.9 * turn, 0.9 * (turn + 1) + 0.1
        for pid in range(10 * turn, 10 * turn + 4):
            seen += usage(pid=pid, begin=BORN + begin, seconds=(0,))
            seen.append(end(leave, kind=WORKER, code=0, pid=pid, lived=leave - begin))
    assert workers_lost(case_of(seen), SETTINGS) is None


def test_ends_that_were_seen_coming_and_cache_processes_do_not() -> None:
    told = [end(at, kind=WORKER, code=0, draining=True) for at in (1, 2, 3)]
    loader = [end(at, code=0) for at in (1, 2, 3)]
    born = [usage(pid=20 + at, begin=BORN + at, seconds=range(3)) for at in (1, 2, 3)]
    assert workers_lost(case_of(told, loader, *born), SETTINGS) is None
    caches = [usage(pid=20 + at, begin=BORN + at, seconds=range(3), kind=CACHE) for at in (1, 2, 3)]
    left = [end(at, kind=WORKER, code=0) for at in (1, 2, 3)]
    assert workers_lost(case_of(left, *caches), SETTINGS) is None


def test_what_the_old_generation_lost_too_does_not() -> None:
    lost = leaving((1, 6, 11))
    before = leaving((5,), generation=OLD)
    assert workers_lost(case_of(before, lost), SETTINGS) is None
    assert workers_lost(case_of(lost, reference=None), SETTINGS) is not None
