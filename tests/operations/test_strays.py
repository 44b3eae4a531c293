"""Workers that nobody has seen before their master died; and processes that only look so."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from supervisor.edges import procfs
from supervisor.edges.generation import Generation
from supervisor.edges.journal import History
from supervisor.edges.runtime_state import RuntimeState
from supervisor.operations import recover, spawn
from supervisor.operations.world import UpgradeRun
from tests.operations.lab import LIMIT, Lab, dead, lab
from tools.nginx_cache import Build

SCRIPT = """\
"$@" -g 'daemon off;' &
( while :; do sleep 1; done ) &
echo $!
( trap '' TERM; while :; do sleep 1; done ) &
echo $!
wait
"""


@contextmanager
def _script(made: Lab) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """nginx beside two subshells, all forks of one shell; nginx with its parent alive."""
    argv = [str(made.binary), "-p", f"{made.folder}/", "-c", str(made.folder / "nginx.conf")]
    with subprocess.Popen(
        ["sh", "-c", SCRIPT, "sh", *argv], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as shell:
        assert shell.stdout is not None
        pids = [int(shell.stdout.readline()) for _ in range(2)]
        try:
            yield shell, pids
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


async def _adopt(made: Lab) -> Generation:
    await made.until("it serves", lambda: len(made.processes()) == 1 + made.workers)
    await made.until("its pid file", lambda: made.pid_path.exists() and made.pid_path.read_text())
    state = made.folder / "state"
    assert await recover.recover(made.world, RuntimeState(state), History(state)) is not None
    adopted = made.world.active
    assert adopted is not None
    await made.until("its workers are known", lambda: len(adopted.workers) == made.workers)
    return adopted


@pytest.mark.parametrize("shell_lives", [True, False], ids=["parent-alive", "parent-gone"])
async def test_a_subshell_beside_nginx_is_no_worker(oldest: Build, *, shell_lives: bool) -> None:
    """A fork that has not exec'd, in nginx's session, younger than the master."""
    async with lab(oldest) as made:
        with _script(made) as (shell, subshells):
            adopted = await _adopt(made)
            workers = set(adopted.workers)
            if not shell_lives:
                shell.kill()
                shell.wait()
            os.kill(adopted.master.pid, signal.SIGKILL)
            await dead(adopted.master.pid)
            await made.until("its exit was seen", lambda: made.events)
            assert set(adopted.workers) == workers
            assert made.world.find_strays(adopted) == []
            for pid in subshells:
                stat = procfs.read_stat(pid)
                assert stat is not None
                assert stat.alive


async def test_a_worker_that_nobody_has_seen_is_found(each_build: Build) -> None:
    """Forked by a master that died at once."""
    async with lab(each_build) as made:
        active = await made.start()
        made.folder.joinpath("sbin", "nginx").unlink()  # a package replaces it: no matter
        unseen = min(active.workers)
        os.kill(active.master.pid, signal.SIGKILL)
        await dead(active.master.pid)
        active.workers.pop(unseen).close()
        assert made.world.find_strays(active) == [unseen]


async def test_a_worker_whose_program_may_not_be_read(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose root may not trace: there its title has to do."""
    async with lab(oldest) as made:
        with _script(made) as (_shell, subshells):
            adopted = await _adopt(made)
            monkeypatch.setattr(procfs, "executable", lambda _pid: None)
            unseen = min(adopted.workers)
            os.kill(adopted.master.pid, signal.SIGKILL)
            await dead(adopted.master.pid)
            await made.until("its exit was seen", lambda: made.events)
            adopted.workers.pop(unseen).close()
            assert made.world.find_strays(adopted) == [unseen]
            assert not set(subshells) & set(adopted.workers)


async def test_a_fork_that_survives_its_kill_holds_no_rollback_up(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads its program from a file server that is gone ends when that is back."""
    async with lab(oldest) as made:
        await made.start()
        run = UpgradeRun(id="u1", usr2_sent=True)

        async def never(*_: object) -> None:
            await trio.sleep_forever()

        with subprocess.Popen(["sleep", "600"]) as fork:
            monkeypatch.setattr(spawn, "_await_candidate", never)
            monkeypatch.setattr(spawn, "_forks", lambda *_: [fork.pid])
            monkeypatch.setattr(spawn, "EXEC_LIMIT", 0.01)
            monkeypatch.setattr(spawn, "KILL_LIMIT", 0.01)
            monkeypatch.setattr("supervisor.operations.spawn.Process.wait_exited", never)
            with trio.fail_after(LIMIT):
                await spawn.find_late_candidate(made.world, run)
            monkeypatch.undo()
            await made.until("its end", lambda: not procfs.is_alive(fork.pid))
