"""Put a version's files back on disk, and prove that nginx would start from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.edges.nginx_binary import version_of
from supervisor.edges.placing import sha256_of
from supervisor.edges.store import Origin
from supervisor.operations.facts import environment, read_facts, settings_argv
from supervisor.operations.keeping import secure
from supervisor.operations.world import UpgradeRun, World

_LOST = ("stored_version_damaged", "version_unknown")
"""Reasons for which the store cannot give a version that it should have."""


async def put_previous_back(world: World, run: UpgradeRun) -> str:
    """The version before the upgrade is on disk again; what its `-t` has against it.

    A no-op where nothing was put in place. Raises OperationFailed `restore_failed` when the disk
    does not take it: the next cold start would then run the bad binary. What somebody else has put
    there meanwhile is kept in the store; the text says so.
    """
    if not run.installed or run.previous is None:
        return ""
    kept = await _keep_foreign(world, run)
    try:
        objection = await put_back(world, run.previous)
    except OperationFailed as exc:
        secured = await _secured(world, run.previous, exc)
        if secured is None:
            raise
        objection = await put_back(world, secured)
    run.installed = False
    return "; ".join(filter(None, (kept, objection)))


async def _secured(world: World, wanted: str, failure: OperationFailed) -> str | None:
    """The version that the store has lost, stored again from the old master that still runs it."""
    cause, old = failure.__cause__, world.active
    lost = isinstance(cause, Refusal) and cause.reason in _LOST
    if not lost or old is None or not old.alive or old.program.stored != wanted:
        return None
    try:
        return (await secure(world, old)).id
    except SupervisorError as exc:
        world.log.error("store.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        return None


async def _keep_foreign(world: World, run: UpgradeRun) -> str:
    """A package that arrived in the middle of the upgrade is not lost; where it is, in words."""
    changed = await replaced_since(world, run)
    if not changed:
        return ""
    binary = Path(world.settings.nginx.binary)
    try:
        build = await version_of(binary, environment(world))
        take = partial(
            world.store.take, binary, modules={}, origin=Origin.DISK, version=build.version
        )
        stored = await trio.to_thread.run_sync(take)
    except SupervisorError as exc:
        kept = f"it could not be kept ({exc.detail})"
    else:
        run.kept = str(stored.binary)
        kept = f"it is kept as {stored.binary}, for nginxctl upgrade"
    detail = f"{changed}; the previous version is put back there, and {kept}"
    world.log.warning("supervisor.incident", reason="binary_changed", detail=detail)
    return detail


async def replaced_since(world: World, run: UpgradeRun) -> str:
    """That something else stands where this upgrade has put its binary; empty where it does not."""
    binary = Path(world.settings.nginx.binary)
    ours = run.installed_file
    installed = "" if run.stored is None else run.stored.sha256

    def is_other() -> bool:
        try:
            found = binary.stat()
            return (found.st_dev, found.st_ino) != ours and sha256_of(binary) != installed
        except OSError:
            return False  # nothing can be run from there, and nothing is lost

    if ours is None or not installed or not await trio.to_thread.run_sync(is_other):
        return ""
    return f"{binary} was replaced by somebody else during the upgrade (binary_changed)"


async def put_back(world: World, version_id: str) -> str:
    """The stored version `version_id` is what a cold start runs; what its `-t` says against it.

    The text is empty where the test passes. Raises OperationFailed `restore_failed`.
    """
    binary = Path(world.settings.nginx.binary)
    try:
        replaced = await trio.to_thread.run_sync(
            partial(world.store.restore, version_id, binary), abandon_on_cancel=False
        )
    except Refusal as exc:
        raise OperationFailed(
            "restore_failed", f"cannot put version {version_id[:12]} back: {exc.detail}"
        ) from exc
    if replaced:
        world.log.info(
            "store.restored", version_id=version_id, files=[str(path) for path in replaced]
        )
    try:
        await read_facts(world, str(binary), settings_argv(world))
    except Refusal as exc:
        objection = exc.detail
    else:
        return ""
    # What serves has its configuration in memory; it is the next cold start that would fail.
    world.log.error("store.restored_rejects_configuration", path=str(binary), detail=objection)
    return (
        f"the restored {binary} rejects the configuration on disk and would not start: {objection}"
    )
