"""Ends of processes: cache processes that die, and workers that are lost now and then."""

from __future__ import annotations

from dataclasses import replace

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
) -> Signal:
    return ProcessEnded(
        generation=generation, pid=9, kind=kind, code=code, signal=signal, draining=draining,
        at=BORN + at,
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


def loss(at: float, pid: int, *, generation: int = NEW, later: float = 0.005) -> list[Signal]:
    """A worker ends by itself, and another one is started."""
    one = end(at, kind=WORKER, code=0, generation=generation)
    return [one, *usage(generation, pid=pid, begin=BORN + at + later, seconds=range(3))]


def test_workers_that_leave_one_by_one_condemn() -> None:
    seen = case_of(*(loss(at, pid=20 + at) for at in (1, 6, 11)))
    found = workers_lost(seen, SETTINGS)
    assert found is not None
    assert found.reason == "workers_respawning"
    assert "3 workers" in found.detail
    assert workers_lost(seen, replace(SETTINGS, losses=4)) is None
    assert workers_lost(seen, replace(SETTINGS, losses=0)) is None
    assert workers_lost(seen, replace(SETTINGS, loss_interval=10.0)) is None


def test_reloads_that_were_too_fast_to_be_seen_do_not() -> None:
    """The new worker is there 100 ms before the old one is told to leave."""
    reloads = [loss(at, pid=20 + at, later=-0.1) for at in (1, 3, 5, 7, 9)]
    assert workers_lost(case_of(*reloads), SETTINGS) is None


def test_ends_that_were_seen_coming_and_cache_processes_do_not() -> None:
    told = [end(at, kind=WORKER, code=0, draining=True) for at in (1, 2, 3)]
    loader = [end(at, code=0) for at in (1, 2, 3)]
    born = [usage(pid=20 + at, begin=BORN + at, seconds=range(3)) for at in (1, 2, 3)]
    assert workers_lost(case_of(told, loader, *born), SETTINGS) is None
    caches = [usage(pid=20 + at, begin=BORN + at, seconds=range(3), kind=CACHE) for at in (1, 2, 3)]
    left = [end(at, kind=WORKER, code=0) for at in (1, 2, 3)]
    assert workers_lost(case_of(left, *caches), SETTINGS) is None


def test_what_the_old_generation_lost_too_does_not() -> None:
    lost = [loss(at, pid=20 + at) for at in (1, 6, 11)]
    before = loss(-20, pid=50, generation=OLD)
    assert workers_lost(case_of(before, *lost), SETTINGS) is None
    assert workers_lost(case_of(*lost, reference=None), SETTINGS) is not None
