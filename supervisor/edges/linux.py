"""The Linux calls that Python's standard library does not have.

Sources: prctl(2), pidfd_getfd(2), pidfd_open(2); for PIDFD_GET_INFO include/uapi/linux/pidfd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
from dataclasses import dataclass

from supervisor.core.errors import OperationFailed
from supervisor.edges.descriptors import RESERVE

_PR_SET_CHILD_SUBREAPER = 36
_SYS_PIDFD_GETFD = 438  # the same number on every architecture that uses the generic table
_PIDFD_INFO_EXIT = 1 << 3
# struct pidfd_info of Linux 6.15: mask, cgroupid, then 12 times 32 bits, the last the exit code.
_PIDFD_INFO = struct.Struct("=QQ12I")
_EXIT_CODE_FIELD = 13
PIDFD_GET_INFO = 0xC0000000 | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11

FILES_WANTED = 65536
"""Descriptors that the supervisor allows itself, where it may."""

_FILES_GIVEN = "NGINX_SUPERVISOR_NOFILE"

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphaned descendants are reparented to this process from now on (prctl(2), Linux 3.4).

    Raises OperationFailed where the kernel refuses.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OperationFailed(
            "subreaper_refused", f"cannot become a child subreaper: {os.strerror(code)}"
        )


def expect_pidfds() -> None:
    """Processes can be watched here; raises OperationFailed `pidfd_unavailable` where not."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as exc:
        raise OperationFailed(
            "pidfd_unavailable",
            f"cannot watch processes: pidfd_open(2) fails: {exc.strerror}; it takes Linux 5.3, and "
            "in a container a seccomp profile that permits it, as Docker's does since 20.10",
        ) from exc


def most_files() -> int:
    """How many descriptors this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_WANTED if soft == resource.RLIM_INFINITY else soft


def raise_file_limit() -> None:
    """Allow this process more descriptors, as far as the hard limit goes.

    Its nginx may listen on a thousand sockets, which are held here. `files_given` is what nginx
    gets, whose worker_connections are measured by it: also after this process has replaced itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.environ.setdefault(_FILES_GIVEN, str(soft))
    most = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def files_given() -> str:
    """The soft limit of descriptors that this process was started with, as `ulimit -n` takes it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = os.environ.get(_FILES_GIVEN, str(soft))
    return given if given.isdecimal() else "unlimited"


def take_fd(pidfd: int, fd: int) -> int:
    """A duplicate, close-on-exec, of file descriptor `fd` of the process behind `pidfd`.

    Needs ptrace access (root, or the same user and a dumpable target). Raises OSError.
    """
    duplicate = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
    if duplicate < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return duplicate


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: `code` or `signal`, both None where the kernel would not tell."""

    code: int | None = None
    signal: int | None = None

    @property
    def orderly(self) -> bool:
        """It left by itself and without an error."""
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is not None:
            return f"ended by signal {self.signal}"
        if self.code is None:
            return "ended, and how is not known: it is no child of the supervisor"
        return f"exited with code {self.code}"


UNKNOWN_EXIT = ExitStatus()


def decode_wait_status(status: int) -> ExitStatus:
    """What wait(2) tells, as a value."""
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status))
    return ExitStatus(code=os.WEXITSTATUS(status))


def exit_status_of_stranger(pidfd: int) -> ExitStatus:
    """How a process ended that is not our child (Linux 6.15); unknown on older kernels.

    The kernel has the answer once the parent has reaped the process.
    """
    request = exit_request()
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, request)
    except OSError:
        return UNKNOWN_EXIT
    fields = _PIDFD_INFO.unpack(request)
    if not fields[0] & _PIDFD_INFO_EXIT:
        return UNKNOWN_EXIT
    return decode_wait_status(fields[_EXIT_CODE_FIELD])


def exit_request() -> bytearray:
    """What PIDFD_GET_INFO is asked with, and answers in."""
    return bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *([0] * 13)))


def reap(pidfd: int) -> ExitStatus | None:
    """Reap the child behind `pidfd`; None while it lives, `exit_status_of_stranger` for others."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return exit_status_of_stranger(pidfd)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(code=result.si_status)
    return ExitStatus(signal=result.si_status)


def open_pidfd(pid: int) -> int | None:
    """A pidfd for `pid`, close-on-exec; None when there is no such process."""
    try:
        return RESERVE.open(lambda: os.pidfd_open(pid))
    except OSError as exc:
        if exc.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise
