"""Bring the candidate to life: the new binary in place, USR2, and proof that its workers are up."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.core.judge import FATAL_CODE
from supervisor.edges import pidfile, procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.process import Process
from supervisor.edges.pulse import Pulse
from supervisor.edges.upgradable import TAKE_OVER
from supervisor.operations.foreign import expect_no_other_master
from supervisor.operations.world import POLL, UpgradeRun, World

USR2_LIMIT = 0.2
"""Seconds after which a USR2 that was handled, without any effect, was ignored.

nginx renames its pid file as soon as it has left the handler. The refusal is to be known, with all
that belongs to it, within 250 ms of the signal.
"""

USR2_PENDING_LIMIT = 5.0
"""Seconds for which a master may take no signal: it sleeps or works in the middle of a reload."""

FORK_LIMIT = 0.05
"""The same where an upgrade is taken back: a fork follows the handler at once."""

EXEC_LIMIT = 5.0
"""Seconds after which a fork that does not exec is ended, where an upgrade is taken back."""

KILL_LIMIT = 5.0
"""Seconds that the kernel is given to end such a fork."""

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
    expect_no_other_master(old, "upgrade")
    world.look_at_logs()
    run.installed = True  # before it is: a rollback that finds the old files there does no harm
    run.plan.install()
    world.background(partial(_settle, run))
    pidfile.require(
        Path(world.pid_path),
        pidfile.ProcessIdentity(pid=old.master.pid, start_ticks=old.master.start),
    )
    try:
        expected_exe = os.stat(run.program.path)
        changed = os.stat(world.pid_path).st_ctime_ns
    except OSError as exc:
        raise OperationFailed(
            "disk_error", f"cannot look at {exc.filename}: {exc.strerror}; it was there just now"
        ) from exc
    run.installed_file = (expected_exe.st_dev, expected_exe.st_ino)
    run.usr2_children = frozenset(procfs.children(old.master.pid))
    run.usr2_sent = True
    old.master.send(signal.SIGUSR2)
    candidate = await _appearance(world, run, old, changed)
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


async def _settle(run: UpgradeRun) -> None:
    """Sync the binary's folder beside the start of the candidate; the commit waits for it.

    USR2 need not: until the commit, a power cut leads back to the old binary anyway.
    """
    assert run.plan is not None
    try:
        await trio.to_thread.run_sync(run.plan.settle)
    except SupervisorError as exc:
        run.not_settled = exc
    finally:
        run.settled.set()


async def _appearance(world: World, run: UpgradeRun, old: Generation, changed: int) -> Generation:
    """The candidate: the old master's new child that has exec'd."""
    found = await _await_candidate(world, run, old, USR2_LIMIT)
    if found is not None:
        return found
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
        f" it ignores the signal while the parent that started it lives; {TAKE_OVER}",
    )


async def _await_candidate(
    world: World, run: UpgradeRun, old: Generation, limit: float
) -> Generation | None:
    """The candidate; None where none has come `limit` seconds after USR2 was handled.

    One that was forked and has not exec'd yet (its file is on a slow disk) is waited for, until
    the caller is cancelled.
    """
    with trio.move_on_after(USR2_PENDING_LIMIT + limit) as waiting, Pulse(POLL) as pulse:
        handled = False
        # Nobody but the parent is told of a fork: this can only be looked for.
        while (found := _find_candidate(world, run, old)) is None:
            if not handled and not procfs.pending(old.master.pid, signal.SIGUSR2):
                handled = True
                waiting.deadline = trio.current_time() + limit
            elif handled and _forks(world, run, old):
                waiting.deadline = trio.current_time() + limit
            await pulse.tick()
        return found
    return None


async def find_late_candidate(world: World, run: UpgradeRun) -> None:
    """Afterwards a candidate that USR2 has brought, or is about to, is among the generations.

    For whoever takes an upgrade back that was cancelled a moment after USR2. Overlooked, it would
    come up later and serve beside the old generation, supervised by nobody.
    """
    old = world.active
    if not run.usr2_sent or run.quit_sent or world.candidate is not None:
        return
    if old is None:
        return
    let_run(world, old)
    with trio.move_on_after(EXEC_LIMIT):
        await _await_candidate(world, run, old, FORK_LIMIT)
        return
    for pid in _forks(world, run, old):
        world.log.warning("candidate.killed_before_exec", pid=pid)
        process = Process.open(pid)
        if process is not None:
            process.send(signal.SIGKILL)
            with trio.move_on_after(KILL_LIMIT):  # it hangs in the kernel: it ends when it is back
                await process.wait_exited()
            process.close()


def _children(world: World, old: Generation) -> list[int]:
    """Whom the old master has forked; one that was killed meanwhile may have left a candidate."""
    return procfs.children(old.master.pid) if old.alive else world.find_heirs(old)


def _forks(world: World, run: UpgradeRun, old: Generation) -> list[int]:
    """New children of the old master that have neither exec'd nor become workers."""
    return [
        pid
        for pid in _children(world, old)
        if pid not in run.usr2_children and procfs.classify(pid) is procfs.ChildKind.STARTING
    ]


def let_run(world: World, old: Generation) -> None:
    """Continue a stopped master: it could neither start its workers nor handle what it was told."""
    if old.alive and old.master.stopped:
        world.log.warning("upgrade.old_master_continued", pid=old.master.pid)
        old.master.send(signal.SIGCONT)


def _find_candidate(world: World, run: UpgradeRun, old: Generation) -> Generation | None:
    """The candidate, registered and watched, if the old master has such a child by now."""
    assert run.program is not None
    assert run.candidate_id is not None
    for pid in _children(world, old):
        if pid in run.usr2_children or procfs.classify(pid) is not procfs.ChildKind.MASTER:
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
    master stands without any worker, or when a worker has shown that it will not do; never returns
    when the master exits or hangs: the caller has the deadline and the watcher.
    """
    with Pulse(POLL) as pulse:
        await _until_ready(generation, pulse)


async def _until_ready(generation: Generation, pulse: Pulse) -> None:
    alone_since: float | None = None
    while True:
        if procfs.catches(generation.master.pid, signal.SIGUSR2):
            brood = generation.look()
            if len(brood.accepting) >= generation.program.workers:
                generation.ready = True
                return
            now = trio.current_time()
            await _expect_good_ends(generation)
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
        await pulse.tick()


async def _expect_good_ends(generation: Generation) -> None:
    """Raise OperationFailed when a worker has ended as none of a good build does.

    The code that nginx calls fatal condemns any start, since such a worker is not replaced. A
    signal condemns a candidate; a first start goes on, as there is nothing to go back to.
    """
    for process in list(generation.workers.values()):
        if process.pid not in generation.ended and not process.alive:
            generation.ended[process.pid] = await process.exit_status()
    for pid, status in generation.ended.items():
        if status.code == FATAL_CODE:
            raise OperationFailed(
                "worker_fatal",
                f"worker {pid} could not initialise (exit code {FATAL_CODE}); nginx's error log "
                "says why",
            )
        if status.signal is not None and generation.role is Role.CANDIDATE:
            raise OperationFailed(
                "worker_died", f"worker {pid} was ended by signal {status.signal} while it started"
            )
