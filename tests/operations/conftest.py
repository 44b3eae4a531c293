from __future__ import annotations

import pytest

from tools.nginx_builds import builds
from tools.nginx_cache import Build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`old_build` is every version that can be upgraded; `each_build` is every version."""
    if "each_build" in metafunc.fixturenames:
        metafunc.parametrize("each_build", builds(), ids=[one.version for one in builds()])
    if "old_build" in metafunc.fixturenames:
        olds = builds()[:-1]
        metafunc.parametrize("old_build", olds, ids=[one.version for one in olds])


@pytest.fixture(scope="session")
def newest() -> Build:
    return builds()[-1]


@pytest.fixture(scope="session")
def oldest() -> Build:
    return builds()[0]
