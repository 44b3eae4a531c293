"""A reload that puts the previous configuration back where the new one does not serve.

Theory
------
By the time of a reload the files on disk are the new ones; the previous ones come from the copy
that was made when the running generation read them. Before HUP a record says what is replaced by
what, and who may speak against it. From then on two things can happen: the new configuration is
proved, or the record says `restoring`, and then the files are put back, whoever does it: this
operation, a start of nginx that comes in between (its master died), or the next supervisor. To put
them back is done path by path, each by a rename; done again it changes nothing.

Nothing that somebody has changed since the reload is overwritten: then no file is put back at all,
and a person is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.core.model import Verdict
from supervisor.core.reload_judge import Objection
from supervisor.core.restore_plan import RestorePlan, include_patterns, plan_restore
from supervisor.edges import config_restore
from supervisor.edges.config_store import ConfigStore, Snapshot
from supervisor.edges.generation import Generation
from supervisor.operations.config_copies import copy_of_running, keep_copy
from supervisor.operations.facts import Facts, facts_of_running
from supervisor.operations.reload import (
    Jury,
    Nobody,
    ReloadEnd,
    Steps,
    accept,
    adopt_facts,
    expect_reloadable,
    replace_workers,
)
from supervisor.operations.world import POLL, GuardRun, World

_MASTER_EXITED = "reload_master_exited"


async def guarded(
    world: World, run_id: str, jury: Jury | None = None, steps: Steps | None = None
) -> ReloadEnd:
    """Reload; where the new configuration does not serve, the previous one does in the end.

    Raises Refusal where the previous configuration is not known or could not be put back, or the
    new one is rejected: nothing was sent then. `world.guard` stays until `close`.
    """
    jury, steps = jury or Nobody(), steps or Steps()
    steps.enter("preflight")
    run, facts = await _begin(world, run_id, jury)
    world.guard = run
    with _own(world):
        return await _carry_out(world, run, facts, jury, steps)


@contextmanager
def _own(world: World) -> Iterator[None]:
    """A reload that is noticed in this block is no foreign one."""
    world.reloading = True
    try:
        yield
    finally:
        world.reloading = False


async def finish(
    world: World, run: GuardRun, jury: Jury | None = None, steps: Steps | None = None
) -> ReloadEnd:
    """End what a predecessor has left half done: watch it once more, or go on putting back."""
    jury, steps = jury or Nobody(), steps or Steps()
    run.left = False
    with _own(world):
        if run.restoring:
            return await _take_back(world, run, jury, steps)
        steps.enter("preflight")
        try:
            facts = await facts_of_running(world, expect_reloadable(world))
        except SupervisorError as exc:
            objection = Objection(reason=exc.reason, detail=exc.detail)
            return await _object(world, run, objection, jury, steps)
        return await _carry_out(world, run, facts, jury, steps)


async def close(world: World) -> None:
    """The verdict is in the history: the record is not needed any more."""
    world.guard = None
    try:
        await trio.to_thread.run_sync(world.configs.clear_guard)
    except SupervisorError as exc:
        world.log.error("state.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours


def left_behind(configs: ConfigStore) -> GuardRun | None:
    """The guarded reload that a predecessor has not ended. Blocks on the disk."""
    record = configs.read_guard()
    if record is None:
        return None
    try:
        return GuardRun(
            id=str(record["id"]), old=str(record["old"]), new=str(record["new"]),
            witnesses=tuple(map(str, record["witnesses"])), by=str(record["by"]),
            restoring=bool(record["restoring"]), reason=str(record["reason"]),
            detail=str(record["detail"]), left=True,
        )  # fmt: skip
    except (KeyError, TypeError):
        return None


async def settle_before_start(world: World) -> None:
    """A configuration that was being guarded is not what nginx is started with.

    Its master has died in the meantime, or everything has. What keeps it from being put back is
    said in the log: nginx is started all the same.
    """
    run = world.guard
    if run is None or run.restored is not None:
        return
    if not run.restoring:
        if run.left:
            run.reason = "supervisor_died"
            run.detail = f"{world.predecessor}, and so did nginx, before the reload was proved"
        else:
            run.reason = _MASTER_EXITED
            run.detail = "the master ended while the new configuration was watched"
    try:
        await restore_files(world, run)
    except SupervisorError as exc:
        world.log.error("config.not_restored", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours


# --- forward ---------------------------------------------------------------------------------


async def _begin(world: World, run_id: str, jury: Jury) -> tuple[GuardRun, Facts]:
    """Everything that can be refused is refused here, before anything is done."""
    active = expect_reloadable(world)
    old = await copy_of_running(world, active)
    facts = await facts_of_running(world, active)
    if facts is None:
        raise Refusal(
            "configuration_not_kept",
            "cannot guard the reload: the configuration cannot be tested with the modules that "
            "nginx has loaded, which are not on disk any more; reload without --guard",
        )
    accept(world, facts)
    store = world.configs

    def keep() -> Snapshot:
        before = store.load(old)
        kept = store.keep(facts.files, facts.signature, also=before.hashes)
        config_restore.expect_restorable({**before.hashes, **kept.hashes})
        return kept

    async with world.copying:
        new = await trio.to_thread.run_sync(keep)
        witnesses = await jury.passing()
        run = GuardRun(id=run_id, old=old, new=new.id, witnesses=tuple(sorted(witnesses)))
        await trio.to_thread.run_sync(store.write_guard, run.known())
    return run, facts


async def _carry_out(
    world: World, run: GuardRun, facts: Facts | None, jury: Jury, steps: Steps
) -> ReloadEnd:
    """HUP, and watch who answers; take it back where that is not well."""
    active = expect_reloadable(world)
    steps.enter("shifting")
    try:
        fresh = await replace_workers(world, active, facts)
    except OperationFailed as exc:
        objection = _ended(active) or Objection(reason=exc.reason, detail=exc.detail)
        return await _object(world, run, objection, jury, steps)
    await adopt_facts(world, active, facts)
    steps.enter("soaking")
    heard = await jury.hear(frozenset(run.witnesses), fresh, world.settings.reload.guard)
    found = _ended(active) or heard.objection
    if found is None and heard.interrupted:  # by nothing but a stop that is about to begin
        found = _STOPPED
    if found is not None:
        return await _object(world, run, found, jury, steps)
    await keep_copy(world, active)
    detail = f"{len(fresh)} workers run the configuration as it is on disk{heard.note}"
    return steps.end(Verdict.COMMITTED, "reloaded", detail, judged=heard.judged)


_STOPPED = Objection(reason="stopped", detail="nginx was stopped before the reload was proved")


def _ended(active: Generation) -> Objection | None:
    """What has become of the master that was reloaded, where it does not serve any more."""
    if active.told_to_stop:
        return _STOPPED
    if active.alive and not active.quitting:
        return None
    detail = "the master ended while the new configuration was watched"
    return Objection(reason=_MASTER_EXITED, detail=detail)


# --- back ------------------------------------------------------------------------------------


async def _object(
    world: World, run: GuardRun, objection: Objection, jury: Jury, steps: Steps
) -> ReloadEnd:
    world.log.warning("reload.condemned", reason=objection.reason, detail=objection.detail)
    if not run.restoring:
        run.reason, run.detail = objection.reason, objection.detail
    return await _take_back(world, run, jury, steps)


async def _take_back(world: World, run: GuardRun, jury: Jury, steps: Steps) -> ReloadEnd:
    """The previous files are on disk, and what serves runs them; or what keeps it from that."""
    steps.enter("rolling_back", reason=run.reason, detail=run.detail)
    why = run.detail
    try:
        files = await restore_files(world, run)
    except SupervisorError as exc:
        detail = f"{exc.detail}; what it was to be taken back for: {why}"
        return steps.end(Verdict.FAILED, exc.reason, detail, judged=True)
    if run.reason == "stopped":
        return steps.end(Verdict.ROLLED_BACK, "stopped", f"{run.detail}; {files}")
    active = await _serving(world)
    if active is None:
        detail = f"{files}, and nginx does not run ({why}); see nginxctl status"
        return steps.end(Verdict.FAILED, "not_running", detail)
    try:
        return await _prove(world, run, active, f"{why}; {files}", jury, steps)
    except SupervisorError as exc:
        detail = f"{why}; {files}, and nginx does not take it: {exc.detail}; nginx goes on as it is"
        return steps.end(Verdict.FAILED, "restore_rejected", detail, judged=True)


async def _prove(
    world: World, run: GuardRun, active: Generation, told: str, jury: Jury, steps: Steps
) -> ReloadEnd:
    """What is on disk is what serves, and the probes pass with it."""
    facts = await facts_of_running(world, active)
    before = (active.program.config_files, active.program.config_signature)
    if facts is not None and before == (facts.files, facts.signature):
        fresh = active.look().accepting  # it was started from them
    else:
        fresh = await replace_workers(world, active, facts)
        await adopt_facts(world, active, facts)
    heard = await jury.hear(frozenset(run.witnesses), fresh, 0.0)
    await keep_copy(world, active)
    if heard.objection is not None:
        detail = f"{told}; with these, too: {heard.objection.detail}"
        return steps.end(Verdict.FAILED, heard.objection.reason, detail, judged=heard.judged)
    detail = f"{told}; {len(fresh)} workers run the previous configuration{heard.note}"
    return steps.end(Verdict.ROLLED_BACK, run.reason, detail, judged=bool(run.witnesses))


async def _serving(world: World) -> Generation | None:
    """Who serves; one that is being started in the place of a dead one is waited for."""
    limit = world.settings.restart.start_timeout
    with trio.move_on_after(limit):
        while True:
            active = world.active
            if active is not None and active.alive and active.ready and not active.told_to_stop:
                return active
            await trio.sleep(20 * POLL)  # a generation that is yet to come has no event
    return None


async def restore_files(world: World, run: GuardRun) -> str:
    """The previous files are on disk when this returns; in words, what was done.

    Raises OperationFailed `configuration_changed` where somebody has changed one since (nothing is
    touched then), `restore_failed` where the disk does not take it. Nobody else does it meanwhile.
    """
    async with run.lock:
        if run.restored is not None:
            return run.restored
        run.restoring = True
        try:
            await trio.to_thread.run_sync(world.configs.write_guard, run.known())
            done = await trio.to_thread.run_sync(partial(_restore, world, run))
        except Refusal as exc:
            text = f"cannot put the previous configuration back: {exc.detail}"
            raise OperationFailed("restore_failed", text) from exc
        run.restored = done
        world.log.warning("config.restored", reason=run.reason, detail=done)
        return done


def _restore(world: World, run: GuardRun) -> str:
    store = world.configs
    old, new = store.load(run.old), store.load(run.new)
    plan = _plan(store, old, new)
    if plan.changed:
        raise OperationFailed(
            "configuration_changed",
            "cannot put the previous configuration back: somebody has changed "
            f"{_some(plan.changed)} since the reload, and nothing of that is overwritten; decide "
            f"what is wanted (the previous files are copied to {_place(store, old)}), then "
            "nginxctl reload",
        )
    previous = {one.path: one for one in old.files}
    rejected = [one for one in new.files if one.path in {*plan.put, *plan.aside}]
    folder = store.keep_rejected(run.id, rejected)
    for path in plan.put:
        config_restore.expect_restorable([path])  # a link may have come since
        config_restore.put_file(previous[path], store.content(previous[path]))
    for path in plan.aside:
        config_restore.expect_restorable([path])
        config_restore.take_away(path)
    parts = [f"the previous files are back ({_some(plan.put) or 'no file had changed'})"]
    if plan.aside:
        parts.append(f"new ones that they would include were moved away ({_some(plan.aside)})")
    if rejected or any(folder.iterdir()):
        parts.append(f"what was taken back is kept in {folder}")
    return "; ".join(parts)


def _plan(store: ConfigStore, old: Snapshot, new: Snapshot) -> RestorePlan:
    texts = {one.path: store.content(one).decode("utf-8", "replace") for one in old.files}
    try:
        found = config_restore.hashes_of({**old.hashes, **new.hashes})
    except OSError as exc:
        why = f"cannot read {exc.filename}: {exc.strerror}"
        text = f"cannot put the previous configuration back: {why}"
        raise OperationFailed("restore_failed", text) from exc
    patterns = include_patterns(texts, main=old.files[0].path)
    return plan_restore(old=old.hashes, new=new.hashes, found=found, patterns=patterns)


def _place(store: ConfigStore, old: Snapshot) -> Path:
    return store.keep_rejected(f"previous-{old.id}", old.files)


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:4])
    return f"{shown} and {len(paths) - 4} more" if len(paths) > 4 else shown
