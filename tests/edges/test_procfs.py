from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.edges import procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation
from supervisor.edges.procfs import ChildKind
from tests.edges.launched_nginx import launch, site_of, until
from tools.nginx_builds import builds
from tools.nginx_cache import Build


@pytest.fixture
def zombie() -> Iterator[int]:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield pid
    os.waitpid(pid, 0)


@pytest.fixture
def gone() -> int:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitpid(pid, 0)
    return pid


def test_of_ourselves() -> None:
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    assert (stat.pid, stat.parent, stat.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert stat.alive
    assert not stat.stopped


def test_a_name_with_blanks_and_brackets(tmp_path: Path) -> None:
    path = tmp_path / "x) R (y 1"
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([path, "60"]) as process:
        stat = procfs.read_stat(process.pid)
        assert stat is not None
        assert stat.parent == os.getpid()
        assert stat.has_execed
        process.kill()


def test_a_zombie_is_dead(zombie: int) -> None:
    stat = procfs.read_stat(zombie)
    assert stat is not None
    assert not stat.alive
    assert procfs.title(zombie) == b""
    assert procfs.classify(zombie) is ChildKind.DEAD
    assert zombie in procfs.children(os.getpid())
    assert procfs.children(zombie) == []


def test_what_is_gone(gone: int) -> None:
    assert procfs.read_stat(gone) is None
    assert procfs.children(gone) == []
    assert procfs.title(gone) == b""
    assert not procfs.catches(gone, signal.SIGUSR2)
    assert not procfs.blocks(gone, signal.SIGUSR2)
    assert not procfs.pending(gone, signal.SIGUSR2)
    assert procfs.executable(gone) is None
    assert procfs.classify(gone) is ChildKind.DEAD


_MASKS = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.signal(signal.SIGUSR2, lambda *_: None)
print(flush=True)
sys.stdin.read()
"""


def test_signals() -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _MASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        pid = process.pid
        assert procfs.catches(pid, signal.SIGUSR2)
        assert not procfs.catches(pid, signal.SIGUSR1)
        assert procfs.blocks(pid, signal.SIGUSR1)
        assert not procfs.blocks(pid, signal.SIGUSR2)
        assert not procfs.pending(pid, signal.SIGUSR1)
        process.send_signal(signal.SIGUSR1)
        assert procfs.pending(pid, signal.SIGUSR1)
        process.stdin.close()
        process.wait()


def test_the_program_is_told_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "program"
    shutil.copy("/bin/sleep", path)
    found = path.stat()
    with subprocess.Popen([path, "60"]) as process:
        path.unlink()
        assert procfs.executable(process.pid) == (found.st_dev, found.st_ino)
        process.kill()


def test_a_fork_is_told_from_an_exec() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    stat = procfs.read_stat(pid)
    assert stat is not None
    assert not stat.has_execed
    assert procfs.classify(pid) is ChildKind.STARTING
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_boot_id() -> None:
    assert len(procfs.boot_id()) == 36
    assert procfs.boot_id() == procfs.boot_id()


@pytest.mark.parametrize("build", builds()[:-1], ids=[one.version for one in builds()[:-1]])
async def test_the_kinds_of_children_while_usr2_is_obeyed(build: Build, tmp_path: Path) -> None:
    """Looked at as fast as can be: a fork is never taken for a new master, nor is it overlooked."""
    output = Capture.create()
    async with site_of(build, tmp_path) as site:
        for _ in range(5):
            old = await launch(site, output)
            known = old.look().accepting
            os.kill(old.master.pid, signal.SIGUSR2)
            masters: set[int] = set()
            end = time.monotonic() + 60
            while not (masters and len(_children_of(masters).accepting) == 2):
                brood = procfs.brood_of(procfs.children(old.master.pid))
                masters |= brood.masters
                assert time.monotonic() < end
                assert brood.accepting == known
                assert not brood.draining
                for master in masters:
                    assert not procfs.brood_of(procfs.children(master)).masters
            (new,) = masters
            assert f"start new binary process {new}\n" in site.log
            os.kill(old.master.pid, signal.SIGWINCH)
            await until("left", partial(_has_left, old))
            assert procfs.brood_of(procfs.children(old.master.pid)).masters == {new}
            for pid in site.processes():
                os.kill(pid, signal.SIGKILL)
            await until("dead", lambda: not site.processes())
            old.close()
            (site.folder / "nginx.pid.oldbin").unlink()
    output.close()


def _has_left(generation: Generation) -> bool:
    return not procfs.brood_of(procfs.children(generation.master.pid)).workers


def _children_of(masters: set[int]) -> procfs.Brood:
    return procfs.brood_of([child for one in masters for child in procfs.children(one)])


async def test_draining_and_cache_processes(tmp_path: Path) -> None:
    output = Capture.create()
    async with site_of(builds()[-1], tmp_path) as site:
        site.configure(
            listens="} proxy_cache_path " + f"{site.folder}/cache keys_zone=z:1m; server {{"
        )
        launched = await launch(site, output)
        await until(
            "a cache process", lambda: procfs.brood_of(procfs.children(launched.master.pid)).cache
        )
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            os.kill(launched.master.pid, signal.SIGQUIT)

            def drains() -> bool:
                seen = launched.look()
                return bool(seen.draining) and not seen.accepting | seen.starting

            await until("one drains and none accepts", drains)
            assert launched.alive
        with trio.fail_after(60):
            await launched.all_exited()
        launched.close()
    output.close()


def test_whose_program_may_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A title is not enough: another user has it easily, and so has root in a container."""
    with subprocess.Popen(["unshare", "--fork", "--pid", "sleep", "600"]) as outer:
        while not (inside := procfs.children(outer.pid)) or b"sleep" not in procfs.title(inside[0]):
            time.sleep(0.001)
        assert procfs.runs_as_we_do(outer.pid)
        assert not procfs.runs_as_we_do(inside[0])
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        assert not procfs.runs_as_we_do(outer.pid)
        os.kill(inside[0], signal.SIGKILL)
    assert not procfs.runs_as_we_do(outer.pid)
