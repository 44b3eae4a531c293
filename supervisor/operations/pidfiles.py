"""The pid files are claims: compare them with the kernel's truth, and repair them."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.edges import pidfile, procfs
from supervisor.edges.generation import Generation
from supervisor.operations.world import World

_LOST = (pidfile.PidProblem.MISSING, pidfile.PidProblem.EMPTY, pidfile.PidProblem.STALE)


async def settle_pid_file(world: World, generation: Generation) -> None:
    """Afterwards the pid file names the master of `generation`; a no-op where it does already.

    nginx deletes or renames it when masters leave in an unusual order, and then the next USR2
    would break (ngx_cycle.c, ngx_delete_pidfile).
    """
    path = Path(generation.program.pid_path or world.pid_path)
    if pidfile.read_claim(path).pid == generation.master.pid:
        return
    await trio.to_thread.run_sync(pidfile.repair, path, generation.master.pid)
    world.log.warning("pid_file.repaired", path=str(path), pid=generation.master.pid)


async def restore_lost_pid_file(world: World, generation: Generation) -> None:
    """Afterwards the pid file is there, where it was missing, empty or of a dead process.

    One that names somebody else, or leads elsewhere, was written by somebody: it stays as it is.
    Raises SupervisorError where the disk does not take it.
    """
    path = Path(generation.program.pid_path or world.pid_path)
    master = pidfile.ProcessIdentity(generation.master.pid, generation.master.start)
    upgrading = procfs.brood_of(procfs.children(master.pid)).masters
    if not upgrading and pidfile.verify(path, master) in _LOST:
        await settle_pid_file(world, generation)


async def tidy(world: World, event: str, work: Awaitable[None]) -> str:
    """Do what nothing may fail over, since somebody serves; what kept it from being done.

    Logged as an error named `event`; the text is empty where all went well.
    """
    try:
        await work
    except SupervisorError as exc:
        world.log.error(event, reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        return exc.detail
    return ""


async def remove_stale(path: str) -> None:
    """Remove pid files that name no living process; call when no master is left."""
    for one in (Path(path), pidfile.oldbin_path(Path(path))):
        await trio.to_thread.run_sync(pidfile.remove_stale, one)


async def remove_leftovers(world: World, gone: Generation, serving: Generation) -> None:
    """Remove what `gone` left behind that names no living process: nginx leaves files when killed.

    That is the oldbin file beside the one of `serving`, and its own where the two differ.
    """
    own = serving.program.pid_path or world.pid_path
    stale = [pidfile.oldbin_path(Path(own))]
    if gone.program.pid_path not in ("", own):
        stale.append(Path(gone.program.pid_path))
    for path in stale:
        await trio.to_thread.run_sync(pidfile.remove_stale, path)
