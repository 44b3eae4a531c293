"""Find a living nginx and take it over as it is; end what a dead supervisor left unfinished.

The journal says what was intended, the record of masters who they were, the kernel who they are;
the pid file is asked last.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.events import InterruptedUpgrade, Succeeded
from supervisor.core.model import Phase, Verdict
from supervisor.edges import pidfile, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.journal import History
from supervisor.edges.launch import find_leftovers
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.nginx_binary import version_of
from supervisor.edges.placing import sha256_of
from supervisor.edges.process import Process
from supervisor.edges.pulse import Pulse
from supervisor.edges.runtime_state import KnownMaster, RuntimeState
from supervisor.operations.facts import Facts, environment, read_facts, settings_argv
from supervisor.operations.world import POLL, UpgradeRun, World

LEFTOVER_LIMIT = 5.0
"""Seconds that an nginx which a dead supervisor was starting gets to set its handlers."""

_LAST_VERDICTS = 50

_AFTER_USR2 = (
    Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD, Phase.COMMITTING,
    Phase.ROLLING_BACK,
)  # fmt: skip
_AFTER_WINCH = (Phase.SHIFTING, Phase.SOAKING, Phase.HELD, Phase.COMMITTING)


async def recover(world: World, runtime: RuntimeState, history: History) -> Succeeded | None:
    """Adopt what lives; None where nothing does (what was left of an upgrade is then closed).

    Raises SupervisorError where a living nginx cannot be told from a foreign process.
    """
    journal = await trio.to_thread.run_sync(world.journal.read)
    if journal.note:
        world.log.warning("journal.note", detail=journal.note, damaged=journal.damaged)
    record = journal.records[-1] if journal.records else None
    if record is not None and await _is_decided(world, history, record):
        record = None
    await _end_leftover_launches(world)
    facts = await _facts(world)
    pid_path = None if facts is None else facts.pid_path
    if pid_path is not None:
        world.lock(pid_path)
        world.pid_path = pid_path
    known = await trio.to_thread.run_sync(runtime.load)
    for master in known.masters:
        _adopt_known(world, master)
    if record is None:
        _settle_roles(world, history)
    if world.active is None and pid_path is not None:
        await _adopt_by_pid_file(world, Path(pid_path), facts)
    if record is not None:
        world.run = _run_of(world, record)
        await trio.to_thread.run_sync(_remove_staged, world)
    if world.active is None and world.candidate is None:
        if record is not None:
            await _nothing_left(world)
        return None
    return await _adopted(world, record)


async def _end_leftover_launches(world: World) -> None:
    """A predecessor died while it started nginx: let that nginx set its handlers, then adopt it.

    Ending the intermediate before would make nginx ignore USR2 for ever.
    """
    argv = (world.settings.nginx.binary, *settings_argv(world))
    for intermediate, master in find_leftovers(argv):
        if master is not None:
            with trio.move_on_after(LEFTOVER_LIMIT), Pulse(POLL) as pulse:
                # A signal mask has no event.
                while not procfs.catches(master, signal.SIGUSR2):
                    await pulse.tick()
        process = Process.open(intermediate)
        if process is not None:
            world.log.warning("launch.leftover_ended", pid=intermediate, master=master)
            process.send(signal.SIGKILL)
            await process.wait_exited()
            process.close()


async def _is_decided(world: World, history: History, record: Mapping[str, object]) -> bool:
    """Whether the upgrade of the journal has its verdict; the journal is then closed.

    One that a full disk kept out of the history is in the journal, and is written now.
    """
    verdict = record.get("verdict")
    if isinstance(verdict, dict):
        await trio.to_thread.run_sync(history.append, verdict)
    else:
        entries = await trio.to_thread.run_sync(history.entries, _LAST_VERDICTS)
        if all(one.get("upgrade_id") != record.get("upgrade_id") for one in entries):
            return False
    await trio.to_thread.run_sync(world.journal.close_upgrade)
    return True


def _settle_roles(world: World, history: History) -> None:
    """The predecessor died between a verdict and the record of who serves since.

    A candidate that lives although its upgrade is over was committed, or nobody could bring the
    old generation back: then the one that accepts is kept.
    """
    active, candidate = world.active, world.candidate
    if candidate is None or active is None:
        return
    last = history.last()
    committed = last is not None and last.get("verdict") == Verdict.COMMITTED.value
    if committed or not (active.alive and active.look().accepting):
        active.role, candidate.role = Role.RETIRING, Role.ACTIVE
        active.told_to_stop = committed  # QUIT was sent to it before the verdict was written
    else:
        candidate.role = Role.RETIRING


async def _facts(world: World) -> Facts | None:
    """A configuration that is broken now must not keep a living nginx from being adopted."""
    try:
        return await read_facts(world, world.settings.nginx.binary, settings_argv(world))
    except SupervisorError as exc:
        world.log.warning("recover.configuration", reason=exc.reason, detail=exc.detail)
        return None


def _adopt_known(world: World, known: KnownMaster) -> None:
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


async def _adopt_by_pid_file(world: World, path: Path, facts: Facts | None) -> None:
    """A master that nobody has on record: started by hand, or by a distribution's unit."""
    claim = pidfile.read_claim(path)
    if claim.pid is None or facts is None:
        return
    if any(one.master.pid == claim.pid for one in world.generations):
        return  # the candidate, after the old master's end: nobody is two generations
    process = Process.open(claim.pid)
    if process is None:
        return
    if not _is_this_nginx(world, claim.pid):
        process.close()
        world.log.warning("pid_file.foreign", path=str(path), pid=claim.pid)
        return
    program = facts.refresh(await _program_of(world, claim.pid, facts))
    generation = Generation(
        id=world.generations.reserve(), role=Role.ACTIVE, master=process, program=program,
        output=Capture.reattach(process.pid), ready=True,
    )  # fmt: skip
    world.join(generation)
    world.log.info("generation.adopted", generation=f"g{generation.id}", pid=process.pid)


def _is_this_nginx(world: World, pid: int) -> bool:
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
        digest = await trio.to_thread.run_sync(sha256_of, Path(f"/proc/{pid}/exe"))
        return Program(version=await _version_of(world, pid, facts), sha256=digest, path=path)
    return Program(version=version, sha256=stored.sha256, path=path, stored=stored.id)


async def _version_of(world: World, pid: int, facts: Facts) -> str:
    """What the master runs, which need not be what is on disk: a package may have replaced it."""
    with contextlib.suppress(OSError):
        on_disk = os.stat(world.settings.nginx.binary)
        if procfs.executable(pid) == (on_disk.st_dev, on_disk.st_ino):
            return facts.build.version
    try:
        build = await version_of(Path(f"/proc/{pid}/exe"), environment(world, facts.config.env))
    except SupervisorError as exc:
        world.log.warning("recover.version_unknown", reason=exc.reason, detail=exc.detail)
        return ""
    return build.version


def _run_of(world: World, record: Mapping[str, object]) -> UpgradeRun:
    """The upgrade as far as its journal tells; what a rollback may have to undo is assumed done."""
    phase = Phase(str(record["phase"]))
    candidate = world.candidate
    old = world.active
    run = UpgradeRun(
        id=str(record["upgrade_id"]),
        candidate_id=_number(record.get("candidate")),
        previous=_text(record.get("previous")),
        installed=phase in _AFTER_USR2 or record.get("placing") is True,
        usr2_sent=phase in _AFTER_USR2,
        program=None if candidate is None else candidate.program,
        include_text=_text(record.get("include_text")),
        include_written=record.get("include_written") is True,
    )
    run.to_version = _text(record.get("to_version"))
    if run.previous is not None:
        with contextlib.suppress(SupervisorError):
            run.from_version = world.store.get(run.previous).version
    if run.program is None and old is not None:
        run.program = Program(
            version=run.to_version or "", sha256="", path=world.settings.nginx.binary,
            workers=old.program.workers, pid_path=old.program.pid_path,
        )  # fmt: skip
    if phase in _AFTER_WINCH and old is not None:
        brood = old.look()
        run.winch_workers = frozenset(old.workers) - brood.accepting
    return run


def _remove_staged(world: World) -> None:
    """Copies that the predecessor had put beside their places and not renamed yet."""
    places = [Path(world.settings.nginx.binary)]
    if world.run is not None and world.run.previous is not None:
        with contextlib.suppress(SupervisorError):
            places += [Path(one) for one in world.store.get(world.run.previous).modules]
    world.store.remove_staged(places)


async def _nothing_left(world: World) -> None:
    """No master lives: a cold start follows, from the files of before the upgrade."""
    run = world.run
    assert run is not None
    run.usr2_sent = False  # not to the one that is about to start
    run.winch_workers = None
    if run.previous is not None and run.installed:
        binary = Path(world.settings.nginx.binary)
        try:
            await trio.to_thread.run_sync(world.store.restore, run.previous, binary)
        except SupervisorError as exc:
            world.log.error("binary.not_restored", path=str(binary), detail=exc.detail)  # noqa: TRY400 - no bug of ours


async def _adopted(world: World, record: Mapping[str, object] | None) -> Succeeded:
    active, candidate = world.active, world.candidate
    phase = "" if record is None else str(record["phase"])
    committed = phase == Phase.COMMITTING.value and _holds_up(candidate)
    if active is None:
        assert candidate is not None
        if record is not None and world.run is not None and not committed:
            # Only the candidate lives, and nobody has judged it: the rollback starts the old
            # version on its sockets.
            left = InterruptedUpgrade(
                upgrade_id=world.run.id, candidate=candidate.id,
                detail="the supervisor and the old master died during the upgrade",
            )  # fmt: skip
            return Succeeded(generation=None, interrupted=left)
        candidate.role = Role.ACTIVE
        active, candidate = candidate, None
    elif committed and candidate is not None:
        active.role, candidate.role = Role.RETIRING, Role.ACTIVE
        active, candidate = candidate, None
    world.last_program = active.program
    world.pid_path = active.program.pid_path or world.pid_path
    retiring = frozenset(one.id for one in world.generations if one.role is Role.RETIRING)
    note = f"adopted nginx {active.program.version}, master {active.master.pid}"
    if record is None or world.run is None:
        return Succeeded(generation=active.id, retiring=retiring, note=note)
    detail = f"the supervisor died while the upgrade was in {phase}"
    left = InterruptedUpgrade(
        upgrade_id=world.run.id, candidate=None if candidate is None else candidate.id,
        detail=detail, committed=committed,
    )  # fmt: skip
    return Succeeded(generation=active.id, retiring=retiring, note=note, interrupted=left)


def _holds_up(candidate: Generation | None) -> bool:
    return candidate is not None and candidate.alive and bool(candidate.look().accepting)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
