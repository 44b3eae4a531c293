"""What holds for the whole suite: nothing is left out without being named at the end."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List by name and count what a build (or this machine) lacks a feature for."""
    left_out = terminalreporter.stats.get("skipped", [])
    terminalreporter.section("tests that need a feature which a build lacks")
    terminalreporter.write_line(f"{len(left_out)} of them")
    for report in left_out:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"  {report.nodeid}: {reason}")
