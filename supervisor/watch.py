"""Watch one generation: its master and its workers by pidfd, its number of workers by count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from supervisor.core.events import Event, MasterExited
from supervisor.core.policy import SETTLE
from supervisor.edges import procfs
from supervisor.edges.generation import Generation
from supervisor.edges.linux import ExitStatus
from supervisor.edges.process import Process
from supervisor.operations.world import World

CENSUS = 1.0
"""Seconds between two counts when nothing happens; exits are noticed at once.

So are workers that somebody else has come across first, as whoever waits for a candidate does.
"""

RESPAWN = 0.005
"""Seconds after a worker's exit at which its successor is expected to be there."""


LINE = 1024
"""Characters of a line of nginx's output that go into the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """A worker of `generation` is gone."""

    generation: int
    pid: int
    status: ExitStatus
    draining: bool  # it was seen leaving before
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The workers of `generation` at one moment."""

    generation: int
    brood: procfs.Brood
    master_stopped: bool
    at: float


Sighting = WorkerExited | Counted


async def watch(
    world: World,
    generation: Generation,
    see: Callable[[Sighting], None],
    post: Callable[[Event], None],
) -> None:
    """Report until the generation has neither master nor workers.

    Cancelling stops the reports and touches no process.
    """
    draining: set[int] = set()
    watched: set[int] = set()

    async def master() -> None:
        await generation.master.wait_exited()
        status = await generation.master.exit_status()
        if not status.orderly:
            # One that leaves by itself leaves last; else the youngest workers may be unknown.
            generation.remember(world.find_strays(generation))
        generation.exit = status
        generation.changed.set()
        post(
            MasterExited(
                generation=generation.id,
                orderly=generation.exit.orderly and not generation.told_to_stop,
                detail=f"master {generation.master.pid} of g{generation.id} ({generation.exit})",
                at=trio.current_time(),
            )
        )

    async def worker(process: Process) -> None:
        await process.wait_exited()
        status = await process.exit_status()
        watched.discard(process.pid)
        if not generation.ready:
            generation.ended[process.pid] = status  # whoever waits for it must know
        known = generation.workers.pop(process.pid, None)
        if known is not None:
            known.close()
        see(
            WorkerExited(
                generation=generation.id, pid=process.pid, status=status,
                draining=process.pid in draining, at=trio.current_time(),
            )
        )  # fmt: skip
        for delay in (RESPAWN, SETTLE):
            await trio.sleep(delay)
            generation.changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(master)
        while not (generation.exit is not None and generation.gone):
            brood = generation.look()
            draining |= brood.draining
            for pid, process in list(generation.workers.items()):
                if pid not in watched:
                    watched.add(pid)
                    nursery.start_soon(worker, process)
            see(
                Counted(
                    generation=generation.id, brood=brood,
                    master_stopped=generation.master.stopped, at=trio.current_time(),
                )
            )  # fmt: skip
            _tell_output(world, generation)
            generation.changed = trio.Event()
            with trio.move_on_after(CENSUS):
                await generation.changed.wait()


def _tell_output(world: World, generation: Generation) -> None:
    """What nginx wrote to its standard output and error since the last time, into our log.

    Generations that were upgraded from one another share it: the lines carry nginx's own pids.
    """
    if generation.output is None:
        return
    for line in generation.output.drain():
        world.log.info("nginx.output", line=line[:LINE])
