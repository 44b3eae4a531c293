"""NGINX_BUILDS: what is wrong with somebody's folder is said at once, with what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import build_nginx
from tools.given_builds import check_given
from tools.nginx_builds import Build, BuildsError, builds

OLD, NEW = builds()[0], builds()[-1]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual one, whatever the caller's: the mode of folders is tested here."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder as it should be."""
    for build in (OLD, NEW):
        install(build, tmp_path / build.version)
    return tmp_path


def install(build: Build, folder: Path) -> Path:
    """The nginx of `build` in a folder of any name."""
    nginx = folder / "sbin" / "nginx"
    nginx.parent.mkdir(parents=True)
    shutil.copy(build.path, nginx)
    return nginx


def refused(folder: Path) -> str:
    """Why the folder cannot be used, after the variable's name."""
    with pytest.raises(BuildsError) as caught:
        check_given(folder)
    text = str(caught.value)
    assert text.startswith(f"cannot use NGINX_BUILDS={folder}: ")
    assert "Path(" not in text
    return text.removeprefix(f"cannot use NGINX_BUILDS={folder}: ")


def test_builds_that_are_as_they_should_be(given: Path) -> None:
    assert [build.version for build in check_given(given)] == [OLD.version, NEW.version]


def test_no_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing") == (
        "it is not a folder; name a folder of VERSION/sbin/nginx"
    )


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        "at least 2 versions are needed to upgrade between, and it has none (folders named like"
        " 1.26.3 with sbin/nginx)"
    )


def test_folders_with_other_names_are_named(tmp_path: Path) -> None:
    install(OLD, tmp_path / OLD.version)
    install(NEW, tmp_path / f"nginx-{NEW.version}")
    said = refused(tmp_path)
    assert f"and it has {OLD.version} (folders named like" in said
    assert said.endswith(
        f"; ignored: nginx-{NEW.version}; rename nginx-{NEW.version} to {NEW.version}"
    )


def test_many_other_names_are_counted(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"thing-{number}").touch()
    assert refused(tmp_path).endswith("thing-6, thing-7 and 2 more")


def test_other_names_beside_good_ones_are_said(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (given / "nginx-1.20.1").mkdir()
    monkeypatch.setenv("NGINX_BUILDS", str(given))
    assert len(build_nginx.ensure_builds()) == 2
    assert "not named like 1.26.3: nginx-1.20.1" in capsys.readouterr().err


def test_a_folder_without_an_nginx(given: Path) -> None:
    (given / NEW.version / "sbin" / "nginx").unlink()
    assert refused(given) == (
        f"there is no {given}/{NEW.version}/sbin/nginx; put that nginx there, or take the folder"
        f" {NEW.version} away"
    )


def test_a_file_that_does_not_run(given: Path) -> None:
    path = given / NEW.version / "sbin" / "nginx"
    path.write_bytes(b"\x7fELF, but no more\n")
    assert refused(given) == (
        f"cannot run {path} -v: Exec format error; put an nginx there that runs on this machine,"
        f" or take the folder {NEW.version} away"
    )


def test_a_program_that_is_not_nginx(given: Path) -> None:
    shutil.copy("/bin/true", given / NEW.version / "sbin" / "nginx")
    assert refused(given).startswith(
        f"cannot learn the version of {given}/{NEW.version}/sbin/nginx: it exited with 0: "
    )


def test_a_folder_of_another_version(given: Path) -> None:
    (given / NEW.version).rename(given / "9.9.9")
    assert refused(given) == (
        f"{given}/9.9.9/sbin/nginx says that it is {NEW.version}, its folder 9.9.9; rename the"
        f" folder to {NEW.version}"
    )


@pytest.mark.parametrize("part", [".", "sbin", "sbin/nginx"])
def test_a_build_that_others_may_write_to(given: Path, part: str) -> None:
    """A umask of 002 makes them so, and then every upgrade of every test would be refused."""
    path = given / OLD.version / part
    path.chmod(0o775)
    said = refused(given)
    assert said.startswith(
        f"the supervisor would refuse each upgrade to {OLD.version} as binary_not_trusted: "
    )
    assert f"{path} can be written to by others" in said
    assert said.endswith(f"`chmod -R go-w {given}` does it for all builds")
