"""Bring the candidate to life: the new binary in place, USR2, and proof that its workers are up."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges import pidfile, procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.process import Process
from supervisor.operations.world import POLL, UpgradeRun, World

USR2_LIMIT = 0.25
"""Seconds after which a USR2 without any effect was ignored."""

NO_WORKERS_LIMIT = 1.0
"""Seconds for which a master with handlers may be without any worker while it starts."""


async def spawn(world: World) -> None:
    """Put the candidate's files in place, send USR2, and return once its workers are up.

    Raises OperationFailed with a reason of the contract; the candidate's own exit is reported by
    its watcher. Cancelling leaves what was done so far in `world.run` for the rollback.
    """
    run, old = world.run, world.active
    assert run is not None
    assert run.plan is not None
    assert run.program is not None
    if old is None or not old.alive:
        raise OperationFailed("active_exited", "cannot upgrade: the old master is gone")
    run.installed = True  # before it is: a rollback that finds the old files there does no harm
    await trio.to_thread.run_sync(run.plan.install)
    expected_exe = os.stat(run.program.path)
    pidfile.require(
        Path(world.pid_path),
        pidfile.ProcessIdentity(pid=old.master.pid, start_ticks=old.master.start),
    )
    before = frozenset(procfs.children(old.master.pid))
    changed = os.stat(world.pid_path).st_ctime_ns
    run.usr2_children, run.usr2_sent = before, True
    old.master.send(signal.SIGUSR2)
    candidate = await _appearance(world, run, old, before, changed)
    if procfs.executable(candidate.master.pid) not in (
        None,
        (expected_exe.st_dev, expected_exe.st_ino),
    ):
        raise OperationFailed(
            "foreign_binary",
            f"cannot go on: process {candidate.master.pid} runs another file than "
            f"{run.program.path}; something replaced it at this moment",
        )
    await wait_ready(candidate)


async def _appearance(
    world: World, run: UpgradeRun, old: Generation, before: frozenset[int], changed: int
) -> Generation:
    """The candidate: the old master's new child that has exec'd."""
    with trio.move_on_after(USR2_LIMIT):
        while True:
            found = find_candidate(world, run, old, before)
            if found is not None:
                return found
            await trio.sleep(POLL)
    accepted = pidfile.oldbin_path(Path(world.pid_path)).exists()
    with contextlib.suppress(FileNotFoundError):
        # nginx renames its pid file before it forks and back when the child is gone
        accepted = accepted or os.stat(world.pid_path).st_ctime_ns != changed
    if accepted:
        raise OperationFailed(
            "candidate_exited",
            "the new binary was started by USR2 and was gone at once; nginx's error log has its "
            "last words",
        )
    raise OperationFailed(
        "usr2_ignored",
        f"the old master {old.master.pid} did not react to USR2 within {USR2_LIMIT * 1000:.0f} ms;"
        " it ignores the signal while the parent that started it lives",
    )


def find_candidate(
    world: World, run: UpgradeRun, old: Generation, before: frozenset[int]
) -> Generation | None:
    """The candidate, registered and watched, if the old master has such a child by now."""
    assert run.program is not None
    assert run.candidate_id is not None
    for pid in procfs.children(old.master.pid):
        if pid in before or procfs.classify(pid) is not procfs.ChildKind.MASTER:
            continue
        process = Process.open(pid)
        if process is None:
            continue
        candidate = Generation(
            id=run.candidate_id, role=Role.CANDIDATE, master=process, program=run.program,
            output=old.output,
        )  # fmt: skip
        world.join(candidate)
        return candidate
    return None


async def wait_ready(generation: Generation) -> None:
    """Return when the master has its USR2 handler and all of its workers accept.

    A worker's title is set only after its initialisation, so that a fatal exit code 2 can no
    longer come (ngx_process_cycle.c, ngx_worker_process_init). Raises OperationFailed when the
    master stands without any worker; never returns when it exits or hangs: the caller has the
    deadline and the watcher.
    """
    alone_since: float | None = None
    while True:
        if procfs.catches(generation.master.pid, signal.SIGUSR2):
            brood = generation.look()
            if len(brood.accepting) >= generation.program.workers:
                generation.ready = True
                return
            now = trio.current_time()
            if brood.accepting or brood.starting:
                alone_since = None
            elif alone_since is None:
                alone_since = now
            elif now - alone_since > NO_WORKERS_LIMIT and not generation.master.stopped:
                raise OperationFailed(
                    "no_workers",
                    f"the master {generation.master.pid} runs and has no workers: they exit while "
                    "they start; nginx's error log says why",
                )
        await trio.sleep(POLL)
