"""What every end-to-end test gets: the builds, the pairs to upgrade between, and a cradle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.harness import cases
from tests.e2e.harness.cradle import Cradle
from tools.nginx_builds import ascending_pairs, builds
from tools.nginx_cache import Build

Pair = tuple[Build, Build]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.e2e)


def chosen_cases(config: pytest.Config) -> list[cases.Case]:
    """The part of the matrix that this run is about."""
    if config.getoption("matrix") == "all":
        return list(cases.CASES)
    return cases.third(config.getoption("matrix_seed"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`each_pair` is every ascending pair of versions, one after the other.

    `oldest` and `newest` are the widest pair, or with `--pairs all` each pair too.
    """
    names = metafunc.fixturenames
    pairs = ascending_pairs()
    if "matrix_case" in names:
        chosen = chosen_cases(metafunc.config)
        metafunc.parametrize("matrix_case", chosen, ids=map(str, chosen))
    if "each_pair" in names:
        metafunc.parametrize("each_pair", pairs, ids=[f"{old}-{new}" for old, new in pairs])
    elif "pair" in names and metafunc.config.getoption("pairs") == "all" and len(pairs) > 1:
        ids = [f"{old}-{new}" for old, new in pairs]
        if "newest" not in names:
            # What never upgrades need not run again for each version that it does not upgrade to.
            pairs = tuple({old: (old, new) for old, new in pairs}.values())
            ids = [str(old) for old, _ in pairs]
        metafunc.parametrize("pair", pairs, ids=ids, indirect=True)


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Pair:
    """The versions to upgrade between: one of `--pairs all`, else the widest pair."""
    return getattr(request, "param", (builds()[0], builds()[-1]))


@pytest.fixture
def oldest(pair: Pair) -> Build:
    return pair[0]


@pytest.fixture
def newest(pair: Pair) -> Build:
    return pair[1]


@pytest.fixture
def cradle() -> Iterator[Cradle]:
    with Cradle() as cradle:
        yield cradle
