"""Somebody else upgrades nginx by signals: notice it, refuse to mix with it, take over its end.

A package's own script does so, or a person: USR2, perhaps WINCH, then QUIT to the old master. The
new master is then a child of the old one that has exec'd, and no upgrade of ours has made it. While
both live nginx ignores any other USR2, and HUP to the old one would only start more workers.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.process import Process
from supervisor.edges.pulse import Pulse
from supervisor.operations.adoption import adopt_master, open_claimed
from supervisor.operations.facts import Facts, read_facts, settings_argv
from supervisor.operations.world import POLL, World

START_LIMIT = 5.0
"""Seconds that a new master of somebody else gets to set its handlers, once it is alone."""


def note_foreign_master(world: World, generation: Generation, brood: procfs.Brood) -> None:
    """`generation.foreign` is the new master that somebody else's USR2 has given it, or None.

    Said in the log when it appears and when it is gone.
    """
    known, name = generation.foreign, f"g{generation.id}"
    if known is not None and not known.alive:
        world.log.warning(
            "generation.foreign_upgrade_over", generation=name, pid=known.pid,
            detail=f"the new master {known.pid} that somebody else started is gone",
        )  # fmt: skip
        known.close()
        generation.foreign = known = None
    if known is not None or not generation.ready or _is_upgraded_by_us(world, generation):
        return
    for pid in sorted(brood.masters - world.generations.tracked()):
        process = Process.open(pid)
        if process is None:
            continue
        generation.foreign = process
        detail = foreign_text(generation.master.pid, pid)
        world.log.warning("generation.foreign_upgrade", generation=name, pid=pid, detail=detail)
        return


def _is_upgraded_by_us(world: World, generation: Generation) -> bool:
    """A new master may be ours, from before USR2 is sent until the candidate has been found."""
    run = world.run
    return run is not None and run.usr2_sent and generation is world.active


def successor_text(world: World, generation: Generation) -> str:
    """Who takes the place of `generation`, whose master is gone or leaves; empty: nobody.

    A master that somebody else has started for that, known as its child or by the pid file.
    """
    process = generation.foreign
    if process is not None and process.alive:
        return f"{process.pid}, which somebody else started by USR2, is the master now"
    if generation is not world.active or not world.pid_path:
        return ""
    process = open_claimed(world, Path(world.pid_path))
    if process is None:
        return ""
    process.close()
    return f"{process.pid}, which somebody else started, is the master now"


def foreign_text(old: int, new: int) -> str:
    """What is going on, and what a person can do about it."""
    return (
        f"somebody else upgrades nginx by signals: {new} is the new master of {old}; both "
        f"generations live until one is told to end: kill -QUIT {old} keeps the new one, which "
        f"is then supervised, kill -QUIT {new} keeps the old one"
    )


def expect_no_foreign_upgrade(generation: Generation, what: str) -> None:
    """Raise Refusal `foreign_upgrade` where somebody else upgrades `generation`."""
    foreign = generation.foreign
    if foreign is not None and foreign.alive:
        detail = foreign_text(generation.master.pid, foreign.pid)
        raise Refusal("foreign_upgrade", f"cannot {what}: {detail}")


def expect_no_other_master(old: Generation, what: str) -> None:
    """Raise OperationFailed `foreign_upgrade` where `old` has a new master at this moment."""
    if masters := procfs.brood_of(procfs.children(old.master.pid)).masters:
        detail = foreign_text(old.master.pid, min(masters))
        raise OperationFailed("foreign_upgrade", f"cannot {what}: {detail}")


async def take_in_foreign(world: World) -> None:
    """A master that somebody else started beside or after ours is adopted, not started against.

    It is known as a child of ours, or by the pid file. One that is still starting is waited for.
    """
    process = await _successor(world)
    if process is None and world.pid_path:
        process = open_claimed(world, Path(world.pid_path))
    if process is None:
        return
    facts: Facts | None = None
    with suppress(SupervisorError):  # a configuration that is broken by now is no reason to wait
        facts = await read_facts(world, f"/proc/{process.pid}/exe", settings_argv(world))
    for one in world.generations:
        one.role = Role.RETIRING
    await adopt_master(world, process, facts)
    active = world.active
    if active is None:
        return
    world.last_program = active.program
    with trio.move_on_after(START_LIMIT), Pulse(POLL) as pulse:
        while active.alive and not active.look().accepting:  # nobody is told of a new worker
            await pulse.tick()


async def _successor(world: World) -> Process | None:
    for generation in world.generations:
        process, generation.foreign = generation.foreign, None
        if process is None:
            continue
        with trio.move_on_after(START_LIMIT), Pulse(POLL) as pulse:
            # A signal mask has no event.
            while process.alive and not procfs.catches(process.pid, signal.SIGUSR2):
                await pulse.tick()
        if process.alive:
            return process
        process.close()
    return None


def take_in_to_end(world: World) -> None:
    """The masters that somebody else has started are among the generations, to be stopped too."""
    for generation in list(world.generations):
        process, generation.foreign = generation.foreign, None
        if process is None:
            continue
        if not process.alive:
            process.close()
            continue
        world.join(
            Generation(
                id=world.generations.reserve(), role=Role.CANDIDATE, master=process,
                program=replace(generation.program, stored=None), output=generation.output,
                ready=True,
            )
        )  # fmt: skip
