"""Take in a living nginx, or what is left of one: by the record of masters, or by the pid file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.nginx_version import NginxBuild
from supervisor.core.settings import NginxSettings
from supervisor.edges import command_line, pidfile, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.command_line import CommandLine
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.nginx_binary import version_of
from supervisor.edges.placing import sha256_of
from supervisor.edges.process import Process
from supervisor.edges.runtime_state import KnownMaster
from supervisor.operations.facts import Facts, environment
from supervisor.operations.reading import believed
from supervisor.operations.world import World

_BYSTANDER = "bystander"  # on record: a retiring one that nobody has told to leave


def on_record(generations: Iterable[Generation]) -> list[KnownMaster]:
    """What a successor has to know of them."""
    return [
        KnownMaster(
            generation=one.id, pid=one.master.pid, start_ticks=one.master.start,
            boot_id=procfs.boot_id(), version=one.program.version, sha256=one.program.sha256,
            version_id=one.program.stored or "",
            role=_BYSTANDER if one.bystander else one.role.value,
            session=one.session, pid_path=one.program.pid_path,
            worker_processes=one.program.workers, environment=one.program.environment,
        )
        for one in generations
    ]  # fmt: skip


def adopt_known(world: World, known: KnownMaster) -> None:
    """Adopt a master on record, or the orphans that it left when it died with its supervisor."""
    if known.boot_id != procfs.boot_id():
        return
    if any(one.master.pid == known.pid for one in world.generations):
        return
    process = Process.open(known.pid, known.start_ticks)
    if process is not None and not _may_be_nginx(world, known.pid):
        # A record is a claim as well: whom it names wrongly is not touched.
        world.log.warning("generation.record_foreign", pid=known.pid)
        process.close()
        return
    orphans = _orphans_of(known) if process is None else []
    if process is None and not orphans:
        return
    bystander = known.role == _BYSTANDER
    program = Program(
        version=known.version, sha256=known.sha256, path=world.settings.nginx.binary,
        stored=known.version_id or None, workers=known.worker_processes, pid_path=known.pid_path,
        environment=known.environment,
    )  # fmt: skip
    generation = Generation(
        id=known.generation,
        role=Role.RETIRING if process is None or bystander else Role(known.role),
        bystander=bystander and process is not None,
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


def _may_be_nginx(world: World, pid: int) -> bool:
    """By its title, or by its program where it has not come so far as to give itself one."""
    return procfs.is_master(pid) or pidfile.runs_binary(pid, [Path(world.settings.nginx.binary)])


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


async def adopt_master(world: World, process: Process, facts: Facts | None) -> None:
    """`process` is the active generation now; it is closed where it cannot be.

    Without `facts`, since its configuration is broken by now, it is taken for what ran last.
    """
    if facts is None and world.last_program is None:
        process.close()
        return
    await take_in(world, process, facts, good=True)


async def take_in(world: World, process: Process, facts: Facts | None, *, good: bool) -> Generation:
    """A master that nobody has on record is the active generation from now on.

    `good`: it serves alone, and is what a rollback may return to. Its configuration is `facts`, or
    where that is broken by now, what can be seen of it.
    """
    if facts is not None:
        program = facts.refresh(await _program_of(world, process.pid, facts, good=good))
    else:
        told = await _unstored(world, process.pid, None)
        like = world.last_program or replace(told, workers=_workers_of(process.pid))
        program = replace(like, version=told.version, sha256=told.sha256, stored=None)
    generation = Generation(
        id=world.generations.reserve(), role=Role.ACTIVE, master=process, program=program,
        output=Capture.reattach(process.pid), ready=True,
    )  # fmt: skip
    generation.look()
    generation.program = replace(generation.program, read=believed(generation))
    world.join(generation)
    world.log.info("generation.adopted", generation=f"g{generation.id}", pid=process.pid)
    return generation


def _workers_of(pid: int) -> int:
    return len(procfs.brood_of(procfs.children(pid)).accepting) or 1


async def take_in_orphans(
    world: World, session: int, pids: Sequence[int], facts: Facts
) -> Generation | None:
    """Workers whose master died before anybody had it on record; None where they are gone by now.

    A daemon's session has its master's number. They serve until another generation does.
    """
    stats = [stat for pid in pids if (stat := procfs.read_stat(pid)) is not None and stat.alive]
    if not stats:
        return None
    program = facts.refresh(await _unstored(world, stats[0].pid, facts))
    generation = Generation(
        id=world.generations.reserve(), role=Role.RETIRING, program=program,
        master=Process.gone(session, min(stat.start for stat in stats)),
        output=Capture.reattach(stats[0].pid), exit=UNKNOWN_EXIT, ready=True, session=session,
    )  # fmt: skip
    generation.remember(stat.pid for stat in stats)
    generation.look()
    world.join(generation)
    name = f"g{generation.id}"
    world.log.warning("generation.orphans_adopted", generation=name, pids=list(pids))
    return generation


def open_claimed(world: World, path: Path, facts: Facts | None = None) -> Process | None:
    """The living master of this nginx that the pid file names and that is not ours yet."""
    claim = pidfile.read_claim(path)
    if claim.pid is None or any(one.master.pid == claim.pid for one in world.generations):
        return None  # a candidate, after the old master's end, is no second generation
    process = Process.open(claim.pid)
    if process is None:
        return None
    if not is_this_nginx(world, claim.pid, None if facts is None else facts.build):
        process.close()
        world.log.warning("pid_file.foreign", path=str(path), pid=claim.pid)
        return None
    return process


def is_this_nginx(
    world: World, pid: int, build: NginxBuild | None = None, *, sure: bool = False
) -> bool:
    """Whether `pid` is a master that runs the configured binary with the configured configuration.

    Its title has the arguments that it was started with. Where they do not tell (the title is cut,
    or nobody knows what `build` reads without -c), the binary has to, unless one has to be `sure`.
    """
    if not procfs.is_master(pid) or not procfs.catches(pid, signal.SIGUSR2):
        return False
    if not procfs.runs_as_we_do(pid):
        return False  # anybody can give a process this title, and we run its program to ask it
    nginx = world.settings.nginx
    given = command_line.of_master(pid)
    told = None if given is None else _is_configured(pid, given, nginx, build)
    if told is None:
        return not sure and pidfile.runs_binary(pid, [Path(nginx.binary)])
    return told


def _is_configured(
    pid: int, given: CommandLine, nginx: NginxSettings, build: NginxBuild | None
) -> bool | None:
    """Whether its arguments name the configured files; None where they do not say."""
    try:
        prefix = None if given.prefix is None else command_line.resolved(pid, given.prefix)
    except OSError:
        return None
    # What -p says is in the build's prefix already, where the settings give one.
    compiled = None if build is None or nginx.prefix is not None else build.prefix
    theirs, ours = prefix or compiled, nginx.prefix or compiled
    config = given.config
    if given.config_is_cut:
        # What is there of it has to be the beginning.
        return False if config and not _may_begin(nginx.config, config) else None
    if config is None and build is not None and theirs is not None:
        config = build.at_prefix(theirs).conf_path
    if config is not None and theirs is not None:
        config = os.path.join(theirs, config)
    if config is None or not config.startswith("/"):
        return None
    same_prefix = theirs is None or ours is None or _same_path(theirs, ours)
    return same_prefix and _same_path(config, nginx.config)


def _may_begin(whole: str, beginning: str) -> bool:
    return whole.startswith(beginning) or not beginning.startswith("/")


def _same_path(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


async def _program_of(world: World, pid: int, facts: Facts, *, good: bool) -> Program:
    """What the master `pid` runs, in the store; a full disk never keeps it from being adopted."""
    path = world.settings.nginx.binary
    try:
        stored = await trio.to_thread.run_sync(
            lambda: world.store.take_from_process(pid, modules=facts.modules)
        )
        version = stored.version or await _version_of(world, pid, facts)
        await trio.to_thread.run_sync(world.store.set_version, stored.id, version)
        if good:
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
