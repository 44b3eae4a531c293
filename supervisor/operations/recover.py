"""Find a living nginx and take it over as it is; end what a dead supervisor left unfinished.

The journal says what was intended, the record of masters who they were, the kernel who they are;
the pid file is asked last.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.events import InterruptedUpgrade, Succeeded
from supervisor.core.model import Phase
from supervisor.edges import pidfile, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.journal import History
from supervisor.edges.launch import find_leftovers
from supervisor.edges.nginx_binary import version_of
from supervisor.edges.process import Process
from supervisor.edges.pulse import Pulse
from supervisor.edges.runtime_state import KnownMaster, RuntimeState
from supervisor.operations.facts import Facts, environment, read_facts, settings_argv
from supervisor.operations.world import POLL, UpgradeRun, World

LEFTOVER_LIMIT = 5.0
"""Seconds that an nginx which a dead supervisor was starting gets to set its handlers."""

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
    if record is not None and _decided(history, str(record.get("upgrade_id"))):
        await trio.to_thread.run_sync(world.journal.close_upgrade)
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
    if world.active is None and pid_path is not None:
        await _adopt_by_pid_file(world, Path(pid_path), facts)
    if record is not None:
        world.run = _run_of(world, record)
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


def _decided(history: History, upgrade_id: str) -> bool:
    return any(one.get("upgrade_id") == upgrade_id for one in history.entries(50))


async def _facts(world: World) -> Facts | None:
    """A configuration that is broken now must not keep a living nginx from being adopted."""
    try:
        return await read_facts(world, world.settings.nginx.binary, settings_argv(world))
    except SupervisorError as exc:
        world.log.warning("recover.configuration", reason=exc.reason, detail=exc.detail)
        return None


def _adopt_known(world: World, known: KnownMaster) -> None:
    if known.boot_id != procfs.boot_id():
        return
    process = Process.open(known.pid, known.start_ticks)
    if process is None:
        return
    program = Program(
        version=known.version, sha256=known.sha256, path=world.settings.nginx.binary,
        stored=known.version_id or None, workers=known.worker_processes, pid_path=known.pid_path,
    )  # fmt: skip
    generation = Generation(
        id=known.generation, role=Role(known.role), master=process, program=program,
        output=Capture.reattach(known.pid), ready=True,
    )  # fmt: skip
    generation.look()
    world.pid_path = world.pid_path or known.pid_path
    if known.pid_path:
        world.lock(known.pid_path)
    world.join(generation)
    world.log.info("generation.adopted", generation=f"g{known.generation}", pid=known.pid)


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
    if b"master process" not in procfs.title(claim.pid) or not procfs.catches(
        claim.pid, signal.SIGUSR2
    ):
        process.close()
        world.log.warning("pid_file.foreign", path=str(path), pid=claim.pid)
        return
    stored = await trio.to_thread.run_sync(
        lambda: world.store.take_from_process(process.pid, modules=facts.modules)
    )
    version = stored.version or await _version_of(world, claim.pid, facts)
    program = facts.refresh(
        Program(
            version=version, sha256=stored.sha256, path=world.settings.nginx.binary,
            stored=stored.id,
        )
    )  # fmt: skip
    await trio.to_thread.run_sync(world.store.set_version, stored.id, version)
    await trio.to_thread.run_sync(world.store.mark_good, stored.id)
    generation = Generation(
        id=world.generations.reserve(), role=Role.ACTIVE, master=process, program=program,
        output=Capture.reattach(process.pid), ready=True,
    )  # fmt: skip
    world.join(generation)
    world.log.info("generation.adopted", generation=f"g{generation.id}", pid=process.pid)


async def _version_of(world: World, pid: int, facts: Facts) -> str:
    """What the master runs, which need not be what is on disk: a package may have replaced it."""
    with contextlib.suppress(OSError):
        on_disk = os.stat(world.settings.nginx.binary)
        if procfs.executable(pid) == (on_disk.st_dev, on_disk.st_ino):
            return facts.build.version
    try:
        build = await version_of(Path(f"/proc/{pid}/exe"), environment(world))
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
        installed=phase in _AFTER_USR2,
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


async def _nothing_left(world: World) -> None:
    """Nothing of nginx lives: a cold start follows, from the files of before the upgrade."""
    run = world.run
    assert run is not None
    if run.previous is not None and run.installed:
        binary = Path(world.settings.nginx.binary)
        await trio.to_thread.run_sync(world.store.restore, run.previous, binary)


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
