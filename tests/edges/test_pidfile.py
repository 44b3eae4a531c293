"""A pid in a file is a claim."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges import pidfile
from supervisor.edges.pidfile import PidClaim, PidProblem, ProcessIdentity


@pytest.fixture
def sleeper() -> Iterator[ProcessIdentity]:
    with subprocess.Popen(["sleep", "600"]) as process:
        identity = pidfile.identity_of(process.pid)
        assert identity is not None
        yield identity
        process.kill()


def ended_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        (b"12\n", PidClaim(12)),
        (b" 12 ", PidClaim(12)),
        (b"", PidClaim(None, PidProblem.EMPTY)),
        (b"\n", PidClaim(None, PidProblem.EMPTY)),
        (b"12 13", PidClaim(None, PidProblem.GARBAGE)),
        (b"-1", PidClaim(None, PidProblem.GARBAGE)),
        (b"0", PidClaim(None, PidProblem.GARBAGE)),
        (b"\xff" * 5000, PidClaim(None, PidProblem.GARBAGE)),
        (b"1" * 60, PidClaim(None, PidProblem.GARBAGE)),
    ],
)
def test_claims(tmp_path: Path, content: bytes, claim: PidClaim) -> None:
    path = tmp_path / "nginx.pid"
    path.write_bytes(content)
    assert pidfile.read_claim(path) == claim


def test_claims_that_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "nginx.pid"
    assert pidfile.read_claim(path).problem is PidProblem.MISSING
    path.symlink_to("/etc/passwd")
    assert pidfile.read_claim(path).problem is PidProblem.IS_SYMLINK
    path.unlink()
    os.mkfifo(path)
    assert pidfile.read_claim(path).problem is PidProblem.NOT_REGULAR
    assert pidfile.read_claim(path / "x").problem is PidProblem.UNREADABLE


def test_verify(tmp_path: Path, sleeper: ProcessIdentity) -> None:
    path = tmp_path / "nginx.pid"
    pidfile.repair(path, sleeper.pid)
    assert pidfile.verify(path, sleeper) is None
    pidfile.require(path, sleeper)
    earlier = ProcessIdentity(sleeper.pid, sleeper.start_ticks - 1)
    assert pidfile.verify(path, earlier) is PidProblem.NAMES_FOREIGN_PROCESS
    assert not pidfile.is_alive(earlier)
    pidfile.repair(path, os.getpid())
    assert pidfile.verify(path, sleeper) is PidProblem.NAMES_FOREIGN_PROCESS
    with pytest.raises(Refusal, match=f"names process {os.getpid()}") as caught:
        pidfile.require(path, sleeper)
    assert caught.value.reason == "pid_file_wrong"
    pidfile.repair(path, ended_pid())
    assert pidfile.verify(path, sleeper) is PidProblem.STALE
    path.unlink()
    assert pidfile.verify(path, sleeper) is PidProblem.MISSING
    with pytest.raises(Refusal, match="missing"):
        pidfile.require(path, sleeper)


def test_a_planted_symlink_is_refused_and_repaired(
    tmp_path: Path, sleeper: ProcessIdentity
) -> None:
    precious = tmp_path / "precious"
    precious.write_text(f"{sleeper.pid}\n")
    path = tmp_path / "nginx.pid"
    path.symlink_to(precious)
    with pytest.raises(Refusal, match=str(precious)) as caught:
        pidfile.require(path, sleeper)
    assert caught.value.reason == "pid_file_is_symlink"
    pidfile.repair(path, 7)
    assert precious.read_text() == f"{sleeper.pid}\n"
    assert path.read_text() == "7\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(each.name for each in tmp_path.iterdir()) == ["nginx.pid", "precious"]


def test_only_stale_pid_files_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "nginx.pid"
    assert not pidfile.remove_stale(path)
    pidfile.repair(path, os.getpid())
    assert not pidfile.remove_stale(path)
    pidfile.repair(path, ended_pid())
    assert pidfile.remove_stale(path)
    path.write_text("")
    assert pidfile.remove_stale(path)
    path.symlink_to("nowhere")
    assert not pidfile.remove_stale(path)
    assert path.is_symlink()


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pidfile.identity_of(process.pid) is None


def test_the_program_of_a_process(sleeper: ProcessIdentity) -> None:
    assert pidfile.runs_binary(os.getpid(), [Path(sys.executable)])
    assert not pidfile.runs_binary(sleeper.pid, [Path(sys.executable)])
    assert not pidfile.runs_binary(ended_pid(), [Path(sys.executable)])


def test_oldbin() -> None:
    assert pidfile.oldbin_path(Path("/run/nginx.pid")) == Path("/run/nginx.pid.oldbin")
