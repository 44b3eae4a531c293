"""Files of a configuration are put back whole, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges import config_restore
from supervisor.edges.config_restore import expect_restorable, hashes_of, put_file, take_away
from supervisor.edges.config_store import KeptFile
from supervisor.edges.files import RealDisk


def kept(path: Path, mode: int = 0o640) -> KeptFile:
    return KeptFile(path=str(path), sha256="", mode=mode, uid=os.getuid(), gid=os.getgid())


def test_a_file_comes_back_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "conf.d" / "one.conf"
    put_file(kept(path), b"a")  # its folder was deleted as well
    assert path.read_bytes() == b"a"
    inode = path.stat().st_ino
    put_file(kept(path, 0o600), b"b")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"b", 0o600)
    assert path.stat().st_ino != inode
    assert [one.name for one in path.parent.iterdir()] == ["one.conf"]
    take_away(str(path))
    assert not path.exists()


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    class Full(RealDisk):
        def rename(self, source: Path, destination: Path) -> None:
            raise OSError(28, "No space left on device")

    path = tmp_path / "one.conf"
    path.write_text("now")
    with pytest.raises(Refusal) as caught:
        put_file(kept(path), b"before", disk=Full())
    assert caught.value.reason == "no_space"
    assert path.read_text() == "now"
    assert [one.name for one in tmp_path.iterdir()] == ["one.conf"]


@pytest.mark.parametrize("where", ["file", "folder", "volume"])
def test_links_are_refused(tmp_path: Path, where: str) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "one.conf").write_text("")
    path = tmp_path / "conf.d" / "one.conf"
    if where == "folder":
        path.parent.symlink_to(real)
    elif where == "file":
        path.parent.mkdir()
        path.symlink_to(real / "one.conf")
    else:  # as Kubernetes mounts a ConfigMap
        path.parent.mkdir()
        (path.parent / "..data").symlink_to(real)
        path.symlink_to("..data/one.conf")
    with pytest.raises(Refusal) as caught:
        expect_restorable([str(real / "one.conf"), str(path)])
    assert caught.value.reason == "configuration_symlinked"
    assert str(path) in caught.value.detail
    if where != "folder":  # a link is no file with the right content
        assert hashes_of([str(path)]) == {str(path): ""}


def test_what_could_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_restorable([f"{tmp_path}/gone/one.conf", f"{tmp_path}//x/../one.conf"])
    with pytest.raises(Refusal) as caught:
        expect_restorable(["/proc/sys/one.conf"])
    assert caught.value.reason == "configuration_not_writable"
    path = str(tmp_path / "one.conf")
    monkeypatch.setattr(config_restore, "_mount_points", lambda: frozenset({path}))
    with pytest.raises(Refusal) as caught:
        expect_restorable([path])
    assert caught.value.reason == "configuration_not_writable"
    assert "mount of its own" in caught.value.detail


def test_mount_points_are_read() -> None:
    assert "/" in config_restore._mount_points()
    assert "/proc" in config_restore._mount_points()
