from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from supervisor.edges import procfs
from supervisor.edges.linux import UNKNOWN_EXIT, ExitStatus
from supervisor.edges.process import Process

LIMIT = 10


@pytest.fixture
def pid() -> Iterator[int]:
    """A child of ours that nobody else reaps."""
    made = os.posix_spawnp("sleep", ["sleep", "60"], os.environ)
    yield made
    try:
        os.kill(made, signal.SIGKILL)
        os.waitpid(made, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _open(pid: int) -> Process:
    process = Process.open(pid)
    assert process is not None
    return process


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_it_lives_and_ends(pid: int) -> None:
    process = _open(pid)
    assert process.alive
    assert process.send(signal.SIGTERM)
    with trio.fail_after(LIMIT):
        await process.wait_exited()
        assert not process.alive
        assert await process.exit_status() == ExitStatus(signal=signal.SIGTERM)
    assert not process.send(signal.SIGTERM)
    process.close()


async def test_many_may_wait(pid: int) -> None:
    process = _open(pid)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(process.wait_exited)
            await trio.testing.wait_all_tasks_blocked()
            process.send(signal.SIGKILL)
        await process.wait_exited()  # at once, once it has exited
    process.close()


async def test_cancelling_a_wait_touches_nothing(pid: int) -> None:
    process = _open(pid)
    files = _open_files()
    with trio.move_on_after(0.01) as scope:
        await process.wait_exited()
    assert scope.cancelled_caught
    assert process.alive
    assert _open_files() == files
    process.close()


async def test_closing_while_somebody_waits(pid: int) -> None:
    process = _open(pid)
    over = trio.Event()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await process.wait_exited()
                over.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            process.close()
            await trio.testing.wait_all_tasks_blocked()
            assert not over.is_set()  # it has not exited
            os.kill(pid, signal.SIGKILL)


async def test_a_closed_process_is_waited_for_no_longer(pid: int) -> None:
    process = _open(pid)
    process.close()
    process.close()
    with trio.fail_after(LIMIT):
        await process.wait_exited()
        assert await process.exit_status() == UNKNOWN_EXIT
    assert not process.send(signal.SIGKILL)
    assert procfs.read_stat(pid) is not None


async def test_closing_reaps_a_dead_child(pid: int) -> None:
    process = _open(pid)
    process.send(signal.SIGKILL)
    with trio.fail_after(LIMIT):
        await process.wait_exited()
    process.close()
    assert procfs.read_stat(pid) is None


def test_nothing_and_the_dead_are_not_opened(pid: int) -> None:
    files = _open_files()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert Process.open(pid) is None  # a zombie
    os.waitpid(pid, 0)
    assert Process.open(pid) is None
    assert _open_files() == files


def test_a_pid_that_was_given_away_again_is_not_opened(pid: int) -> None:
    stat = procfs.read_stat(pid)
    assert stat is not None
    files = _open_files()
    assert Process.open(pid, stat.start + 1) is None
    assert _open_files() == files
    same = Process.open(pid, stat.start)
    assert same is not None
    same.close()


async def test_stopped(pid: int) -> None:
    process = _open(pid)
    assert not process.stopped
    process.send(signal.SIGSTOP)
    with trio.fail_after(LIMIT):
        while not process.stopped:
            await trio.sleep(0.001)
    assert process.alive
    process.close()


async def test_the_end_of_a_stranger() -> None:
    """Another's child: its parent reaps it, and only then the kernel tells."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait $!; exit 0"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        process = _open(int(parent.stdout.readline()))
        process.send(signal.SIGKILL)
        with trio.fail_after(LIMIT):
            await process.wait_exited()
            status = await process.exit_status()
        assert status in (ExitStatus(signal=signal.SIGKILL), UNKNOWN_EXIT)
        process.close()


@pytest.fixture
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", unknown)


@pytest.mark.usefixtures("older_kernel")
@pytest.mark.parametrize("ending", ["kill -9 $$", "exit 3"])
async def test_the_end_of_a_stranger_that_nobody_has_reaped_yet(ending: str) -> None:
    """Its parent sleeps: the zombie tells, on every kernel."""
    # A shell gives its background processes no standard input of its own.
    script = f"exec 3<&0; sh -c 'read x <&3; {ending}' & echo $!; exec sleep 60"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        process = _open(int(parent.stdout.readline()))
        assert procfs.zombie_status(process.pid, process.start) is None  # it lives
        parent.stdin.write(b"\n")
        parent.stdin.close()
        with trio.fail_after(LIMIT):
            await process.wait_exited()
            status = await process.exit_status()
        expected = ExitStatus(code=3) if ending == "exit 3" else ExitStatus(signal=signal.SIGKILL)
        assert status == expected
        assert procfs.zombie_status(process.pid, process.start + 1) is None  # another process
        process.close()
        parent.kill()


@pytest.mark.usefixtures("older_kernel")
async def test_the_end_of_a_stranger_on_an_older_kernel() -> None:
    """Its parent has reaped it before we have looked: then nobody tells."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait $!; exit 0"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        process = _open(int(parent.stdout.readline()))
        process.send(signal.SIGKILL)
        parent.wait()
        with trio.fail_after(LIMIT):
            await process.wait_exited()
            assert await process.exit_status() == UNKNOWN_EXIT
        process.close()


async def test_no_descriptor_is_left() -> None:
    files = _open_files()
    for _ in range(20):
        pid = os.posix_spawnp("true", ["true"], os.environ)
        process = Process.open(pid)
        if process is None:  # it was that fast
            os.waitpid(pid, 0)
            continue
        with trio.fail_after(LIMIT):
            await process.wait_exited()
            await process.exit_status()
        process.close()
    assert _open_files() == files
