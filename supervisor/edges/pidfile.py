"""nginx's pid files: claims, checked against the kernel and repaired.

A pid file may be missing (nginx is between two of them, or deleted the one of its successor),
stale, written by somebody else, or a symlink that nginx's own user planted for root to write
through. So it is read without following links, what it says is compared with a process that is
known by pid *and* start time, and a pid that came only from a file is never sent a signal.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges import procfs
from supervisor.edges.files import REAL_DISK, Disk, read_regular, storing, write_atomically

OLDBIN_SUFFIX = ".oldbin"
_LARGEST = 64
_PID = re.compile(rb"\s*([0-9]{1,10})\s*")
_FILE_MODE = 0o644


class PidProblem(Enum):
    """Why a pid file does not name the process that it should."""

    MISSING = "missing"
    IS_SYMLINK = "is_symlink"
    NOT_REGULAR = "not_regular"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    GARBAGE = "garbage"
    STALE = "stale"  # no such process
    NAMES_FOREIGN_PROCESS = "names_foreign_process"  # a living process, but none of ours


@dataclass(frozen=True, slots=True)
class PidClaim:
    """What a pid file says: a pid, or why it says none."""

    pid: int | None
    problem: PidProblem | None = None


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int


def oldbin_path(path: Path) -> Path:
    """Where nginx renames its pid file to during an upgrade."""
    return path.with_name(path.name + OLDBIN_SUFFIX)


def identity_of(pid: int) -> ProcessIdentity | None:
    """The living process `pid`; None where there is none (a zombie is dead)."""
    stat = procfs.read_stat(pid)
    return ProcessIdentity(pid, stat.start) if stat is not None and stat.alive else None


def is_alive(process: ProcessIdentity) -> bool:
    """That very process still runs."""
    return identity_of(process.pid) == process


def runs_binary(pid: int, binaries: Collection[Path]) -> bool:
    """The program of `pid` is or was one of `binaries`; False where it cannot be seen."""
    try:
        target = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return Path(target.removesuffix(" (deleted)")) in {path.resolve() for path in binaries}


def read_claim(path: Path) -> PidClaim:
    """What the pid file says, without believing it. Raises nothing."""
    try:
        content = read_regular(path, limit=_LARGEST)
    except FileNotFoundError:
        return PidClaim(None, PidProblem.MISSING)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return PidClaim(None, PidProblem.IS_SYMLINK)
        if exc.errno in (errno.EINVAL, errno.ENXIO):
            return PidClaim(None, PidProblem.NOT_REGULAR)
        return PidClaim(None, PidProblem.UNREADABLE)
    if not content.strip():
        return PidClaim(None, PidProblem.EMPTY)
    match = _PID.fullmatch(content)
    if match is None or int(match[1]) == 0:
        return PidClaim(None, PidProblem.GARBAGE)
    return PidClaim(int(match[1]))


def verify(path: Path, master: ProcessIdentity) -> PidProblem | None:
    """What is wrong with the pid file of the living `master`; None if it names that process."""
    claim = read_claim(path)
    if claim.pid is None:
        return claim.problem
    if identity_of(claim.pid) is None:
        return PidProblem.STALE
    if claim.pid == master.pid and is_alive(master):
        return None
    return PidProblem.NAMES_FOREIGN_PROCESS


def require(path: Path, master: ProcessIdentity) -> None:
    """The pid file names `master`, else a Refusal `pid_file_is_symlink` or `pid_file_wrong`."""
    problem = verify(path, master)
    if problem is None:
        return
    if problem is PidProblem.IS_SYMLINK:
        raise Refusal(
            "pid_file_is_symlink",
            f"cannot use the pid file {path}: it is a symbolic link to {_target(path)}, through"
            f" which nginx would overwrite a file; find out who made it, then remove it",
        )
    found = read_claim(path)
    says = f"names process {found.pid}" if found.pid else problem.value.replace("_", " ")
    raise Refusal(
        "pid_file_wrong",
        f"cannot signal nginx by the pid file {path}: it {says} ({problem.value}) and nginx's"
        f" master is {master.pid}; write that number into it, or see who else writes it",
    )


def repair(path: Path, master_pid: int, *, disk: Disk = REAL_DISK) -> None:
    """The pid file names `master_pid`, with the mode and owner that nginx gives it.

    Written beside and renamed: a symlink at `path` is replaced and its target is left alone. Raises
    Refusal `no_space` or `pid_file_not_writable`, or OperationFailed `disk_error`. It blocks.
    """
    with storing("write the pid file", path, forbidden="pid_file_not_writable"):
        write_atomically(disk, path, f"{master_pid}\n".encode(), mode=_FILE_MODE)


def remove_stale(path: Path, *, disk: Disk = REAL_DISK) -> bool:
    """Removes a pid file that names no living process; True if there was one.

    A file that names a living process, or is not a regular file, is left alone.
    """
    claim = read_claim(path)
    is_regular = claim.problem in (None, PidProblem.EMPTY, PidProblem.GARBAGE)
    if not is_regular or (claim.pid is not None and identity_of(claim.pid) is not None):
        return False
    with storing("remove the stale pid file", path, forbidden="pid_file_not_writable"):
        disk.unlink(path)
    return True


def remove_empty(path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Removes an empty pid file, which nginx's `-t` and `-T` make where there was none.

    It would break `nginx -s` and mislead whoever looks for the master. (ngx_cycle.c)
    """
    if read_claim(path).problem is PidProblem.EMPTY:
        with storing("remove the empty pid file", path, forbidden="pid_file_not_writable"):
            disk.unlink(path)


def _target(path: Path) -> str:
    try:
        return str(path.readlink()) if stat.S_ISLNK(path.lstat().st_mode) else "?"
    except OSError:
        return "?"
