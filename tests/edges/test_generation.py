from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.edges import procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.process import Process
from tests.edges.launched_nginx import Site, launch, site_of, until
from tools.nginx_builds import builds

LIMIT = 60


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(builds()[0], tmp_path) as made:
        yield made


@pytest.fixture
async def generation(site: Site) -> AsyncIterator[Generation]:
    output = Capture.create()
    made = await launch(site, output)
    output.close()
    yield made
    made.close()


async def test_workers_are_remembered_by_pidfd(generation: Generation) -> None:
    accepting = generation.look().accepting
    assert set(generation.workers) == accepting
    victim = min(accepting)
    os.kill(victim, signal.SIGKILL)
    await until("respawned", lambda: len(generation.look().accepting - accepting) == 1)
    assert victim not in generation.brood().workers
    assert not generation.workers[victim].alive


async def test_orphans_are_still_known(generation: Generation) -> None:
    accepting = generation.look().accepting
    os.kill(generation.master.pid, signal.SIGKILL)
    with trio.fail_after(LIMIT):
        await generation.master.wait_exited()
    assert not generation.alive
    assert generation.look().accepting == accepting
    assert not generation.gone
    generation.signal_workers(signal.SIGQUIT)
    with trio.fail_after(LIMIT):
        await generation.all_exited()
    assert generation.gone


async def test_a_dead_masters_pid_is_asked_for_nothing(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then it may be the pid of somebody else's process, whose children are none of ours."""
    os.kill(generation.master.pid, signal.SIGKILL)
    with trio.fail_after(LIMIT):
        await generation.master.wait_exited()

    def others(_pid: int) -> list[int]:
        raise AssertionError("asked")

    monkeypatch.setattr(procfs, "children", others)
    generation.look()
    monkeypatch.undo()
    generation.signal_workers(signal.SIGKILL)


async def test_a_workers_pid_that_was_given_away_again(generation: Generation) -> None:
    victim = min(generation.look().accepting)
    held = generation.workers[victim]
    # As if the process behind the pid had begun at another time.
    generation.workers[victim] = Process(victim, -1, held.start - 1)
    (fresh,) = generation.remember([victim])
    assert fresh.alive
    assert generation.workers[victim] is fresh
    assert generation.remember([victim]) == []
    held.close()


async def test_any_exit(generation: Generation) -> None:
    generation.look()
    victim = max(generation.workers)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generation.any_exit)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(victim, signal.SIGKILL)


async def test_nothing_left_to_wait_for() -> None:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    dead = Generation(
        id=1, role=Role.ACTIVE, master=Process(pid, -1, 0),
        program=Program(version="", sha256="", path=""), exit=UNKNOWN_EXIT,
    )  # fmt: skip
    with trio.fail_after(LIMIT):
        await dead.any_exit()
        await dead.all_exited()
    assert dead.gone
    os.waitpid(pid, 0)


async def test_new_workers_are_waited_for_too(generation: Generation) -> None:
    over = trio.Event()

    async def wait() -> None:
        await generation.all_exited()
        over.set()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(min(generation.workers), signal.SIGKILL)
            await until("respawned", lambda: len(generation.look().accepting) == 2)
            assert not over.is_set()
            generation.master.send(signal.SIGTERM)
    assert generation.gone


async def test_signals_to_some_workers(generation: Generation) -> None:
    one, other = sorted(generation.look().accepting)
    generation.master.send(signal.SIGSTOP)
    generation.signal_workers(signal.SIGKILL, [one])
    await until("dead", lambda: not generation.workers[one].alive)
    assert generation.workers[other].alive


async def test_closing_lets_go_of_all_descriptors(generation: Generation) -> None:
    files = len(os.listdir("/proc/self/fd"))
    generation.look()
    generation.close()
    assert len(os.listdir("/proc/self/fd")) == files - 1 - 2
    assert not generation.workers


FORKS = """
import os, sys
child = os.fork()
if child == 0:
    sys.stdin.readline()
    os.execv("/bin/sleep", ["sleep", "600"])
print(child, flush=True)
os.wait()
"""


@pytest.mark.parametrize("look_again", [True, False])
async def test_a_new_master_seen_as_a_fork_is_no_worker(*, look_again: bool) -> None:
    """It was waited for as one, and told TERM at the end of the drain."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=pipe, stdout=pipe) as master:
        assert master.stdin is not None
        assert master.stdout is not None
        child = int(master.stdout.readline())
        process = Process.open(master.pid)
        new = Process.open(child)
        assert process is not None
        assert new is not None
        generation = Generation(
            id=1, role=Role.ACTIVE, master=process, program=Program(version="", sha256="", path="")
        )
        assert generation.look().starting == {child}
        assert set(generation.workers) == {child}
        master.stdin.write(b"\n")
        master.stdin.flush()
        await until("exec", lambda: procfs.classify(child) is procfs.ChildKind.MASTER)
        if look_again:
            assert generation.look().masters == {child}
            assert generation.workers == {}
        master.kill()
        await process.wait_exited()
        generation.exit = UNKNOWN_EXIT
        assert generation.gone
        with trio.fail_after(LIMIT):
            await generation.all_exited()
        generation.signal_workers(signal.SIGTERM)
        assert new.alive
        new.send(signal.SIGKILL)
        await new.wait_exited()
        generation.close()
        new.close()
