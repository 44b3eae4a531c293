"""What this machine offers, and what it would refuse: looked at without changing anything."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from supervisor.edges import linux


def has_pidfd_getfd() -> bool:
    """Whether descriptors can be taken out of another process (Linux 5.6, and permitted)."""
    reading, writing = os.pipe()
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            os.close(linux.take_fd(pidfd, reading))
        finally:
            os.close(pidfd)
    except OSError:
        return False
    finally:
        os.close(reading)
        os.close(writing)
    return True


def tells_exit_of_strangers() -> bool:
    """Whether the kernel tells how a process ended that is no child of ours (Linux 6.15)."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        fcntl.ioctl(pidfd, linux.PIDFD_GET_INFO, linux.exit_request())
    except OSError as exc:
        return exc.errno not in (errno.ENOTTY, errno.EINVAL)
    finally:
        os.close(pidfd)
    return True


def has_executable_memory() -> bool:
    """Whether memory may be writable and executable, as compilers at run time need it."""
    every = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=every).close()
    except PermissionError:
        return False
    return True


def ephemeral_ports() -> tuple[int, int] | None:
    """The range of ports that connections get; None where it is not told."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        low, high = map(int, text.split())
    except (OSError, ValueError):
        return None
    return low, high


def reserved_ports() -> frozenset[int]:
    """The ports that connections never get."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text(encoding="ascii")
        spans = [part.partition("-") for part in text.strip().split(",") if part]
        return frozenset(
            port for first, _, last in spans for port in range(int(first), int(last or first) + 1)
        )
    except (OSError, ValueError):
        return frozenset()


def files_limit(pid: int) -> int | None:
    """How many files `pid` may open; None without a limit, or where it may not be seen."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
        soft = next(line.split()[3] for line in lines if line.startswith("Max open files"))
    except (OSError, StopIteration, IndexError):
        return None
    return int(soft) if soft.isdecimal() else None


def open_descriptors(pids: Iterable[int]) -> int | None:
    """How many descriptors these have open together; None where they may not be looked at.

    Blocks for about a microsecond each.
    """
    total = 0
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
            if names:
                os.readlink(f"/proc/{pid}/fd/{names[0]}")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it is gone
        except OSError:
            return None
        total += len(names)
    return total


def folder_problem(folder: Path, what: str) -> str:
    """Why nothing can be written into `folder`, the one of `what`; empty where it can be."""
    if not folder.is_dir():
        return f"the folder {folder} of {what} does not exist"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return f"the folder {folder} of {what} takes no change"
    return ""
