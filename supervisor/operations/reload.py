"""Have a serving generation read its configuration again, and its logs be reopened."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace

import trio

from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Program
from supervisor.edges.pulse import Pulse
from supervisor.operations.facts import Facts, facts_of_running, passed_on
from supervisor.operations.foreign import expect_no_foreign_upgrade
from supervisor.operations.reading import believed
from supervisor.operations.world import POLL, World

RELOAD_LIMIT = 30.0
"""Seconds within which the workers of the new configuration must be up."""


async def reload(world: World) -> tuple[str, str]:
    """Test the configuration, send HUP, return once new workers accept and the old ones leave.

    Tested is what runs, not what a package manager may have put on disk for the next upgrade.
    Raises Refusal `config_rejected` with nginx's own message and what else speaks against it, with
    nothing sent; and OperationFailed `reload_ignored` when nginx keeps its old workers: it found
    something that `-t` did not.
    """
    active = world.active
    if active is None or not active.alive:
        raise Refusal("not_running", "cannot reload: nginx does not run")
    expect_no_foreign_upgrade(active, "reload")
    facts = await facts_of_running(world, active)
    if facts is not None:
        _accept(world, facts)
    world.reloading = True
    try:
        return await _reload(world, active, facts)
    finally:
        world.reloading = False


async def learn_reload(world: World, generation: Generation) -> None:
    """Take in what `generation` has read when somebody else had it reload; said in the log.

    Its configuration is taken to be what is on disk now: nobody but nginx knows what it has read.
    """
    name = f"g{generation.id}"
    try:
        facts = await facts_of_running(world, generation)
        if facts is None or world.run is not None or world.reloading or not generation.alive:
            return  # what happens now sees to it
        _accept(world, facts)
        await _adopt_facts(world, generation, facts)
        generation.program = replace(generation.program, read=believed(generation))
    except SupervisorError as exc:
        world.log.warning(
            "generation.foreign_reload", generation=name, reason=exc.reason,
            detail=f"somebody else reloaded nginx; what it runs is not known: {exc.detail}",
        )  # fmt: skip
    except Exception:  # a bug of ours must not end the supervisor
        world.log.exception("operation.bug", operation="learn_reload", generation=name)
    else:
        detail = f"somebody else reloaded nginx: {facts.workers} workers run what is on disk"
        world.log.warning("generation.foreign_reload", generation=name, reason=None, detail=detail)


async def _reload(world: World, active: Generation, facts: Facts | None) -> tuple[str, str]:
    before = active.look().workers | active.look().starting
    active.master.send(signal.SIGHUP)
    with trio.move_on_after(RELOAD_LIMIT), Pulse(4 * POLL) as pulse:
        while True:
            if not active.alive:
                raise OperationFailed("not_running", "cannot reload: the master is gone")
            brood = active.look()
            fresh = brood.accepting - before
            if _complete(fresh, facts, brood) and not before & brood.accepting:
                break
            await pulse.tick()
        active.accepted = brood.accepting  # so that it is nobody else's doing
        if facts is not None:
            await _adopt_facts(world, active, facts)
        else:
            active.program = replace(active.program, read=None)
        return "reloaded", f"{len(fresh)} workers run the configuration as it is on disk"
    raise OperationFailed(
        "reload_ignored",
        f"nginx kept its old workers for {RELOAD_LIMIT:g} s after HUP and goes on with the old "
        "configuration; its error log says why",
    )


def _accept(world: World, facts: Facts) -> None:
    """Nothing that nginx would take keeps us from supervising it afterwards; raises otherwise."""
    if not facts.config.master_process:
        raise Refusal(
            "master_process_off",
            "cannot reload: the configuration says `master_process off`; without a master there "
            "is nothing to supervise",
        )
    # The pid file may have moved, and somebody else may supervise an nginx that has it there.
    world.lock(facts.pid_path)


def _complete(fresh: frozenset[int], facts: Facts | None, brood: procfs.Brood) -> bool:
    if facts is None:  # how many there will be is known to the master alone
        return bool(fresh) and not brood.starting
    return len(fresh) >= facts.workers


async def _adopt_facts(world: World, active: Generation, facts: Facts) -> None:
    """What runs now is what is started after a crash, and what a successor finds on record."""
    environment = passed_on(active.program.environment, facts.config.env)
    program = await _keep_modules(world, active, facts)
    active.program = replace(program, environment=environment)
    world.pid_path = active.program.pid_path
    world.last_program = active.program
    world.remember()


async def _keep_modules(world: World, active: Generation, facts: Facts) -> Program:
    """The program with its new configuration; newly named modules belong to the version now.

    A version that the store has lost, or never had, is stored again.
    """
    program = facts.refresh(active.program)
    if program.stored is not None:
        with suppress(Refusal):
            known = world.store.get(program.stored).modules
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
    """USR1 to every living master, so that no generation writes on to a rotated file.

    Raises Refusal `not_running` where nothing of nginx lives.
    """
    told = []
    for generation in world.generations:
        if generation.alive and procfs.catches(generation.master.pid, signal.SIGUSR1):
            generation.master.send(signal.SIGUSR1)
            told.append(f"g{generation.id}")
        elif not generation.alive and not generation.gone:
            # Orphans have no master that would tell them; workers reopen by themselves on USR1.
            generation.signal_workers(signal.SIGUSR1)
            told.append(f"g{generation.id} (workers)")
        foreign = generation.foreign
        if foreign is not None and procfs.catches(foreign.pid, signal.SIGUSR1):
            foreign.send(signal.SIGUSR1)
            told.append(f"master {foreign.pid}, which somebody else started")
    if not told:
        raise Refusal("not_running", "cannot reopen the logs: no nginx runs; see nginxctl status")
    return f"logs reopened by {', '.join(told)}"
