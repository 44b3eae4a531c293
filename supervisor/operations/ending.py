"""See generations off: gracefully first, then less so, each step with its own deadline."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges.generation import Generation, Role
from supervisor.operations.foreign import take_in_to_end
from supervisor.operations.listeners import let_go
from supervisor.operations.pidfiles import remove_leftovers, remove_stale, settle_pid_file
from supervisor.operations.restore import put_previous_back
from supervisor.operations.spawn import find_late_candidate
from supervisor.operations.world import World

REACT = 2.0
"""Seconds within which a master that is well has done what it was told."""

LOOK_AGAIN = 0.1
"""Seconds between two looks at whether a master hangs, of which there is no event."""


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
    began = trio.current_time()
    for means, limit in (
        (signal.SIGQUIT, deadlines.quit),
        (signal.SIGTERM, deadlines.term),
        (signal.SIGKILL, deadlines.kill),
    ):
        if means is signal.SIGQUIT and hasten.is_set():
            continue
        _tell(generation, means)
        with trio.move_on_after(limit):
            await _left(generation, means, hasten if means is signal.SIGQUIT else None)
        _pick_up_strays(world, generation)
        if _is_over(generation):
            return
        if means is signal.SIGKILL:
            # A worker that the killed master forked in its last moment.
            generation.signal_workers(means)
            with trio.move_on_after(limit):
                await generation.all_exited()
            if _is_over(generation):
                return
        world.log.warning(
            "generation.insisting", generation=f"g{generation.id}", after=means.name,
            seconds=round(trio.current_time() - began, 3),
            detail="its open connections are cut, and then what is left is killed",
        )  # fmt: skip
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


async def _left(generation: Generation, means: signal.Signals, hasten: trio.Event | None) -> None:
    """Return when nothing is left that could end by itself: no process, or a master that hangs."""
    async with trio.open_nursery() as nursery:

        async def first(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, generation.all_exited)
        nursery.start_soon(first, partial(_master_hangs, generation, means))
        if hasten is not None:
            nursery.start_soon(first, hasten.wait)


async def _master_hangs(generation: Generation, means: signal.Signals) -> None:
    """Return when the master has no workers left and does not leave, as nginx does at once.

    One that does not pass `means` on, or is killed before, has its workers told directly, once:
    they would go on accepting until the harsher means.
    """
    began, told, alone_since = trio.current_time(), False, None
    while True:
        await trio.sleep(LOOK_AGAIN)
        brood, now = generation.look(), trio.current_time()
        late = now - began >= REACT or not generation.alive
        if brood.accepting and late and not told:
            told = True
            generation.signal_workers(means, brood.accepting)
        if brood.all_but_masters or not generation.alive:
            alone_since = None
            continue
        alone_since = alone_since or now
        if generation.master.stopped or now - alone_since >= REACT:
            return


async def stop_all(world: World, deadlines: Deadlines, *, now: bool) -> None:
    """Return when nothing of nginx is left; the candidate goes first, then the old generation.

    Never both at once: the last master to leave must know that it is the last, or unix sockets
    stay behind (ngx_cycle.c; seen on all versions). An upgrade that was under way is undone on
    disk. Raises OperationFailed when a process cannot be ended.
    """
    hasten = trio.Event()
    if now:
        hasten.set()
    if world.run is not None:
        await find_late_candidate(world, world.run)
    take_in_to_end(world)
    order = {Role.CANDIDATE: 0, Role.ACTIVE: 1, Role.RETIRING: 2}
    # A draining generation has been told already; a stop does not wait for it longer than for
    # the rest, and it is last so that it has the most time.
    for generation in sorted(world.generations, key=lambda one: order[one.role]):
        path = generation.program.pid_path
        # Before QUIT, and never again after it: new clients are refused from then on.
        generation.told_to_stop = True
        await let_go(world, "nginx is being stopped")
        await end(world, generation, deadlines, hasten)
        world.generations.drop(generation)
        if path:
            await remove_stale(path)
    if world.run is not None and not world.run.quit_sent:
        await put_previous_back(world, world.run)
        # The test in it makes an empty one (ngx_cycle.c, ngx_create_pidfile).
        await remove_stale(world.pid_path)
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
        await remove_leftovers(world, generation, active)
