"""When nginx is started again, and when no more."""

from __future__ import annotations

import pytest

from supervisor.core.restart_policy import (
    Backoff,
    GiveUp,
    RestartDecision,
    RestartNow,
    RestartPolicy,
)


def decisions(policy: RestartPolicy, *failures: tuple[float, bool]) -> list[RestartDecision]:
    made: list[RestartDecision] = []
    for at, was_ready in failures:
        policy, decision = policy.failed(at=at, was_ready=was_ready)
        made.append(decision)
    return made


def test_what_had_been_ready_restarts_at_once() -> None:
    assert decisions(RestartPolicy(), (1e6, True), (2e6, True)) == [RestartNow(), RestartNow()]


def test_the_pause_doubles_with_starts_that_fail_and_ends_after_ten() -> None:
    policy, at, delays = RestartPolicy(), 0.0, []
    while True:
        policy, decision = policy.failed(at=at, was_ready=False)
        if not isinstance(decision, Backoff):
            break
        delays.append(decision.delay)
        at += decision.delay
    assert delays == pytest.approx([0.1 * 2**n for n in range(9)])
    assert isinstance(decision, GiveUp)
    assert decision.reason == "start_limit"
    assert "10 times within 60 s" in decision.detail
    assert at == pytest.approx(51.1)


def test_the_pause_begins_with_the_sixth_crash_in_ten_seconds() -> None:
    crashes = decisions(RestartPolicy(), *((float(at), True) for at in range(7)))
    assert crashes[:5] == [RestartNow()] * 5
    assert crashes[5:] == [Backoff(0.1), Backoff(0.2)]


def test_slow_crashes_restart_at_once_up_to_the_start_limit() -> None:
    crashes = decisions(RestartPolicy(), *((2.5 * n, True) for n in range(12)))
    assert crashes[:10] == [RestartNow()] * 10
    assert isinstance(crashes[10], GiveUp)
    rare = decisions(RestartPolicy(), *((7.0 * n, True) for n in range(50)))
    assert rare == [RestartNow()] * 50


def crash_until_it_gives_up(policy: RestartPolicy, *, first: float, every: float) -> list[float]:
    """When nginx was started, if each one crashes `every` seconds after its start."""
    starts = [first]
    while True:
        at = starts[-1] + every
        policy, decision = policy.failed(at=at, was_ready=True, started=starts[-1])
        if isinstance(decision, GiveUp):
            return starts
        starts.append(at + (decision.delay if isinstance(decision, Backoff) else 0.0))


@pytest.mark.parametrize("limit", [1, 4, 10])
def test_the_first_start_counts_too(limit: int) -> None:
    policy = RestartPolicy(start_limit=limit)
    assert len(crash_until_it_gives_up(policy, first=1000.0, every=0.5)) == limit


def test_a_first_start_long_ago_does_not_count() -> None:
    policy = RestartPolicy(start_limit=4)
    policy, decision = policy.failed(at=1000.0, was_ready=True, started=939.0)
    assert decision == RestartNow()
    assert policy.starts == (1000.0,)
    assert len(crash_until_it_gives_up(policy, first=1000.0, every=0.5)) == 4
    close, _ = RestartPolicy(start_limit=4).failed(at=1000.0, was_ready=True, started=941.0)
    assert close.starts == (941.0, 1000.0)


def test_the_pause_has_an_upper_bound_and_starts_afresh_after_success() -> None:
    endless = RestartPolicy(start_limit=0, backoff_max=1.0)
    made = decisions(endless, *((100.0 * n, False) for n in range(2000)))
    assert made[:5] == [Backoff(0.1), Backoff(0.2), Backoff(0.4), Backoff(0.8), Backoff(1.0)]
    assert made[-1] == Backoff(1.0)
    after = decisions(endless, (0.0, False), (1.0, False), (2.0, True), (3.0, False))
    assert after == [Backoff(0.1), Backoff(0.2), RestartNow(), Backoff(0.1)]


def test_a_person_may_try_again() -> None:
    policy = RestartPolicy(start_limit=1)
    policy, decision = policy.failed(at=0.0, was_ready=False)
    assert isinstance(decision, GiveUp)
    assert policy.forget() == RestartPolicy(start_limit=1)
