"""Puts a stored file where nginx looks for it: every reader sees the old one or the new one.

The copy is made beside its destination, because a rename is atomic only within one file system and
because the folder of the state may be mounted noexec. A destination that is a symlink is flipped:
the copy gets a name of its own beside the link's target and the link is replaced. What the link
pointed to is never written through: it may be a package's file, or shared with others.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges.files import Disk, closing, open_regular, storing

_CHUNK = 2**20
_MODE_OF_NEW = 0o755
READ_ONLY = "binary_directory_read_only"
_OUR_SUFFIX = re.compile(r"\.[0-9a-f]{16}$")


class Placement(Enum):
    """What committing will do."""

    ALREADY_THERE = "already_there"
    RENAME = "rename"
    FLIP = "flip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A verified copy that waits to be put at `destination`; `path` can be run before that."""

    path: Path
    destination: Path
    placement: Placement


def sha256_of(path: Path) -> str:
    """The hash of the file's content. Raises OSError, also where it is no regular file."""
    digest = hashlib.sha256()
    with closing(open_regular(path.resolve())) as fd:
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def copy_and_hash(disk: Disk, source_fd: int, target_fd: int) -> str:
    """Copies to the end of the source; the hash is of the bytes that were written."""
    digest = hashlib.sha256()
    while chunk := os.read(source_fd, _CHUNK):
        digest.update(chunk)
        disk.write(target_fd, chunk)
    return digest.hexdigest()


def stage(
    disk: Disk,
    source: Path,
    *,
    sha256: str,
    version_id: str,
    destination: Path,
    original: Path | None = None,
) -> Staged:
    """A copy of `source` beside `destination`, checked against `sha256` and on disk.

    It has the owner, mode and extended attributes (SELinux label, capabilities) of what is at the
    destination now. `original` is where the file came from: a link is flipped back to it if it is
    unchanged. Raises Refusal `stored_version_damaged`, `binary_directory_read_only`, `no_space` or
    `binary_not_regular`. Ends in `commit` or `discard`.
    """
    is_link = destination.is_symlink()
    target = destination.resolve() if is_link else destination
    if target.exists() and not target.is_file():
        raise Refusal(
            "binary_not_regular",
            f"cannot put a file at {destination}: {target} is there and is no regular file",
        )
    if _holds(target, sha256):
        return Staged(path=target, destination=destination, placement=Placement.ALREADY_THERE)
    if not is_link:
        copy = target.with_name(f".{target.name}.{version_id}.staged")
        placement = Placement.RENAME
    elif original is not None and original != destination and _holds(original, sha256):
        return Staged(path=original, destination=destination, placement=Placement.FLIP)
    else:
        copy = target.with_name(f"{_OUR_SUFFIX.sub('', target.name)}.{version_id}")
        placement = Placement.FLIP
        if _holds(copy, sha256):
            return Staged(path=copy, destination=destination, placement=placement)
    with storing("put a copy beside the binary", copy, forbidden=READ_ONLY):
        copy.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(disk, target)
        _copy_verified(disk, source, copy, sha256=sha256, like=target)
    return Staged(path=copy, destination=destination, placement=placement)


def commit(disk: Disk, staged: Staged, *, durable: bool = True) -> None:
    """The destination is the staged file when this returns, also after a power failure.

    With `durable` False the folder is not synced: the caller does that (`settle`) before the
    old file may not come back any more.

    Raises Refusal `binary_directory_read_only` or `no_space`; the destination is as before then.
    """
    destination = staged.destination
    if staged.placement is Placement.ALREADY_THERE:
        return
    with storing("replace the binary", destination, forbidden=READ_ONLY):
        if staged.placement is Placement.RENAME:
            disk.rename(staged.path, destination)
        else:
            link = destination.with_name(f".{destination.name}.flip")
            disk.unlink(link)
            disk.symlink(str(staged.path), link)
            disk.rename(link, destination)
        if durable:
            disk.sync_folder(destination.parent)


def settle(disk: Disk, staged: Staged) -> None:
    """A commit that was not durable is on disk. Raises Refusal as `commit` does."""
    with storing("replace the binary", staged.destination, forbidden=READ_ONLY):
        disk.sync_folder(staged.destination.parent)


def discard(disk: Disk, staged: Staged) -> None:
    """Removes a staged copy that was not committed. Never raises."""
    if staged.placement is Placement.RENAME:
        with suppress(OSError):
            disk.unlink(staged.path)


def remove_unused(disk: Disk, destination: Path, *, keep: frozenset[str]) -> None:
    """Removes copies beside a flipped link whose version id is not in `keep`. Never raises."""
    if not destination.is_symlink():
        return
    target = destination.resolve()
    base = _OUR_SUFFIX.sub("", target.name)
    with suppress(OSError):
        for copy in target.parent.iterdir():
            suffix = copy.name.removeprefix(base)
            if copy != target and _OUR_SUFFIX.fullmatch(suffix) and suffix[1:] not in keep:
                disk.unlink(copy)


def _holds(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def remove_leftovers(disk: Disk, target: Path) -> None:
    """Removes staged copies of a killed supervisor: only one upgrade runs at a time."""
    start = f".{target.name}."
    for path in target.parent.iterdir():
        if path.name.startswith(start) and path.name.endswith(".staged"):
            disk.unlink(path)


def _copy_verified(disk: Disk, source: Path, copy: Path, *, sha256: str, like: Path) -> None:
    disk.unlink(copy)
    try:
        with (
            closing(open_regular(source)) as source_fd,
            closing(disk.create(copy, mode=0o600)) as fd,
        ):
            copied = copy_and_hash(disk, source_fd, fd)
            _imitate(fd, like)
            disk.sync(fd)
        disk.sync_folder(copy.parent)
    except BaseException:
        with suppress(OSError):
            disk.unlink(copy)
        raise
    if copied != sha256:
        disk.unlink(copy)
        raise damaged(source)


def damaged(path: Path) -> Refusal:
    """The refusal for a stored file whose content has changed."""
    return Refusal(
        "stored_version_damaged",
        f"cannot use the stored file {path}: its content is not what was stored (its hash differs);"
        " upgrade to a version by its path instead, and check the disk",
    )


def _imitate(fd: int, like: Path) -> None:
    """Owner, mode and extended attributes of `like`, as far as we may set them."""
    try:
        found = like.stat()
    except FileNotFoundError:
        os.fchmod(fd, _MODE_OF_NEW)
        return
    with suppress(PermissionError):
        os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    # After the owner: chown(2) takes file capabilities away.
    with suppress(OSError):
        for name in os.listxattr(like):
            with suppress(OSError):
                os.setxattr(fd, name, os.getxattr(like, name))
