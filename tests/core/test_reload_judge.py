"""What speaks against a reload."""

from __future__ import annotations

import pytest

from supervisor.core.observation import Observation, Outcome
from supervisor.core.reload_judge import ReloadJudge, Witness

WORKERS = frozenset({11, 12})


def judge(*names: str, rise: int = 2, fall: int = 3) -> ReloadJudge:
    witnesses = [Witness(name=one, rise=rise, fall=fall) for one in names]
    return ReloadJudge(generation=1, witnesses=witnesses, workers=WORKERS)


def tell(judge: ReloadJudge, *outcomes: str, probe: str = "home", **more: object) -> None:
    for outcome in outcomes:
        fields = {"generation": 1, "detail": "status 500", "latency": 0.0, **more}
        judge.observe(Observation(probe=probe, outcome=Outcome(outcome), **fields))  # type: ignore[arg-type]


def test_without_a_probe_it_is_proved() -> None:
    without = judge()
    assert without.proved
    assert not without.judged
    assert without.overdue() is None


def test_passes_in_a_row_prove_it() -> None:
    one = judge("home")
    tell(one, "pass", "fail", "pass", "inconclusive")
    assert not one.proved
    tell(one, "pass", worker_pid=12)
    assert one.proved
    assert one.judged
    assert one.answered == {12}
    tell(one, "pass", worker_pid=99)  # nobody that was brought by the reload
    assert one.answered == {12}
    tell(one, "fail")
    assert one.proved
    assert one.doubted == {"home"}
    found = one.overdue()
    assert found is not None
    assert found.reason == "reload_probes_failed"
    assert found.detail.endswith("failed once: status 500")


def test_failures_in_a_row_condemn_it() -> None:
    one = judge("home", "other")
    tell(one, "fail", "fail", "pass", "fail", "fail")
    assert one.objection is None
    tell(one, "fail")
    assert one.objection is not None
    assert one.objection.reason == "reload_probes_failed"
    assert "home" in one.objection.detail
    assert "3 times: status 500" in one.objection.detail
    first = one.objection
    tell(one, "fail")
    assert one.objection is first
    assert one.overdue() is first


def test_what_is_not_its_answer_says_nothing() -> None:
    one = judge("home")
    tell(one, "fail", "fail", "fail", generation=None)
    tell(one, "fail", "fail", "fail", generation=2)
    tell(one, "fail", "fail", "fail", probe="failed before")
    tell(one, "inconclusive")
    assert not one.judged
    assert one.objection is None
    found = one.overdue()
    assert found is not None
    assert found.reason == "reload_inconclusive"
    assert "home" in found.detail


@pytest.mark.parametrize(
    ("code", "signal", "how"), [(None, 11, "by signal 11"), (2, None, "with code 2")]
)
def test_a_worker_that_dies_speaks_against_it(
    code: int | None, signal: int | None, how: str
) -> None:
    one = judge()
    one.worker_exited(11, code=code, signal=signal, draining=False)
    assert one.objection is not None
    assert one.objection.reason == "reload_worker_died"
    assert how in one.objection.detail


def test_ends_that_say_nothing() -> None:
    one = judge()
    one.worker_exited(7, code=None, signal=9, draining=False)  # one of the old workers
    one.worker_exited(11, code=0, signal=None, draining=False)
    one.worker_exited(12, code=None, signal=9, draining=True)
    one.worker_exited(12, code=None, signal=9, draining=False)  # known to be gone
    one.census(frozenset())
    assert one.objection is None


def test_an_end_that_nobody_can_tell() -> None:
    """All of them, beside as many new ones: another reload. One of them: it has died."""
    one = judge()
    for pid in WORKERS:
        one.worker_exited(pid, code=None, signal=None, draining=False)
    one.census(frozenset({21, 22}))
    assert one.objection is None
    one = judge()
    one.worker_exited(11, code=None, signal=None, draining=False)
    one.census(frozenset({12, 21, 22}))  # the next one has not left yet
    one.worker_exited(12, code=None, signal=None, draining=False)
    one.census(frozenset({21, 22}))
    assert one.objection is None
    one = judge()
    one.worker_exited(11, code=None, signal=None, draining=False)
    one.census(frozenset({12, 21}))
    assert one.objection is not None
    assert one.objection.reason == "reload_worker_died"
