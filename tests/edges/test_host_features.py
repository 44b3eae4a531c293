"""What the machine offers, asked of the machine that the tests run on."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
from pathlib import Path

import pytest

from supervisor.edges import host_features, linux


def test_features_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert host_features.tells_exit_of_strangers() is (release >= (6, 15))
    assert isinstance(host_features.has_pidfd_getfd(), bool)

    def refuse(*_arguments: object) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(linux, "take_fd", refuse)
    assert not host_features.has_pidfd_getfd()

    def too_old(*_arguments: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", too_old)
    assert not host_features.tells_exit_of_strangers()


def test_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbidden for real in tests/booted/test_hardening.py."""
    assert host_features.has_executable_memory()

    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert not host_features.has_executable_memory()


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    span = host_features.ephemeral_ports()
    assert span is not None
    assert 0 < span[0] <= span[1] < 65536
    assert host_features.reserved_ports() <= frozenset(range(65536))
    monkeypatch.setattr(Path, "read_text", lambda *_a, **_k: "8080,9000-9002\n")
    assert host_features.reserved_ports() == {8080, 9000, 9001, 9002}
    assert host_features.ephemeral_ports() is None


def test_files_and_descriptors() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert host_features.files_limit(os.getpid()) == (None if soft < 0 else soft)
    assert host_features.files_limit(2**22 + 1) is None
    mine = host_features.open_descriptors([os.getpid(), 2**22 + 1])
    assert mine is not None
    assert mine >= 3


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_features.folder_problem(tmp_path, "it") == ""
    gone = tmp_path / "gone"
    assert host_features.folder_problem(gone, "it") == f"the folder {gone} of it does not exist"
    monkeypatch.setattr(os, "access", lambda *_arguments, **_words: False)
    assert host_features.folder_problem(tmp_path, "it").endswith("of it takes no change")
