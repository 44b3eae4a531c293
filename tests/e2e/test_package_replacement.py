"""A package manager replaces binary and module on disk; what a cold start runs afterwards."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, Site, put, sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_builds import candidate
from tools.nginx_cache import Build


def install(one: Site, build: Build, binary: Path) -> None:
    """As `dpkg` does: the module's package and nginx's, each file by a rename."""
    one.install(build)
    put(binary, one.binary)


def kill_everything(nginx: Supervised) -> None:
    """As a power failure does."""
    nginx.die()
    while living := nginx.cradle.living():
        for one in living:
            kill(one.pid, signal.SIGKILL)
        until("all dead", lambda: not nginx.cradle.living())


def assert_version_with_its_module(nginx: Supervised, build: Build, binary: Path) -> None:
    checks.assert_settled(nginx, build, sha256(binary))
    assert sha256(nginx.site.module) == sha256(build.marker_module)


@pytest.mark.needs("marker")
def test_a_bad_package_is_rolled_back_and_a_cold_start_is_good(
    oldest: Build, newest: Build
) -> None:
    bad = candidate(newest, "status_500")
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        install(one, newest, bad)
        answer = nginx.ctl("upgrade")
        assert answer.code == 4, answer
        assert answer.last["to_version"] == newest.version
        assert_version_with_its_module(nginx, oldest, oldest.path)
        kill_everything(nginx)
        nginx.start()
        assert_version_with_its_module(nginx, oldest, oldest.path)


@pytest.mark.needs("marker")
def test_a_good_package_is_taken_and_a_cold_start_runs_it(oldest: Build, newest: Build) -> None:
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        install(one, newest, newest.path)
        assert nginx.status()["binary_on_disk"]["matches_active"] is False
        answer = nginx.ctl("upgrade")
        assert answer.code == 0, answer
        nginx.until_state("running")
        assert_version_with_its_module(nginx, newest, newest.path)
        kill_everything(nginx)
        nginx.start()
        assert_version_with_its_module(nginx, newest, newest.path)


@pytest.mark.needs("marker")
def test_a_rollback_of_a_committed_package_brings_its_module_back(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        install(one, newest, newest.path)
        assert nginx.ctl("upgrade").code == 0
        nginx.until_state("running")
        answer = nginx.ctl("rollback")
        assert answer.code == 0, answer
        nginx.until_state("running")
        assert_version_with_its_module(nginx, oldest, oldest.path)


@pytest.mark.needs("marker")
def test_a_module_alone_is_a_change(oldest: Build, tmp_path: Path) -> None:
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        assert nginx.ctl("upgrade", "--if-changed").reason == "unchanged"
        rebuilt = tmp_path / "marker.so"
        rebuilt.write_bytes(one.module.read_bytes() + bytes(1))
        put(rebuilt, one.module)
        expected = [{"kind": "module", "path": str(one.module), "change": "replaced"}]
        assert nginx.status()["changed"] == expected
        answer = nginx.ctl("upgrade", "--if-changed")
        assert answer.code == 0, answer
        assert (answer.last["verdict"], answer.last["changed"]) == ("committed", expected)
        nginx.until_state("running")
        assert nginx.status()["changed"] == []
        assert sha256(one.module) == sha256(rebuilt)
        assert nginx.ctl("upgrade", "--if-changed").reason == "unchanged"


def test_a_condemned_binary_that_is_put_back_is_not_started(oldest: Build, newest: Build) -> None:
    bad = candidate(newest, "status_500")
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("upgrade", bad).code == 4
        put(bad, one.binary)
        kill_everything(nginx)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_crash_starts_the_good_binary_although_another_is_on_disk(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        put(newest.path, one.binary)
        for each in nginx.nginx():
            kill(each.pid, signal.SIGKILL)
        until("a restart", lambda: nginx.look()["restarts"] == 1, poll=0.05)
        nginx.until_state("running")
        checks.assert_serves(nginx, oldest)
        checks.assert_one_generation(nginx)


def test_a_cold_start_falls_back_from_a_package_that_does_not_start(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.stop() == 0
        put(candidate(newest, "workers_fatal", always=1), one.binary)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_the_state_directory_may_be_lost(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        kill_everything(nginx)
        shutil.rmtree(one.folder / "state")
        nginx.start()
        checks.assert_settled(nginx, newest, sha256(newest.path))
