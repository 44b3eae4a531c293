"""Put a version's files back on disk, and prove that nginx would start from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.operations.facts import read_facts, settings_argv
from supervisor.operations.world import UpgradeRun, World


async def put_previous_back(world: World, run: UpgradeRun) -> str:
    """The version before the upgrade is on disk again; what its `-t` has against it.

    A no-op where nothing was put in place. Raises OperationFailed `restore_failed` when the disk
    does not take it: the next cold start would then run the bad binary.
    """
    if not run.installed or run.previous is None:
        return ""
    objection = await put_back(world, run.previous)
    run.installed = False
    return objection


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
