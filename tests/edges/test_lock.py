"""A second supervisor on the same nginx is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges.lock import SupervisorLock, lock_path

HOLDER = """
import sys, time
from pathlib import Path
from supervisor.edges.lock import SupervisorLock
SupervisorLock(Path(sys.argv[1])).acquire()
print("locked", flush=True)
time.sleep(600)
"""


def test_the_holder_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    pid_file = tmp_path / "nginx.pid"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(pid_file)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(Refusal, match=f"process {holder.pid} supervises") as caught:
            SupervisorLock(pid_file).acquire()
        assert caught.value.reason == "already_supervised"
        holder.send_signal(signal.SIGKILL)
    with SupervisorLock(pid_file) as lock:
        assert lock.path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_two_spellings_are_one_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    with SupervisorLock(tmp_path / "run" / "x.pid"), pytest.raises(Refusal):
        SupervisorLock(tmp_path / "var" / "x.pid").acquire()
    with SupervisorLock(tmp_path / "run" / "x.pid"), SupervisorLock(tmp_path / "run" / "y.pid"):
        pass


def test_the_lock_is_not_inherited_over_exec(tmp_path: Path) -> None:
    lock = SupervisorLock(tmp_path / "x.pid")
    lock.acquire()
    with subprocess.Popen(["sleep", "600"], close_fds=False) as child:
        lock.release()
        lock.release()
        with SupervisorLock(tmp_path / "x.pid"):
            pass
        child.kill()


def test_a_planted_name_is_not_followed(tmp_path: Path) -> None:
    pid_file = tmp_path / "x.pid"
    precious = tmp_path / "precious"
    precious.write_text("keep")
    lock_path(pid_file).symlink_to(precious)
    with pytest.raises(Exception, match="cannot lock nginx"):
        SupervisorLock(pid_file).acquire()
    assert precious.read_text() == "keep"


def test_a_lock_that_was_removed_is_not_shared(tmp_path: Path) -> None:
    first = SupervisorLock(tmp_path / "x.pid")
    first.acquire()
    first.path.unlink()
    with SupervisorLock(tmp_path / "x.pid") as second:
        assert second.path.exists()
    first.release()


def test_a_lock_is_held_on_to_by_its_descriptor(tmp_path: Path) -> None:
    """As a supervisor does that has replaced another one in the same process."""
    pid_file = tmp_path / "x.pid"
    first, again, other = (SupervisorLock(one) for one in (pid_file, pid_file, tmp_path / "y.pid"))
    first.acquire()
    assert first.fd is not None
    kept = os.dup(first.fd)
    os.close(first.fd)  # which an execve does with everything that is not handed on
    assert not other.inherit([kept])
    assert again.inherit([kept])
    assert again.fd == kept
    with pytest.raises(Refusal):
        SupervisorLock(pid_file).acquire()
    again.release()
    with SupervisorLock(pid_file):
        pass
