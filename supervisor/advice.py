"""Reads the nginx configuration that is on disk, for advice about the supervisor's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from supervisor.core.advice import Advice, advise
from supervisor.core.errors import SupervisorError
from supervisor.core.probe_settings import HttpProbe, ProbeSettings
from supervisor.edges.http_exchange import BadAnswerError
from supervisor.edges.nginx_binary import dump_config
from supervisor.edges.probe_listener import blocks_of
from supervisor.edges.tls_client import context_for
from supervisor.operations.facts import environment, settings_argv
from supervisor.operations.world import World


async def advice_on(world: World) -> tuple[Advice, ...]:
    """See `advise`, and which files of https probes cannot be used.

    About nginx there is none where it cannot read its configuration, which is told elsewhere.
    """
    files = await _on_files(world.settings.probes)
    binary = Path(world.settings.nginx.binary)
    try:
        _, dump = await dump_config(binary, settings_argv(world), environment(world))
    except SupervisorError:
        return files
    return (*files, *advise(world.settings, blocks_of(dump)))


async def _on_files(probes: Iterable[ProbeSettings]) -> tuple[Advice, ...]:
    found: list[Advice] = []
    for probe in probes:
        if isinstance(probe, HttpProbe) and probe.tls is not None:
            try:
                await context_for(probe.tls)
            except BadAnswerError as exc:
                detail = f"probe {probe.name} can ask nobody, and judges no candidate: {exc}"
                found.append(Advice(reason="tls_file_unusable", detail=detail))
    return tuple(found)
