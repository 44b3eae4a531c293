"""What every end-to-end test gets: the builds, the pairs to upgrade between, and a cradle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.harness.cradle import Cradle
from tools.nginx_builds import ascending_pairs, builds
from tools.nginx_cache import Build

Pair = tuple[Build, Build]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.e2e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`each_pair` is every ascending pair of versions, one after the other."""
    if "each_pair" in metafunc.fixturenames:
        pairs = ascending_pairs()
        metafunc.parametrize("each_pair", pairs, ids=[f"{old}-{new}" for old, new in pairs])


@pytest.fixture(scope="session")
def oldest() -> Build:
    return builds()[0]


@pytest.fixture(scope="session")
def newest() -> Build:
    return builds()[-1]


@pytest.fixture
def cradle() -> Iterator[Cradle]:
    with Cradle() as cradle:
        yield cradle
