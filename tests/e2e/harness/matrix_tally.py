"""The counts of the matrix, carried by the reports of its tests (through pytest-xdist too)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.harness.cases import CASES
from tests.e2e.harness.matrix_rules import Cost
from tools.load import Report

PROPERTY = "matrix"


def note(report: Report, cost: Cost) -> str:
    """What one run's load saw, as a property of its test."""
    failed: Counter[str] = Counter()
    for kind in report.kinds.values():
        failed.update(kind.failed)
    return json.dumps({"cost": cost.value, "sent": report.requests, "failed": failed})


def summarize(reporter: pytest.TerminalReporter, chosen: str) -> None:
    """`matrix: N survived / N tried`, and the requests by what they were allowed to lose."""
    survived = _notes(reporter, "passed")
    tried = survived + _notes(reporter, "failed")
    if not tried:
        return
    reporter.write_sep("=", "matrix of faults")
    sent = sum(one["sent"] for one in tried)
    lost = sum(sum(one["failed"].values()) for one in tried)
    reporter.write_line(
        f"matrix: {len(survived)} survived / {len(tried)} tried "
        f"({chosen} of {len(CASES)}); {sent} requests sent, {lost} failed"
    )
    for cost in Cost:
        runs = [one for one in tried if one["cost"] == cost.value]
        if runs:
            reporter.write_line(f"  {_line(cost, runs)}")


def _line(cost: Cost, runs: list[Mapping[str, Any]]) -> str:
    failed: Counter[str] = Counter()
    for one in runs:
        failed.update(one["failed"])
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(failed.items()))
    return (
        f"may lose {cost.value}: {len(runs)} runs, {sum(one['sent'] for one in runs)} sent, "
        f"{causes or '0 failed'}"
    )


def _notes(reporter: pytest.TerminalReporter, outcome: str) -> list[Mapping[str, Any]]:
    found = []
    for one in reporter.stats.get(outcome, []):
        said = dict(getattr(one, "user_properties", ())).get(PROPERTY)
        if said is not None and one.when == "call":
            found.append(json.loads(str(said)))
    return found
