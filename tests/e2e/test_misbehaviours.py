"""The thirty misbehaviours in short: what the page says is caught is caught, and users are served.

`make misbehaviours` runs all of them with longer phases and writes docs/misbehaviours.md; here it
is a quarter, chosen by `--matrix-seed`, and the healthy candidate always.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.e2e.harness import misbehaviours
from tests.e2e.harness.misbehaving import SHORT, Misbehaviour, Outcome, listed, run
from tools.nginx_cache import Build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" not in metafunc.fixturenames:
        return
    entries = [one for one in listed() if one.name not in misbehaviours.NOT_CAUGHT]
    if metafunc.config.getoption("matrix") != "all":
        dice = random.Random(metafunc.config.getoption("matrix_seed"))
        chosen = set(dice.sample(range(len(entries)), len(entries) // 4))
        entries = [one for number, one in enumerate(entries) if number in chosen]
    metafunc.parametrize("entry", entries, ids=[one.name for one in entries])


def test_it_is_caught(oldest: Build, newest: Build, entry: Misbehaviour) -> None:
    outcome = run(entry.name, oldest, newest, SHORT)
    assert outcome.caught, outcome
    assert outcome.back is not None, outcome


def test_a_healthy_candidate_is_committed(oldest: Build, newest: Build) -> None:
    # Nothing is lost, that is all: how soon anything happens is up to the machine.
    windows = replace(SHORT, soak=2, start_timeout=20, timeout=5, max_latency=5, interval=0.25)
    outcome = run(misbehaviours.HEALTHY, oldest, newest, windows)
    assert outcome.verdict == "committed", outcome
    assert outcome.failures == 0, outcome


def test_the_list_has_what_was_promised() -> None:
    entries = listed()
    assert len({one.name for one in entries}) == len(entries) == 30
    assert all(one.accepted for one in entries)
    assert sum(one.passes_core for one in entries) >= 10
    assert set(misbehaviours.NOT_CAUGHT) <= {one.name for one in entries}
    assert len(entries) - len(misbehaviours.NOT_CAUGHT) >= 28


def test_the_page_in_the_docs_has_all_of_the_list() -> None:
    text = misbehaviours.PAGE.read_text()
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert rows == [one.name for one in listed()]
    missed = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `")]
    assert missed == list(misbehaviours.NOT_CAUGHT)


def outcome(name: str, verdict: str = "rolled_back", **changes: object) -> Outcome:
    settings: dict[str, object] = {
        "reason": "probe_failed", "detail": "status 500 | of pid 7", "phase": "canary",
        "judged": True, "back": 0.5, "requests": 100, "failed": {"status": 2},
    }  # fmt: skip
    return Outcome(name=name, verdict=verdict, **{**settings, **changes})  # type: ignore[arg-type]


def test_the_page_hides_nothing(oldest: Build, newest: Build) -> None:
    """One round of three in which it got through is a miss, and each miss is named."""
    entries = listed()
    outcomes = {one.name: [outcome(one.name), outcome(one.name, back=0.7)] for one in entries}
    missed = entries[4].name
    outcomes[missed].append(outcome(missed, verdict="committed", reason="healthy"))
    text = misbehaviours.page(entries, outcomes, SHORT, oldest, newest)
    assert "**29 of 30 are caught**" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(entries)
    assert "**not caught** (2 of 3 runs)" in rows[4]
    assert "| 0.60 s | 2 of 100 |" in rows[0]
    assert "status 500 \\| of pid 7" in rows[0]
    assert f"- `{missed}` (" in text.partition("## Not caught")[2]
