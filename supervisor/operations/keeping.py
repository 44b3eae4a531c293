"""What runs is in the version store, so that it can come back whatever is on disk by then.

It need not be there: the disk may have been full when it was started, or the store was lost since.
A package manager may have replaced its files as well; so they are taken from what the master has
mapped. nginx is not asked which modules they are: its test would open those on disk, which are of
another build then.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import Refusal
from supervisor.core.nginx_config import parse_globals, under_prefix
from supervisor.edges.env_directives import module_directives
from supervisor.edges.generation import Generation
from supervisor.edges.nginx_binary import upgrade_environment, version_of
from supervisor.edges.sources import mapped_modules
from supervisor.edges.store import StoredVersion
from supervisor.operations.world import World


async def secure(world: World, running: Generation) -> StoredVersion:
    """The version that `running` is, in the store and unharmed.

    Raises Refusal where it cannot be stored now either.
    """
    stored = running.program.stored
    if stored is not None:
        try:
            return await trio.to_thread.run_sync(world.store.verify, stored)
        except Refusal as exc:
            world.log.warning("store.version_lost", version_id=stored, detail=exc.detail)
    pid, version = running.master.pid, running.program.version
    modules = await loaded_modules(world, running)
    taken = await trio.to_thread.run_sync(
        lambda: world.store.take_from_process(
            pid, modules={path: Path(path) for path in modules}, version=version
        )
    )
    good = await trio.to_thread.run_sync(world.store.mark_good, taken.id)
    running.program = replace(running.program, stored=good.id)
    world.last_program = running.program
    return good


async def loaded_modules(world: World, running: Generation) -> dict[str, Path]:
    """The modules that `running` has loaded, of those that the configuration on disk names.

    By the path that nginx knows them by; where each can be read. Raises what asking for the prefix
    raises, where that has to be known.
    """
    nginx = world.settings.nginx
    found = await trio.to_thread.run_sync(module_directives, Path(nginx.config))
    named = parse_globals(nginx.globals or "").load_modules + found
    prefix = nginx.prefix or "/"
    if nginx.prefix is None and not all(name.startswith("/") for name in named):
        prefix = await _own_prefix(world, running)
    paths = [under_prefix(name, prefix) for name in named]
    return await trio.to_thread.run_sync(mapped_modules, running.master.pid, paths)


async def _own_prefix(world: World, running: Generation) -> str:
    env = upgrade_environment(running.program.environment, world.settings.nginx.environment)
    return (await version_of(Path(f"/proc/{running.master.pid}/exe"), env)).prefix
