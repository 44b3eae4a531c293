"""What holds for the whole suite: nothing is left out without being named at the end."""

from __future__ import annotations

import pytest

from tests import needs


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", needs.MARKER)


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.leave_out_what_lacks_something(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List by name and count what a build lacks a feature for."""
    needs.summarize(terminalreporter)
