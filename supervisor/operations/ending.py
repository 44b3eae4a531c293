"""See generations off: gracefully first, then less so, each step with its own deadline."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges.generation import Generation, Role
from supervisor.operations.pidfiles import remove_stale, settle_pid_file
from supervisor.operations.restore import put_previous_back
from supervisor.operations.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each means may take before the next one; seconds."""

    quit: float
    term: float
    kill: float


async def end(
    world: World, generation: Generation, deadlines: Deadlines, hasten: trio.Event
) -> None:
    """Return when no process of `generation` is left: QUIT, TERM, KILL.

    A master that is stopped cannot pass a signal on, so its workers get it directly as well as
    workers that have no master. `hasten` skips the wait for connections. Raises OperationFailed
    when even KILL does not end a process within its deadline.
    """
    generation.told_to_stop = True
    for means, limit in (
        (signal.SIGQUIT, deadlines.quit),
        (signal.SIGTERM, deadlines.term),
        (signal.SIGKILL, deadlines.kill),
    ):
        if means is signal.SIGQUIT and hasten.is_set():
            continue
        _tell(generation, means)
        with trio.move_on_after(limit):
            if means is signal.SIGQUIT:
                await _gone_or(generation, hasten)
            else:
                await generation.all_exited()
        _pick_up_strays(world, generation)
        if _is_over(generation):
            return
        if not generation.alive:
            # A killed master leaves its workers behind: they get the same treatment now.
            generation.signal_workers(means)
            with trio.move_on_after(limit):
                await generation.all_exited()
            if _is_over(generation):
                return
        world.log.warning(
            "generation.insisting", generation=f"g{generation.id}", after=means.name, seconds=limit
        )
    raise OperationFailed(
        "stop_failed",
        f"cannot end generation g{generation.id}: a process of it survived SIGKILL for "
        f"{deadlines.kill:g} s (it hangs in the kernel)",
    )


def _is_over(generation: Generation) -> bool:
    return generation.gone


def _tell(generation: Generation, means: signal.Signals) -> None:
    """The master passes QUIT and TERM on; where it cannot, its workers are told directly."""
    deaf = not generation.alive or generation.master.stopped
    if generation.alive:
        generation.look()
        generation.master.send(means)
    if deaf or means is signal.SIGKILL:
        generation.signal_workers(means)


def _pick_up_strays(world: World, generation: Generation) -> None:
    """Remember workers that the master forked in its last moment."""
    if not generation.alive:
        generation.remember(world.find_strays(generation))


async def _gone_or(generation: Generation, hasten: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def hurry() -> None:
            await hasten.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(hurry)
        await generation.all_exited()
        nursery.cancel_scope.cancel()


async def stop_all(world: World, deadlines: Deadlines, *, now: bool) -> None:
    """Return when nothing of nginx is left; the candidate goes first, then the old generation.

    Never both at once: the last master to leave must know that it is the last, or unix sockets
    stay behind (ngx_cycle.c; seen on all versions). An upgrade that was under way is undone on
    disk. Raises OperationFailed when a process cannot be ended.
    """
    hasten = trio.Event()
    if now:
        hasten.set()
    order = {Role.CANDIDATE: 0, Role.ACTIVE: 1, Role.RETIRING: 2}
    # A draining generation has been told already; a stop does not wait for it longer than for
    # the rest, and it is last so that it has the most time.
    for generation in sorted(world.generations, key=lambda one: order[one.role]):
        path = generation.program.pid_path
        await end(world, generation, deadlines, hasten)
        world.generations.drop(generation)
        if path:
            await remove_stale(path)
    if world.run is not None and not world.run.quit_sent:
        await put_previous_back(world, world.run)
        if world.run.include_written:
            await trio.to_thread.run_sync(world.listener.restore, world.run.include_text)


async def drain(
    world: World, generation: Generation, deadlines: Deadlines, hasten: trio.Event
) -> None:
    """Return when the retiring `generation` is gone; its QUIT may have been sent already."""
    await end(world, generation, deadlines, hasten)
    world.generations.drop(generation)
    active = world.active
    if active is not None and active.alive:
        # A master that leaves deletes the pid file, also where it is another's by now.
        await settle_pid_file(world, active)
