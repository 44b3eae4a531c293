"""Which version a start runs: what is on disk, or one from the store that is put there first.

The store must never keep nginx down: where it cannot be read or the disk does not take its files,
that is said, and what is on disk is started.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.edges.generation import Role
from supervisor.edges.placing import sha256_of
from supervisor.edges.store import StoredVersion
from supervisor.operations.facts import read_facts, settings_argv
from supervisor.operations.world import World

_BUILDS_FAULT = frozenset({
    "module_mismatch", "module_missing", "binary_missing", "binary_unreadable",
    "binary_not_executable", "binary_not_nginx", "binary_wrong_architecture", "binary_truncated",
    "binary_cannot_run", "config_rejected", "start_failed", "start_timeout", "worker_fatal",
    "no_workers",
})  # fmt: skip
"""Reasons of a failed start that the file on disk may be to blame for."""


async def put_wanted_on_disk(world: World, *, rescue: bool, cold: bool) -> str:
    """What is to be started is on disk, where that can be; what was found there instead.

    After a crash the version that ran, in a rescue the one before it, and in a cold start the last
    good one where the file on disk was judged bad. The text is empty where nothing was changed.
    """
    binary = Path(world.settings.nginx.binary)
    try:
        wanted = await trio.to_thread.run_sync(_wanted, world, rescue, cold)
        if wanted is None:
            return ""
        if rescue and world.last_program is not None:
            # Also for the starts that follow one that fails.
            world.last_program = replace(
                world.last_program, version=wanted.version or "", sha256=wanted.sha256,
                stored=wanted.id,
            )  # fmt: skip
        replaced = await trio.to_thread.run_sync(world.store.restore, wanted.id, binary)
    except SupervisorError as exc:
        world.log.error("binary.not_restored", path=str(binary), detail=exc.detail)  # noqa: TRY400 - no bug of ours
        return f"what is on disk was started: {exc.detail}"
    if not replaced:
        return ""
    world.log.warning(
        "binary.drift", path=str(binary), restored=wanted.version, version_id=wanted.id
    )
    return f"{binary} was not what is to run; version {wanted.version} was put back"


def _wanted(world: World, rescue: bool, cold: bool) -> StoredVersion | None:  # noqa: FBT001 - for a thread
    last = world.last_program
    if cold:
        on_disk = known_on_disk(world)
        bad = on_disk is not None and on_disk.good is False
        return world.store.last_good() if bad else None
    if last is None or last.stored is None:
        return None
    return _before(world, last.stored) if rescue else world.store.get(last.stored)


def _before(world: World, stored: str) -> StoredVersion | None:
    """What ran before the version `stored`, which may be the same: a library was replaced then."""
    for one in reversed(list(world.generations)):
        # The one that died is set aside as well by now, but nobody has told it to leave.
        if one.role is Role.RETIRING and one.told_to_stop and one.program.stored is not None:
            return world.store.get(one.program.stored)
    return world.store.previous_good(stored)


def known_on_disk(world: World) -> StoredVersion | None:
    """The stored version that stands on disk, its modules as well; None where none does.

    A binary that was judged bad is known by itself: no module makes it good.
    """
    try:
        digest = sha256_of(Path(world.settings.nginx.binary))
    except OSError:
        return None
    same = [one for one in world.store.versions() if one.sha256 == digest]
    if not same:
        return None
    newest = max(same, key=lambda one: one.judged_at or one.stored_at)
    if newest.good is False or all(_is_at(path, sha) for path, sha in newest.modules.items()):
        return newest
    return None


def _is_at(path: str, sha256: str) -> bool:
    try:
        return sha256_of(Path(path)) == sha256
    except OSError:
        return False


async def fallback(world: World, failure: SupervisorError) -> StoredVersion | None:
    """The last good version, where a cold start tried one not judged yet that may be to blame.

    Not where the good one would fail as well: the fault is then in the configuration, and what a
    package has put on disk stays there. Nor where the one on disk takes the configuration by now:
    that was mended after the one had read it, and before the other did.
    """
    if failure.reason not in _BUILDS_FAULT:
        return None
    try:
        good = await trio.to_thread.run_sync(world.store.last_good)
        tried = await trio.to_thread.run_sync(known_on_disk, world)
        if good is None or (tried is not None and (tried.good or tried.id == good.id)):
            return None
        if failure.reason != "start_timeout" and not await _accepts(world, good.binary):
            return None
        on_disk = Path(world.settings.nginx.binary)
        if failure.reason == "config_rejected" and await _accepts(world, on_disk):
            return None
    except SupervisorError as exc:
        world.log.warning("start.no_fallback", reason=exc.reason, detail=exc.detail)
        return None
    return good


async def _accepts(world: World, binary: Path) -> bool:
    """Whether `binary` takes the configuration, or nothing says that it does not.

    The modules on disk may be of another version, and the store may not be executable.
    """
    try:
        await read_facts(world, str(binary), settings_argv(world))
    except SupervisorError as exc:
        return exc.reason != "config_rejected"
    return True
