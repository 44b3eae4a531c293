"""Every worker of a candidate is looked at, and the verdict says how well that went."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Options, sha256
from tests.e2e.harness.supervised import COMMANDS
from tests.e2e.test_evidence import elsewhere, owned, until_up
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

MANY = 16
CACHE = "proxy_cache_path {folder}/temp/cache keys_zone=z:1m; "
"""With a cache nginx has two processes more, which never answer."""


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_one_broken_worker_of_sixteen_is_found(oldest: Build, newest: Build, version: str) -> None:
    new = {"oldest": oldest, "newest": newest}[version]
    with site.make(oldest) as one:
        one.configure(Options(workers=MANY, http=CACHE.format(folder=one.folder)))
        with owned(one) as nginx:
            bad = nginx.ctl("upgrade", candidate(new, "status_500", one_worker=1))
            assert bad.code == 4, bad
            # By its own row, or where the canary is over before by what it lacked; a probe itself
            # meets the worker three times in a row only by chance.
            assert bad.reason in ("worker_failing", "canary_inconclusive", "probe_failed"), bad
            assert "status 500" in bad.last["detail"]
            assert "soaking" not in bad.last["phases"], bad
            assert bad.last["canary_observed"] is True
            assert bad.last["attribution"] == ["private_listener", "socket_owner"]
            (serving,) = nginx.until_state("running")["generations"]
            assert (serving["version"], len(serving["workers"])) == (oldest.version, MANY)
            until_up(nginx)
            good = nginx.ctl("upgrade", candidate(new, "good"))
            assert good.code == 0, good
            assert good.last["coverage"] == {"answered": MANY, "workers": MANY}
            assert nginx.history()[-1]["coverage"] == good.last["coverage"]


def test_a_worker_that_goes_bad_after_the_canary_is_found(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        one.configure(Options(workers=4))
        windows = {
            "canary": "300ms", "soak": "60s",
            "rollback_quit_timeout": "300ms", "rollback_term_timeout": "300ms",
        }  # fmt: skip
        # Asked by its header, which only the private listener's answers need for the worker.
        asked = probe(one, pid_header="X-Pid")
        # A worker that hangs shows in /proc as well, which is not what is looked at here.
        triggers = {"worker_silence": "1s", "stalled_for": "0s"}
        with owned(one, upgrade=windows, probe=[asked], triggers=triggers) as nginx:
            for kind, knobs, reason in (
                ("hang_one_worker", {}, "worker_not_answering"),
                ("status_500", {"one_worker": 1}, "worker_failing"),
            ):
                bad = nginx.ctl("upgrade", candidate(newest, kind, delay_ms=4000, **knobs))
                assert bad.code == 4, bad
                # The probe may meet it three times in a row, or time out on it, by chance.
                assert bad.reason in (reason, "probe_failed", "accept_queue_stalled"), bad
                assert "soaking" in bad.last["phases"], bad
                assert "response_header" in bad.last["attribution"]
                checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
                until_up(nginx)


def test_a_canary_that_nobody_observed_is_told_everywhere(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        # With one that can be traced the canary would be observed by chance.
        command = one.folder / "probe.sh"
        command.write_text("#!/bin/sh\nexit 0\n")
        command.chmod(0o755)
        blind = {
            "name": "blind", "type": "exec", "command": [str(command)], "interval": "50ms",
            "timeout": "20s",
        }  # fmt: skip
        with supervised.running(
            one, {"probe_listener": elsewhere(one), "probe": [blind], "upgrade": {"soak": "1s"}}
        ) as nginx:
            until_up(nginx)
            done = nginx.ctl("upgrade", newest.path)
            assert (done.code, done.last["canary_observed"]) == (0, False), done
            assert done.last["attribution"] == ["sole_generation"]
            assert done.last["coverage"] == {"answered": 0, "workers": 2}
            until("asked again", lambda: nginx.status()["probes"][0]["attribution"], poll=0.05)
            (seen,) = nginx.status()["probes"]
            assert (seen["attribution"], seen["worker"]) == ("sole_generation", None)
            assert nginx.history()[-1]["canary_observed"] is False
            for words in (["history"], ["status"]):
                told = subprocess.run(
                    [COMMANDS / "nginxctl", "--socket", nginx.socket, *words],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                assert "(canary not observed)" in told.stdout
