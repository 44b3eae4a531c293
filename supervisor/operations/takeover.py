"""Take-over: a master of our own on the sockets of the one that serves, in its place.

It serves an nginx that somebody else started, or that was adopted from a dead supervisor: such a
master, and every later one that USR2 makes of it, is nobody's child here, it may refuse USR2, and
it may live in another unit's cgroup. The new master inherits duplicates of its listening sockets,
and only once that serves the old *master* is ended, by SIGKILL: QUIT would have it delete the pid
file and unlink its unix sockets (ngx_process_cycle.c, ngx_master_process_exit). Its workers go on
accepting until they are told to QUIT, after the new ones accept, so nobody is refused.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.core.events import Succeeded
from supervisor.core.nginx_listen import AddressKind
from supervisor.edges import cgroup
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.placing import sha256_of
from supervisor.edges.sockets import held_by
from supervisor.edges.store import Origin
from supervisor.operations.facts import Facts, environment, facts_on_disk, read_facts, settings_argv
from supervisor.operations.foreign import expect_no_other_master
from supervisor.operations.keeping import secure
from supervisor.operations.listeners import for_successor, hold
from supervisor.operations.pidfiles import remove_leftovers, remove_stale, settle_pid_file, tidy
from supervisor.operations.restore import put_back
from supervisor.operations.start import launch
from supervisor.operations.world import World

_LEFT_OVER = "take_over.left_over"

KILL_LIMIT = 5.0
"""Seconds that the kernel is given to end the old master."""


async def take_over(world: World) -> Succeeded:
    """Return when a new master of ours serves in the place of the active one.

    The old one's workers are retiring then and have not been told so yet. Raises SupervisorError,
    and the old master serves as before, where the new one cannot be brought up. Cancelling ends
    the new master where the old one still lives; from the SIGKILL on it has no effect.
    """
    old = world.active
    if old is None or not old.alive:
        raise OperationFailed("active_exited", "cannot take over: the master is gone")
    expect_no_other_master(old, "take over")
    note = await _put_running_on_disk(world, old)
    facts = await facts_on_disk(world)
    await trio.to_thread.run_sync(_expect_sockets_kept, old, facts)
    world.lock(facts.pid_path)
    try:
        new = await _launch(world, old, facts)
    except BaseException:
        with trio.CancelScope(shield=True):
            await tidy(world, _LEFT_OVER, _put_pid_file_right(world, old, facts.pid_path))
        raise
    old.role = Role.RETIRING  # no checkpoint since the new one was taken in
    with trio.CancelScope(shield=True):
        await end_master(world, old)
        world.pid_path = facts.pid_path
        hold(world, new)
        left = [
            await tidy(world, _LEFT_OVER, settle_pid_file(world, new)),
            await tidy(world, _LEFT_OVER, remove_leftovers(world, old, new)),
        ]
    text = f"master {new.master.pid} has taken nginx over from {old.master.pid}"
    return Succeeded(
        generation=new.id, retiring=frozenset({old.id}),
        note="; ".join(filter(None, (text, note, *left))),
    )  # fmt: skip


async def _put_pid_file_right(world: World, old: Generation, path: str) -> None:
    """The new master has written its own pid before it failed, perhaps into another file."""
    if old.alive:
        await settle_pid_file(world, old)
    if path != (old.program.pid_path or world.pid_path):
        await remove_stale(path)


async def _put_running_on_disk(world: World, old: Generation) -> str:
    """A take-over changes no version: what runs is what a start from disk would run, too.

    What a package has put there meanwhile is kept in the version store, to be upgraded to.
    """
    binary = Path(world.settings.nginx.binary)
    try:
        on_disk = await trio.to_thread.run_sync(sha256_of, binary)
    except OSError:
        on_disk = ""
    if on_disk == old.program.sha256:
        return ""
    running = await secure(world, old)
    kept = "it was missing"
    if on_disk:
        found = await read_facts(world, str(binary), settings_argv(world))
        stored = await trio.to_thread.run_sync(
            lambda: world.store.take(
                binary, modules=found.modules, origin=Origin.DISK, version=found.build.version
            )
        )
        kept = f"{stored.version} stood there, now: nginxctl upgrade {stored.binary}"
    objection = await put_back(world, running.id)
    world.log.warning(
        "binary.drift", path=str(binary), restored=running.version, version_id=running.id
    )
    return "; ".join(
        filter(None, (f"{binary} is {running.version} again, which runs ({kept})", objection))
    )


def _expect_sockets_kept(old: Generation, facts: Facts) -> None:
    """A master that inherits a unix socket which it does not listen on removes its file."""
    held = held_by(old.master.pid)
    if held is None or not held.counts:
        raise Refusal(
            "listeners_unavailable",
            f"cannot take over: the listening sockets of master {old.master.pid} cannot be seen; "
            "that takes the same user or CAP_SYS_PTRACE, and it must not have been told to quit",
        )
    wanted = {one.host for one in facts.config.listens if one.kind is AddressKind.UNIX}
    lost = sorted(held.unix_paths - wanted)
    if lost:
        raise Refusal(
            "unix_listener_dropped",
            f"cannot take over: the configuration on disk does not listen on unix:{lost[0]} any "
            "more, and nginx serves it; nginxctl reload first, or put the listener back",
        )


async def _launch(world: World, old: Generation, facts: Facts) -> Generation:
    binary = world.settings.nginx.binary
    program: Program = facts.refresh(replace(old.program, path=binary))
    hold(world, old)
    listeners: Sequence[int] = for_successor(world, [old])
    try:
        if not listeners:
            raise Refusal(
                "listeners_unavailable",
                "cannot take over: the listening sockets cannot be duplicated "
                f"({world.held.problem or 'pidfd_getfd(2) failed'})",
            )
        return await launch(world, program, environment(world, program.environment), listeners)
    finally:
        for fd in listeners:
            os.close(fd)


async def end_master(world: World, old: Generation) -> None:
    """SIGKILL to the old master alone; workers that it forked in its last moment are known."""
    old.look()
    moved = cgroup.bring_in(old.workers)
    if moved:
        world.log.info("take_over.moved", pids=list(moved), detail="out of another unit's cgroup")
    old.told_to_stop = True
    old.master.send(signal.SIGKILL)
    with trio.move_on_after(KILL_LIMIT):
        await old.master.wait_exited()
    old.remember(world.find_strays(old))
