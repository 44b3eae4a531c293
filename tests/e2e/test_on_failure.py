"""`on_failure = "restart"`: a serving nginx that fails its probe is replaced, or left alone."""

from __future__ import annotations

import os
import signal

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_cache import Build

QUICK = {"drain_timeout": "1s", "rollback_term_timeout": "500ms"}
NEW_ONLY = {"new": 4, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 30.0}
"""What a stopped worker has accepted is lost with it: that is the fault, not ours."""


def incidents(nginx: Supervised) -> list[str]:
    return [one["reason"] for one in nginx.log() if one["event"] == "supervisor.incident"]


def until_up(nginx: Supervised, generation: str) -> None:
    def is_up() -> bool:
        (seen,) = nginx.look()["probes"]
        return bool(seen["state"] == "up" and seen["generation"] == generation)

    until(f"the probe passes on {generation}", is_up)


def stop_workers(nginx: Supervised) -> list[int]:
    """They hang, as of a bug of their own: alive, and serving nobody."""
    workers = [one.pid for one in nginx.nginx() if not one.is_master]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    return workers


def test_workers_that_hang_are_replaced_without_a_refused_connection(oldest: Build) -> None:
    with site.make(oldest) as one:
        settings = {"probe": [probe(one, on_failure="restart", timeout="1s")], "upgrade": QUICK}
        with supervised.running(one, settings) as nginx:
            until_up(nginx, "g1")
            (master,) = nginx.masters()
            with Load(one.plan(**NEW_ONLY)) as load:
                hung = stop_workers(nginx)
                until("another generation", lambda: nginx.look()["generations"][0]["id"] == "g2")
                until_up(nginx, "g2")
                nginx.until_state("running")
                seen = load.stop().kinds["new"]
            assert seen.failed.keys() <= {"reset"}, seen
            assert seen.failures <= NEW_ONLY["new"], "one for each client at most"
            assert incidents(nginx) == ["unhealthy"]
            assert not {one.pid for one in nginx.nginx()} & {master.pid, *hung}
            checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_nginx_is_left_alone_where_a_new_master_would_not_come_up(oldest: Build) -> None:
    with site.make(oldest) as one:
        settings = {"probe": [probe(one, on_failure="restart", timeout="1s")], "upgrade": QUICK}
        with supervised.running(one, settings) as nginx:
            until_up(nginx, "g1")
            (master,) = nginx.masters()
            good = one.config.read_text()
            one.config.write_text("broken")
            hung = stop_workers(nginx)
            until("it was tried", lambda: len(incidents(nginx)) == 2)
            assert incidents(nginx) == ["unhealthy", "config_rejected"]
            for pid in hung:
                os.kill(pid, signal.SIGCONT)
            until_up(nginx, "g1")
            one.config.write_text(good)
            assert [one.pid for one in nginx.masters()] == [master.pid]
            assert len(incidents(nginx)) == 2, "it was tried once"
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
