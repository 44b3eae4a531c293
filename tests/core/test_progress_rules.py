"""Processes that spin, hang or are deaf are told from those that are busy, idle or waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core.progress_rules import (
    candidate_deaf,
    master_burns_cpu,
    worker_spinning,
    worker_stalled,
)
from supervisor.core.usage_settings import UsageSettings
from tests.core.samples import BORN, MASTER, OLD, case_of, progress, reason

SETTINGS = UsageSettings()


def full(second: int) -> float:
    """Awake all the time."""
    return float(second)


def nothing(_: int) -> Any:
    return None


def idle(_: int) -> int:
    """It has written something once."""
    return 10


def old(**given: Any) -> list[Any]:
    """A worker of the old generation, a day old: 400 reads and writes for a second of work."""
    usual = {"awake": lambda second: 3600 + second / 10, "calls": lambda second: 1_440_000 + second}
    return progress(OLD, pid=100, age=86400.0, begin=BORN - 5, seconds=range(6), **usual | given)


# --- a worker that spins ---


def test_a_worker_that_spins_beside_others_is_condemned() -> None:
    spins = progress(pid=7, awake=full, calls=idle)
    found = worker_spinning(case_of(old(), spins, progress(pid=8), progress(pid=9)), SETTINGS)
    assert reason(found) == "worker_spinning"
    assert found is not None
    assert "worker 7" in found.detail
    assert "others did" in found.detail


def test_all_workers_may_spin_at_once() -> None:
    spins = [progress(pid=pid, awake=full, calls=idle) for pid in (7, 8)]
    assert worker_spinning(case_of(old(), *spins), SETTINGS) is not None


@pytest.mark.parametrize("calls", [5000, 100, 1])
def test_a_worker_that_gets_work_done_is_busy(calls: int) -> None:
    """All of them at 100 %, or one alone that compresses, or scales images, for one client."""
    busy = [progress(pid=pid, awake=full, calls=lambda second: calls * second) for pid in (7, 8)]
    assert worker_spinning(case_of(old(), *busy), SETTINGS) is None
    assert worker_spinning(case_of(old(), busy[0], progress(pid=8)), SETTINGS) is None


def test_where_little_is_done_anyway_it_has_to_be_less() -> None:
    costly = old(calls=lambda second: 3600)  # once a second
    spins = progress(awake=full, calls=lambda second: 10 + second // 5)
    assert worker_spinning(case_of(old(), spins), SETTINGS) is not None
    assert worker_spinning(case_of(costly, spins), SETTINGS) is None
    assert worker_spinning(case_of(costly, progress(awake=full, calls=idle)), SETTINGS) is not None


def test_it_has_to_last() -> None:
    brief = progress(awake=full, calls=idle, seconds=range(1, 9))
    assert worker_spinning(case_of(old(), brief), SETTINGS) is None
    assert worker_spinning(case_of(old(), brief), replace(SETTINGS, worker_cpu_for=5.0)) is not None
    napping = progress(awake=lambda second: 0.9 * second, calls=idle)
    assert worker_spinning(case_of(old(), napping), SETTINGS) is None


@pytest.mark.parametrize("begin", [BORN - 5, BORN - 86400])
def test_where_the_old_generations_workers_never_slept_nobody_is_condemned(begin: float) -> None:
    """Over their whole lives, or while they were looked at."""
    always = begin == BORN - 5
    awake = (lambda second: 1000 + second) if always else (lambda second: 86400.0 + second)
    spins = progress(awake=full, calls=lambda second: 0)
    assert worker_spinning(case_of(old(awake=awake), spins), SETTINGS) is None


def test_without_others_one_that_does_nothing_at_all_is_condemned() -> None:
    quiet = old(awake=lambda second: 0.01, calls=lambda second: 5)
    spins = progress(awake=full, calls=idle)
    found = worker_spinning(case_of(quiet, spins), SETTINGS)
    assert found is not None
    assert "no other worker had anything to do" in found.detail
    assert worker_spinning(case_of(spins, reference=None), SETTINGS) is not None
    works = progress(awake=full, calls=lambda second: second)
    assert worker_spinning(case_of(quiet, works), SETTINGS) is None


def test_what_may_not_be_seen_is_not_judged() -> None:
    assert worker_spinning(case_of(old(), progress(awake=full, calls=nothing)), SETTINGS) is None
    assert worker_spinning(case_of(old(), progress(awake=nothing)), SETTINGS) is None
    spins = progress(awake=full, calls=lambda second: 0)
    for unseen in (old(calls=nothing), old(awake=nothing)):
        seen = case_of(unseen, spins, progress(pid=8, calls=nothing))
        assert worker_spinning(seen, SETTINGS) is not None
    once = progress(pid=8, awake=full, calls=lambda second: 1 if second == 15 else None)
    assert worker_spinning(case_of(old(), once), SETTINGS) is None
    another = progress(awake=full, calls=lambda second: 900 if second < 12 else 0)
    assert worker_spinning(case_of(old(), another), SETTINGS) is None  # another thread by now


def test_spinning_can_be_switched_off() -> None:
    spins = case_of(old(), progress(awake=full, calls=lambda second: 0))
    assert worker_spinning(spins, replace(SETTINGS, worker_cpu_for=0.0)) is None


# --- a worker that hangs ---

ASLEEP = {"awake": lambda _: 0.5, "turns": lambda _: 30}


def test_a_worker_that_sleeps_outside_of_its_loop_is_condemned() -> None:
    found = worker_stalled(case_of(old(), progress(**ASLEEP, place="do_nanosleep")), SETTINGS)
    assert reason(found) == "worker_stalled"
    assert found is not None
    assert "it sleeps in do_nanosleep" in found.detail


def test_a_worker_that_does_not_fetch_what_is_ready_is_condemned() -> None:
    found = worker_stalled(case_of(old(), progress(**ASLEEP, unfetched=True)), SETTINGS)
    assert found is not None
    assert "epoll" in found.detail


def test_a_worker_that_is_stopped_is_condemned() -> None:
    found = worker_stalled(case_of(old(), progress(**ASLEEP, state="T", place="")), SETTINGS)
    assert found is not None
    assert "stopped" in found.detail


@pytest.mark.parametrize(
    "healthy",
    [
        {**ASLEEP},  # nothing to do
        {**ASLEEP, "place": ""},  # nobody may look where
        {**ASLEEP, "place": "do_epoll_wait"},
        {**ASLEEP, "place": "do_select"},
        {**ASLEEP, "state": "D", "place": "folio_wait_bit"},  # a slow disk
        {"place": "do_nanosleep"},  # it had a turn meanwhile
        {**ASLEEP, "turns": nothing, "place": "do_nanosleep"},
        {**ASLEEP, "awake": nothing, "place": "do_nanosleep"},
        {"awake": full, "turns": lambda _: 30, "state": "R", "place": "", "unfetched": True},
    ],
)
def test_idle_busy_and_unknown_workers_are_not(healthy: dict[str, Any]) -> None:
    assert worker_stalled(case_of(old(), progress(**healthy)), SETTINGS) is None


def test_places_that_change_are_no_hanging() -> None:
    early = progress(**ASLEEP, place="do_nanosleep", seconds=range(1, 8))
    late = progress(**ASLEEP, place="futex_wait_queue", seconds=range(8, 11))
    assert worker_stalled(case_of(old(), early, late), SETTINGS) is None


def test_where_the_old_generation_sleeps_is_how_nginx_waits_here() -> None:
    strange = progress(**ASLEEP, place="io_cqring_wait")
    assert worker_stalled(case_of(old(), strange), SETTINGS) is not None
    assert worker_stalled(case_of(old(place="io_cqring_wait"), strange), SETTINGS) is None
    hung = old(**ASLEEP, unfetched=True)
    assert worker_stalled(case_of(hung, strange), SETTINGS) is None


def test_stalling_has_to_last_and_can_be_switched_off() -> None:
    brief = case_of(old(), progress(**ASLEEP, place="do_nanosleep", seconds=range(1, 5)))
    assert worker_stalled(brief, SETTINGS) is None
    assert worker_stalled(brief, replace(SETTINGS, stalled_for=3.0)) is not None
    assert worker_stalled(brief, replace(SETTINGS, stalled_for=0.0)) is None


# --- a master that works ---


def master(generation: int = 2, **given: Any) -> list[Any]:
    usual = {"place": "sigsuspend", "awake": lambda _: 0.05, "kind": MASTER, "pid": 3}
    return progress(generation, **usual | given)


def test_a_master_that_works_all_the_time_is_condemned() -> None:
    found = master_burns_cpu(case_of(master(OLD, pid=1), master(awake=full)), SETTINGS)
    assert found is not None
    assert (found.reason, "master 3" in found.detail) == ("master_burns_cpu", True)


def test_a_master_may_read_a_large_configuration_again() -> None:
    """Its start took three seconds, and so do a few reloads."""
    awake = lambda second: 3.0 + min(second, 8)  # noqa: E731
    assert master_burns_cpu(case_of(master(OLD, pid=1), master(awake=awake)), SETTINGS) is None
    assert master_burns_cpu(case_of(master(OLD, pid=1), master()), SETTINGS) is None
    assert master_burns_cpu(case_of(master(OLD, pid=1), master(awake=nothing)), SETTINGS) is None


def test_where_the_old_master_works_all_the_time_nobody_is_condemned() -> None:
    both = case_of(master(OLD, pid=1, awake=full), master(awake=full))
    assert master_burns_cpu(both, SETTINGS) is None
    alone = case_of(master(awake=full), reference=None)
    assert master_burns_cpu(alone, SETTINGS) is not None
    assert master_burns_cpu(alone, replace(SETTINGS, master_cpu_for=0.0)) is None


# --- a master that is deaf ---


def test_a_master_that_sleeps_elsewhere_is_condemned() -> None:
    found = candidate_deaf(case_of(master(OLD, pid=1), master(place="hrtimer_nanosleep")), SETTINGS)
    assert found is not None
    assert (found.reason, "hrtimer_nanosleep" in found.detail) == ("candidate_deaf", True)
    blocked = candidate_deaf(case_of(master(OLD, pid=1), master(place="", blocked=True)), SETTINGS)
    assert blocked is not None
    assert "QUIT is blocked" in blocked.detail


def test_a_master_that_has_started_a_worker_meanwhile_is_not() -> None:
    """One reload after the other: it sleeps 100 ms in each."""
    sleeps = master(place="hrtimer_nanosleep")
    old_worker = progress(pid=8)
    young = progress(pid=9, begin=BORN + 10, seconds=range(5))
    assert candidate_deaf(case_of(sleeps, old_worker, reference=None), SETTINGS) is not None
    assert candidate_deaf(case_of(sleeps, old_worker, young, reference=None), SETTINGS) is None


def test_a_master_without_a_handler_is_condemned() -> None:
    found = candidate_deaf(case_of(master(OLD, pid=1), master(deaf_to="QUIT TERM")), SETTINGS)
    assert found is not None
    assert "no handler for QUIT, TERM" in found.detail
    both = case_of(master(OLD, pid=1, deaf_to="QUIT TERM"), master(deaf_to="QUIT"))
    assert candidate_deaf(both, SETTINGS) is None


@pytest.mark.parametrize(
    "healthy",
    [
        {},
        {"place": ""},
        {"place": "sigsuspend.isra.0"},
        {"place": "", "state": "R", "blocked": True},  # it reads its configuration
    ],
)
def test_masters_that_wait_or_work_are_not(healthy: dict[str, Any]) -> None:
    assert candidate_deaf(case_of(master(OLD, pid=1), master(**healthy)), SETTINGS) is None


def test_where_the_old_master_sleeps_is_where_masters_sleep() -> None:
    both = case_of(master(OLD, pid=1, place="a_new_name"), master(place="a_new_name"))
    assert candidate_deaf(both, SETTINGS) is None


def test_deafness_has_to_last_and_can_be_switched_off() -> None:
    brief = case_of(master(place="do_poll", seconds=range(1, 8)), reference=None)
    assert candidate_deaf(brief, SETTINGS) is None
    assert candidate_deaf(brief, replace(SETTINGS, deaf_for=5.0)) is not None
    assert candidate_deaf(brief, replace(SETTINGS, deaf_for=0.0)) is None
