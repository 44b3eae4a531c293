"""Several upgrades in one supervisor's life, and the way back from a committed one."""

from __future__ import annotations

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.site import sha256
from tools.load import Load
from tools.nginx_builds import builds, candidate


def test_three_upgrades_and_a_rollback_of_the_last() -> None:
    first, *others = builds()
    last = others[-1]
    # Two builds make one ascending step; the rest are other builds of the same version.
    steps = [(one, one.path) for one in others]
    steps += [(last, candidate(last, "good")), (last, candidate(last, "good", always=1))]
    with (
        site.make(first) as one,
        supervised.running(one) as nginx,
        Load(one.plan(slow_seconds=1)) as load,
    ):
        masters = {nginx.masters()[0].pid}
        for build, path in steps[:3]:
            answer = nginx.ctl("upgrade", path)
            assert answer.code == 0, answer
            nginx.until_state("running")
            checks.assert_settled(nginx, build, sha256(path))
            masters.add(nginx.masters()[0].pid)
        assert len(masters) == 4
        back_to, path = steps[1]
        answer = nginx.ctl("rollback")
        assert answer.code == 0, answer
        assert answer.last["verdict"] == "committed", answer
        assert answer.last["to_version"] == back_to.version
        nginx.until_state("running")
        checks.assert_settled(nginx, back_to, sha256(path))
        report = load.stop()
        assert report.failures == 0, report
        history = nginx.history()
        assert [each["verdict"] for each in history] == ["committed"] * 4
        assert len({each["upgrade_id"] for each in history}) == 4


def test_rollback_to_a_named_version() -> None:
    first, *_, last = builds()
    with site.make(first) as one, supervised.running(one) as nginx:
        for path in (last.path, candidate(last, "good")):
            assert nginx.ctl("upgrade", path).code == 0
            nginx.until_state("running")
        answer = nginx.ctl("rollback", "--to", first.version)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, first, sha256(first.path))
        refused = nginx.ctl("rollback", "--to", "9.9.9")
        assert refused.code == 3, refused
        assert refused.reason == "version_unknown"


def test_the_same_binary_again() -> None:
    first, *_ = builds()
    with site.make(first) as one, supervised.running(one) as nginx:
        before = nginx.masters()[0].pid
        unchanged = nginx.ctl("upgrade", first.path, "--if-changed")
        assert unchanged.code == 0, unchanged
        assert nginx.masters()[0].pid == before
        dry = nginx.ctl("upgrade", builds()[-1].path, "--dry-run")
        assert dry.code == 0, dry
        checks.assert_settled(nginx, first, sha256(first.path))
        assert nginx.masters()[0].pid == before
        again = nginx.ctl("upgrade", first.path)
        assert again.code == 0, again
        nginx.until_state("running")
        assert nginx.masters()[0].pid != before
        checks.assert_settled(nginx, first, sha256(first.path))
