"""Where the files of a version are copied from: the disk, or a process that still has them mapped.

A package manager replaces files by rename. The running master then keeps the old ones, reachable
through /proc/PID/exe and /proc/PID/map_files (proc(5)), which are links only in name: the kernel
resolves them to the mapped file itself, whatever its path leads to by now.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges.files import open_regular


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translates why a binary or a module cannot be opened into a Refusal.

    `binary_missing` or `binary_unreadable`.
    """
    try:
        yield
    except OSError as exc:
        missing = exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)
        reason = "binary_missing" if missing else "binary_unreadable"
        cause = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror or str(exc)
        raise Refusal(
            reason,
            f"cannot read the binary {path}: {cause}; name a regular file that the supervisor can"
            " read",
        ) from exc


def open_module(where: Path) -> int | None:
    """A dynamic module, open for reading, links resolved; None where there is none.

    Raises Refusal `binary_unreadable`.
    """
    with reading(where):
        try:
            if where.is_relative_to("/proc"):
                return os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            return open_regular(where.resolve())
        except FileNotFoundError:
            return None
        except PermissionError as exc:
            if not where.is_relative_to("/proc"):
                raise
            raise Refusal(
                "binary_unreadable",
                f"cannot read a module that nginx has loaded, whose file was replaced since, from"
                f" {where}: {exc.strerror} (CAP_CHECKPOINT_RESTORE permits it); start what is"
                " on disk: nginxctl restart",
            ) from exc


def open_exe(pid: int) -> tuple[int, Path]:
    """What `pid` runs, open for reading, and the path that it was started from.

    Raises Refusal `binary_missing` (no such process) or `binary_unreadable`.
    """
    exe = Path(f"/proc/{pid}/exe")
    with reading(exe):
        path = os.readlink(exe).removesuffix(" (deleted)")
        return os.open(exe, os.O_RDONLY | os.O_CLOEXEC), Path(path)


def mapped_file(pid: int, path: Path) -> Path:
    """Where to read the file that `pid` mapped from `path`: elsewhere if it was replaced since."""
    return _replaced(pid, _mappings(pid), path.resolve()) or path


def mapped_modules(pid: int, paths: Iterable[str]) -> dict[str, Path]:
    """Of the dynamic modules at `paths` those that `pid` has loaded, and where to read each.

    That is its path, or elsewhere if it was replaced since. What may not be looked at, or is gone,
    has none.
    """
    mappings, found = _mappings(pid), {}
    for path in paths:
        real = Path(path).resolve()
        if replaced := _replaced(pid, mappings, real):
            found[path] = replaced
        elif str(real) in mappings:
            found[path] = Path(path)
    return found


def _mappings(pid: int) -> dict[str, str]:
    """The first range of addresses of each file that `pid` has mapped, by the file's name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6:
            found.setdefault(fields[5], fields[0])
    return found


def _replaced(pid: int, mappings: Mapping[str, str], real: Path) -> Path | None:
    # A replaced file shows as deleted: its name leads to another file now.
    addresses = mappings.get(f"{real} (deleted)")
    if addresses is None:
        return None
    start, end = (int(address, 16) for address in addresses.split("-"))
    return Path(f"/proc/{pid}/map_files/{start:x}-{end:x}")
