from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from supervisor.core.errors import OperationFailed
from supervisor.edges import linux
from supervisor.edges.linux import UNKNOWN_EXIT, ExitStatus


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def _exited(*argv: str) -> tuple[int, int]:
    """A child that has ended and is not reaped: its pid and a pidfd."""
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid, pidfd


def test_a_pidfd_is_close_on_exec(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = linux.open_pidfd(sleeper.pid)
    assert pidfd is not None
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)


def test_there_is_no_pidfd_of_nothing() -> None:
    pid, pidfd = _exited("true")
    linux.reap(pidfd)
    os.close(pidfd)
    assert linux.open_pidfd(pid) is None
    assert linux.open_pidfd(0) is None


def test_too_many_open_files_are_no_missing_process(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many"):
        linux.open_pidfd(sleeper.pid)


def test_reap_tells_how_a_child_ended() -> None:
    for argv, expected in (
        (("sh", "-c", "exit 3"), ExitStatus(code=3)),
        (("true",), ExitStatus(code=0)),
        (("sh", "-c", "kill -SEGV $$"), ExitStatus(signal=signal.SIGSEGV)),
    ):
        pid, pidfd = _exited(*argv)
        assert linux.reap(pidfd) == expected
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        os.close(pidfd)


def test_reap_leaves_the_living_alone(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(sleeper.pid)
    assert linux.reap(pidfd) is None
    assert sleeper.poll() is None
    os.close(pidfd)


_GRANDCHILD = """
import os, sys
pid = os.posix_spawnp("sh", ["sh", "-c", "read x; exit 7"], os.environ)
print(pid, flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def _stranger() -> tuple[int, subprocess.Popen[bytes]]:
    """A pidfd of a process that is somebody else's child, dead and reaped by now; its parent."""
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", _GRANDCHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        assert linux.reap(pidfd) == UNKNOWN_EXIT  # it lives, and is not ours
        parent.stdin.write(b"\n")
    assert parent.wait() == 7
    return pidfd, parent


def test_reap_tells_how_a_stranger_ended() -> None:
    pidfd, _ = _stranger()
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    expected = ExitStatus(code=7) if release >= (6, 15) else UNKNOWN_EXIT
    assert linux.reap(pidfd) == expected
    os.close(pidfd)


@pytest.mark.parametrize("code", [22, 25], ids=["EINVAL", "ENOTTY"])
def test_an_older_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    pidfd, _ = _stranger()

    def unknown(_fd: int, _request: int, _argument: bytearray) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", unknown)
    assert linux.reap(pidfd) == UNKNOWN_EXIT
    os.close(pidfd)


def test_a_stranger_ended_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        pidfd = os.pidfd_open(process.pid)
        process.kill()
        process.wait()
        if linux.exit_status_of_stranger(pidfd) != UNKNOWN_EXIT:
            assert linux.reap(pidfd) == ExitStatus(signal=signal.SIGKILL)
        os.close(pidfd)


def test_take_fd_duplicates_a_listening_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pidfd = os.pidfd_open(os.getpid())
        taken = linux.take_fd(pidfd, server.fileno())
        assert not os.get_inheritable(taken)
        with socket.socket(fileno=taken) as duplicate:
            assert duplicate.getsockname() == server.getsockname()
        with pytest.raises(OSError, match="Bad file descriptor"):
            linux.take_fd(pidfd, 1_000_000)
        os.close(pidfd)


_SUBREAPER = """
import os, sys
from supervisor.edges import linux
if sys.argv[1] == "yes":
    linux.become_subreaper()
read, write = os.pipe()
if os.fork() == 0:
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            pass
        os.write(write, str(os.getppid()).encode())
    os._exit(0)
os.close(write)
print(os.read(read, 20).decode() == str(os.getpid()))
"""


@pytest.mark.parametrize(("subreaper", "adopts"), [("yes", b"True\n"), ("no", b"False\n")])
def test_orphans_become_children_of_a_subreaper(subreaper: str, adopts: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SUBREAPER, subreaper], capture_output=True, check=True, timeout=20
    )
    assert done.stdout == adopts


def test_a_refused_subreaper_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def prctl(*_: int) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(linux, "_libc", Refusing)
    with pytest.raises(OperationFailed) as caught:
        linux.become_subreaper()
    assert caught.value.reason == "subreaper_refused"


def test_exit_statuses_in_words() -> None:
    assert str(ExitStatus(code=1)) == "exited with code 1"
    assert str(ExitStatus(signal=9)) == "ended by signal 9"
    assert "how is not known" in str(UNKNOWN_EXIT)
    assert ExitStatus(code=0).orderly
    assert not ExitStatus(code=1).orderly
    assert not UNKNOWN_EXIT.orderly
