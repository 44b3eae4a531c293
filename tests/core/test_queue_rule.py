"""Queues that nobody serves are told from those in front of workers that are busy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core.queue_rule import accept_queue_stalled
from supervisor.core.usage_settings import UsageSettings
from tests.core.samples import BORN, OLD, case_of, progress, queue, usage

SETTINGS = UsageSettings()


def growing(second: int) -> int:
    return max(0, second - 2)


def workers(**given: Any) -> list[Any]:
    return [*progress(pid=7, **given), *progress(pid=8, **given)]


def share(part: float) -> dict[str, Any]:
    return {"awake": lambda second: part * second}


def test_connections_that_nobody_accepts_condemn() -> None:
    found = accept_queue_stalled(case_of(workers(), queue(growing)), SETTINGS)
    assert found is not None
    assert found.reason == "accept_queue_stalled"
    assert "13 connections wait at 127.0.0.1:80" in found.detail
    assert "1% of the time" in found.detail


@pytest.mark.parametrize(
    "waiting",
    [
        lambda second: 0,
        lambda second: second % 3 + 1,  # some are accepted
        lambda second: max(0, second - 12),  # not long enough
    ],
)
def test_queues_that_are_served_do_not(waiting: Any) -> None:
    assert accept_queue_stalled(case_of(workers(), queue(waiting)), SETTINGS) is None


def test_a_full_queue_before_busy_workers_does_not() -> None:
    """Overloaded: also where the workers wait for a processor and get none."""
    full = queue(lambda _: 512)
    assert accept_queue_stalled(case_of(workers(), full), SETTINGS) is not None
    assert accept_queue_stalled(case_of(workers(**share(1.0)), full), SETTINGS) is None
    assert accept_queue_stalled(case_of(workers(**share(0.85)), full), SETTINGS) is None


def test_one_of_several_sockets_at_an_address_has_a_worker_of_its_own() -> None:
    """Where one worker is busy it may be the one whose queue it is."""
    both = [
        *queue(growing, socket=1, siblings=1), *queue(lambda _: 0, socket=2, siblings=1)
    ]  # fmt: skip
    busy = [*progress(pid=7, **share(0.95)), *progress(pid=8)]
    assert accept_queue_stalled(case_of(busy, both), SETTINGS) is None
    assert accept_queue_stalled(case_of(workers(), both), SETTINGS) is not None
    assert accept_queue_stalled(case_of(busy, queue(growing)), SETTINGS) is not None


def test_workers_that_wait_for_a_disk_or_are_not_known_do_not() -> None:
    stuck = queue(growing)
    assert accept_queue_stalled(case_of(workers(state="D"), stuck), SETTINGS) is None
    assert accept_queue_stalled(case_of(workers(awake=lambda _: None), stuck), SETTINGS) is None
    assert accept_queue_stalled(case_of(workers(seconds=range(12, 16)), stuck), SETTINGS) is None
    assert accept_queue_stalled(case_of(stuck), SETTINGS) is None


def test_workers_without_a_connection_left_do_not() -> None:
    used_up = usage(pid=7, descriptors=lambda _: 1030)
    assert accept_queue_stalled(case_of(workers(), used_up, queue(growing)), SETTINGS) is None
    unseen = usage(pid=7, descriptors=lambda _: None)
    assert accept_queue_stalled(case_of(workers(), unseen, queue(growing)), SETTINGS) is not None


def test_what_the_old_generation_did_not_serve_either_does_not() -> None:
    before = queue(growing, OLD, begin=BORN - 20)
    assert accept_queue_stalled(case_of(before, workers(), queue(growing)), SETTINGS) is None
    served = queue(lambda _: 0, OLD, begin=BORN - 20)
    assert accept_queue_stalled(case_of(served, workers(), queue(growing)), SETTINGS) is not None
    alone = case_of(workers(), queue(growing), reference=None)
    assert accept_queue_stalled(alone, SETTINGS) is not None


def test_a_socket_that_is_gone_does_not() -> None:
    gone = case_of(workers(), queue(growing), at=BORN + 30)
    assert accept_queue_stalled(gone, SETTINGS) is None


def test_queues_can_be_switched_off() -> None:
    stuck = case_of(workers(), queue(growing))
    assert accept_queue_stalled(stuck, replace(SETTINGS, stalled_for=0.0)) is None
