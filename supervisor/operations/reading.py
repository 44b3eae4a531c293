"""What each generation has read, kept for the guards of the next upgrade over all that happens.

It is noted when nginx reads it (`Facts.read`); what the files of TLS say is learned afterwards,
beside everything else, and all of it is on disk for a successor. Where nginx was told to read its
configuration while nobody looked, the start of its workers is what is known: they are started anew
by every reload, so a file that was changed later is not what they have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace

from supervisor.core.config_read import ConfigRead
from supervisor.edges import procfs, tls_files
from supervisor.edges.generation import Generation
from supervisor.edges.runtime_state import KnownConfiguration
from supervisor.operations.world import World

_SLACK = 0.02
"""Seconds by which the times of files and of processes may differ: both are of coarse clocks."""


def workers_since(generation: Generation) -> float | None:
    """When the oldest worker that accepts was started, in Unix seconds; None where none does.

    What the generation has read is not younger than that.
    """
    starts = _starts(generation)
    if not starts:
        return None
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up + starts[0] / os.sysconf("SC_CLK_TCK") + _SLACK


def _starts(generation: Generation) -> tuple[int, ...]:
    accepting = generation.look().accepting
    known = (generation.workers.get(pid) for pid in accepting)
    return tuple(sorted(one.start for one in known if one is not None))


def believed(generation: Generation) -> ConfigRead | None:
    """Of what was read from disk just now, what `generation` has surely read as well.

    None where its configuration was changed after its workers had been started.
    """
    read, since = generation.program.read, workers_since(generation)
    if read is None or since is None:
        return None
    for path in generation.program.config_files:
        found = tls_files.identity(path)
        if not found or found[-1] > since * 1e9:
            return None
    files = (
        one if one.identity and one.identity[-1] <= since * 1e9 else replace(one, identity=())
        for one in read.files
    )
    return replace(read, files=tuple(files))


async def learn_files(world: World) -> None:
    """What the files of TLS say that the generations have read, as far as they are still there."""
    for one in list(world.generations):
        read = one.program.read
        if read is None or all(file.contents or file.kind.is_secret for file in read.files):
            continue
        learned = await tls_files.learn(read)
        if one.program.read is read:  # it was not reloaded meanwhile
            one.program = replace(one.program, read=learned)


def to_record(world: World) -> list[KnownConfiguration]:
    """What a successor is to know."""
    return [
        KnownConfiguration(
            pid=one.master.pid, start_ticks=one.master.start, boot_id=procfs.boot_id(),
            workers=_starts(one), read=one.program.read,
        )
        for one in world.generations
        if one.program.read is not None
    ]  # fmt: skip


def recall(world: World, known: Iterable[KnownConfiguration]) -> None:
    """Take what a predecessor has noted for what the generations run, unless they were reloaded."""
    by_master = {(one.pid, one.start_ticks, one.boot_id): one for one in known}
    for one in world.generations:
        found = by_master.get((one.master.pid, one.master.start, procfs.boot_id()))
        if found is not None and set(found.workers) & set(_starts(one)):
            one.program = replace(one.program, read=found.read)
