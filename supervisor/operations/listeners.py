"""The held listeners of the serving generation: follow them, hand them on, let them go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supervisor.core.nginx_listen import Listen
from supervisor.edges import procfs
from supervisor.edges.fdstore import Kept
from supervisor.edges.generation import Generation
from supervisor.edges.process import Process
from supervisor.operations.world import World


def hold(world: World, serving: Generation) -> None:
    """Hold what `serving` listens on now; called at every event that may mean a reload."""
    problem = world.held.problem
    changed = world.held.follow(serving.master, serving.workers.values())
    if changed.taken or changed.dropped:
        world.log.info(
            "listeners.held", generation=f"g{serving.id}", taken=list(changed.taken),
            dropped=list(changed.dropped),
        )  # fmt: skip
    if world.held.problem not in (None, problem):
        world.log.warning("listeners.not_held", detail=world.held.problem)


def for_successor(
    world: World, leaving: Sequence[Generation], wanted: Iterable[Listen] | None = None
) -> list[int]:
    """Descriptors that the next master inherits: the held ones, and what `leaving` has besides.

    What none of the `wanted` listeners would inherit is dropped first. The caller closes them.
    """
    if wanted is not None:
        wanted = tuple(wanted)
        _tell(world, world.held.keep_only(wanted), "the configuration on disk has no such listener")
    relatives, sharing = [], []
    for each in leaving:
        workers = sorted(_accepting(each), key=lambda one: (one.start, one.pid))
        # The youngest has what its master had last, which need not have been seen before that died.
        relatives += [each.master, *workers[-1:]]
        sharing += workers[:-1]
    return world.held.for_successor(relatives, sharing, wanted)


def _accepting(generation: Generation) -> list[Process]:
    return [
        one for one in generation.workers.values()
        if procfs.classify(one.pid, one.start) is procfs.ChildKind.ACCEPTING
    ]  # fmt: skip


def release(world: World, why: str) -> None:
    """Hold nothing: what nobody serves from now on is refused, not left waiting."""
    _tell(world, world.held.release(), why)


async def let_go(world: World, why: str) -> None:
    """Hold nothing, and neither does the service manager when this returns.

    Before the last master is told to quit: what it closes must not stay open elsewhere.
    """
    release(world, why)
    await settle(world)


async def settle(world: World) -> None:
    """Return once the service manager has closed what was dropped: its address is free then."""
    if not await world.held.settled():
        detail = "the service manager does not say whether it has closed the listeners dropped here"
        world.log.warning("listeners.not_released", detail=detail)


def take_back(world: World, kept: Iterable[Kept], whence: str) -> None:
    """Hold what was held before this supervisor; whoever serves is compared with it later."""
    changed = world.held.inherit(kept)
    if changed.taken or changed.dropped:
        world.log.info(
            "listeners.taken_back", taken=list(changed.taken), dropped=list(changed.dropped),
            detail=whence,
        )  # fmt: skip


def _tell(world: World, dropped: Sequence[str], why: str) -> None:
    if dropped:
        world.log.info("listeners.released", addresses=sorted(set(dropped)), detail=why)
