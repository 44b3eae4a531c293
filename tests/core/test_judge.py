"""What condemns a candidate, and what it takes to be healthy."""

from __future__ import annotations

import json

import pytest

from supervisor.core.judge import Criterion, Judge
from supervisor.core.observation import Observation, Outcome
from supervisor.core.trigger_settings import DEFAULT_TRIGGERS, TriggerSettings
from supervisor.core.triggers import Trigger
from supervisor.core.verdict_policy import Conclusion

PASS, FAIL, UNSURE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
CANDIDATE = 2
HOME = Criterion(name="home", rise=2, fall=3, up_before=True)


def seen(
    outcome: Outcome,
    *,
    probe: str = "home",
    generation: int | None = CANDIDATE,
    worker: int | None = None,
    detail: str = "what it said",
) -> Observation:
    return Observation(
        probe=probe, outcome=outcome, detail=detail, latency=0.001, generation=generation,
        worker_pid=worker,
    )  # fmt: skip


def judge(
    *criteria: Criterion,
    workers: tuple[int, ...] = (11, 12),
    triggers: TriggerSettings = DEFAULT_TRIGGERS,
) -> Judge:
    made = Judge(
        candidate=CANDIDATE, criteria=criteria or (HOME,), expected_workers=len(workers),
        triggers=triggers,
    )  # fmt: skip
    made.census(frozenset(workers), at=0.0)
    return made


def reason(made: Judge) -> str | None:
    return made.trigger.reason if made.trigger else None


# --- the judge: probes ---


def test_a_candidate_is_healthy_after_rise_passes_and_every_worker() -> None:
    made = judge()
    assert not made.healthy
    assert made.lacking == "probe home passed 0 of 2 times (no answer yet)"
    made.observe(seen(PASS, worker=11))
    made.observe(seen(PASS, worker=11))
    assert not made.healthy
    assert made.lacking == "1 of 2 workers have answered well"
    assert made.missing_workers == {12}
    assert made.covered == (1, 2)
    made.observe(seen(FAIL, worker=12, detail="status 500"))
    made.observe(seen(PASS, worker=11))
    made.observe(seen(PASS, worker=11))
    assert made.lacking == "1 of 2 workers have answered well; worker 12 did not: status 500"
    made.observe(seen(PASS, worker=12))
    assert made.healthy
    assert made.judged
    assert made.trigger is None


def test_what_the_patrol_saw_counts_for_coverage_alone() -> None:
    made = judge()
    made.patrolled(seen(PASS, worker=11))
    made.patrolled(seen(PASS, worker=12, generation=CANDIDATE + 1))
    made.patrolled(seen(FAIL))
    assert made.covered == (1, 2)
    assert made.lacking == "probe home passed 0 of 2 times (no answer yet)"
    made.observe(seen(PASS, worker=11))
    made.observe(seen(PASS, worker=12))  # well over TLS, say ...
    made.patrolled(seen(FAIL, worker=12, detail="status 500"), suspect=12)  # ... and not without
    assert made.covered == (1, 2)
    assert made.lacking == "1 of 2 workers have answered well; worker 12 did not: status 500"
    made.patrolled(seen(PASS, worker=12))
    assert made.healthy


def test_coverage_is_not_asked_for_where_answers_cannot_be_traced() -> None:
    made = judge()
    made.observe(seen(PASS))
    made.observe(seen(PASS))
    assert made.missing_workers == {11, 12}
    assert made.healthy


def test_a_new_worker_has_to_answer_too() -> None:
    made = judge()
    for worker in (11, 12):
        made.observe(seen(PASS, worker=worker))
    made.census(frozenset({11, 13}), at=1.0)
    assert not made.healthy
    assert made.missing_workers == {13}


def test_evidence_of_another_generation_counts_for_nothing() -> None:
    made = judge()
    for generation in (1, None):
        for outcome in (PASS, PASS, FAIL, FAIL, FAIL):
            made.observe(seen(outcome, generation=generation, detail="not yours"))
    assert not made.judged
    assert made.trigger is None
    assert made.lacking == "probe home passed 0 of 2 times (no answer yet)"


def test_inconclusive_observations_are_told_but_do_not_count() -> None:
    made = judge()
    for _ in range(5):
        made.observe(seen(UNSURE, generation=None, detail="probe_listener_shared"))
        made.observe(seen(UNSURE, probe="unheard of"))
    assert not made.judged
    assert made.lacking == "probe home passed 0 of 2 times (probe_listener_shared)"


def test_fall_failures_in_a_row_condemn() -> None:
    made = judge()
    for outcome in (PASS, PASS, FAIL, FAIL, PASS, FAIL, UNSURE, FAIL):
        made.observe(seen(outcome))
    assert made.trigger is None
    made.observe(seen(FAIL, detail="status 500"))
    assert reason(made) == "probe_failed"
    assert made.trigger is not None
    assert made.trigger.detail == "probe home failed 3 times: status 500"
    assert made.judged
    assert not made.healthy


def test_what_failed_before_cannot_condemn_and_is_not_waited_for() -> None:
    made = judge(Criterion(name="home", rise=2, fall=3, up_before=False))
    for _ in range(9):
        made.observe(seen(FAIL, worker=11))
    assert made.trigger is None
    assert made.healthy
    assert not made.judged


def test_a_probe_that_cannot_judge_still_shows_that_a_worker_answers() -> None:
    made = judge(HOME, Criterion(name="other", rise=1, fall=1, up_before=False))
    made.observe(seen(PASS, probe="other", worker=12))
    made.observe(seen(PASS, worker=11))
    made.observe(seen(PASS, worker=11))
    assert made.healthy


def test_without_probes_the_number_of_workers_decides() -> None:
    made = Judge(candidate=CANDIDATE, criteria=(), expected_workers=2)
    made.census(frozenset({11}), at=0.0)
    assert made.lacking == "1 of 2 workers are up"
    made.census(frozenset({11, 12}), at=0.1)
    assert made.healthy
    assert Judge(candidate=CANDIDATE, criteria=()).healthy


def test_a_probe_that_only_chance_brings_there_condemns_and_is_not_waited_for() -> None:
    by_chance = Criterion(name="home", rise=2, fall=2, up_before=True, awaited=False)
    made = judge(by_chance)
    assert made.healthy
    made.observe(seen(PASS, worker=11))
    assert made.healthy  # not every worker need answer either
    assert made.judged
    made.observe(seen(FAIL, worker=11))
    made.observe(seen(FAIL, worker=12))
    assert reason(made) == "probe_failed"


def test_a_look_beside_the_probes_shows_workers_and_is_no_part_of_a_row() -> None:
    made = judge()
    made.observe(seen(PASS))
    made.observe(seen(PASS, worker=11))
    made.patrolled(seen(PASS, generation=1, worker=12))
    made.patrolled(seen(PASS))
    made.patrolled(seen(FAIL, worker=12, detail="status 500"))
    assert "worker 12 did not: status 500" in made.lacking
    assert made.trigger is None
    made.patrolled(seen(PASS, worker=12))
    assert made.healthy


# --- the judge: the last look ---


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((PASS,), None),
        ((FAIL, FAIL, PASS), None),
        ((PASS, UNSURE, UNSURE), None),
        ((PASS, UNSURE, UNSURE, UNSURE), "soak_inconclusive"),
        ((PASS, UNSURE, UNSURE, UNSURE, PASS), None),
        ((FAIL,), "probe_failed"),
        ((PASS, PASS, FAIL), "probe_failed"),
        ((PASS, FAIL, UNSURE), "probe_failed"),
        ((), "soak_inconclusive"),
        ((UNSURE,), "soak_inconclusive"),
    ],
)
def test_the_last_look_asks_for_a_good_last_answer(
    outcomes: tuple[Outcome, ...], expected: str | None
) -> None:
    made = judge()
    for outcome in outcomes:
        made.observe(seen(outcome))
    assert made.trigger is None
    found = made.conclude()
    assert (None if found.conclusion is Conclusion.PASS else found.reason) == expected
    assert (found.conclusion is Conclusion.INCONCLUSIVE) is (expected == "soak_inconclusive")
    assert not expected or "what it said" in found.detail or "no answer yet" in found.detail


def test_a_pass_of_long_ago_is_asked_for_again() -> None:
    """The host was overloaded ever since: that is no pass."""
    made = judge()
    made.observe(seen(PASS))
    assert not made.doubted
    made.observe(seen(UNSURE, generation=None, detail="host overloaded"))
    assert made.doubted == {"home"}
    for _ in range(2):
        made.observe(seen(UNSURE, generation=None, detail="host overloaded"))
    text = made.conclude().detail
    assert text.endswith("its last 3 looks proved nothing: host overloaded")
    other = judge()
    other.recall(json.loads(json.dumps(made.memory(at=1.0))), at=2.0)
    assert other.conclude().detail == text
    made.observe(seen(PASS))
    assert not made.doubted


def test_the_last_look_looks_at_every_probe_that_judges() -> None:
    quiet = Criterion(name="quiet", rise=1, fall=1, up_before=False)
    made = judge(HOME, Criterion(name="other", rise=2, fall=3, up_before=True), quiet)
    assert made.unheard == {"home", "other"}
    made.observe(seen(PASS))
    made.observe(seen(FAIL, probe="quiet"))
    assert made.unheard == {"other"}
    found = made.conclude()
    assert found.detail.startswith("probe other passed before the upgrade")
    made.observe(seen(PASS, probe="other"))
    assert made.conclude().conclusion is Conclusion.PASS
    assert judge(quiet).conclude().conclusion is Conclusion.PASS


def test_an_end_that_is_not_understood_is_worth_waiting_for() -> None:
    made = judge()
    assert made.undecided
    made.observe(seen(PASS))
    assert not made.undecided
    made.worker_exited(11, code=None, signal=None, draining=False, at=1.0)
    assert made.undecided
    made.census(frozenset({12, 13}), at=2.0)
    assert not made.undecided
    assert reason(made) == made.conclude().reason == "worker_died"


def test_the_last_look_repeats_what_has_condemned() -> None:
    made = judge()
    made.observe(seen(PASS))
    made.worker_exited(11, code=None, signal=11, draining=False, at=1.0)
    assert made.trigger is not None
    found = made.conclude()
    assert (found.conclusion, found.reason, found.detail) == (
        Conclusion.FAIL, made.trigger.reason, made.trigger.detail
    )  # fmt: skip


def test_a_failure_is_worse_than_a_silence() -> None:
    made = judge(Criterion(name="silent", rise=2, fall=3, up_before=True), HOME)
    made.observe(seen(FAIL))
    assert made.conclude().reason == "probe_failed"


def test_too_few_samples_prove_nothing() -> None:
    made = Judge(candidate=CANDIDATE, criteria=(HOME,), min_samples=3)
    made.observe(seen(PASS))
    made.observe(seen(PASS))
    assert not made.healthy
    assert made.lacking == "probe home was heard 2 of 3 times"
    found = made.conclude()
    assert (found.conclusion, found.reason) == (Conclusion.INCONCLUSIVE, "soak_inconclusive")
    assert "was heard 2 of 3 times since the shift" in found.detail
    assert (made.few, made.unheard) == ({"home"}, frozenset())
    made.observe(seen(UNSURE))
    assert not made.healthy
    made.observe(seen(PASS))
    assert made.healthy
    assert made.conclude().conclusion is Conclusion.PASS


def test_another_trigger_condemns_and_loops_can_be_switched_off() -> None:
    made = Judge(candidate=CANDIDATE, criteria=(), triggers=TriggerSettings(respawns=0))
    for at in range(20):
        made.worker_exited(at, code=1, signal=None, draining=False, at=float(at))
    assert made.trigger is None
    made.condemn(Trigger(reason="error_log", detail="a line"))
    made.condemn(Trigger(reason="other", detail="another"))
    assert made.conclude().reason == "error_log"


# --- the judge: workers ---


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize(
    ("code", "signal", "expected"), [(None, 11, "worker_died"), (2, None, "worker_fatal")]
)
def test_some_ends_condemn_at_once(
    code: int | None, signal: int | None, expected: str, *, draining: bool
) -> None:
    made = judge()
    made.worker_exited(11, code=code, signal=signal, draining=draining, at=1.0)
    assert reason(made) == expected


@pytest.mark.parametrize(("code", "signal"), [(None, 11), (2, None)])
def test_more_than_one_death_may_be_wanted(code: int | None, signal: int | None) -> None:
    made = judge(triggers=TriggerSettings(worker_deaths=2))
    made.worker_exited(11, code=code, signal=signal, draining=False, at=1.0)
    assert made.trigger is None
    again = judge(triggers=TriggerSettings(worker_deaths=2))
    again.recall(made.memory(at=1.0), at=1.0)
    again.worker_exited(12, code=code, signal=signal, draining=False, at=100.0)
    assert again.trigger is not None
    assert again.trigger.detail.endswith("; so did 2 in all")


def test_deaths_that_condemn_nobody_are_a_loop_all_the_same() -> None:
    made = judge(triggers=TriggerSettings(worker_deaths=0))
    for at in (0.0, 20.0, 21.0):
        made.worker_exited(11, code=None, signal=11, draining=False, at=at)
    assert made.trigger is None
    made.worker_exited(11, code=None, signal=11, draining=False, at=22.0)
    assert reason(made) == "workers_respawning"


def test_the_first_trigger_stays() -> None:
    made = judge()
    made.worker_exited(11, code=None, signal=11, draining=False, at=1.0)
    made.worker_exited(12, code=2, signal=None, draining=False, at=1.0)
    assert reason(made) == "worker_died"


@pytest.mark.parametrize("code", [0, None, 1])
def test_a_draining_worker_may_end(code: int | None) -> None:
    made = judge()
    for at in (1.0, 2.0, 3.0):
        made.worker_exited(11, code=code, signal=None, draining=True, at=at)
        made.census(frozenset({12}), at=at + 0.5)
    assert made.trigger is None


def test_an_unknown_end_of_one_worker_is_a_death() -> None:
    made = judge()
    made.worker_exited(11, code=None, signal=None, draining=False, at=1.0)
    made.census(frozenset({12, 13}), at=1.005)
    assert made.trigger is None  # it may be the beginning of a reload
    assert "the end of worker 11 is not understood yet" in made.lacking
    made.census(frozenset({12, 13}), at=2.0)
    assert reason(made) == "worker_died"


@pytest.mark.parametrize("code", [0, None])
def test_a_reload_that_was_too_fast_to_be_seen_condemns_nobody(code: int | None) -> None:
    made = judge(workers=(11, 12, 13, 14))
    for pid in (11, 12, 13, 14):
        made.worker_exited(pid, code=code, signal=None, draining=False, at=1.0)
    made.census(frozenset({14, 21, 22, 23, 24}), at=1.005)  # 14 had not reacted yet
    made.census(frozenset({21, 22, 23, 24}), at=1.1)
    made.census(frozenset({21, 22, 23, 24}), at=9.0)
    assert made.trigger is None
    assert "understood" not in made.lacking


@pytest.mark.parametrize("code", [0, None])
def test_a_reload_whose_new_workers_were_counted_beside_the_old_condemns_nobody(
    code: int | None,
) -> None:
    """nginx starts the new ones 100 ms before it tells the old ones to leave."""
    old, new = (11, 12, 13, 14), (21, 22, 23, 24)
    made = judge(workers=old)
    made.census(frozenset((*old, *new)), at=1.0)
    for pid in old:
        made.worker_exited(pid, code=code, signal=None, draining=False, at=1.1)
    made.census(frozenset(new), at=1.2)
    made.census(frozenset(new), at=9.0)
    assert made.trigger is None
    assert "understood" not in made.lacking
    made.worker_exited(21, code=code, signal=None, draining=False, at=10.0)
    assert "the end of worker 21 is not understood yet" in made.lacking


def test_ends_with_code_0_of_some_workers_are_unexpected() -> None:
    made = judge()
    for pid, at in ((11, 1.0), (21, 2.0), (22, 3.0)):
        assert made.trigger is None
        made.worker_exited(pid, code=0, signal=None, draining=False, at=at)
        made.census(frozenset({12, 20 + int(at)}), at=at + 0.5)
    assert reason(made) == "workers_respawning"


def test_three_unexpected_ends_in_ten_seconds_are_a_loop() -> None:
    made = judge()
    for at in (0.0, 5.0, 10.0, 15.0):
        made.worker_exited(11, code=1, signal=None, draining=False, at=at)
    assert made.trigger is None
    made.worker_exited(11, code=1, signal=None, draining=False, at=15.1)
    assert reason(made) == "workers_respawning"


def test_no_workers_condemn_once_it_lasts() -> None:
    made = judge()
    made.census(frozenset(), at=1.0)
    made.census(frozenset(), at=1.01)
    assert made.trigger is None
    made.census(frozenset(), at=1.02, starting=1)
    made.census(frozenset(), at=2.0)
    assert made.trigger is None
    made.census(frozenset(), at=3.0)
    assert reason(made) == "no_workers"


def test_what_was_seen_is_told_in_one_line() -> None:
    made = judge(HOME, Criterion(name="shop", rise=1, fall=1, up_before=True))
    made.observe(seen(PASS, worker=11, detail="status 200"))
    assert made.account == (
        "probe home was heard 1 times, at last: status 200; "
        "probe shop was not heard (no answer yet); 1 of 2 workers have answered well"
    )
    alone = judge(Criterion(name="home", rise=1, fall=1, up_before=False), workers=())
    assert alone.account == "no probe judges it; 0 of 0 workers have answered well"
