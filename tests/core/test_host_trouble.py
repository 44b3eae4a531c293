"""Whom a failure by time is held against, with figures from a real host that was overloaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core.host_trouble import Load, host_trouble

QUIET = Load(
    took=0.5, timeout=0.5, waited=0.0, worked=0.001, server_waited=0.0, server_worked=0.001, cpus=2
)


def told(*, fair: float = 0.25, **changes: object) -> str | None:
    return host_trouble(replace(QUIET, **changes), fair=fair)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("took", "waited", "server_waited", "max_latency"),
    [
        (0.0615, 0.0129, 0.0485, 0.01),  # 4 busy processes, the slowest of 40 looks
        (0.1914, 0.1895, 0.0016, 0.01),  # 16
        (0.9117, 0.9025, 0.0088, 0.01),  # 48
        (0.3160, 0.0008, 0.3149, 0.01),  # 48, nine in ten were faster
    ],
)
def test_a_healthy_server_on_an_overloaded_host_is_excused(
    took: float, waited: float, server_waited: float, max_latency: float
) -> None:
    text = told(
        fair=max_latency, took=took, timeout=1.0, waited=waited, server_waited=server_waited
    )
    assert text is not None
    assert text.startswith("host overloaded: ")


@pytest.mark.parametrize(
    ("took", "waited"),
    [(0.5601, 0.0588), (0.7210, 0.2208)],  # 16 busy processes, the median and the worst of 8
)
def test_a_server_that_hangs_is_not_excused_on_the_same_host(took: float, waited: float) -> None:
    assert told(took=took, waited=waited) is None


def test_on_a_quiet_host_nothing_is_excused() -> None:
    assert told() is None
    assert told(fair=0.1, took=0.101, timeout=1.0) is None


def test_a_server_that_is_slow_itself_is_not_excused_for_a_little_waiting() -> None:
    assert told(fair=0.1, took=0.3, timeout=1.0, waited=0.1, server_waited=0.05) is None
    assert told(fair=0.1, took=0.3, timeout=1.0, waited=0.1, server_waited=0.101) is not None


def test_half_of_a_timeout_has_to_be_waiting() -> None:
    assert told(server_waited=0.24) is None
    text = told(server_waited=0.26)
    assert text == (
        "host overloaded: of 0.50 s the supervisor waited 0.00 s for a CPU, and nginx 0.26 s"
    )


def test_who_is_the_load_is_not_excused() -> None:
    """Eight workers that spin on two CPUs wait for each other."""
    assert told(server_waited=0.4, server_worked=0.95) is None
    assert told(server_waited=0.4, server_worked=0.3) is not None


def test_a_supervisor_that_was_stopped_has_seen_nothing() -> None:
    text = told(took=5.5)
    assert text == "host overloaded: the supervisor itself did not run for 5.00 s"
    assert told(took=0.7) is None
    # What it was busy with may be the answer itself.
    assert told(took=5.5, worked=5.0) is None
