"""How often nginx is started again by itself, counted from outside."""

from __future__ import annotations

import signal

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_cache import Build

LIMIT = {"restart": {"start_limit": 4, "start_limit_interval": "60s"}}


def crash_to_the_end(nginx: Supervised) -> list[int]:
    """Kill each master as soon as it serves; the pids of all that were started."""
    started: list[int] = []
    while True:
        started.append(nginx.masters()[0].pid)
        for one in nginx.nginx():
            kill(one.pid, signal.SIGKILL)

        def settled() -> bool:
            if nginx.status()["state"] == "degraded":
                return True
            return any(one.pid not in started for one in nginx.masters())

        until("another master, or none", settled)
        if nginx.status()["state"] == "degraded":
            return started
        nginx.until_state("running")


def test_the_first_start_counts(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one, LIMIT) as nginx:
        assert len(crash_to_the_end(nginx)) == 4
        status = nginx.status()
        assert status["reason"] == "start_limit", status
        assert nginx.ctl("start").code == 0  # and begins to count again
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert len(crash_to_the_end(nginx)) == 4
