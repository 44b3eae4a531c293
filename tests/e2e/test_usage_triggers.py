"""Candidates that answer well and are bad for the machine, or for those whom no probe stands for.

The times are shorter than the defaults, in proportion: a look every 100 ms instead of every second.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import Settings
from tests.e2e.harness.site import Options, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

SMALL = {"usage_interval": "100ms", "memory_floor_mb": 16, "descriptors_floor": 100}
TIMES = ("growing_for", "master_cpu_for", "worker_cpu_for", "stalled_for", "deaf_for")
QUICK = {**SMALL, **dict.fromkeys(TIMES, "500ms")}
IMPATIENT = {**SMALL, **dict.fromkeys(TIMES, "1s")}
"""For the healthy: what would condemn within a second there would within seconds elsewhere."""
LONG = "30s"
"""A soak that no test waits out: what is bad ends it."""


@contextmanager
def owned(
    old: Build, *, soak: str = LONG, cache: bool = False, **settings: Any
) -> Iterator[Supervised]:
    upgrade = {
        "canary": "300ms",
        "soak": soak,
        "rollback_quit_timeout": "500ms",
        "rollback_term_timeout": "500ms",
    }
    with site.make(old) as one:
        if cache:
            one.configure(Options(http=f"proxy_cache_path {one.folder}/cache keys_zone=z:1m;"))
        changes: Settings = {"triggers": QUICK, "upgrade": upgrade, **settings}
        with supervised.running(one, changes) as nginx:
            until("all probes up", lambda: are_up(nginx), poll=0.05)
            yield nginx


def phase_of(nginx: Supervised) -> str | None:
    upgrade = nginx.look()["upgrade"]
    return None if upgrade is None else str(upgrade["phase"])


def are_up(nginx: Supervised) -> bool:
    return all(each["state"] == "up" for each in nginx.status()["probes"])


BAD: Mapping[str, tuple[str, Mapping[str, int | str], str]] = {
    "memory": ("leaky_workers", {"limit_mb": 400}, "memory_grows"),
    "descriptors": ("leaky_descriptors", {"limit": 4000}, "descriptors_grow"),
    "master works": ("spin_master", {"burns": 1}, "master_burns_cpu"),
    "master naps": ("spin_master", {}, "candidate_deaf"),
    "a thread spins": ("burn_cpu", {}, "worker_spinning"),
    "workers leave": ("workers_leave", {"every_ms": 700}, "workers_respawning"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_candidate_that_answers_well_is_rolled_back(
    oldest: Build, newest: Build, what: str
) -> None:
    kind, knobs, reason = BAD[what]
    with owned(oldest) as nginx:
        answer = nginx.ctl("upgrade", candidate(newest, kind, **knobs))
        assert (answer.code, answer.reason) == (4, reason), answer
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))


def test_a_cache_manager_that_dies_again_and_again(oldest: Build, newest: Build) -> None:
    with owned(oldest, cache=True) as nginx:
        answer = nginx.ctl("upgrade", candidate(newest, "cache_manager_crash", every_ms=300))
        assert (answer.code, answer.reason) == (4, "cache_manager_died"), answer
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))


def test_one_worker_that_hangs(oldest: Build, newest: Build) -> None:
    """Its connections wait, and the others accept all that come: no probe need ever meet it."""
    with owned(oldest, triggers={**QUICK, "patrol": False}, probe=None) as nginx:
        bad = candidate(newest, "hang_one_worker", delay_ms=1500)
        with Load(nginx.site.plan(slow=0)) as load:
            answer = nginx.ctl("upgrade", bad)
            load.stop()
        assert (answer.code, answer.reason) == (4, "worker_stalled"), answer
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))


def test_a_listener_that_nobody_serves(oldest: Build, newest: Build) -> None:
    """No probe asks there; the connections that wait speak for themselves."""
    with owned(oldest, probe=None) as nginx, ExitStack() as clients:
        asked = nginx.begin("upgrade", candidate(newest, "silent_listeners", where="inherited"))
        until("it soaks", lambda: phase_of(nginx) == "soaking", poll=0.02)
        for _ in range(3):
            clients.enter_context(socket.create_connection(("127.0.0.1", nginx.site.port)))
        answer = nginx.end(asked)
        assert (answer.code, answer.reason) == (4, "accept_queue_stalled"), answer
        assert f"3 connections wait at 127.0.0.1:{nginx.site.port}" in answer.last["detail"]
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))


def test_a_healthy_upgrade_of_a_busy_site_on_an_overloaded_host(
    oldest: Build, newest: Build
) -> None:
    """More work than processors, and every trigger impatient: nobody is blamed for that."""
    busy = [sys.executable, "-c", "while True: pass"]
    with owned(oldest, cache=True, soak="4s", triggers=IMPATIENT) as nginx, ExitStack() as others:
        for _ in range(2 * (os.cpu_count() or 1)):
            other = others.enter_context(subprocess.Popen(busy))
            others.callback(other.kill)
        plan = nginx.site.plan(new_rate=400.0, keepalive_rate=400.0)
        with Load(plan) as load:
            answer = nginx.ctl("upgrade", newest.path)
            report = load.stop()
        assert (answer.code, answer.reason) == (0, "healthy"), answer
        assert report.failures == 0, report
        checks.assert_settled(nginx, newest, sha256(newest.path))
