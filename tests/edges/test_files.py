"""Atomic writes, and the errors of a disk in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges.files import (
    REAL_DISK,
    RealDisk,
    open_regular,
    private_folder,
    read_regular,
    storing,
    write_atomically,
)


class FailingDisk(RealDisk):
    """The real disk until the named operation, which fails."""

    def __init__(self, operation: str, code: int = errno.ENOSPC) -> None:
        self.operation = operation
        self.code = code

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_") and name == object.__getattribute__(self, "operation"):
            code = object.__getattribute__(self, "code")

            def fail(*_args: object, **_more: object) -> None:
                raise OSError(code, os.strerror(code))

            return fail
        return super().__getattribute__(name)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_a_failed_write_leaves_the_old_content(tmp_path: Path, operation: str) -> None:
    path = tmp_path / "x"
    write_atomically(REAL_DISK, path, b"old")
    with pytest.raises(OSError, match="No space"):
        write_atomically(FailingDisk(operation), path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(REAL_DISK, path, b"new")
    assert path.read_bytes() == b"new"


def test_a_symlink_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    path = tmp_path / "x"
    path.symlink_to(precious)
    write_atomically(REAL_DISK, path, b"new")
    assert precious.read_text() == "keep"
    assert not path.is_symlink()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for name in ("fifo", "link", "."):
        with pytest.raises(OSError, match=r"."):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match=r"."):
        REAL_DISK.open_append(tmp_path / "fifo", mode=0o600)
    assert read_regular(tmp_path / "file", limit=3) == b"123"
    assert read_regular(tmp_path / "file", limit=9) == b"12345"


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (errno.ENOSPC, Refusal, "no_space"),
        (errno.EDQUOT, Refusal, "no_space"),
        (errno.EROFS, Refusal, "state_not_writable"),
        (errno.EACCES, Refusal, "state_not_writable"),
        (errno.EIO, OperationFailed, "disk_error"),
        (errno.EMFILE, OperationFailed, "no_descriptors"),
        (errno.ENFILE, OperationFailed, "no_descriptors"),
    ],
)
def test_errors_in_words(code: int, kind: type[Refusal], reason: str) -> None:
    with pytest.raises(kind) as caught, storing("write x", Path("/x")):
        raise OSError(code, os.strerror(code))
    assert caught.value.reason == reason
    assert caught.value.detail.startswith("cannot write x at /x: ")


def test_a_real_full_disk() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(Refusal) as caught,
        storing("write", Path("/dev/full")),
    ):
        REAL_DISK.write(full.fileno(), b"x")
    assert caught.value.reason == "no_space"


def test_a_private_folder_is_made_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    private_folder(path, uid=os.getuid())
    assert path.stat().st_mode & 0o777 == 0o700
    private_folder(path, uid=os.getuid())
    path.chmod(0o770)
    with pytest.raises(Refusal, match="chmod go-w") as caught:
        private_folder(path, uid=os.getuid())
    assert caught.value.reason == "state_directory_not_trusted"
    (tmp_path / "file").touch()
    with pytest.raises(OperationFailed):
        private_folder(tmp_path / "file" / "x", uid=os.getuid())


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir(mode=0o700)
    owner = os.getuid()
    if owner == 0:  # what root owns is trusted by everybody
        owner = 12345
        os.chown(path, owner, owner)
    with pytest.raises(Refusal, match=f"belongs to uid {owner}"):
        private_folder(path, uid=owner + 1)
    private_folder(path, uid=owner)
