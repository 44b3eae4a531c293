"""Puts the files of a configuration back: each by a rename, and never through a link.

What a link leads to may be a release that others share, a volume that Kubernetes swaps as a whole,
or a package's file; so a configuration with a link anywhere in a path is refused before anything is
done.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges.config_store import KeptFile
from supervisor.edges.files import REAL_DISK, Disk, closing, open_regular, storing, write_atomically

NOT_WRITABLE = "configuration_not_writable"

_OCTAL = re.compile(rb"\\([0-7]{3})")


def expect_restorable(paths: Iterable[str]) -> None:
    """All of `paths` could be replaced by a rename. Changes nothing; blocks on the disk.

    Raises Refusal `configuration_symlinked` or `configuration_not_writable`, naming the first.
    """
    mounted = _mount_points()
    for path in paths:
        real, plain = os.path.realpath(path), os.path.normpath(path)
        if real != plain:
            raise Refusal(
                "configuration_symlinked",
                f"cannot guard the reload: {path} is, or is reached through, a symbolic link (it is"
                f" {real}), and the supervisor does not write through links; reload without"
                " --guard, or have nginx include the file itself",
            )
        if plain in mounted:
            raise _not_writable(path, "it is a mount of its own, which no rename can replace")
        folder = _nearest_folder(plain)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _not_writable(path, f"the folder {folder} is read-only or forbidden")


def hashes_of(paths: Iterable[str]) -> dict[str, str]:
    """The hash of the content of each file that there is; a link or a folder is as good as none.

    Raises OSError for a file that cannot be read.
    """
    found = {}
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                found[path] = ""
                continue
            digest = hashlib.sha256()
            with closing(open_regular(Path(path))) as fd:
                while chunk := os.read(fd, 2**20):
                    digest.update(chunk)
            found[path] = digest.hexdigest()
    return found


def put_file(kept: KeptFile, content: bytes, *, disk: Disk = REAL_DISK) -> None:
    """`kept.path` has its previous content, owner and mode, also after a power cut.

    Extended attributes (an SELinux label) are those of the file that is there now. Raises Refusal
    `configuration_not_writable` or `no_space`, or OperationFailed `disk_error`; the file is then
    as it was.
    """
    path = Path(kept.path)

    def dress(fd: int) -> None:
        with suppress(PermissionError):
            os.fchown(fd, kept.uid, kept.gid)
        os.fchmod(fd, kept.mode)
        _copy_attributes(path, fd)

    with storing("put the configuration file back", path, forbidden=NOT_WRITABLE):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # No pattern of nginx's matches the name beside: it begins with a dot.
        write_atomically(disk, path, content, dress=dress)


def take_away(path: str, *, disk: Disk = REAL_DISK) -> None:
    """No file is at `path` any more, also after a power cut. Raises as `put_file` does."""
    place = Path(path)
    with storing("move the new configuration file away", place, forbidden=NOT_WRITABLE):
        disk.unlink(place)
        disk.sync_folder(place.parent)


def _copy_attributes(source: Path, fd: int) -> None:
    with suppress(OSError):
        for name in os.listxattr(source, follow_symlinks=False):
            with suppress(OSError):
                os.setxattr(fd, name, os.getxattr(source, name, follow_symlinks=False))


def _nearest_folder(path: str) -> str:
    folder = os.path.dirname(path)
    while folder != "/" and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _mount_points() -> frozenset[str]:
    """Where something is mounted (proc(5), mountinfo): single files too, as containers do."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            fields = [line.split(b" ") for line in file]
    except OSError:
        return frozenset()
    return frozenset(
        os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), each[4]))
        for each in fields
        if len(each) > 4
    )


def _not_writable(path: str, why: str) -> Refusal:
    return Refusal(
        NOT_WRITABLE,
        f"cannot guard the reload: {path} could not be put back: {why}; make it writable for the"
        " supervisor (systemd: ReadWritePaths=), or reload without --guard",
    )
