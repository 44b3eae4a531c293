from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.edges import cgroup

V2 = "31 23 0:28 {root} {place} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "37 31 0:34 / {place} rw - cgroup cgroup rw,name=systemd\n"


def host(folder: Path, own: str, mounts: str) -> Path:
    """A /proc that says so."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(own)
    (folder / "proc" / "self" / "mountinfo").write_text(mounts)
    return folder / "proc"


def group(folder: Path, *pids: int, root: bool = False) -> Path:
    """A cgroup of v2 with these processes; `root`: of the whole hierarchy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("".join(f"{one}\n" for one in pids))
    (folder / "cgroup.controllers").write_text("")
    if not root:
        (folder / "cgroup.events").write_text("populated 1\n")
    return folder


def test_our_own() -> None:
    """Of this very process, wherever the tests run; where no hierarchy is mounted, nothing."""
    assert cgroup.own_members() >= {os.getpid()} or not Path("/sys/fs/cgroup").exists()


def test_a_unit_with_what_is_below_it_and_none_of_its_neighbours(tmp_path: Path) -> None:
    mount = group(tmp_path / "sys fs", 1, root=True)
    group(mount / "system.slice", 2)
    group(mount / "system.slice" / "supervisor.service", 3, 4)
    group(mount / "system.slice" / "supervisor.service" / "below", 5)
    group(mount / "system.slice" / "supervisor.service2", 6)
    place = str(mount).replace(" ", "\\040")
    own = "1:cpu:/elsewhere\n0::/system.slice/supervisor.service\n"
    proc = host(tmp_path, own, V2.format(root="/", place=place))
    assert cgroup.own_members(proc) == {3, 4, 5}


def test_at_the_root_only_what_is_there_itself(tmp_path: Path) -> None:
    """Every unit of the machine is below it."""
    mount = group(tmp_path / "sys", 1, 2, root=True)
    group(mount / "system.slice", 3)
    proc = host(tmp_path, "0::/\n", V2.format(root="/", place=mount))
    assert cgroup.own_members(proc) == {1, 2}


def test_the_root_of_a_namespace_is_a_cgroup_like_others(tmp_path: Path) -> None:
    mount = group(tmp_path / "sys", 1)
    group(mount / "below", 2)
    proc = host(tmp_path, "0::/\n", V2.format(root="/", place=mount))
    assert cgroup.own_members(proc) == {1, 2}


def test_a_mount_of_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    """As containers without a namespace have it."""
    mount = group(tmp_path / "sys", 1)
    group(mount / "inner", 2)
    proc = host(tmp_path, "0::/docker/ab/inner\n", V2.format(root="/docker/ab", place=mount))
    assert cgroup.own_members(proc) == {2}


def test_systemds_own_hierarchy_of_version_1(tmp_path: Path) -> None:
    mount = tmp_path / "systemd"
    (mount / "unit").mkdir(parents=True)
    (mount / "unit" / "cgroup.procs").write_text("7\n")
    proc = host(tmp_path, "1:name=systemd:/unit\n2:cpu:/other\n", V1.format(place=mount))
    assert cgroup.own_members(proc) == {7}
    (mount / "unit" / "release_agent").write_text("")
    (mount / "unit" / "below").mkdir()
    (mount / "unit" / "below" / "cgroup.procs").write_text("8\n")
    assert cgroup.own_members(proc) == {7}


@pytest.mark.parametrize("own", ["0::/../outside\n", "0::/gone\n", "3:cpu:/\n", ""])
def test_nothing_to_be_seen(tmp_path: Path, own: str) -> None:
    mount = group(tmp_path / "sys", 1, root=True)
    proc = host(tmp_path, own, V2.format(root="/", place=mount))
    assert cgroup.own_members(proc) == frozenset()
    assert cgroup.own_members(tmp_path / "no such folder") == frozenset()


def test_processes_of_another_unit_are_brought_in(tmp_path: Path) -> None:
    """The file stands for the kernel's: what is written to it is a pid that is to be moved."""
    mount = group(tmp_path / "sys", 1, root=True)
    unit = group(mount / "supervisor.service", 3)
    proc = host(tmp_path, "0::/supervisor.service\n", V2.format(root="/", place=mount))
    assert cgroup.bring_in([3], proc) == ()
    assert (unit / "cgroup.procs").read_text() == "3\n"
    assert cgroup.bring_in([3, 8], proc) == (8,)
    assert (unit / "cgroup.procs").read_text() == "8\n"
    (unit / "cgroup.procs").unlink()
    (unit / "cgroup.procs").mkdir()
    assert cgroup.bring_in([9], proc) == ()


def test_nothing_is_brought_into_the_root(tmp_path: Path) -> None:
    mount = group(tmp_path / "sys", 1, root=True)
    proc = host(tmp_path, "0::/\n", V2.format(root="/", place=mount))
    assert cgroup.bring_in([8], proc) == ()
    assert (mount / "cgroup.procs").read_text() == "1\n"
    assert cgroup.bring_in([8], tmp_path / "nowhere") == ()
