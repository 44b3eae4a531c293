"""Look at what a generation's processes use and how they get on, and at the queues before it.

While an upgrade is judged, from its preflight to its verdict, both generations are looked at every
`usage_interval`. Otherwise only processes that are young: when they reach the ages that `Seen`
keeps, ten times in ten minutes, so that a later candidate can be compared with them at equal age.
Then nothing is looked at, and nothing wakes up. Of the queues those are told at which connections
wait, and once more each that is empty again: a site may have some thousand sockets.

A look takes about 0.1 ms for each process, in a thread (docs/figures.md).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import trio

from supervisor.core.seen import AGES
from supervisor.core.signals import Queue, Signal, Usage
from supervisor.edges import procfs, socket_owners
from supervisor.edges.accept_queues import accept_queues
from supervisor.edges.generation import Generation, Role
from supervisor.edges.usage import Sampler, processes_of
from supervisor.operations.world import World

LOOK_LIMIT = 2.0
"""Seconds that a look may take. A process that hangs in the kernel can keep whoever measures its
memory waiting: such a look is given up, and that is not measured any more."""

_ONE_AT_A_TIME = 2  # generations; a thread that hangs keeps no other one from running


async def watch_usage(
    world: World, generation: Generation, tell: Callable[[Sequence[Signal]], None]
) -> None:
    """Tell what is seen until the generation's master is dead. Cancelling touches no process."""
    eyes = _Eyes(world, generation)
    while generation.exit is None:
        judged = world.run is not None and generation.role is not Role.RETIRING
        due = eyes.next_age()
        if judged or due <= 0:
            tell(await eyes.look(queues=judged))
        if judged:
            await trio.sleep(world.settings.triggers.usage.interval)
            continue
        with trio.move_on_after(max(0.0, eyes.next_age())):
            await generation.changed.wait()


class _Eyes:
    """The looks at one generation."""

    def __init__(self, world: World, generation: Generation) -> None:
        self._world = world
        self._generation = generation
        self._sampler = Sampler(generation.id)
        self._limiter = trio.CapacityLimiter(_ONE_AT_A_TIME)
        self._exact = True
        self._reached: dict[int, int] = {}  # by pid, how many of `AGES`
        self._waiting: frozenset[int] = frozenset()  # sockets at which connections waited last

    def next_age(self) -> float:
        """Seconds until one of the processes reaches an age that it has to be looked at for."""
        generation = self._generation
        known = [generation.master, *generation.workers.values()]
        waits = []
        for one in known:
            reached = self._reached.get(one.pid)
            if reached is None:  # of one that is old already only the present can be seen
                reached = self._reached[one.pid] = bisect_right(AGES, one.age)
            if reached < len(AGES):
                waits.append(AGES[reached] - one.age)
        for pid in self._reached.keys() - {one.pid for one in known}:
            del self._reached[pid]
        return min(waits, default=float("inf"))

    async def look(self, *, queues: bool) -> Sequence[Signal]:
        """What is seen now; nothing where it takes too long or cannot be done."""
        try:
            return await self._look_for_a_while(queues=queues)
        except OSError as exc:  # no descriptor is left, or no thread
            self._world.log.debug(
                "generation.usage_not_seen", generation=f"g{self._generation.id}", detail=str(exc)
            )
        except Exception:  # a bug of ours must not end the supervisor
            self._world.log.exception("operation.bug", operation="sampling")
        return []

    async def _look_for_a_while(self, *, queues: bool) -> Sequence[Signal]:
        found: list[Signal] = []
        with trio.move_on_after(LOOK_LIMIT) as patience:
            found = await trio.to_thread.run_sync(
                # A thread may begin late, when it is given up and the next look has begun.
                partial(
                    self._look, self._sampler, exact=self._exact, at=trio.current_time(),
                    queues=queues, old=self._other(),
                ),
                abandon_on_cancel=True, limiter=self._limiter,
            )  # fmt: skip
        if patience.cancelled_caught:
            self._exact = False
            self._sampler = Sampler(self._generation.id)  # the other one may still be at work
            self._world.log.warning(
                "generation.usage_not_seen", generation=f"g{self._generation.id}",
                detail=f"a look at its processes has not ended within {LOOK_LIMIT:g} s",
            )  # fmt: skip
        for one in found:
            if isinstance(one, Usage):
                self._reached[one.pid] = bisect_right(AGES, one.age)
        told = [one for one in found if isinstance(one, Queue)]
        self._waiting = frozenset(one.socket for one in told if one.waiting)
        return found

    def _other(self) -> tuple[int, int] | None:
        """The master of the generation that may accept on the same listeners."""
        candidate, active = self._world.candidate, self._world.active
        other = active if self._generation is candidate else candidate
        return None if other is None else (other.master.pid, other.master.start)

    def _look(
        self, sampler: Sampler, *, exact: bool, at: float, queues: bool,
        old: tuple[int, int] | None,
    ) -> list[Signal]:  # fmt: skip
        """In a thread: nothing of the supervisor's own is changed here."""
        master = self._generation.master
        processes = processes_of(master.pid, master.start)
        found: list[Signal] = [*sampler.look(processes, at=at, exact=exact)]
        if queues and processes:
            found += [
                one
                for one in _queues(self._generation.id, master.pid, old, at)
                if one.waiting or one.socket in self._waiting
            ]
        return found


def _queues(generation: int, master: int, other: tuple[int, int] | None, at: float) -> list[Queue]:
    """The queues at listeners that nobody but this generation accepts from."""
    own = socket_owners.inodes_of(master)
    if other is not None and _accepts(*other):
        own -= socket_owners.inodes_of(other[0])
    ours = [one for one in accept_queues() if one.inode in own]
    sockets = Counter(one.address for one in ours)
    return [
        Queue(
            generation=generation, address=one.address, waiting=one.waiting, limit=one.limit,
            socket=one.inode, siblings=sockets[one.address] - 1, at=at,
        )
        for one in ours
    ]  # fmt: skip


def _accepts(master: int, start: int) -> bool:
    """Whether a generation has workers that accept."""
    stat = procfs.read_stat(master)
    if stat is None or not stat.alive or stat.start != start:
        return True  # its orphans may
    return bool(procfs.brood_of(procfs.children(master)).accepting)
