"""Take in what lives of this nginx and is on no record, and tell which part each of it plays.

The record of masters may be lost, older than what runs, or never have been: nginx was started by
hand, or somebody upgrades it by signals. Where the journal knows of an upgrade, its two generations
are told by who is whose parent and by what they run. Where it does not, nothing that serves is
ended: the one that the pid file names is active, and another master is left alone and reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import Refusal, SupervisorError
from supervisor.edges import pidfile, procfs, sockets
from supervisor.edges.generation import Generation, Role
from supervisor.edges.held import share_a_listener
from supervisor.edges.process import Process
from supervisor.operations.adoption import open_claimed, take_in, take_in_orphans
from supervisor.operations.discovery import unrecorded_masters, unrecorded_orphans
from supervisor.operations.facts import Facts
from supervisor.operations.pidfiles import remove_leftovers, settle_pid_file
from supervisor.operations.takeover import end_master
from supervisor.operations.world import World


async def take_in_unrecorded(
    world: World, facts: Facts | None, record: Mapping[str, object] | None, *, usr2_sent: bool
) -> None:
    """Afterwards every process of this nginx that can be found belongs to a generation.

    `record` is of the upgrade that a dead supervisor left; None where it left none. Then a new
    master whose parent lives is of somebody else's upgrade, and is watched as such.
    """
    recorded = [one for one in world.generations if one.role is not Role.RETIRING and one.alive]
    pids = await _masters(world, facts)
    if record is None:
        old = {one.master.pid for one in world.generations} | set(pids)
        pids = [pid for pid in pids if _parent(pid) not in old or _is_quitting(_parent(pid))]
    new = [
        await take_in(world, process, facts, good=False)
        for process in map(Process.open, pids)
        if process is not None
    ]
    if new and record is None:
        await _choose(world, recorded, new)
    elif new and record is not None:
        _match(world, record, recorded, new, usr2_sent=usr2_sent)
    if facts is not None:
        found = await trio.to_thread.run_sync(unrecorded_orphans, world, facts)
        for session, workers in found.items():
            await take_in_orphans(world, session, workers, facts)


async def _masters(world: World, facts: Facts | None) -> list[int]:
    found = await trio.to_thread.run_sync(unrecorded_masters, world, facts)
    if facts is None:
        return found
    own = Path(facts.pid_path)  # last, as it may be wrong or missing
    for path in (pidfile.oldbin_path(own), own):
        process = open_claimed(world, path, facts)
        if process is not None:
            process.close()
            if process.pid not in found:
                found.append(process.pid)
    return found


def _is_quitting(pid: int | None) -> bool:
    """QUIT closes the listeners: who is its child has taken its place."""
    held = None if pid is None else sockets.held_by(pid)
    return held is not None and not held.counts


def _parent(pid: int) -> int | None:
    stat = procfs.read_stat(pid)
    return None if stat is None else stat.parent


def _age(generation: Generation) -> tuple[int, int]:
    return generation.master.start, generation.master.pid


async def _choose(world: World, recorded: Sequence[Generation], new: Sequence[Generation]) -> None:
    """No record says who serves: the kernel does, and then the pid file."""
    pool = sorted([*recorded, *new], key=_age)
    claim = pidfile.read_claim(Path(pool[-1].program.pid_path or world.pid_path)).pid
    active = max(pool, key=lambda one: (bool(one.look().accepting), one.master.pid == claim))
    active.role = Role.ACTIVE
    for one in pool:
        if one is not active and _is_quitting(one.master.pid):
            one.role = Role.RETIRING
        elif one is not active and recorded and _is_of_a_take_over(one, active):
            await _finish_take_over(world, one, active)
        elif one is not active:
            _leave_alone(world, one, beside=active)
    if len(pool) == 1 and active.program.stored is not None:
        with suppress(SupervisorError):  # it serves all the same
            await trio.to_thread.run_sync(world.store.mark_good, active.program.stored)


def _is_of_a_take_over(one: Generation, active: Generation) -> bool:
    """The two have the same sockets, and neither has started the other: a supervisor did.

    It died in a take-over, between the start of the new master and the end of the old one, which
    it had on record.
    """
    if _is_child(one, active) or _is_child(active, one):
        return False
    return share_a_listener(one.master, active.master)


async def _finish_take_over(world: World, one: Generation, active: Generation) -> None:
    """Its workers leave as those of any master that was taken over, and nobody is refused."""
    world.log.warning(
        "take_over.finished", generation=f"g{one.id}", pid=one.master.pid,
        detail=f"a take-over was under way when the supervisor died; {active.master.pid} serves",
    )  # fmt: skip
    await end_master(world, one)
    one.role = Role.RETIRING
    with suppress(SupervisorError):  # told at the next upgrade, which needs it
        await settle_pid_file(world, active)
        await remove_leftovers(world, one, active)


def _match(
    world: World,
    record: Mapping[str, object],
    recorded: Sequence[Generation],
    new: Sequence[Generation],
    *,
    usr2_sent: bool,
) -> None:
    """An upgrade was under way: the old generation is the parent, and ran before."""
    pool = sorted([*recorded, *new], key=_age)
    before = ""
    with suppress(SupervisorError):
        before = world.store.get(str(record.get("previous"))).sha256
    known = [one for one in recorded if one.role is Role.ACTIVE]
    same = [one for one in pool if one.program.sha256 == before]
    parents = [one for one in pool if any(_is_child(other, one) for other in pool)]
    old = next(iter((*known, *same, *parents)), None)
    others = [one for one in pool if one is not old and usr2_sent]
    others.sort(key=lambda one: old is not None and not _is_child(one, old))
    candidate = next(iter(others), None)
    for one in pool:
        if one is old or one is candidate:
            one.role = Role.ACTIVE if one is old else Role.CANDIDATE
        else:
            _leave_alone(world, one, beside=old)


def _is_child(one: Generation, other: Generation) -> bool:
    return _parent(one.master.pid) == other.master.pid


def _leave_alone(world: World, one: Generation, beside: Generation | None) -> None:
    """It is shown, told to leave with all others when nginx is stopped, and dropped once gone."""
    one.role, one.bystander = Role.RETIRING, True
    forget_once_gone(world, one)
    world.log.warning(
        "generation.unexplained", generation=f"g{one.id}", pid=one.master.pid,
        detail=why_beside(one, beside),
    )  # fmt: skip


def why_beside(one: Generation, active: Generation | None) -> str:
    """What a person has to know of a master that runs beside the active one."""
    if active is None:
        return f"the master {one.master.pid} is on no record"
    return (
        f"a second master {one.master.pid} (nginx {one.program.version}) runs beside "
        f"{active.master.pid}, and no record says why; it is left alone, and no upgrade can begin "
        f"before one of them is ended: kill -QUIT {one.master.pid}, or kill -QUIT "
        f"{active.master.pid}"
    )


def expect_no_bystander(world: World) -> None:
    """Raise Refusal `foreign_upgrade` where a master runs that no record explains."""
    for one in world.generations:
        if one.bystander and one.alive:
            detail = why_beside(one, world.active)
            raise Refusal("foreign_upgrade", f"cannot upgrade: {detail}")


def forget_once_gone(world: World, one: Generation) -> None:
    """The bystander `one` is dropped when it has left by itself."""
    world.background(partial(_forget_once_gone, world, one))


async def _forget_once_gone(world: World, one: Generation) -> None:
    await one.all_exited()
    world.generations.drop(one)
    active = world.active
    if active is not None and active.alive:
        # The one that leaves has deleted the pid file, whoever was in it.
        with suppress(SupervisorError):  # told at the next upgrade, which needs it
            await settle_pid_file(world, active)
