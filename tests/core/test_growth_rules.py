"""Growth of memory and descriptors: leaks are told from what is larger, busier or new."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core.growth_rules import descriptors_grow, memory_grows
from supervisor.core.usage_settings import MEGABYTE, UsageSettings
from tests.core.samples import BORN, CACHE, OLD, case_of, old_workers, reason, usage

SETTINGS = UsageSettings()


def leak(per_second: float, base: int = 6) -> object:
    return lambda second: int((base + per_second * second) * MEGABYTE)


# --- memory ---


def test_a_worker_that_leaks_is_condemned_and_the_text_says_how_much() -> None:
    found = memory_grows(case_of(old_workers(), usage(memory=leak(50), seconds=range(6))), SETTINGS)
    assert reason(found) == "memory_grows"
    assert found is not None
    assert "worker 7" in found.detail
    assert "256 MB of memory at the age of 5 s" in found.detail
    assert "250 MB of memory more than 5 s before" in found.detail


def test_growth_is_not_judged_before_it_has_lasted() -> None:
    grown = case_of(old_workers(), usage(memory=leak(50), seconds=range(3)))
    assert memory_grows(grown, SETTINGS) is None
    assert memory_grows(grown, replace(SETTINGS, growing_for=2.0)) is not None


@pytest.mark.parametrize(
    "memory",
    [
        lambda second: min(500, 100 * second) * MEGABYTE,  # larger, and stable from 5 s on
        lambda second: (200 if second % 3 else 100) * MEGABYTE,  # up and down
        lambda second: (10 + second) * MEGABYTE,  # a little
        lambda second: None,  # nobody may look
    ],
)
def test_what_is_larger_or_unsteady_is_not_condemned(memory: object) -> None:
    assert memory_grows(case_of(old_workers(), usage(memory=memory)), SETTINGS) is None


def test_what_the_old_generation_uses_at_present_is_no_leak() -> None:
    big = old_workers(memory=lambda _: 300 * MEGABYTE)
    assert memory_grows(case_of(big, usage(memory=leak(50))), SETTINGS) is None
    assert memory_grows(case_of(big, usage(memory=leak(100, base=50))), SETTINGS) is not None


def test_the_old_generation_at_the_same_age_is_the_reference() -> None:
    """It grew as fast when it was young, and gave the memory back since."""
    young = usage(OLD, pid=100, memory=leak(40), begin=BORN - 3600, seconds=(1, 2, 5, 10))
    now = usage(OLD, pid=100, age=3600.0, begin=BORN, seconds=(0, 1))
    assert memory_grows(case_of(young, now, usage(memory=leak(60))), SETTINGS) is None
    assert memory_grows(case_of(now, usage(memory=leak(60))), SETTINGS) is not None


def test_connections_explain_memory() -> None:
    busy = usage(memory=leak(50), descriptors=lambda second: 20 + 300 * second)
    assert memory_grows(case_of(old_workers(), busy), SETTINGS) is None
    unseen = usage(memory=leak(50), descriptors=lambda _: None)
    assert memory_grows(case_of(old_workers(), unseen), SETTINGS) is not None


def test_fewer_workers_may_have_the_share_of_those_that_are_missing() -> None:
    before = old_workers(count=8, memory=lambda _: 20 * MEGABYTE)
    one = usage(memory=leak(40), seconds=range(11))
    assert memory_grows(case_of(before, one), SETTINGS) is None
    eight = [usage(pid=pid, memory=leak(40), seconds=range(11)) for pid in range(1, 9)]
    assert memory_grows(case_of(before, *eight), SETTINGS) is not None


def test_the_sum_of_all_condemns_sooner_than_each() -> None:
    many = [usage(pid=pid, memory=leak(9), seconds=range(6)) for pid in range(1, 17)]
    found = memory_grows(case_of(old_workers(16), *many), SETTINGS)
    assert found is not None
    assert "16 workers" in found.detail
    assert memory_grows(case_of(old_workers(16), *many[:4]), SETTINGS) is None
    large = old_workers(16, memory=lambda _: 30 * MEGABYTE)
    assert memory_grows(case_of(large, *many), SETTINGS) is None


def test_the_sum_is_of_those_that_live_now() -> None:
    """A worker that has come is no growth."""
    rows = [usage(pid=pid, memory=lambda _: 100 * MEGABYTE) for pid in range(1, 4)]
    late = usage(pid=9, memory=lambda _: 400 * MEGABYTE, seconds=range(8, 11))
    assert memory_grows(case_of(old_workers(), *rows, late), SETTINGS) is None


def test_the_sum_reaches_back_as_far_as_all_were_seen() -> None:
    missed = [one for one in range(6) if one != 3]
    many = [usage(pid=pid, memory=leak(9), seconds=range(6)) for pid in range(1, 16)]
    odd = usage(pid=99, memory=leak(9), seconds=missed)
    assert memory_grows(case_of(old_workers(16), *many, odd), SETTINGS) is None


def test_without_anything_to_compare_with_nothing_is_condemned() -> None:
    leaking = usage(memory=leak(50))
    assert memory_grows(case_of(leaking, reference=None), SETTINGS) is None
    assert memory_grows(case_of(leaking), SETTINGS) is None
    unseen = old_workers(memory=lambda _: None)
    assert memory_grows(case_of(unseen, leaking), SETTINGS) is None
    assert memory_grows(case_of(old_workers()), SETTINGS) is None  # no candidate was seen yet


def test_one_that_grows_among_those_that_shrink_is_judged_alone() -> None:
    grows = usage(pid=1, memory=leak(20), seconds=range(11))
    shrinks = usage(pid=2, memory=leak(-30, base=900), seconds=range(11))
    before = old_workers(2, memory=lambda _: 100 * MEGABYTE)
    assert memory_grows(case_of(before, grows, shrinks), SETTINGS) is None
    assert memory_grows(case_of(old_workers(2), grows, shrinks), SETTINGS) is not None


def test_only_workers_are_judged() -> None:
    cache = usage(memory=leak(50), kind=CACHE)
    assert memory_grows(case_of(old_workers(), cache), SETTINGS) is None


def test_it_can_be_switched_off_and_tuned() -> None:
    seen = case_of(old_workers(), usage(memory=leak(50)))
    assert memory_grows(seen, replace(SETTINGS, memory_factor=0)) is None
    assert memory_grows(seen, replace(SETTINGS, memory_factor=1000)) is None
    assert memory_grows(seen, replace(SETTINGS, memory_floor_mb=1000)) is None
    small = case_of(old_workers(), usage(memory=leak(2, base=20)))
    assert memory_grows(small, replace(SETTINGS, memory_floor_mb=8)) is not None


# --- descriptors ---


def test_descriptors_that_are_no_connections_are_a_leak() -> None:
    leaking = usage(descriptors=lambda second: 20 + 200 * second)
    found = descriptors_grow(case_of(old_workers(), leaking), SETTINGS)
    assert found is not None
    assert found.reason == "descriptors_grow"
    assert "descriptors that are no connections" in found.detail


def test_connections_and_their_files_are_no_leak() -> None:
    """A flash crowd: each connection with a file that is sent and one that is stored."""
    crowd = usage(
        descriptors=lambda second: 20 + 600 * second, sockets=lambda second: 10 + 200 * second
    )
    assert descriptors_grow(case_of(old_workers(), crowd), SETTINGS) is None


def test_files_that_the_old_generation_had_open_too_are_no_leak() -> None:
    """open_file_cache fills up again."""
    filling = usage(descriptors=lambda second: 20 + 900 * second)
    full = old_workers(descriptors=lambda _: 20_000)
    assert descriptors_grow(case_of(full, filling), SETTINGS) is None


def test_descriptors_that_nobody_may_look_at_are_not_judged() -> None:
    unseen = usage(descriptors=lambda _: None)
    unknown = usage(descriptors=lambda second: 900 * second, sockets=lambda _: None)
    assert descriptors_grow(case_of(old_workers(), unseen), SETTINGS) is None
    assert descriptors_grow(case_of(old_workers(), unknown), SETTINGS) is None
    leaking = usage(descriptors=lambda second: 900 * second)
    assert descriptors_grow(case_of(leaking, reference=None), SETTINGS) is None
    switched_off = replace(SETTINGS, descriptors_factor=0)
    assert descriptors_grow(case_of(old_workers(), leaking), switched_off) is None
