"""What holds for the whole suite: nothing is left out without being named at the end."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests import needs
from tests.booted import tally
from tests.e2e.harness import matrix_tally

# No example has a deadline, nor has the making of them: a busy machine may stand still at any
# moment. And each run tries the same ones; `make fuzz` looks for others.
hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pairs",
        choices=["widest", "all"],
        # Our own builds are known to differ little in between, and all of their pairs take long;
        # about builds of somebody else nothing is known.
        default="all" if os.environ.get("NGINX_BUILDS") else "widest",
        help="run the end-to-end tests from the oldest version to the newest, or between all pairs"
        " (default: all with NGINX_BUILDS, else widest; some always take all)",
    )
    parser.addoption(
        "--matrix",
        choices=["third", "all"],
        default="third",
        help="how much of the matrix of faults to run (default: a third)",
    )
    parser.addoption(
        "--matrix-seed",
        type=int,
        default=int(os.environ.get("MATRIX_SEED", "1")),
        help="which third of the matrix (default: $MATRIX_SEED, else 1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", needs.MARKER)


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.leave_out_what_lacks_something(item)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What was left out, by name and count, and what the matrix and the boxes have to say.

    All of it here: with pytest-xdist nobody but the workers loads the files of the folders below.
    """
    needs.summarize(terminalreporter)
    chosen = "all"
    if config.getoption("matrix") != "all":
        chosen = f"a third by seed {config.getoption('matrix_seed')}"
    matrix_tally.summarize(terminalreporter, chosen)
    tally.summarize(terminalreporter)
