"""One bad worker among many: what the patrol makes of the answers, and what it does not."""

from __future__ import annotations

from supervisor.core.observation import Observation, Outcome
from supervisor.core.patrol import USELESS, Patrol

WORKERS = frozenset({11, 12, 13})
ENOUGH = 23  # answers for three workers: ceil(2 x 3 x ln 3) + 16


def patrol(workers: frozenset[int] = WORKERS, *, silence: float = 5.0) -> Patrol:
    one = Patrol(candidate=2, fall=3, interval=1.0, silence=silence)
    one.census(workers, at=0.0)
    return one


def answer(pid: int | None, outcome: Outcome = Outcome.PASS, generation: int = 2) -> Observation:
    return Observation(
        probe="home", outcome=outcome, detail="said", latency=0.0, generation=generation,
        worker_pid=pid,
    )  # fmt: skip


NOBODY = answer(None, Outcome.FAIL)


# --- rounds ---


def test_a_round_ends_when_every_worker_has_answered() -> None:
    one = patrol()
    for pid in sorted(WORKERS):
        assert one.wants_more
        assert one.take(answer(pid), at=1.0) is None
    assert not one.wants_more
    one.begin()
    assert one.wants_more


def test_each_has_had_its_turn_when_a_round_is_over() -> None:
    one = patrol()
    one.begin()  # the patrol itself does so
    assert not one.has_asked_all
    for pid in sorted(WORKERS):
        one.take(answer(pid), at=1.0)
    assert one.has_asked_all
    one.begin()
    assert one.has_asked_all  # also in the second round
    one.census(frozenset({14, 15}), at=2.0)  # these had not
    assert not one.has_asked_all
    assert patrol(frozenset({11})).has_asked_all


def test_a_round_is_bounded() -> None:
    one = patrol()
    for _ in range(2 * ENOUGH):
        assert one.wants_more
        one.take(answer(11), at=1.0)
    assert not one.wants_more


def test_there_is_nothing_to_find_out_about_one_worker_or_none() -> None:
    assert not patrol(frozenset({11})).wants_more
    assert not patrol(frozenset()).wants_more


def test_a_round_in_which_nobody_can_be_told_from_others_ends_and_condemns_nobody() -> None:
    strangers = (
        answer(None),
        answer(99),
        answer(11, Outcome.INCONCLUSIVE),
        answer(11, generation=1),
    )
    for useless in strangers:
        one = patrol()
        for _ in range(USELESS):
            assert one.wants_more
            assert one.take(useless, at=100.0) is None
        assert not one.wants_more


def test_other_workers_are_another_round() -> None:
    one = patrol()
    one.take(answer(11), at=1.0)
    one.take(answer(12), at=1.0)
    one.census(WORKERS, at=2.0)  # the same ones: nothing is forgotten
    one.take(answer(13), at=2.0)
    assert not one.wants_more
    one.census(frozenset({11, 14}), at=3.0)
    assert one.wants_more


# --- a worker that fails ---


def test_a_worker_that_fails_while_others_are_well_condemns() -> None:
    one = patrol()
    for at in (1.0, 2.0):
        assert one.take(answer(11, Outcome.FAIL), at=at) is None
        assert one.take(answer(12), at=at) is None
    found = one.take(answer(11, Outcome.FAIL), at=3.0)
    assert found is not None
    assert found.reason == "worker_failing"
    assert found.detail == (
        "worker 11, one of 3, failed 3 times in a row while others answered well: said"
    )


def test_another_one_has_to_be_well_all_the_time() -> None:
    """All begin to fail, one a moment before the other."""
    one = patrol()
    one.take(answer(11, Outcome.FAIL), at=1.0)
    one.take(answer(12), at=1.01)
    for at in (2.0, 3.0, 4.0):
        for pid in WORKERS:
            assert one.take(answer(pid, Outcome.FAIL), at=at) is None


def test_one_that_failed_last_is_a_suspect() -> None:
    one = patrol()
    assert one.suspect is None
    one.take(answer(11, Outcome.FAIL), at=1.0)
    assert one.suspect == 11
    one.take(answer(12, Outcome.FAIL), at=1.0)
    assert one.suspect is None  # it is no matter of one worker
    one.take(answer(11), at=1.1)
    assert one.suspect == 12


def test_failures_have_to_be_an_interval_apart() -> None:
    one = patrol()
    for at in (1.0, 1.1, 1.2, 1.3, 1.9, 2.0, 2.5):
        assert one.take(answer(11, Outcome.FAIL), at=at) is None
        assert one.take(answer(12), at=at) is None
    assert one.take(answer(11, Outcome.FAIL), at=3.0) is not None


def test_a_good_answer_ends_the_row() -> None:
    one = patrol()
    for at in range(20):
        outcome = Outcome.PASS if at % 3 == 2 else Outcome.FAIL
        assert one.take(answer(11, outcome), at=float(at)) is None
        assert one.take(answer(12), at=float(at)) is None


def test_where_all_fail_it_is_no_matter_of_one_worker() -> None:
    one = patrol()
    one.take(answer(12), at=0.0)  # before
    for at in range(1, 20):
        for pid in WORKERS:
            assert one.take(answer(pid, Outcome.FAIL), at=float(at)) is None


def test_several_that_fail_end_a_round_and_make_the_next_one_late() -> None:
    one = patrol()
    assert one.pause(2.0) == 2.0
    for expected in (4.0, 8.0, 16.0, 32.0, 32.0):
        one.begin()
        one.take(answer(11, Outcome.FAIL), at=1.0)
        assert one.wants_more
        one.take(answer(12, Outcome.FAIL), at=1.0)
        assert not one.wants_more
        assert one.pause(2.0) == expected
    one.begin()
    one.begin()
    assert one.pause(2.0) == 2.0


def test_a_site_that_limits_requests_is_no_matter_of_one_worker() -> None:
    """One answer of ten is well, whichever worker gives it."""
    one = patrol()
    for step in range(600):
        pid = 11 + step * 7 % 3
        outcome = Outcome.PASS if step % 10 == 0 else Outcome.FAIL
        if not one.wants_more:
            one.begin()
        assert one.take(answer(pid, outcome), at=step / 10) is None


def test_two_bad_workers_of_many_are_found() -> None:
    one = patrol(frozenset(range(11, 19)))
    found = None
    for at in range(1, 5):
        for pid in range(11, 19):
            outcome = Outcome.FAIL if pid in (12, 15) else Outcome.PASS
            found = found or one.take(answer(pid, outcome), at=float(at))
    assert found is not None
    assert found.reason == "worker_failing"


# --- a worker that does not answer ---


def silent(one: Patrol, *, begin: float, end: float) -> list[str]:
    """Worker 13 hangs: the others answer, its connections get nothing; the reasons that came."""
    found = []
    for step in range(ENOUGH + 3):
        at = begin + (end - begin) * step / (ENOUGH + 2)
        each = [answer(11 + step % 2)] if step % 8 else [answer(11), NOBODY]
        found += [seen for seen in (one.take(given, at=at) for given in each) if seen is not None]
    return [f"{each.reason}: {each.detail}" for each in found]


def test_a_worker_that_hangs_is_found_by_those_that_do_not() -> None:
    found = silent(patrol(), begin=1.0, end=7.0)
    assert found[0] == (
        "worker_not_answering: worker 13 of 3 answers no new connection: all others were asked "
        "and answered (23 answers), and 3 connections got none"
    )


def test_several_that_hang_are_named() -> None:
    one = patrol(frozenset({11, 12, 13, 14}))
    for _ in range(3):
        one.take(NOBODY, at=6.0)
    found = None
    while found is None:
        assert one.wants_more
        one.take(answer(11), at=6.0)
        found = one.take(answer(12), at=6.0)
    assert found.detail.startswith("workers 13, 14 of 4 answer no new connection")


def test_a_worker_may_be_held_up_for_a_while() -> None:
    assert silent(patrol(), begin=1.0, end=4.9) == []


def test_it_can_be_switched_off() -> None:
    assert silent(patrol(silence=0.0), begin=1.0, end=60.0) == []


def test_a_worker_that_answers_badly_is_not_silent() -> None:
    one = patrol()
    one.take(answer(13, Outcome.FAIL), at=1.0)
    assert silent(one, begin=1.0, end=7.0) == []


def test_a_slow_host_is_nobodys_fault() -> None:
    """Answers of each worker are missing, and none answers never."""
    one = patrol()
    for step in range(300):
        at = step / 10
        if not one.wants_more:
            one.begin()
        assert one.take(NOBODY if step % 2 else answer(11 + step // 2 % 3), at=at) is None


def test_where_nobody_answers_it_is_no_matter_of_one_worker() -> None:
    one = patrol()
    for step in range(100):
        assert one.take(NOBODY, at=float(step)) is None
