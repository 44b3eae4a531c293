"""Take in a living nginx, or what is left of one: by the record of masters, or by the pid file."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.edges import pidfile, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.nginx_binary import version_of
from supervisor.edges.placing import sha256_of
from supervisor.edges.process import Process
from supervisor.edges.runtime_state import KnownMaster
from supervisor.operations.facts import Facts, environment
from supervisor.operations.world import World


def adopt_known(world: World, known: KnownMaster) -> None:
    """Adopt a master on record, or the orphans that it left when it died with its supervisor."""
    if known.boot_id != procfs.boot_id():
        return
    if any(one.master.pid == known.pid for one in world.generations):
        return
    process = Process.open(known.pid, known.start_ticks)
    orphans = _orphans_of(known) if process is None else []
    if process is None and not orphans:
        return
    program = Program(
        version=known.version, sha256=known.sha256, path=world.settings.nginx.binary,
        stored=known.version_id or None, workers=known.worker_processes, pid_path=known.pid_path,
        environment=known.environment,
    )  # fmt: skip
    generation = Generation(
        id=known.generation,
        role=Role.RETIRING if process is None else Role(known.role),
        master=process or Process.gone(known.pid, known.start_ticks),
        program=program,
        output=Capture.reattach(known.pid if process is not None else orphans[0]),
        exit=UNKNOWN_EXIT if process is None else None,
        ready=True,
        session=known.session,
    )
    generation.remember(orphans)
    generation.look()
    world.pid_path = world.pid_path or known.pid_path
    if known.pid_path:
        world.lock(known.pid_path)
    world.join(generation)
    name = f"g{known.generation}"
    if orphans:
        world.log.warning("generation.orphans_adopted", generation=name, pids=orphans)
    else:
        world.log.info("generation.adopted", generation=name, pid=known.pid)


def _orphans_of(known: KnownMaster) -> list[int]:
    """The living workers of a dead master: in its session, younger, and titled so.

    Workers of a later master of the same session have it as their parent.
    """
    found = []
    for pid in procfs.everyone():
        stat = procfs.read_stat(pid)
        if stat is None or stat.session != known.session or stat.start < known.start_ticks:
            continue
        is_worker = procfs.classify(pid) in (procfs.ChildKind.ACCEPTING, procfs.ChildKind.DRAINING)
        if is_worker and not procfs.is_master(stat.parent):
            found.append(pid)
    return found


async def adopt_by_pid_file(world: World, path: Path, facts: Facts | None) -> None:
    """A master that nobody has on record: started by hand, or by a distribution's unit."""
    process = open_claimed(world, path)
    if process is not None:
        await adopt_master(world, process, facts)


async def adopt_master(world: World, process: Process, facts: Facts | None) -> None:
    """`process` is the active generation now; it is closed where it cannot be.

    Without `facts`, since its configuration is broken by now, it is taken for what ran last.
    """
    if facts is not None:
        program = facts.refresh(await _program_of(world, process.pid, facts))
    elif world.last_program is not None:
        told = await _unstored(world, process.pid, None)
        program = replace(world.last_program, version=told.version, sha256=told.sha256, stored=None)
    else:
        process.close()
        return
    generation = Generation(
        id=world.generations.reserve(), role=Role.ACTIVE, master=process, program=program,
        output=Capture.reattach(process.pid), ready=True,
    )  # fmt: skip
    world.join(generation)
    world.log.info("generation.adopted", generation=f"g{generation.id}", pid=process.pid)


def open_claimed(world: World, path: Path) -> Process | None:
    """The living master of this nginx that the pid file names and that is not ours yet."""
    claim = pidfile.read_claim(path)
    if claim.pid is None or any(one.master.pid == claim.pid for one in world.generations):
        return None  # a candidate, after the old master's end, is no second generation
    process = Process.open(claim.pid)
    if process is None:
        return None
    if not is_this_nginx(world, claim.pid):
        process.close()
        world.log.warning("pid_file.foreign", path=str(path), pid=claim.pid)
        return None
    return process


def is_this_nginx(world: World, pid: int) -> bool:
    """Whether `pid` is a master that runs the configured binary with the configured configuration.

    Its title has the arguments that it was started with. One without -c is told by its binary.
    """
    if not procfs.is_master(pid) or not procfs.catches(pid, signal.SIGUSR2):
        return False
    nginx = world.settings.nginx
    words = procfs.title(pid).decode(errors="surrogateescape").split()
    given = dict(pairwise(words))
    config = given.get("-c", "")
    if config.startswith("/"):
        # A title may be cut at its end: it has the room that arguments and environment had.
        is_cut = words[-1] == config and nginx.config.startswith(config)
        prefix = given.get("-p", nginx.prefix or "").rstrip("/")
        return (config == nginx.config or is_cut) and prefix == (nginx.prefix or "").rstrip("/")
    return pidfile.runs_binary(pid, [Path(nginx.binary)])


async def _program_of(world: World, pid: int, facts: Facts) -> Program:
    """What the master `pid` runs, in the store; a full disk never keeps it from being adopted."""
    path = world.settings.nginx.binary
    try:
        stored = await trio.to_thread.run_sync(
            lambda: world.store.take_from_process(pid, modules=facts.modules)
        )
        version = stored.version or await _version_of(world, pid, facts)
        await trio.to_thread.run_sync(world.store.set_version, stored.id, version)
        await trio.to_thread.run_sync(world.store.mark_good, stored.id)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)
        return await _unstored(world, pid, facts)
    return Program(version=version, sha256=stored.sha256, path=path, stored=stored.id)


async def _unstored(world: World, pid: int, facts: Facts | None) -> Program:
    """What the master `pid` runs, as far as it can be told without the store."""
    digest = await trio.to_thread.run_sync(sha256_of, Path(f"/proc/{pid}/exe"))
    path = world.settings.nginx.binary
    return Program(version=await _version_of(world, pid, facts), sha256=digest, path=path)


async def _version_of(world: World, pid: int, facts: Facts | None) -> str:
    """What the master runs, which need not be what is on disk: a package may have replaced it."""
    directives = () if facts is None else facts.config.env
    try:
        build = await version_of(Path(f"/proc/{pid}/exe"), environment(world, directives))
    except SupervisorError as exc:
        world.log.warning("recover.version_unknown", reason=exc.reason, detail=exc.detail)
        return ""
    return build.version
