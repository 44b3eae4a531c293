"""The processes and the running upgrade, given away and taken over, with a real nginx."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields
from typing import Any

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges.generation import Generation, Role
from supervisor.edges.handover import Parcel
from supervisor.operations import handing_on, start
from supervisor.operations.pidfiles import settle_pid_file
from supervisor.operations.world import Generations, UpgradeRun, World
from tests.operations.lab import LIMIT, Lab, lab
from tools.nginx_cache import Build

NOT_OF_A_GENERATION = {
    "ended",  # of a start, and no start is handed over
    "changed",  # an event of this process
    "foreign",  # is looked for again
}
NOT_OF_A_RUN = {
    "plan",  # carried out by then: `stored` is what is left of it
    "settled",  # an event of this process, which is waited for
}
NOT_OF_A_WORLD = {
    "settings", "log", "store", "journal", "listener", "post", "watch", "lock", "background",
    "keep_locks", "told_short", "progress", "look_at_logs", "hear_output", "hear_stdout", "stdout",
    "settle_logs",
    "remember", "version_of_upgrade", "hasten",  # parts and wiring, which a new program makes anew
    "held",  # a parcel of its own
    "copying", "foreign_hearing", "reloaded", "hear_signal", "keep_copy",  # of this process
    "guard",  # read from its record
    "configs",
    "reloading", "reload_id",  # nothing is handed on while the supervisor reloads
    "env_seen", "facts_seen",  # asked again
    "predecessor",  # what the new program says
}  # fmt: skip


async def test_a_running_upgrade_goes_along(oldest: Build, newest: Build) -> None:
    """Everything is equal afterwards. Whoever adds a field decides whether it goes along."""
    async with lab(oldest) as site:
        await site.start()
        old, candidate = await site.to_canary(newest.path, newest.version)
        await hand_over(site, old, candidate)


async def hand_over(site: Lab, old: Generation, candidate: Generation) -> None:
    world, run = site.world, site.world.run
    assert run is not None
    assert candidate.output is not None
    with trio.fail_after(LIMIT):
        await run.settled.wait()
    run.winch_workers, run.not_settled = frozenset({7}), OperationFailed("disk_error", "cannot")
    world.unwritten.append({"upgrade_id": "u0"})
    world.last_identity = (33, 34)
    for one in (old, candidate):
        one.look()
    before = handing_on.give(world)
    assert len(before.fds) == len(set(before.fds))
    data = json.loads(json.dumps(before.data, allow_nan=False))

    told = data["generations"][0].keys()
    assert told == {one.name for one in fields(Generation)} - NOT_OF_A_GENERATION
    assert data["run"].keys() == {one.name for one in fields(UpgradeRun)} - NOT_OF_A_RUN
    told = data.keys() - {"outputs", "next_id"}  # of the generations
    assert told == {one.name for one in fields(World)} - NOT_OF_A_WORLD

    handed = handing_on.read(world, data)
    world.generations, world.run, world.unwritten = Generations(), None, []
    watched: list[Generation] = []
    world.watch = watched.append
    handing_on.take_over(world, handed)
    assert [one.id for one in watched] == [old.id, candidate.id]
    assert json.loads(json.dumps(handing_on.give(world).data)) == data
    assert world.run is not None
    assert world.run.settled.is_set()
    assert world.run.stored == run.stored
    assert str(world.run.not_settled) == str(run.not_settled)
    again = world.generations.get(candidate.id)
    assert again is not None
    assert again.output is not None
    assert again.output.read_up_to == candidate.output.read_up_to
    assert again.output.stdout is not None
    assert again.output.stdout.fd not in (-1, again.output.fd)
    first = world.generations.get(old.id)
    assert first is not None
    assert first.output is again.output
    assert again.brood() == candidate.brood()


async def test_a_bystander_that_leaves_afterwards_is_forgotten(oldest: Build) -> None:
    """It deletes the pid file, which names the master that stays."""
    async with lab(oldest) as site:
        world = site.world
        first = await site.start()
        second = await start.relaunch(world, first.program, [first])
        await settle_pid_file(world, second)
        first.role, first.bystander = Role.RETIRING, True
        for one in (first, second):
            one.look()
        data = as_received(handing_on.give(world))
        world.generations = Generations()
        handing_on.take_over(world, handing_on.read(world, data))
        os.kill(first.master.pid, signal.SIGQUIT)
        await site.until(
            "it is forgotten", lambda: [one.id for one in world.generations] == [second.id]
        )
        await site.until("the pid file is back", site.pid_path.exists)
        assert site.pid_path.read_text().strip() == str(second.master.pid)


def as_received(given: Parcel) -> dict[str, Any]:
    """As in another program: its descriptors are not those of this one's watchers."""
    data: dict[str, Any] = json.loads(json.dumps(given.data))
    own = {fd: os.dup(fd) for fd in given.fds}
    for one in data["generations"]:
        for process in (one["master"], *one["workers"]):
            process[1] = own[process[1]]
        one["output"] = [own[fd] for fd in one["output"]]
    data["outputs"] = [[own[fd], read_to] for fd, read_to in data["outputs"]]
    return data
