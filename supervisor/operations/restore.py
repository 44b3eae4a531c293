"""Put a version's files back on disk, and prove that nginx would start from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges.nginx_binary import test_config
from supervisor.operations.facts import environment, settings_argv
from supervisor.operations.world import UpgradeRun, World


async def put_previous_back(world: World, run: UpgradeRun) -> None:
    """The version before the upgrade is on disk, binary and modules, and its `-t` passes.

    A no-op where nothing was put in place. Raises OperationFailed `restore_failed` when the disk
    does not take it or nginx rejects the result: a cold start would then fail.
    """
    if not run.installed or run.previous is None:
        return
    await put_back(world, run.previous)
    run.installed = False


async def put_back(world: World, version_id: str) -> None:
    """The stored version `version_id` is what a cold start runs. Raises OperationFailed."""
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
    tested = await test_config(binary, settings_argv(world), environment(world))
    if not tested.ok:
        raise OperationFailed(
            "restore_failed",
            f"the restored {binary} rejects the configuration on disk, so its next cold start "
            f"would fail: {tested.output[-512:]}",
        )
