"""Reads the nginx configuration that is on disk, for advice about the supervisor's own."""

from __future__ import annotations

from pathlib import Path

from supervisor.core.advice import Advice, advise
from supervisor.core.errors import SupervisorError
from supervisor.edges.nginx_binary import dump_config
from supervisor.edges.probe_listener import blocks_of
from supervisor.operations.facts import environment, settings_argv
from supervisor.operations.world import World


async def advice_on(world: World) -> tuple[Advice, ...]:
    """See `advise`; none where nginx cannot read its configuration, which is told elsewhere."""
    binary = Path(world.settings.nginx.binary)
    try:
        _, dump = await dump_config(binary, settings_argv(world), environment(world))
    except SupervisorError:
        return ()
    return advise(world.settings, blocks_of(dump))
