"""Find what runs of this nginx and is on no record: its masters, and workers without a master.

Looked at are the relatives of the masters that are known, and what is in the supervisor's own
cgroup; never another unit's. Since that cgroup may hold anything (all of a container, a login
session), what is found there has to prove that it is this very nginx: by its program and arguments,
its user, its namespaces, and by the addresses of the configuration, which it has open.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from supervisor.edges import cgroup, procfs, sockets
from supervisor.edges.pidfile import runs_binary
from supervisor.operations.adoption import is_this_nginx
from supervisor.operations.facts import Facts
from supervisor.operations.world import World


def unrecorded_masters(world: World, facts: Facts | None) -> list[int]:
    """The masters that live and that are no generation yet, oldest first. Blocks.

    Without `facts` (the configuration is broken by now) only one that names it in its arguments.
    """
    known = {one.master.pid for one in world.generations}
    found: set[int] = set()
    new = _relatives(known) | cgroup.own_members()
    while new := {pid for pid in new - known - found if _is_master_of_ours(world, pid, facts)}:
        found |= new
        new = _relatives(new)
    return sorted(found, key=_age)


def unrecorded_orphans(world: World, facts: Facts) -> dict[int, list[int]]:
    """Workers that accept and have no master, by their session. Blocks."""
    tracked = world.generations.tracked()
    found: dict[int, list[int]] = {}
    for pid in sorted(cgroup.own_members() - tracked):
        if procfs.classify(pid) is not procfs.ChildKind.ACCEPTING:
            continue
        stat = procfs.read_stat(pid)
        if stat is None or procfs.is_master(stat.parent):
            continue
        if runs_binary(pid, [Path(world.settings.nginx.binary)]) and _listens_here(pid, facts):
            found.setdefault(stat.session, []).append(pid)
    return found


def _relatives(pids: Iterable[int]) -> set[int]:
    """The parent of a master is the master before it, and a child that has exec'd the one after."""
    found: set[int] = set()
    for pid in pids:
        stat = procfs.read_stat(pid)
        if stat is not None:
            found.add(stat.parent)
            found |= procfs.brood_of(procfs.children(pid)).masters
    return found


def _age(pid: int) -> tuple[int, int]:
    stat = procfs.read_stat(pid)
    return (0 if stat is None else stat.start), pid


def _is_master_of_ours(world: World, pid: int, facts: Facts | None) -> bool:
    if not procfs.is_master(pid) or _is_fork_of_a_master(pid):
        return False
    if facts is None:
        return is_this_nginx(world, pid, sure=True) and procfs.same_world(pid)
    return is_this_nginx(world, pid, facts.build) and _listens_here(pid, facts)


def _is_fork_of_a_master(pid: int) -> bool:
    """A worker in its first moment has its master's title and handlers."""
    stat = procfs.read_stat(pid)
    return stat is None or (not stat.has_execed and procfs.is_master(stat.parent))


def _listens_here(pid: int, facts: Facts) -> bool:
    """It has an address of the configuration open, in our network."""
    held = sockets.held_by(pid) if procfs.same_world(pid) else None
    return held is not None and held.meets(facts.config.listens)
