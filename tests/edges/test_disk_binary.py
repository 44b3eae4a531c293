from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from supervisor.edges.disk_binary import DiskBinary, DiskBinaryCache
from tools.nginx_builds import builds
from tools.nginx_cache import Build


@pytest.mark.parametrize("build", builds(), ids=[one.version for one in builds()])
def test_the_version_of_a_real_build(build: Build) -> None:
    found = DiskBinaryCache(str(build.path)).look()
    assert found.version == build.version
    assert found.sha256 == hashlib.sha256(build.path.read_bytes()).hexdigest()
    assert found.path == str(build.path)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"\0nginx/1.22.1\0", "1.22.1"),
        (b"\0openresty/1.21.4.3\0", "1.21.4.3"),
        (b"\0Angie/1.5.0\0", "1.5.0"),
        (b"no nginx", None),
        (b"", None),
    ],
)
def test_the_version_in_a_file(tmp_path: Path, text: bytes, version: str | None) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\x7fELF" + text)
    assert DiskBinaryCache(str(path)).look().version == version


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\0nginx/1.18.0\0")
    cache = DiskBinaryCache(str(path))
    first = cache.look()
    assert cache.look() is first
    # A package manager keeps size and times; the inode is another one.
    times = path.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"\0nginx/1.18.1\0")
    os.utime(other, ns=(times, times))
    other.rename(path)
    assert cache.look().version == "1.18.1"


def test_a_missing_file_is_an_answer_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    cache = DiskBinaryCache(str(path))
    nothing = DiskBinary(path=str(path), sha256=None, version=None)
    assert cache.look() == nothing
    path.write_bytes(b"\0nginx/1.18.0\0")
    assert cache.look().version == "1.18.0"
    path.unlink()
    assert cache.look() == nothing
    path.mkdir()
    assert cache.look() == nothing


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    os.mkfifo(path)
    assert DiskBinaryCache(str(path)).look().sha256 is None
