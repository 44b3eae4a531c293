"""Find a living nginx and take it over as it is; end what a dead supervisor left unfinished.

The journal says what was intended, the record of masters who they were, the kernel who they are;
the pid file is asked last.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.events import InterruptedUpgrade, Succeeded
from supervisor.core.model import Phase, Verdict
from supervisor.edges import pidfile, procfs
from supervisor.edges.generation import Generation, Program, Role, listens_no_more
from supervisor.edges.journal import History
from supervisor.edges.launch import find_leftovers
from supervisor.edges.process import Process
from supervisor.edges.pulse import Pulse
from supervisor.edges.runtime_state import RuntimeState
from supervisor.operations.adoption import adopt_known, is_this_nginx
from supervisor.operations.facts import Facts, read_facts, settings_argv
from supervisor.operations.unrecorded import forget_once_gone, take_in_unrecorded
from supervisor.operations.world import POLL, UpgradeRun, World

LEFTOVER_LIMIT = 5.0
"""Seconds that an nginx which a dead supervisor was starting gets to set its handlers."""

Records = tuple[dict[str, object], ...]

_AFTER_USR2 = (
    Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD, Phase.COMMITTING,
)  # fmt: skip
_AFTER_WINCH = (Phase.SHIFTING, Phase.SOAKING, Phase.HELD, Phase.COMMITTING)


async def recover(world: World, runtime: RuntimeState, history: History) -> Succeeded | None:
    """Adopt what lives; None where nothing does (what was left of an upgrade is then closed).

    Raises SupervisorError where a living nginx cannot be told from a foreign process.
    """
    record = await _undecided(world, history, await _read_journal(world))
    await _end_leftover_launches(world)
    facts = await _facts(world)
    pid_path = None if facts is None else facts.pid_path
    if pid_path is not None:
        world.lock(pid_path)
        world.pid_path = pid_path
    known = await trio.to_thread.run_sync(runtime.load)
    for master in known.masters:
        adopt_known(world, master)
    for one in world.generations:
        if one.bystander:
            forget_once_gone(world, one)
    if known.note:
        world.log.warning("recover.no_record", detail=known.note)
    if record is None:
        _settle_roles(world, history)
    else:
        _keep_candidate(world, record)
    await take_in_unrecorded(world, facts, record, usr2_sent=_usr2_was_sent(record))
    if record is not None:
        world.run = _run_of(world, record)
        await trio.to_thread.run_sync(_remove_staged, world)
    if world.active is None and world.candidate is None:
        if record is not None:
            await _nothing_left(world)
        return None
    found = _adopted(world, record)
    await _remove_stale_oldbin(world)
    return found


async def _end_leftover_launches(world: World) -> None:
    """A predecessor died while it started nginx: let that nginx set its handlers, then adopt it.

    Ending the intermediate before would make nginx ignore USR2 for ever.
    """
    argv = (world.settings.nginx.binary, *settings_argv(world))
    for intermediate, master in find_leftovers(argv):
        if master is not None:
            with trio.move_on_after(LEFTOVER_LIMIT), Pulse(POLL) as pulse:
                # A signal mask has no event. The title comes last, after the pid file.
                while procfs.is_alive(master) and not (
                    procfs.catches(master, signal.SIGUSR2) and procfs.is_master(master)
                ):
                    await pulse.tick()
        process = Process.open(intermediate)
        if process is not None:
            world.log.warning("launch.leftover_ended", pid=intermediate, master=master)
            process.send(signal.SIGKILL)
            with trio.move_on_after(LEFTOVER_LIMIT):  # one that hangs in the kernel ends later
                await process.wait_exited()
            process.close()


async def _read_journal(world: World) -> Records:
    """What the predecessor has left; a journal that cannot be used is never fatal.

    Nor is a disk that does not even let it be set aside: upgrades are refused then.
    """
    try:
        journal = await trio.to_thread.run_sync(world.journal.read)
        own = _of_upgrade(journal.records)
        if own and not _is_understood(own[-1]):
            why = f"its record {len(own)} is of no upgrade that this supervisor knows"
            journal = await trio.to_thread.run_sync(world.journal.reject, why)
    except SupervisorError as exc:
        world.log.error("journal.not_usable", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        return ()
    if journal.note:
        world.log.warning("journal.note", detail=journal.note, damaged=journal.damaged)
    own = _of_upgrade(journal.records)
    # Of a damaged one the last record before the damage counts, where it can be understood.
    return journal.records if not own or _is_understood(own[-1]) else ()


def _of_upgrade(records: Records) -> Records:
    """Without the verdicts that wait there for the disk, which may be of other requests."""
    return tuple(one for one in records if not isinstance(one.get("verdict"), dict))


def _is_understood(record: Mapping[str, object]) -> bool:
    known = record.get("phase") in {phase.value for phase in Phase}
    return known and isinstance(record.get("upgrade_id"), str)


async def _undecided(
    world: World, history: History, records: Records
) -> Mapping[str, object] | None:
    """The last record of an upgrade that has no verdict; else the journal is closed.

    Verdicts that a full disk kept out of the history are in the journal, and are written now; or
    they wait on, where the disk takes none yet: nothing of that keeps nginx from being supervised.
    """
    if not records:
        return None
    verdicts = [one["verdict"] for one in records if isinstance(one.get("verdict"), dict)]
    world.unwritten += [dict(one) for one in verdicts if isinstance(one, dict)]
    told = {one.get("upgrade_id") for one in world.unwritten}
    own = _of_upgrade(records)
    record = own[-1] if own else None
    decided = record is None or record["upgrade_id"] in told
    try:
        while world.unwritten:
            await trio.to_thread.run_sync(history.append, world.unwritten[0])
            del world.unwritten[0]
        if record is not None and not decided:
            upgrade_id = str(record["upgrade_id"])
            decided = await trio.to_thread.run_sync(history.find, upgrade_id) is not None
        if decided:
            await trio.to_thread.run_sync(world.journal.close_upgrade)
    except SupervisorError as exc:
        world.log.error("history.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
    return None if decided else record


def _settle_roles(world: World, history: History) -> None:
    """The predecessor died between a verdict and the record of who serves since.

    A candidate that lives although its upgrade is over was committed, or nobody could bring the
    old generation back: then the one that accepts is kept.
    """
    active, candidate = world.active, world.candidate
    if candidate is None or active is None:
        return
    others = ("reload", "detach")  # they decide nothing about a candidate
    last = history.last(lambda verdict: verdict.get("operation") not in others)
    committed = last is not None and last.get("verdict") == Verdict.COMMITTED.value
    if committed or not (active.alive and active.look().accepting):
        active.role, candidate.role = Role.RETIRING, Role.ACTIVE
        active.told_to_stop = committed  # QUIT was sent to it before the verdict was written
    else:
        candidate.role = Role.RETIRING


def _keep_candidate(world: World, record: Mapping[str, object]) -> None:
    """What a dead candidate has left serves until the rollback has brought the old version back."""
    left = world.generations.get(_number(record.get("candidate")))
    if left is not None and left.role is Role.RETIRING and not left.alive and not world.candidate:
        left.role = Role.CANDIDATE


async def _facts(world: World) -> Facts | None:
    """A configuration that is broken now must not keep a living nginx from being adopted.

    Nor a package that is installed by half: then what runs is asked instead of what is on disk.
    """
    argv = settings_argv(world)
    try:
        return await read_facts(world, world.settings.nginx.binary, argv)
    except SupervisorError as exc:
        world.log.warning("recover.configuration", reason=exc.reason, detail=exc.detail)
    for pid in procfs.everyone():
        if is_this_nginx(world, pid):
            with contextlib.suppress(SupervisorError):
                return await read_facts(world, f"/proc/{pid}/exe", argv)
    return None


def _run_of(world: World, record: Mapping[str, object]) -> UpgradeRun:
    """The upgrade as far as its journal tells; what a rollback may have to undo is assumed done."""
    phase = Phase(str(record["phase"]))
    candidate = world.candidate
    old = world.active
    sent = _usr2_was_sent(record)
    placed = phase in _AFTER_USR2
    if phase is Phase.ROLLING_BACK:
        placed = record.get("installed") is not False
    run = UpgradeRun(
        id=str(record["upgrade_id"]),
        candidate_id=_number(record.get("candidate")) or _number(record.get("candidate_id")),
        previous=_text(record.get("previous")),
        installed=placed or record.get("placing") is True,
        usr2_sent=sent,
        program=None if candidate is None else candidate.program,
        include_text=_text(record.get("include_text")),
        include_written=record.get("include_written") is True,
        warnings=_told(record.get("warnings"), ("guard", "severity", "detail")),
        kept=_text(record.get("kept")),
        changed=_told(record.get("changed"), ("kind", "path", "change")),
    )
    if run.candidate_id is None:
        run.candidate_id = world.generations.reserve()
    run.to_version = _text(record.get("to_version"))
    if run.previous is not None:
        with contextlib.suppress(SupervisorError):
            run.from_version = world.store.get(run.previous).version
    if run.program is None and old is not None:
        run.program = Program(
            version=run.to_version or "", sha256="", path=world.settings.nginx.binary,
            workers=old.program.workers, pid_path=old.program.pid_path,
        )  # fmt: skip
    if old is not None and old.alive and not old.look().accepting:
        old.quitting = listens_no_more(old.master)
    if phase in _AFTER_WINCH and old is not None:
        accepting = old.look().accepting
        # In the shift WINCH may still be on its way to those that accept: none was seen to leave.
        known = frozenset(old.workers)
        run.winch_workers = known if phase is Phase.SHIFTING else known - accepting
    return run


def _usr2_was_sent(record: Mapping[str, object] | None) -> bool:
    """The record of a rollback tells what was done, the others what was intended."""
    if record is None:
        return False
    phase = Phase(str(record["phase"]))
    if phase is Phase.ROLLING_BACK:
        return record.get("usr2_sent") is not False
    return phase in _AFTER_USR2


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


async def _remove_stale_oldbin(world: World) -> None:
    """The file of an old master that was killed, and whose supervisor died before it saw to that.

    One that names a living process stays. Where the disk does not let it go it misleads people, and
    the next upgrade overwrites it.
    """
    path = pidfile.oldbin_path(Path(world.pid_path)) if world.pid_path else None
    if path is not None:
        with contextlib.suppress(SupervisorError):
            await trio.to_thread.run_sync(pidfile.remove_stale, path)


def _adopted(world: World, record: Mapping[str, object] | None) -> Succeeded:
    active, candidate = world.active, world.candidate
    phase = "" if record is None else str(record["phase"])
    committed = phase == Phase.COMMITTING.value and (
        (_holds_up(candidate) and _quit_was_sent(active)) or _is_promoted(active, record)
    )
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
    retiring = frozenset(
        one.id for one in world.generations if one.role is Role.RETIRING and not one.bystander
    )
    note = f"adopted nginx {active.program.version}, master {active.master.pid}"
    if record is None or world.run is None:
        return Succeeded(generation=active.id, retiring=retiring, note=note)
    detail = f"{world.predecessor} while the upgrade was in {phase}"
    left = InterruptedUpgrade(
        upgrade_id=world.run.id, candidate=None if candidate is None else candidate.id,
        detail=detail, committed=committed,
    )  # fmt: skip
    return Succeeded(generation=active.id, retiring=retiring, note=note, interrupted=left)


def _is_promoted(active: Generation | None, record: Mapping[str, object] | None) -> bool:
    """A predecessor has found QUIT sent, and died before it could write the verdict."""
    return active is not None and record is not None and active.id == record.get("candidate")


def _quit_was_sent(old: Generation | None) -> bool:
    """Whether the last look before QUIT was over: a master that was told so listens no more."""
    if old is None or not old.alive or procfs.pending(old.master.pid, signal.SIGQUIT):
        return True
    return listens_no_more(old.master)


def _holds_up(candidate: Generation | None) -> bool:
    return candidate is not None and candidate.alive and bool(candidate.look().accepting)


def _told(value: object, keys: Sequence[str]) -> list[dict[str, str]]:
    """A list of what was told, such as the guards' warnings, as far as it is that."""
    found = value if isinstance(value, list) else []
    return [
        {key: one[key] for key in keys}
        for one in found
        if isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys)
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
