"""How well a candidate was looked at, as its verdict says."""

from __future__ import annotations

import json

import pytest

from supervisor.core.observation import Attribution, Observation, Outcome
from supervisor.core.observed import Observed

PRIVATE, SOCKET = Attribution.PRIVATE_LISTENER, Attribution.SOCKET_OWNER


def answer(
    pid: int | None = None, *, generation: int | None = 2, outcome: Outcome = Outcome.PASS,
    by: Attribution | None = PRIVATE, worker_by: Attribution | None = SOCKET,
) -> Observation:  # fmt: skip
    return Observation(
        probe="home", outcome=outcome, detail="", latency=0.0, generation=generation,
        worker_pid=pid, attribution=by, worker_by=worker_by,
    )  # fmt: skip


def test_without_a_canary_nothing_is_said_of_it() -> None:
    assert Observed().report() == {
        "canary_observed": None, "attribution": [], "coverage": {"answered": 0, "workers": 0},
    }  # fmt: skip


def test_only_the_candidates_answers_count() -> None:
    one = Observed()
    one.begin_canary()
    one.census(frozenset({5, 6}))
    one.take(answer(5, generation=1), candidate=2, in_canary=True)
    one.take(answer(None, generation=None, by=None, worker_by=None), candidate=2, in_canary=True)
    assert one.report()["canary_observed"] is False
    one.take(
        answer(5, by=Attribution.SOLE_GENERATION, worker_by=None), candidate=2, in_canary=False
    )
    assert one.report() == {
        "canary_observed": False, "attribution": ["sole_generation"],
        "coverage": {"answered": 1, "workers": 2},
    }  # fmt: skip


def test_what_was_seen_in_the_canary_is_told_the_best_way_first() -> None:
    one = Observed()
    one.begin_canary()
    one.census(frozenset({5, 6, 7}))
    one.take(answer(5), candidate=2, in_canary=True)
    one.take(answer(6, outcome=Outcome.FAIL), candidate=2, in_canary=True)
    assert one.report() == {
        "canary_observed": True, "attribution": ["private_listener", "socket_owner"],
        "coverage": {"answered": 1, "workers": 3},
    }  # fmt: skip
    again = Observed.from_data(json.loads(json.dumps(one.to_data())))
    assert again.report() == one.report()
    one.census(frozenset())  # its workers are gone: what was seen stands
    assert one.report()["coverage"] == {"answered": 1, "workers": 3}
    one.census(frozenset({7, 8}))  # others by now
    assert one.report()["coverage"] == {"answered": 0, "workers": 2}


@pytest.mark.parametrize(
    "data", [{}, {"canary": True, "ways": ["magic"], "answered": [], "workers": []}]
)
def test_other_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Observed.from_data(data)
