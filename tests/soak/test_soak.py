"""A short soak, always the same deeds: `make soak` is the long one."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench import nothing_lost
from tests.soak import deeds, runner

SEED = 5
SECONDS = 15.0


def test_a_short_soak_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    summary = runner.soak(SEED, SECONDS, at_least=3, say=lambda _: None)
    with capsys.disabled():
        print(f"\n{summary}")
    done = list(itertools.islice(runner.sequence(SEED), sum(summary.deeds.values())))
    assert summary.deeds == Counter(done)
    assert len(done) >= 3
    assert summary.requests.ok > 0
    assert summary.requests.pending == 0


def test_a_seed_repeats_a_soak_and_a_round_has_each_deed_once() -> None:
    number = len(deeds.DEEDS)
    first = list(itertools.islice(runner.sequence(1), 2 * number))
    assert first == list(itertools.islice(runner.sequence(1), 2 * number))
    assert first != list(itertools.islice(runner.sequence(2), 2 * number))
    assert sorted(first[:number]) == sorted(first[number:]) == sorted(deeds.DEEDS)


def test_the_benchmark_has_its_deeds() -> None:
    assert set(nothing_lost.ROUND) <= set(deeds.DEEDS)
