"""Have a serving generation read its configuration again, and its logs be reopened."""

from __future__ import annotations

import signal
from dataclasses import replace

import trio

from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Program
from supervisor.edges.pulse import Pulse
from supervisor.operations.facts import Facts, read_facts, settings_argv
from supervisor.operations.world import POLL, World

RELOAD_LIMIT = 30.0
"""Seconds within which the workers of the new configuration must be up."""


async def reload(world: World) -> tuple[str, str]:
    """Test the configuration, send HUP, return once new workers accept and the old ones leave.

    Raises OperationFailed `config_rejected` with nginx's own message, with nothing sent; and
    `reload_ignored` when nginx keeps its old workers: it found something that `-t` did not.
    """
    active = world.active
    if active is None or not active.alive:
        raise OperationFailed("not_running", "cannot reload: nginx does not run")
    facts = await read_facts(world, world.settings.nginx.binary, settings_argv(world))
    if not facts.config.master_process:
        raise OperationFailed(
            "master_process_off",
            "cannot reload: the configuration says `master_process off`; without a master there "
            "is nothing to supervise",
        )
    before = active.look().workers | active.look().starting
    active.master.send(signal.SIGHUP)
    with trio.move_on_after(RELOAD_LIMIT), Pulse(4 * POLL) as pulse:
        while True:
            if not active.alive:
                raise OperationFailed("not_running", "cannot reload: the master is gone")
            brood = active.look()
            fresh = brood.accepting - before
            if len(fresh) >= facts.workers and not before & brood.accepting:
                break
            await pulse.tick()
        active.program = await _keep_modules(world, active, facts)
        world.pid_path = active.program.pid_path
        return "reloaded", f"{len(fresh)} workers run the configuration as it is on disk"
    raise OperationFailed(
        "reload_ignored",
        f"nginx kept its old workers for {RELOAD_LIMIT:g} s after HUP and goes on with the old "
        "configuration; its error log says why",
    )


async def _keep_modules(world: World, active: Generation, facts: Facts) -> Program:
    """The program with its new configuration; newly named modules belong to the version now."""
    program = facts.refresh(active.program)
    known = () if program.stored is None else world.store.get(program.stored).modules
    if set(known) == set(facts.modules):
        return program
    try:
        stored = await trio.to_thread.run_sync(
            lambda: world.store.take_from_process(
                active.master.pid, modules=facts.modules, version=program.version
            )
        )
        await trio.to_thread.run_sync(world.store.mark_good, stored.id)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)
        return program
    return replace(program, stored=stored.id)


def reopen(world: World) -> str:
    """USR1 to every living master, so that no generation writes on to a rotated file."""
    told = []
    for generation in world.generations:
        if generation.alive and procfs.catches(generation.master.pid, signal.SIGUSR1):
            generation.master.send(signal.SIGUSR1)
            told.append(f"g{generation.id}")
        elif not generation.alive:
            # Orphans have no master that would tell them; workers reopen by themselves on USR1.
            generation.signal_workers(signal.SIGUSR1)
            told.append(f"g{generation.id} (workers)")
    return f"logs reopened by {', '.join(told)}"
