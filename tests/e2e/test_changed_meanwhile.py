"""The world changes in the middle of an upgrade: clock, package, configuration, processors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.disk import Shim, build_shim
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.test_package_replacement import kill_everything
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

YEAR = 365.25 * 86400

# --- the wall clock -----------------------------------------------------------------------------


def good_versions(nginx: Supervised) -> set[str]:
    return {one["version"] for one in nginx.ctl("versions").lines if one.get("good")}


def test_the_clock_jumps_by_years(oldest: Build, newest: Build, tmp_path: Path) -> None:
    """No deadline depends on it, and what was last good stays that, whatever the times say."""
    with site.make(oldest) as one, supervised.on(one, {"state": {"keep_versions": 2}}) as nginx:
        shim = Shim(nginx, build_shim(tmp_path), tmp_path)
        nginx.start()
        phases = ["--canary", "1s", "--soak", "1s"]
        for count, years, build in ((1, 5, newest), (2, -10, oldest)):
            client = nginx.begin("upgrade", build.path, *phases)
            nginx.until_begun("canary", count)
            shim.jump(years * YEAR)
            answer = nginx.end(client)
            assert answer.code == 0, answer
            spent = answer.last["phases"]
            assert 1 <= spent["canary"] < 120, answer
            assert 1 <= spent["soaking"] < 120, answer
            assert sum(spent.values()) == pytest.approx(answer.last["elapsed_s"], abs=0.01)
            checks.assert_settled(nginx, build, sha256(build.path))
            assert good_versions(nginx) == {oldest.version, newest.version}
        # What was good before is what a rollback returns to, and a cold start too: the last good
        # version is the last one, though the clock was years back when it was judged.
        bad = candidate(newest, "status_500")
        assert nginx.ctl("upgrade", bad).code == 4
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        told = nginx.ctl("history").lines
        verdicts = [line["verdict"] for line in (told[0].get("verdicts") or told)]
        assert verdicts == ["committed", "committed", "rolled_back"]
        put(bad, one.binary)
        kill_everything(nginx)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("rollback").code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- a package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["promote", "rollback"])
def test_a_package_arrives_while_an_upgrade_is_held(
    oldest: Build, newest: Build, decision: str
) -> None:
    """The verdict is about what was judged; the file that came is not lost, and that is said."""
    package = candidate(newest, "good")
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        put(package, one.binary)
        assert nginx.status()["binary_on_disk"]["sha256"] == sha256(package)
        assert nginx.ctl(decision).code == 0
        answer = nginx.end(client)
        assert "binary_changed" in answer.last["detail"], answer
        assert "binary_changed" in [
            line["reason"] for line in nginx.log() if line["event"] == "supervisor.incident"
        ]
        nginx.until_state("running")
        checks.assert_one_generation(nginx)
        if decision == "promote":
            assert answer.code == 0, answer
            assert answer.last["to_version"] == newest.version
            (generation,) = nginx.status()["generations"]
            assert generation["sha256"] == sha256(newest.path)
            assert sha256(one.binary) == sha256(package)
            assert nginx.status()["binary_on_disk"]["matches_active"] is False
            assert nginx.ctl("upgrade").code == 0
        else:
            assert answer.code == 4, answer
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            (kept,) = [
                each["binary"] for each in nginx.ctl("versions").lines
                if each.get("sha256") == sha256(package)
            ]  # fmt: skip
            assert kept in answer.last["detail"], answer
            assert nginx.ctl("upgrade", kept).code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(package))


def test_the_same_package_is_installed_again_while_held(oldest: Build, newest: Build) -> None:
    """Another file with the same content is no change."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        put(newest.path, one.binary)
        assert nginx.ctl("promote").code == 0
        answer = nginx.end(client)
        assert answer.code == 0, answer
        assert "binary_changed" not in nginx.log_text()
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "decision"), [("edited", "promote"), ("edited", "rollback"), ("broken", "rollback")]
)
def test_the_configuration_is_changed_while_an_upgrade_is_held(
    oldest: Build, newest: Build, decision: str, how: str
) -> None:
    """Whoever serves goes on with what it had read; `status` tells, a reload applies it."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        text = one.config.read_text()
        if how == "broken":
            one.config.write_text(f"no_such_directive on;\n{text}")
        else:
            one.configure(replace(one.options, workers=3))
        assert nginx.ctl(decision).code == 0
        answer = nginx.end(client)
        build = newest if decision == "promote" else oldest
        assert answer.code == (0 if decision == "promote" else 4), answer
        nginx.until_state("running")
        checks.assert_serves(nginx, build)
        status = nginx.status()
        assert status["config_matches_active"] is False, status
        assert len(status["generations"][0]["workers"]) == 2, status
        assert sha256(one.binary) == sha256(build.path)
        if how == "broken":
            if decision == "rollback":
                assert "no_such_directive" in answer.last["detail"], answer
            refused = nginx.ctl("reload")
            assert (refused.code, refused.reason) == (3, "config_rejected"), refused
            one.config.write_text(text)
        assert nginx.ctl("reload").code == 0
        checks.assert_settled(nginx, build, sha256(build.path))


# --- the number of processors -------------------------------------------------------------------


def test_a_processor_more_with_worker_processes_auto(
    oldest: Build, newest: Build, tmp_path: Path
) -> None:
    """A host grows: the candidate has more workers, the old generation returns with its own."""
    library, processors = build_shim(tmp_path), tmp_path / "processors"
    processors.write_text("2")
    given = {"LD_PRELOAD": str(library), "CPU_COUNT": str(processors)}
    options = Options(main="env LD_PRELOAD;\nenv CPU_COUNT;")
    with (
        site.make(oldest, options) as one,
        supervised.on(one, {"nginx": {"environment": given}}) as nginx,
    ):
        text = one.config.read_text()
        one.config.write_text(text.replace("worker_processes 2;", "worker_processes auto;"))
        nginx.environment = given
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        processors.write_text("3")
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        (new,) = [each for each in nginx.look()["generations"] if each["role"] == "candidate"]
        assert len(new["workers"]) == 3, new
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(client).code == 4
        nginx.until_state("running")
        until("two workers", lambda: len(nginx.look()["generations"][0]["workers"]) == 2)
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        one.options = replace(options, workers=3)
        checks.assert_settled(nginx, newest, sha256(newest.path))
