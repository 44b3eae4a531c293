"""A probe is up or down after a row of passes or failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.health import Health, HealthState
from supervisor.core.observation import Outcome

PASS, FAIL, UNSURE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def health_after(*outcomes: Outcome) -> Health:
    health = Health()
    for one in outcomes:
        health = health.observe(one, rise=2, fall=3)
    return health


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ((), HealthState.UNKNOWN),
        ((PASS,), HealthState.UNKNOWN),
        ((PASS, PASS), HealthState.UP),
        ((PASS, UNSURE, PASS), HealthState.UP),
        ((PASS, FAIL, PASS), HealthState.UNKNOWN),
        ((FAIL, FAIL), HealthState.UNKNOWN),
        ((FAIL, FAIL, FAIL), HealthState.DOWN),
        ((FAIL, UNSURE, FAIL, FAIL), HealthState.DOWN),
        ((PASS, PASS, FAIL, FAIL), HealthState.UP),
        ((PASS, PASS, FAIL, FAIL, FAIL), HealthState.DOWN),
        ((FAIL, FAIL, FAIL, PASS), HealthState.DOWN),
        ((UNSURE, UNSURE, UNSURE), HealthState.UNKNOWN),
    ],
)
def test_health_changes_after_a_row(outcomes: tuple[Outcome, ...], state: HealthState) -> None:
    assert health_after(*outcomes).state is state


@given(st.lists(st.sampled_from(Outcome)))
def test_inconclusive_outcomes_change_nothing(outcomes: list[Outcome]) -> None:
    conclusive = [one for one in outcomes if one is not UNSURE]
    assert health_after(*outcomes) == health_after(*conclusive)
