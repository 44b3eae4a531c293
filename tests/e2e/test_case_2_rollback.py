"""Case 2: back to the old version under load.

By hand this could leave a worker of the new version behind that serves on as an orphan, and left
the new binary on disk for the next start. Neither may be so here.
"""

from __future__ import annotations

import time

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools.load import Load, Report
from tools.nginx_cache import Build


def assert_rolled_back_by_operator(upgrade: Answer, rollback: Answer) -> None:
    assert rollback.code == 0, rollback
    assert upgrade.code == 4, upgrade
    assert upgrade.last["verdict"] == "rolled_back"
    assert upgrade.reason == "operator"
    assert rollback.last["upgrade_id"] == upgrade.last["upgrade_id"]


def serving_again(nginx: Supervised, load: Load, old: Build) -> Report:
    """Let the load see the old generation, and nobody else, then end it."""
    since = time.monotonic()
    until("answers", lambda: load.report().answers_since(since).total() >= 20, poll=0.05)
    report = load.stop()
    assert set(report.answers_since(since)) == {old.version}
    checks.assert_rolled_back(nginx, old, sha256(old.path))
    return report


def test_a_held_upgrade_is_rolled_back(each_pair: tuple[Build, Build]) -> None:
    """Also no download that the candidate began: it may end it before it leaves."""
    old, new = each_pair
    with (
        site.make(old) as one, supervised.running(one) as nginx, Load(plan := one.plan()) as load,
    ):  # fmt: skip
        upgrade = nginx.begin("upgrade", new.path, "--hold")
        nginx.until_phase("held")
        checks.assert_serves(nginx, new)
        with Load(one.plan(new=0, keepalive=0, idle=0, slow=2)) as downloads:
            rollback = nginx.ctl("rollback")
            assert_rolled_back_by_operator(nginx.end(upgrade), rollback)
            begun = downloads.stop()
        # Whoever was done before the candidate left has begun again.
        assert begun.failures == 0, begun
        assert begun.versions[new.version] >= 2, begun
        report = serving_again(nginx, load, old)
        checks.assert_nothing_lost(report, plan, handovers=2)
        assert new.version in report.versions


def test_an_upgrade_is_rolled_back_in_the_canary(each_pair: tuple[Build, Build]) -> None:
    old, new = each_pair
    with (
        site.make(old) as one, supervised.running(one) as nginx, Load(plan := one.plan()) as load,
    ):  # fmt: skip
        upgrade = nginx.begin("upgrade", new.path, "--canary", "60s")
        nginx.until_phase("canary")
        rollback = nginx.ctl("rollback")
        assert_rolled_back_by_operator(nginx.end(upgrade), rollback)
        checks.assert_nothing_lost(serving_again(nginx, load, old), plan, handovers=1)


def test_a_rollback_in_the_soak(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest) as one, supervised.running(one) as nginx,
        Load(plan := one.plan()) as load,
    ):  # fmt: skip
        upgrade = nginx.begin("upgrade", newest.path, "--soak", "60s")
        nginx.until_phase("soaking")
        rollback = nginx.ctl("rollback")
        assert_rolled_back_by_operator(nginx.end(upgrade), rollback)
        checks.assert_nothing_lost(serving_again(nginx, load, oldest), plan, handovers=2)


def test_a_held_upgrade_is_promoted(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest) as one, supervised.running(one) as nginx,
        Load(plan := one.plan()) as load,
    ):  # fmt: skip
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        promoted = nginx.ctl("promote")
        ended = nginx.end(upgrade)
        assert (promoted.code, ended.code) == (0, 0), (promoted, ended)
        assert ended.last["verdict"] == promoted.last["verdict"] == "committed"
        nginx.until_state("running")
        checks.assert_nothing_lost(load.stop(), plan, handovers=1)
        checks.assert_settled(nginx, newest, sha256(newest.path))
