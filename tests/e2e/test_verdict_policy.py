"""What a candidate that is neither proved good nor bad comes to, and who decides."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_cache import Build

TOO_MANY = 1000


def never_enough(one: Site, what: str) -> dict[str, Any]:
    """A slow probe that cannot give so many answers in any window."""
    command = one.folder / "slow.sh"
    command.write_text("#!/bin/sh\nexec sleep 0.1\n")
    command.chmod(0o755)
    slow = {"name": "slow", "type": "exec", "command": [str(command)], "interval": "100ms",
            "timeout": "20s", "rise": 1, "fall": 3, "uses_probe_address": True}  # fmt: skip
    windows = {"start_timeout": "3s", "min_samples": TOO_MANY, "on_inconclusive": what}
    return {"probe": [slow], "upgrade": windows}


def until_up(nginx: Supervised) -> None:
    until("all probes up", lambda: {p["state"] for p in nginx.look()["probes"]} == {"up"})


def test_without_a_probe_the_verdict_says_that_nobody_judged(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one, {"probe": None}) as nginx:
        done = nginx.ctl("upgrade", newest.path)
        assert (done.code, done.last["verdict"], done.reason) == (0, "committed", "unjudged")
        assert done.last["judged"] is False
        assert "no probe has judged it" in done.last["detail"]


def test_a_site_that_is_down_already_is_unjudged(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        down = probe(one, url=f"{one.url}/missing", expect_body="never")
        with supervised.running(one, {"probe": [down]}) as nginx:
            until("it is down", lambda: nginx.look()["probes"][0]["state"] == "down")
            done = nginx.ctl("upgrade", newest.path)
            assert (done.code, done.reason, done.last["judged"]) == (0, "unjudged", False), done


@pytest.mark.parametrize("what", ["rollback", "commit"])
def test_too_few_answers_are_inconclusive(oldest: Build, newest: Build, what: str) -> None:
    with site.make(oldest) as one, supervised.running(one, never_enough(one, what)) as nginx:
        until_up(nginx)
        done = nginx.ctl("upgrade", newest.path)
        if what == "rollback":
            assert (done.code, done.reason) == (4, "canary_inconclusive"), done
            assert f"of {TOO_MANY} times" in done.last["detail"]
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        else:
            assert (done.code, done.reason) == (0, "inconclusive"), done
            assert f"of {TOO_MANY} times" in done.last["detail"]
            checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_person_decides_twice(oldest: Build, newest: Build) -> None:
    """After the canary, in which both generations accept, and after the soak."""
    with site.make(oldest) as one, supervised.running(one, never_enough(one, "hold")) as nginx:
        until_up(nginx)
        upgrade = nginx.begin("upgrade", newest.path)
        until("the canary waits", lambda: bool((nginx.look()["upgrade"] or {}).get("inconclusive")))
        waiting = nginx.look()["upgrade"]
        assert waiting["phase"] == "canary"
        assert f"of {TOO_MANY} times" in waiting["inconclusive"], "who decides has to know what"
        assert len(nginx.masters()) == 2
        assert nginx.ctl("reload").reason == "upgrade_held"
        promotion = nginx.begin("promote")
        nginx.until_phase("held")
        assert nginx.ctl("promote").code == 0
        for waiting in (upgrade, promotion):
            done = nginx.end(waiting)
            assert (done.code, done.reason) == (0, "inconclusive"), done
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_person_takes_it_back(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one, never_enough(one, "hold")) as nginx:
        until_up(nginx)
        upgrade = nginx.begin("upgrade", newest.path)
        until("the canary waits", lambda: bool((nginx.look()["upgrade"] or {}).get("inconclusive")))
        assert nginx.ctl("rollback").code == 0
        done = nginx.end(upgrade)
        assert (done.code, done.reason) == (4, "operator"), done
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
