from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nginx_builds.site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    """A site in a short path that nginx's worker user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="candidates-") as folder:
        made = Site(Path(folder))
        try:
            yield made
        finally:
            made.stop()
