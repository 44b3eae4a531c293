"""The box itself: what it boots, what it keeps apart, and what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.booted.box import Binding, Box, CommandError
from tests.booted.conftest import BootBox


def test_systemd_is_pid_1_and_is_up(box: Box) -> None:
    assert box.run("systemctl", "is-system-running").stdout == "running\n"
    assert box.path("/proc/1/comm").read_text() == "systemd\n"
    assert box.run("systemctl", "is-active", "nginx", check=False).stdout == "inactive\n"


def test_the_project_is_installed(box: Box) -> None:
    assert "usage" in box.run("nginxctl", "--help").stdout
    assert box.run("nginx-supervisor", "--version").stdout
    shown = box.show("nginx-supervisor.service", "LoadState")
    assert shown == {"LoadState": "loaded"}


def test_a_reboot_keeps_files_and_starts_what_is_enabled(bookworm: Box) -> None:
    boot = bookworm.path("/proc/sys/kernel/random/boot_id").read_text()
    bookworm.write("/root/kept", "yes")
    bookworm.write("/run/not-kept", "no")
    bookworm.run("systemctl", "enable", "nginx")
    bookworm.reboot()
    assert bookworm.path("/root/kept").read_text() == "yes"
    assert not bookworm.path("/run/not-kept").exists()
    assert bookworm.path("/proc/sys/kernel/random/boot_id").read_text() != boot
    assert bookworm.run("systemctl", "is-active", "nginx").stdout == "active\n"


def test_it_leaves_nothing_behind(boot_box: BootBox, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    box = boot_box("bookworm", Binding(shared, "/srv/shared", read_only=False))
    box.write("/srv/shared/seen", "from the box")
    pid, folder, cgroup = box.init_pid, box._folder, box._cgroup
    assert cgroup.is_dir()
    box.close()
    assert (shared / "seen").read_text() == "from the box"
    assert not os.path.exists(f"/proc/{pid}")
    assert not cgroup.exists()
    assert sorted(one.name for one in folder.iterdir()) == ["outer.log"]


def test_a_command_that_fails_says_what_it_printed(bookworm: Box) -> None:
    with pytest.raises(CommandError, match=r"cat /nowhere exited with 1:\ncat: /nowhere: No such"):
        bookworm.run("cat", "/nowhere")
