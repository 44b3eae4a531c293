"""Start nginx: cold, after a crash on the sockets of what is left, or as a rescue."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.core.events import Succeeded
from supervisor.core.nginx_listen import AddressKind
from supervisor.edges import holders, pidfile, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.launch import Launch
from supervisor.edges.placing import sha256_of
from supervisor.edges.process import Process
from supervisor.edges.sockets import is_busy, unix_paths
from supervisor.edges.store import Origin, StoredVersion
from supervisor.operations.choice import fallback, known_on_disk, put_wanted_on_disk
from supervisor.operations.facts import (
    Facts,
    environment,
    facts_on_disk,
    facts_unchanged,
    settings_argv,
)
from supervisor.operations.foreign import take_in_foreign
from supervisor.operations.listeners import for_successor, settle
from supervisor.operations.pidfiles import settle_pid_file
from supervisor.operations.restore import put_back
from supervisor.operations.spawn import wait_ready
from supervisor.operations.world import POLL, World

_ADDRESS_IN_USE = "failed (98: "  # as nginx writes EADDRINUSE

LEAVE_LIMIT = 5.0
"""Seconds for orphans to close their listeners; then nginx says what is in the way."""

KILL_LIMIT = 5.0
"""Seconds that the kernel is given to end what did not start."""


async def start(world: World, *, rescue: bool, cold: bool) -> Succeeded:
    """Return when a new generation serves; orphans of a dead one keep serving until then.

    A crash start runs the version that ran, a rescue the one before it, whatever is on disk by
    now; a cold start tries what is on disk and falls back to the last good version. Raises
    SupervisorError with nginx's own words.
    """
    await take_in_foreign(world)
    serving = _serving_already(world)
    if serving is not None:
        return serving
    leaving = _set_others_aside(world)
    if cold and not leaving:
        # A private probe listener of an earlier life; its port may be somebody else's by now.
        await trio.to_thread.run_sync(world.listener.restore, None)
    before = world.last_program
    note = ""
    if cold or rescue or not _ran_from_disk(world):
        note = await put_wanted_on_disk(world, rescue=rescue, cold=cold)
    try:
        generation = await _start_from_disk(world, leaving)
    except SupervisorError as exc:
        good = await fallback(world, exc) if cold else None
        if good is None:
            raise
        world.log.warning("start.fell_back", reason=exc.reason, detail=exc.detail)
        generation = await _fall_back(world, good, leaving, exc)
        note = f"the file on disk did not start ({exc.detail}); {good.version} serves"
    now = generation.program
    if before is not None and now.sha256 != before.sha256 and not note:
        note = f"nginx {now.version} serves, which was on disk; {before.version} ran before"
        world.log.warning(
            "start.another_version", version=now.version, before=before.version, judged=False
        )
    return Succeeded(
        generation=generation.id, retiring=frozenset(one.id for one in leaving), note=note
    )


def _ran_from_disk(world: World) -> bool:
    """What ran last was started from the files that are on disk still: none need be read again."""
    seen, last = facts_unchanged(world), world.last_program
    started = None if seen is None else seen.program
    if started is None or last is None or last.stored is None:
        return False
    return (started.stored, started.sha256) == (last.stored, last.sha256)


async def _fall_back(
    world: World, good: StoredVersion, leaving: Sequence[Generation], failure: SupervisorError
) -> Generation:
    """Start `good`; what a package had put on disk comes back where that fails just as well."""
    tried = await trio.to_thread.run_sync(known_on_disk, world)
    await put_back(world, good.id)
    try:
        return await _start_from_disk(world, leaving)
    except SupervisorError:
        if tried is not None:
            await put_back(world, tried.id)
        raise failure from None


def _serving_already(world: World) -> Succeeded | None:
    """A generation that serves is not started again: an operator may only want out of degraded."""
    active = world.active
    if active is None or not active.alive or not active.look().accepting:
        return None
    others = [one for one in world.generations if one is not active]
    for one in others:
        one.role = Role.RETIRING
    note = f"g{active.id} serves already"
    return Succeeded(generation=active.id, retiring=frozenset(one.id for one in others), note=note)


def _set_others_aside(world: World) -> list[Generation]:
    """The generations that leave once another one serves; those that are over are dropped.

    Orphans of a dead master go on accepting meanwhile, and a master that lives without any worker
    keeps at least the sockets; the next one takes them from there. What retires already was told
    to go by us and has none to give.
    """
    leaving = []
    for generation in list(world.generations):
        if generation.gone:
            world.generations.drop(generation)
        elif not generation.told_to_stop:
            generation.role = Role.RETIRING
            leaving.append(generation)
    return leaving


async def _start_from_disk(world: World, leaving: Sequence[Generation]) -> Generation:
    facts = await facts_on_disk(world)
    seen = world.facts_seen
    if not facts.config.master_process:
        raise OperationFailed(
            "master_process_off",
            "cannot supervise: the configuration says `master_process off`; without a master "
            "there is nothing to upgrade. Remove the directive",
        )
    world.pid_path = facts.pid_path
    world.lock(facts.pid_path)
    # Of an old master that was killed beside its successor; its number may be given away again.
    left = _oldbin_file(facts)
    if left is not None:
        await trio.to_thread.run_sync(pidfile.remove_stale, left)
    known = seen.program if seen is not None else None
    program = facts.refresh(known or await _store_program(world, facts))
    listeners = for_successor(world, leaving, facts.config.listens)
    try:
        await settle(world)  # what nobody inherits must not keep an address from being bound
        await _free_addresses(world, leaving, listeners, facts)
        remove_stale_sockets(facts, listeners)
        generation = await launch(
            world, program, environment(world, program.environment), listeners
        )
    except OperationFailed as exc:
        world.facts_seen = None  # the next try asks again, to say what is wrong
        raise await _with_holder(exc, facts) from exc
    except BaseException:
        world.facts_seen = None
        raise
    finally:
        for fd in listeners:
            os.close(fd)
    if seen is not None and program.stored is not None:
        world.facts_seen = replace(seen, program=program)
    await settle_pid_file(world, generation)
    if program.stored is not None:
        await _mark_good(world, program.stored)
    return generation


async def _free_addresses(
    world: World, leaving: Sequence[Generation], listeners: Sequence[int], facts: Facts
) -> None:
    """Orphans whose sockets cannot be handed on leave first: with them nothing could be bound.

    Where pidfd_getfd(2) is forbidden, as in many a container. They finish what they have begun;
    until the next master is ready new connections are refused.
    """
    orphans = [one for one in leaving if not one.alive]
    if world.held.problem is None or listeners or not orphans:
        return
    detail = (
        "the workers that have lost their master leave before the next one starts, since their "
        f"sockets cannot be handed on ({world.held.problem}); new connections are refused meanwhile"
    )
    world.log.warning("start.orphans_leave_first", detail=detail)
    for one in orphans:
        one.signal_workers(signal.SIGQUIT)
    with trio.move_on_after(LEAVE_LIMIT):
        while _in_the_way(orphans, facts):  # noqa: ASYNC110 - a socket that is closed tells nobody
            await trio.sleep(POLL)


def _in_the_way(orphans: Sequence[Generation], facts: Facts) -> bool:
    accepts = any(one.brood().accepting for one in orphans)
    return accepts or any(map(is_busy, facts.config.listens))


async def _with_holder(failure: OperationFailed, facts: Facts) -> OperationFailed:
    """The failure, with who has the address that nginx could not bind: nginx does not say that."""
    if _ADDRESS_IN_USE not in failure.detail:
        return failure

    found = await trio.to_thread.run_sync(holders.who_holds, facts.config.listens)
    detail = f"{failure.detail}; {found}" if found else failure.detail
    return OperationFailed(failure.reason, detail)


def _oldbin_file(facts: Facts) -> Path | None:
    """The oldbin file where there is one: a crash start has no time for a thread for nothing."""
    path = pidfile.oldbin_path(Path(facts.pid_path))
    return path if os.path.lexists(path) else None


async def _store_program(world: World, facts: Facts) -> Program:
    """The binary on disk, kept in the store; a full disk never keeps nginx from starting."""
    binary = Path(world.settings.nginx.binary)
    version = facts.build.version
    try:
        stored = await trio.to_thread.run_sync(_taken_from_disk, world, facts)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)
        digest = await trio.to_thread.run_sync(sha256_of, binary)
        return Program(version=version, sha256=digest, path=str(binary))
    return Program(version=version, sha256=stored.sha256, path=str(binary), stored=stored.id)


def _taken_from_disk(world: World, facts: Facts) -> StoredVersion:
    """What is there already is not copied: a crash start must not wait for the disk."""
    known = known_on_disk(world)
    if known is not None and (known.version, known.modules.keys()) == (
        facts.build.version, facts.modules.keys(),
    ):  # fmt: skip
        return known
    return world.store.take(
        Path(world.settings.nginx.binary), modules=facts.modules, origin=Origin.DISK,
        version=facts.build.version,
    )  # fmt: skip


async def _mark_good(world: World, version_id: str) -> None:
    def mark() -> None:
        last = world.store.last_good()
        if last is None or last.id != version_id:
            world.store.mark_good(version_id)

    try:
        await trio.to_thread.run_sync(mark)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)


async def relaunch(world: World, program: Program, sources: Sequence[Generation]) -> Generation:
    """A fresh start of the old `program` while something else may serve; for a rollback.

    It inherits the held listeners and what `sources` has besides, so that no connection is
    refused. The program's files must be on disk already.
    """
    listeners = for_successor(world, sources)
    try:
        return await launch(world, program, environment(world, program.environment), listeners)
    finally:
        for fd in listeners:
            os.close(fd)


def remove_stale_sockets(facts: Facts, listeners: Sequence[int] = ()) -> None:
    """Remove unix sockets of the configuration that nobody listens on: bind would fail on them.

    A master that was killed leaves them behind, and some versions do when they stop. Those among
    `listeners` are inherited, and are not looked at: that would be a connection to them.
    """
    unix = {one.host for one in facts.config.listens if one.kind is AddressKind.UNIX}
    for path in sorted(unix - unix_paths(listeners)):
        if _is_stale(path):
            try:
                os.unlink(path)
            except OSError as exc:
                raise OperationFailed(
                    "start_failed",
                    f"cannot remove the stale socket {path}, which keeps nginx from "
                    f"starting: {exc.strerror}; remove it",
                ) from exc


def _is_stale(path: str) -> bool:
    """A socket file whose socket is gone.

    The type is looked at first: a connect to a regular file is refused just so (unix(7)).
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # somebody listens and is busy, or it is a datagram socket
    return False


async def launch(
    world: World, program: Program, env: dict[str, str], listeners: Sequence[int]
) -> Generation:
    """Start `program`, prove it ready, and take it in as the active generation.

    Raises OperationFailed `start_failed` or `start_timeout` with nginx's own words; a master that
    does not become ready is killed, with its workers. Cancelling does the same.
    """
    output = Capture.create()
    try:
        generation = await _launch(world, program, env, listeners, output)
    except BaseException:
        output.close()
        raise
    world.join(generation)
    world.last_program = program
    return generation


async def _launch(
    world: World,
    program: Program,
    env: dict[str, str],
    listeners: Sequence[int],
    output: Capture,
) -> Generation:
    limit = world.settings.restart.start_timeout
    argv = (program.path, *settings_argv(world))
    async with await Launch.begin(
        argv, env, output=output, inherit_variable=world.settings.nginx.inherit_variable,
        listeners=listeners,
    ) as launching:  # fmt: skip
        world.sessions.add(launching.session)  # by which dead orphans of it are reaped later
        if launching.master is None:
            with trio.CancelScope(shield=True):
                await _kill_session(launching.session)
            raise await _start_failure(launching, output)
        generation = Generation(
            id=world.generations.reserve(), role=Role.ACTIVE, master=launching.master,
            program=program, output=output,
        )  # fmt: skip
        try:
            await _prove_ready(launching, generation, output, limit)
        except BaseException:
            # Also one that is ready by now: whoever cancelled this does not know of it.
            with trio.CancelScope(shield=True):
                await _kill(generation, launching.session)
            raise
    return generation


async def _prove_ready(
    launching: Launch, generation: Generation, output: Capture, limit: float
) -> None:
    """Return once it serves. Raises OperationFailed with nginx's own words."""
    if await _becomes_ready(launching, generation, limit):
        return
    if launching.failed:
        raise await _start_failure(launching, output)
    raise OperationFailed(
        "start_timeout",
        f"nginx was not ready within {limit:g} s: "
        f"{len(generation.look().accepting)} of {generation.program.workers} workers are up; "
        f"{output.tail() or 'it wrote nothing to its standard error'}",
    )


async def _becomes_ready(launching: Launch, generation: Generation, limit: float) -> bool:
    problem: OperationFailed | None = None
    async with trio.open_nursery() as nursery:

        async def fails() -> None:
            await launching.wait_failed()
            nursery.cancel_scope.cancel()

        nursery.start_soon(fails)
        with trio.move_on_after(limit):
            try:
                await wait_ready(generation)
            except OperationFailed as exc:
                problem = exc  # raised below: out of a nursery it would come in a group
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    return generation.ready


async def _start_failure(launching: Launch, output: Capture) -> OperationFailed:
    status = await launching.wait_failed()
    said = output.tail()
    return OperationFailed("start_failed", f"nginx {status} while it started: {said}")


async def _kill(generation: Generation, session: int) -> None:
    """Nothing of a start that failed is left, not even a worker that was forked meanwhile."""
    generation.look()
    generation.master.send(signal.SIGKILL)
    with trio.move_on_after(KILL_LIMIT):
        await generation.master.wait_exited()
        generation.exit = await generation.master.exit_status()
        generation.signal_workers(signal.SIGKILL)
        await generation.all_exited()
    generation.close()
    await _kill_session(session)


async def _kill_session(session: int) -> None:
    """End whatever a start has left: workers of a master that was dead before it was known.

    They would go on accepting, supervised by nobody, and hold the addresses against every later
    start. The intermediate, which leads the session, is its launch's business.
    """
    with trio.move_on_after(KILL_LIMIT):
        while members := procfs.members(session) - {session}:
            for pid in members:
                process = Process.open(pid)
                if process is not None:
                    process.send(signal.SIGKILL)
                    await process.wait_exited()
                    process.close()
