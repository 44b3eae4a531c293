"""The boxes that a test may have."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.booted.box import Binding, Box
from tests.booted.roots import SUITES, project_layer, root_of
from tests.booted.tally import HERE, SKIPPED
from tools.nginx_builds import builds

BootBox = Callable[..., Box]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(HERE):
            item.add_marker(pytest.mark.booted)
            if os.environ.get("SYSTEMD_TESTS") == "skip":
                item.add_marker(pytest.mark.skip(reason=SKIPPED))


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
