"""A binary that others could replace is refused, and the component is named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges.trust import trusted_path

ME = os.getuid()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """tmp_path lies in /tmp, which is sticky, in folders that only we can change."""
    path = tmp_path / "dir" / "nginx"
    path.parent.mkdir(mode=0o755)
    path.write_text("x")
    path.chmod(0o755)
    return path


def reason_for(path: Path, uid: int = ME) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        trusted_path(path, uid)
    return caught.value.reason, caught.value.detail


def test_a_file_that_only_we_can_change(binary: Path) -> None:
    assert trusted_path(binary, ME) == binary
    assert trusted_path(binary.parent / ".." / "dir" / "nginx", ME) == binary


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_component_that_others_can_write_is_named(binary: Path, mode: int) -> None:
    for component in (binary, binary.parent):
        before = stat.S_IMODE(component.stat().st_mode)
        component.chmod(mode)
        reason, detail = reason_for(binary)
        assert reason == "binary_not_trusted"
        assert f"{component} can be written to by others" in detail
        assert f"mode {mode:04o}" in detail
        assert f"chmod go-w {component}" in detail
        assert "--trust" in detail
        component.chmod(before)


def test_a_sticky_folder_is_fine(binary: Path) -> None:
    binary.parent.chmod(0o1777)
    assert trusted_path(binary, ME) == binary
    binary.chmod(0o777)
    assert reason_for(binary)[0] == "binary_not_trusted"


def test_a_foreign_owner_is_named(binary: Path) -> None:
    uid = ME
    if ME == 0:
        os.chown(binary, 12345, 12345)
        owner = 12345
    else:
        uid, owner = ME + 1, ME
    reason, detail = reason_for(binary, uid)
    assert reason == "binary_not_trusted"
    assert f"belongs to uid {owner}" in detail
    assert "chown" in detail


def test_links_are_followed_component_by_component(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to("dir")
    (tmp_path / "folder2").symlink_to(tmp_path / "folder")
    link = tmp_path / "link"
    link.symlink_to("folder2/../dir/nginx")
    assert trusted_path(link, ME) == binary
    assert trusted_path(tmp_path / "folder2" / "nginx", ME) == binary
    binary.parent.chmod(0o777)
    assert str(binary.parent) in reason_for(link)[1]


def test_what_is_not_there(binary: Path, tmp_path: Path) -> None:
    assert reason_for(tmp_path / "missing")[0] == "binary_missing"
    assert reason_for(tmp_path / "missing" / "nginx")[0] == "binary_missing"
    assert reason_for(binary / "x")[0] == "binary_missing"
    (tmp_path / "loop").symlink_to("loop")
    assert reason_for(tmp_path / "loop")[0] == "binary_missing"
    assert reason_for(Path("nginx"))[0] == "relative_path"
    assert reason_for(tmp_path / ("x" * 300))[0] == "binary_unreadable"
