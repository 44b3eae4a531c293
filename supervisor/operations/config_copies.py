"""A copy of each configuration that is running, so that a guarded reload can go back to it.

Made beside everything else, in a thread: no start waits for it. What cannot be copied is said once
in the log; a guarded reload is refused then.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import trio

from supervisor.core.errors import Refusal, SupervisorError
from supervisor.edges import procfs
from supervisor.edges.config_store import Running, Snapshot
from supervisor.edges.generation import Generation, Program
from supervisor.operations.reading import workers_since
from supervisor.operations.world import World, files_identity


async def keep_copy(world: World, generation: Generation) -> None:
    """The files that `generation` has read are kept, unless somebody has changed one since."""
    try:
        async with world.copying:
            await _keep(world, generation)
    except SupervisorError as exc:
        world.log.warning(
            "config.not_kept", generation=f"g{generation.id}", reason=exc.reason, detail=exc.detail
        )
    except Exception:  # a bug of ours must not end the supervisor
        world.log.exception("operation.bug", operation="keep_copy")


async def _keep(world: World, generation: Generation) -> None:
    program = generation.program
    if program.config_copy is None:
        copy = await _copy_of(world, generation)
        if copy is None:
            return
        now = generation.program
        if (now.config_files, now.config_signature) != (
            program.config_files, program.config_signature,
        ):  # fmt: skip
            return  # it has been reloaded meanwhile, and another copy is on its way
        _know(world, generation, copy)
    rows = [
        Running(
            pid=one.master.pid, start_ticks=one.master.start, boot_id=procfs.boot_id(),
            snapshot=one.program.config_copy,
        )
        for one in world.generations
        if one.alive and one.program.config_copy is not None
    ]  # fmt: skip
    await trio.to_thread.run_sync(world.configs.note_running, rows)


def _know(world: World, generation: Generation, copy: str) -> None:
    last = world.last_program is generation.program
    generation.program = replace(generation.program, config_copy=copy)
    if last:
        world.last_program = generation.program


async def _copy_of(world: World, generation: Generation) -> str | None:
    program, last = generation.program, world.last_program
    if not program.config_files:  # of a predecessor, which has perhaps seen what it read
        return await _on_record(world, generation)
    if last is not None and last.config_copy is not None:
        same = (last.config_files, last.config_signature)
        if same == (program.config_files, program.config_signature):
            return last.config_copy
    keep = partial(_keep_files, world, program, workers_since(generation))
    return (await trio.to_thread.run_sync(keep)).id


def _keep_files(world: World, program: Program, since: float | None) -> Snapshot:
    """A copy of what the workers have read, who are not younger than `since` (Unix seconds)."""
    kept = world.configs.keep(program.config_files, program.config_signature)
    for path, identity in zip(
        program.config_files, files_identity(program.config_files), strict=True
    ):
        if since is not None and identity[-1] > since * 1e9:
            raise Refusal(
                "configuration_not_kept",
                f"cannot keep a copy of the configuration: {path} was changed after the workers "
                "that run had been started",
            )
    return kept


async def _on_record(world: World, generation: Generation) -> str | None:
    for one in await trio.to_thread.run_sync(world.configs.running):
        if one.master == (generation.master.pid, generation.master.start, procfs.boot_id()):
            return one.snapshot
    return None


async def copy_of_running(world: World, generation: Generation) -> str:
    """The copy of what `generation` has read; one that is being made is waited for.

    Raises Refusal `previous_configuration_unknown` where there is none.
    """
    async with world.copying:
        copy = generation.program.config_copy
        if copy is not None:
            try:
                await trio.to_thread.run_sync(world.configs.load, copy)
            except Refusal as exc:
                raise _unknown(exc.detail) from exc
            return copy
    raise _unknown("the files were changed before they could be copied, or nginx was adopted")


def _unknown(why: str) -> Refusal:
    return Refusal(
        "previous_configuration_unknown",
        "cannot guard the reload: there is no copy of the configuration that nginx runs with, so "
        f"that nothing could be put back ({why}); reload once without --guard",
    )
