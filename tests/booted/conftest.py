"""The boxes that a test may have, and the line at the end that says how many ran and how long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.booted.box import Binding, Box
from tests.booted.roots import SUITES, project_layer, root_of
from tools.nginx_builds import builds

_HERE = "tests/booted/"
_SKIPPED = "SYSTEMD_TESTS=skip"

BootBox = Callable[..., Box]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(_HERE):
            item.add_marker(pytest.mark.booted)
            if os.environ.get("SYSTEMD_TESTS") == "skip":
                item.add_marker(pytest.mark.skip(reason=_SKIPPED))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran: dict[str, float] = {}
    failed = set()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if getattr(report, "nodeid", "").startswith(_HERE):
                spent = getattr(report, "duration", 0.0)  # an error of the collection has none
                ran[report.nodeid] = ran.get(report.nodeid, 0.0) + spent
                if outcome != "passed":
                    failed.add(report.nodeid)
    left_out = [
        one for one in terminalreporter.stats.get("skipped", ()) if one.nodeid.startswith(_HERE)
    ]
    if not ran and not left_out:
        return
    terminalreporter.write_sep("=", "tests in a booted systemd")
    if left_out:
        terminalreporter.write_line(f"LEFT OUT by {_SKIPPED}: {len(left_out)}")
    terminalreporter.write_line(
        f"{len(ran)} run, {len(failed)} failed, {sum(ran.values()):.0f} s in all"
    )


@pytest.fixture(scope="session")
def roots() -> dict[str, Path]:
    return {suite: root_of(suite) for suite in SUITES}


@pytest.fixture(scope="session")
def installed(roots: dict[str, Path]) -> Path:
    """The project as `make install` leaves it."""
    return project_layer(roots)


def _boots(stack: ExitStack, roots: dict[str, Path], installed: Path) -> BootBox:
    def boot(suite: str = "bookworm", *bindings: Binding, with_project: bool = True) -> Box:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="box-")))
        lower = [installed, roots[suite]] if with_project else [roots[suite]]
        given = [Binding(one.path.parent.parent, str(one.path.parent.parent)) for one in builds()]
        return stack.enter_context(Box(lower, folder, bindings=[*given, *bindings]))

    return boot


@pytest.fixture
def boot_box(roots: dict[str, Path], installed: Path) -> Iterator[BootBox]:
    """Boots boxes for one test: `boot_box("trixie", Binding(...))`."""
    with ExitStack() as stack:
        yield _boots(stack, roots, installed)


@pytest.fixture(scope="module")
def boot_shared_box(roots: dict[str, Path], installed: Path) -> Iterator[BootBox]:
    """Boots boxes for a whole file, whose tests must not disturb each other."""
    with ExitStack() as stack:
        yield _boots(stack, roots, installed)


@pytest.fixture
def bookworm(boot_box: BootBox) -> Box:
    """systemd 252, Python 3.11, nginx 1.22.1."""
    return boot_box("bookworm")


@pytest.fixture
def trixie(boot_box: BootBox) -> Box:
    """systemd 257, Python 3.13, nginx 1.26.3."""
    return boot_box("trixie")


@pytest.fixture(params=SUITES)
def box(request: pytest.FixtureRequest, boot_box: BootBox) -> Box:
    """One after the other."""
    return boot_box(request.param)
