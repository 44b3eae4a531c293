"""Tests that need what a build lacks are left out, named and counted; others are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import missing_features
from tools.nginx_builds import FEATURES, FILES, SINCE, Build, builds, lacks

ROOT = Path(__file__).resolve().parent.parent
NEEDY = "tests/edges/test_nginx_binary.py::test_a_module_of_another_version"
NOT_NEEDY = "tests/edges/test_nginx_binary.py::test_a_bad_configuration_is_told_in_nginx_s_words"
HEADING = "tests that need a feature which a build lacks"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The oldest and the newest build as other people have them: with nothing but sbin/nginx."""
    for build in (builds()[0], builds()[-1]):
        sbin = tmp_path / build.version / "sbin"
        sbin.mkdir(parents=True)
        shutil.copy(build.path, sbin)
        for folder in (sbin.parent, sbin):
            folder.chmod(0o755)  # with a umask of 002 the builds would be refused
    return tmp_path


def run(given: Path, *arguments: str) -> list[str]:
    """The lines of a run of pytest with these builds, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**os.environ, "NGINX_BUILDS": str(given)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("processes", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_test_that_needs_what_builds_lack_is_named(bare: Path, processes: list[str]) -> None:
    lines = run(bare, NEEDY, NOT_NEEDY, *processes)
    heading = next(number for number, line in enumerate(lines) if HEADING in line)
    assert lines[heading + 1] == "1 of them"
    old, new = builds()[0], builds()[-1]
    assert lines[heading + 2] == (f"  {NEEDY}: no {FILES['marker']} in nginx {old}, {new}")
    assert "2 passed, 1 skipped" in lines[-1]


def test_the_list_is_empty_where_nothing_lacks(bare: Path) -> None:
    lines = run(bare, NOT_NEEDY)
    heading = next(number for number, line in enumerate(lines) if HEADING in line)
    assert lines[heading + 1] == "none"


def test_what_is_missing_is_said_of_each_build(bare: Path) -> None:
    has, lacking = Build.at(bare / builds()[0].version), Build.at(bare / builds()[-1].version)
    marker = has.path.parent.parent / FILES["marker"]
    marker.parent.mkdir()
    marker.touch()
    assert not lacks(has, "marker")
    assert missing_features(["marker"], [has]) == ""
    assert missing_features(["marker", "twin"], [has, lacking]) == (
        f"no {FILES['marker']} in nginx {lacking}; no {FILES['twin']} in nginx {has}, {lacking}"
    )


def test_a_feature_of_the_binary_is_read_from_it(tmp_path: Path) -> None:
    nginx = tmp_path / "1.2.3" / "sbin" / "nginx"
    nginx.parent.mkdir(parents=True)
    nginx.write_text("#!/bin/sh\necho 'configure arguments: --with-stream=dynamic' >&2\n")
    nginx.chmod(0o755)
    build = Build.at(tmp_path / "1.2.3")
    assert missing_features(["http_v2"], [build]) == ("no --with-http_v2_module in nginx 1.2.3")


def test_an_unknown_feature_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'colour': one of marker, twin, ssl"):
        missing_features(["colour"], builds())


@pytest.mark.skipif(bool(os.environ.get("NGINX_BUILDS")), reason="it is about our own builds")
def test_our_own_builds_lack_nothing() -> None:
    for feature in (*FILES, *FEATURES):
        could = [one for one in builds() if one.number >= SINCE.get(feature, ())]
        assert could
        assert missing_features([feature], could) == ""
