"""The line at the end of a run: how many tests ran in a booted systemd, and how long they took."""

from __future__ import annotations

import pytest

HERE = "tests/booted/"
SKIPPED = "SYSTEMD_TESTS=skip"


def summarize(reporter: pytest.TerminalReporter) -> None:
    """Nothing where none of them was to run; what was left out is said first."""
    ran: dict[str, float] = {}
    failed = set()
    for outcome in ("passed", "failed", "error"):
        for report in reporter.stats.get(outcome, ()):
            if getattr(report, "nodeid", "").startswith(HERE):
                spent = getattr(report, "duration", 0.0)  # an error of the collection has none
                ran[report.nodeid] = ran.get(report.nodeid, 0.0) + spent
                if outcome != "passed":
                    failed.add(report.nodeid)
    left_out = [one for one in reporter.stats.get("skipped", ()) if one.nodeid.startswith(HERE)]
    if not ran and not left_out:
        return
    reporter.write_sep("=", "tests in a booted systemd")
    if left_out:
        reporter.write_line(f"LEFT OUT by {SKIPPED}: {len(left_out)}")
    reporter.write_line(f"{len(ran)} run, {len(failed)} failed, {sum(ran.values()):.0f} s in all")
