"""Case 1: from one version to a newer one under load, and no request is lost."""

from __future__ import annotations

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.site import Options, sha256
from tools.load import Load
from tools.nginx_cache import Build

PHASES = ["preflight", "spawning", "canary", "shifting", "soaking", "committing"]


def test_an_upgrade_loses_no_request(each_pair: tuple[Build, Build]) -> None:
    old, new = each_pair
    with (
        site.make(old) as one, supervised.running(one) as nginx, Load(plan := one.plan()) as load,
    ):  # fmt: skip
        (old_master,) = nginx.masters()
        with unfinished.request(one.port) as begun:
            answer = nginx.ctl("upgrade", new.path)
            assert nginx.status()["state"] == "draining"
            assert nginx.masters()[0].pid == old_master.pid
            assert " 200 " in begun.finish()
        assert answer.code == 0, answer
        verdict = answer.last
        assert verdict["event"] == "verdict"
        assert verdict["verdict"] == "committed"
        assert (verdict["from_version"], verdict["to_version"]) == (old.version, new.version)
        assert verdict["judged"] is True
        assert list(verdict["phases"]) == PHASES
        assert sum(verdict["phases"].values()) == pytest.approx(verdict["elapsed_s"], abs=0.01)
        nginx.until_state("running")
        report = load.stop()
        checks.assert_nothing_lost(report, plan, handovers=1)
        assert set(report.versions) == {old.version, new.version}
        assert old_master.pid not in [one.pid for one in nginx.masters()]
        checks.assert_settled(nginx, new, sha256(new.path))
        (line,) = nginx.history()
        assert {**verdict, **line} == {**line, **verdict}


def test_an_upgrade_of_a_unix_listener_loses_no_request(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest, Options(unix=True)) as one,
        supervised.running(one) as nginx,
        Load(plan := one.plan(address=str(one.unix_path), slow_seconds=1.5)) as load,
    ):
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_nothing_lost(load.stop(), plan, handovers=1)
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_an_upgrade_of_reuseport_listeners_serves_on(oldest: Build, newest: Build) -> None:
    with site.make(oldest, Options(reuseport=True)) as one, supervised.running(one) as nginx:
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
