"""A few of the benchmark's healthy upgrades: `make bench-healthy` does two hundred."""

from __future__ import annotations

import itertools

import pytest

from bench import healthy_upgrades
from bench.healthy_upgrades import HOSTS, Upgrade, Windows, lives, measure

SHORT = Windows(canary="200ms", soak="500ms", interval="50ms")


def test_healthy_upgrades_are_committed_whatever_the_host_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthy_upgrades, "A_LIFE", 3)
    result = measure(6, seed=6, windows=SHORT)
    with capsys.disabled():
        print(f"\n{result}")
    assert result.is_good, str(result)
    assert [one.verdict for one in result.upgrades] == ["committed"] * 6
    assert {one.host for one in result.upgrades} == set(HOSTS)


def test_each_site_is_seen_on_each_host_before_one_comes_again() -> None:
    first = list(itertools.islice(lives(1), 12))
    assert first == list(itertools.islice(lives(1), 12))
    number = len(set(first))
    assert sorted(first[:number]) == sorted(set(first))
    assert {host for _, host in first} == set(HOSTS)


@pytest.mark.parametrize(
    ("verdict", "judged"), [("rolled_back", True), ("committed", False), ("refused", False)]
)
def test_what_ends_otherwise_is_named(verdict: str, *, judged: bool) -> None:
    ended = Upgrade(
        variant="plain", host="quiet", versions=("1.18.0", "1.26.3"), verdict=verdict,
        reason="soak_inconclusive", detail="why", judged=judged, seconds=1.0,
    )  # fmt: skip
    result = healthy_upgrades.Result(seed=1, upgrades=[ended], requests=1)
    assert not result.is_good
    assert f"quiet plain 1.18.0 -> 1.26.3: {verdict}, soak_inconclusive: why" in str(result)
