"""What runs is not in the version store, and then a package replaces binary and module on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.disk import small_disk
from tests.e2e.harness.site import Options
from tests.e2e.harness.supervised import Supervised
from tests.e2e.test_package_replacement import (
    assert_version_with_its_module,
    install,
    kill_everything,
)
from tests.e2e.test_unprivileged import as_nobody
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

pytestmark = pytest.mark.needs("marker")


@contextmanager
def without_a_store(build: Build, how: str) -> Iterator[Supervised]:
    """`build` runs with its module, and the store has nothing of it."""
    with site.make(build, Options(module=True)) as one, supervised.on(one) as nginx:
        versions = one.folder / "state" / "versions"
        if how == "the disk was full":
            versions.mkdir(parents=True)
            versions.parent.chmod(0o700)
            with small_disk(versions, kilobytes=64):
                nginx.start()
            assert not any(versions.iterdir())
        else:
            nginx.start()
            shutil.rmtree(versions)
            if how == "a file":
                versions.write_text("")
        yield nginx


HOW = pytest.mark.parametrize("how", ["removed", "the disk was full"])


def reload_to(nginx: Supervised, workers: int) -> None:
    """A change of the configuration takes effect."""
    one = nginx.site
    one.configure(replace(one.options, workers=workers))
    answer = nginx.ctl("reload")
    assert answer.code == 0, answer
    checks.assert_one_generation(nginx)


def lose_everything(nginx: Supervised, build: Build, binary: Path) -> None:
    """A package arrives while no supervisor runs, and the whole state is lost as well."""
    nginx.die()
    install(nginx.site, build, binary)
    shutil.rmtree(nginx.site.folder / "state")
    nginx.start()


def stored(nginx: Supervised) -> list[str]:
    return [each["version"] for each in nginx.ctl("versions").lines if "version" in each]


@HOW
def test_a_reload_tests_what_runs(oldest: Build, newest: Build, how: str) -> None:
    with without_a_store(oldest, how) as nginx:
        install(nginx.site, newest, newest.path)
        reload_to(nginx, 3)
        checks.assert_serves(nginx, oldest)
        assert "reload.not_tested" not in nginx.log_text()
        assert stored(nginx) == [oldest.version]
        good = nginx.site.config.read_text()
        nginx.site.config.write_text(f"no_such_directive on;\n{good}")
        answer = nginx.ctl("reload")
        assert answer.code != 0, answer
        assert answer.reason == "config_rejected", answer
        nginx.site.config.write_text(good)
        assert nginx.ctl("upgrade").code == 0
        assert_version_with_its_module(nginx, newest, newest.path)


def test_a_reload_of_what_cannot_be_stored(oldest: Build, newest: Build) -> None:
    """nginx itself then tests the configuration, at HUP."""
    with without_a_store(oldest, "a file") as nginx:
        reload_to(nginx, 3)
        install(nginx.site, newest, newest.path)
        reload_to(nginx, 2)
        checks.assert_serves(nginx, oldest)
        assert "reload.not_tested" in nginx.log_text()
        assert nginx.ctl("upgrade").code == 3


@HOW
def test_a_good_package_is_taken(oldest: Build, newest: Build, how: str) -> None:
    with without_a_store(oldest, how) as nginx:
        install(nginx.site, newest, newest.path)
        answer = nginx.ctl("upgrade")
        assert answer.code == 0, answer
        assert_version_with_its_module(nginx, newest, newest.path)
        answer = nginx.ctl("rollback")
        assert answer.code == 0, answer
        assert_version_with_its_module(nginx, oldest, oldest.path)


@HOW
def test_a_bad_package_is_rolled_back_and_a_cold_start_is_good(
    oldest: Build, newest: Build, how: str
) -> None:
    with without_a_store(oldest, how) as nginx:
        install(nginx.site, newest, candidate(newest, "status_500"))
        answer = nginx.ctl("upgrade")
        assert answer.code == 4, answer
        assert_version_with_its_module(nginx, oldest, oldest.path)
        kill_everything(nginx)
        nginx.start()
        assert_version_with_its_module(nginx, oldest, oldest.path)


def test_another_supervisor_finds_no_state_and_a_package(oldest: Build, newest: Build) -> None:
    bad = candidate(newest, "status_500")
    with site.make(oldest, Options(module=True)) as one, supervised.running(one) as nginx:
        lose_everything(nginx, newest, bad)
        checks.assert_serves(nginx, oldest)
        shutil.rmtree(one.folder / "state" / "versions")
        reload_to(nginx, 3)
        answer = nginx.ctl("upgrade")
        assert answer.code == 4, answer
        assert_version_with_its_module(nginx, oldest, oldest.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nobody_special_may_not_look_at_the_mappings(oldest: Build, newest: Build) -> None:
    """It reloads all the same, and says how to go on."""
    with as_nobody(oldest, Options(module=True)) as nginx:
        shutil.rmtree(nginx.site.folder / "state" / "versions")
        install(nginx.site, newest, newest.path)
        reload_to(nginx, 3)
        checks.assert_serves(nginx, oldest)
        answer = nginx.ctl("upgrade")
        assert (answer.code, answer.reason) == (3, "binary_unreadable"), answer
        assert "nginxctl restart" in answer.last["detail"]
        assert nginx.ctl("restart").code == 0
        assert_version_with_its_module(nginx, newest, newest.path)
