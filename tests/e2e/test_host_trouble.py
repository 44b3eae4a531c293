"""On an overloaded host no candidate is blamed for it, and a bad one is found all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

BUSY = 3
AGAINST_NOBODY = {"canary_inconclusive", "soak_inconclusive"}


@contextmanager
def crowd() -> Iterator[None]:
    """Busy processes on the one CPU that this test has."""
    with ExitStack() as stack:
        for _ in range(BUSY):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """All that the test starts shares one CPU; other tests have the others for themselves."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def strictly_probed(build: Build, **upgrade: str) -> Iterator[Supervised]:
    """A site whose probe has little patience, supervised before the crowd comes."""
    with site.make(build) as one:
        strict = probe(one, timeout="1s", max_latency="30ms")
        with supervised.running(one, {"probe": [strict], "upgrade": upgrade}) as nginx:
            until("the probe is up", lambda: nginx.status()["probes"][0]["state"] == "up", poll=0.1)
            yield nginx


@pytest.mark.usefixtures("one_cpu")
def test_a_good_candidate_is_not_blamed_and_bad_ones_are(oldest: Build, newest: Build) -> None:
    impatient = {"rollback_quit_timeout": "300ms", "rollback_term_timeout": "300ms"}
    with strictly_probed(oldest, **impatient) as nginx, crowd():
        bad = nginx.ctl("upgrade", candidate(newest, "status_500"))
        assert bad.code == 4, bad
        # Where no answer comes in time there is none that could be bad.
        assert bad.reason in {"probe_failed", "worker_failing", *AGAINST_NOBODY}, bad
        assert bad.reason in AGAINST_NOBODY or "status 500" in bad.last["detail"], bad
        hung = nginx.ctl("upgrade", candidate(newest, "hang_workers", delay_ms=1500), "--soak=60s")
        assert hung.code == 4, hung
        assert hung.reason not in AGAINST_NOBODY, hung
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        good = nginx.ctl("upgrade", newest.path)
        assert good.code == 0 or good.reason in AGAINST_NOBODY, good
