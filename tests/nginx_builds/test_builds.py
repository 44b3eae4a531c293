"""The tools that make the builds: what they read, refuse and keep."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tools import debian_sources
from tools.build_nginx import SLOTS, check_versions, ensure_builds, obtain
from tools.debian_sources import (
    FetchError,
    Mirrors,
    Source,
    fetch,
    machine_mirrors,
    parse_deb822,
    parse_one_line,
)
from tools.nginx_builds import BuildsError, ascending_pairs, builds, candidate

MIRROR = "http://mirror.example/debian"


def test_one_line_sources() -> None:
    text = f"""\
# deb {MIRROR} no main
deb {MIRROR} bookworm main contrib # a remark
deb [arch=amd64 signed-by=/keys/a.gpg] {MIRROR}-security bookworm-security main
deb-src {MIRROR} bookworm main
deb cdrom:[Debian]/ bookworm main
"""
    assert list(parse_one_line(text)) == [
        Source(uri=MIRROR, suites=("bookworm",), components=("main", "contrib")),
        Source(
            uri=f"{MIRROR}-security",
            suites=("bookworm-security",),
            components=("main",),
            signed_by="/keys/a.gpg",
        ),
    ]


def test_deb822_sources() -> None:
    text = f"""\
Types: deb deb-src
# a remark
URIs: {MIRROR}
Suites: bookworm
  bookworm-updates
Components: main
Signed-By: /keys/a.gpg

Types: deb
Enabled: no
URIs: {MIRROR}/no
Suites: bookworm
Components: main

Types: deb-src
URIs: {MIRROR}/neither
Suites: bookworm
Components: main
"""
    assert list(parse_deb822(text)) == [
        Source(
            uri=MIRROR,
            suites=("bookworm", "bookworm-updates"),
            components=("main",),
            signed_by="/keys/a.gpg",
        )
    ]


def test_a_suite_without_a_mirror_is_named(tmp_path: Path) -> None:
    mirrors = Mirrors(archive=(Source(uri=MIRROR, suites=("bookworm",), components=("main",)),))
    with pytest.raises(FetchError, match="bookworm-security"):
        fetch("nginx", suite="bookworm-security", mirrors=mirrors, into=tmp_path)


def test_another_suite_stands_in_for_one_that_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    first, second, *_ = SLOTS["middle"]

    def fetch_from_the_second(package: str, *, suite: str, mirrors: Mirrors, into: Path) -> Path:
        asked.append(suite)
        if suite == first:
            raise FetchError("404  Not Found")
        path = into / f"{package}_1.22.1.orig.tar.gz"
        path.touch()
        return path

    monkeypatch.setattr(debian_sources, "fetch", fetch_from_the_second)
    none = Mirrors(archive=())
    tarball = obtain("middle", mirrors=none, sources=tmp_path)
    assert tarball is not None
    assert (tarball.suite, tarball.version, asked) == (second, "1.22.1", [first, second])
    assert f"cannot fetch nginx from {first}: 404  Not Found" in capsys.readouterr().err

    asked.clear()
    monkeypatch.setitem(SLOTS, "middle", (second, first))
    assert obtain("middle", mirrors=none, sources=tmp_path) == tarball
    assert asked == []  # it was kept


def test_a_slot_that_no_suite_has_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch_from_none(package: str, *, suite: str, mirrors: Mirrors, into: Path) -> Path:
        raise FetchError("404  Not Found")

    monkeypatch.setattr(debian_sources, "fetch", fetch_from_none)
    assert obtain("new", mirrors=Mirrors(archive=()), sources=tmp_path) is None
    said = capsys.readouterr().err
    assert [line.split()[5] for line in said.splitlines()] == [f"{each}:" for each in SLOTS["new"]]


@pytest.mark.parametrize(
    "release", [{"ID": "fedora"}, {"ID": "ubuntu", "ID_LIKE": "debian"}, {}], ids=str
)
def test_a_machine_that_is_not_debian_is_told_what_to_set(
    release: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian_sources, "os_release", lambda: release)
    assert machine_mirrors() == Mirrors(archive=())
    monkeypatch.delenv("NGINX_BUILDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildsError, match=r"set NGINX_BUILDS=DIR \(a folder of VERSION/sbin/nginx"):
        ensure_builds()


def test_fewer_than_two_versions_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildsError, match="NGINX_BUILDS"):
        check_versions(["1.26.3"])
    check_versions(["1.22.1", "1.26.3"])
    assert "do not span 1.19.1" in capsys.readouterr().err
    check_versions(["1.18.0", "1.26.3"])
    assert capsys.readouterr().err == ""


def test_pairs_ascend() -> None:
    assert ascending_pairs()
    assert all(old < new for old, new in ascending_pairs())


def test_candidates_are_kept_and_differ(tmp_path: Path) -> None:
    build = builds()[0]
    assert candidate(build, "good") == candidate(build, "good")
    paths = [
        build.path,
        candidate(build, "good", into=tmp_path),
        candidate(build, "exit_later", into=tmp_path),
        candidate(build, "exit_later", into=tmp_path, delay_ms=1),
    ]
    assert all(path.is_relative_to(tmp_path) for path in paths[1:])
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) == len(paths)
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o022]


def test_unknown_kinds_and_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match="one of good"):
        candidate(builds()[0], "evil")
    with pytest.raises(ValueError, match="delay_ms"):
        candidate(builds()[0], "exit_later", delay=1)
    with pytest.raises(ValueError, match="everywhere"):
        candidate(builds()[0], "status_500", where="here")
