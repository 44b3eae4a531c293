"""Drive `supervisor.core.rollback`: look, ask for the next step, carry it out, look again."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace

import trio

from supervisor.core.errors import OperationFailed
from supervisor.core.rollback import MOST_HUPS, MOST_RELAUNCHES, Limits, Step, View, next_step
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.pulse import Pulse
from supervisor.operations import spawn
from supervisor.operations.pidfiles import remove_leftovers, settle_pid_file, tidy
from supervisor.operations.restore import put_previous_back
from supervisor.operations.shift import Nudge
from supervisor.operations.start import relaunch
from supervisor.operations.world import POLL, UpgradeRun, World

_LEFT_OVER = "rollback.left_over"

TITLES_SETTLE = 0.05
"""Seconds after which all workers that were told to leave by one WINCH say so in their titles."""

SURPLUS_STAYS = 1.0
"""Seconds after a true reload at which workers that still accept are not the ones that leave."""

LOOK_AGAIN = 0.25
"""Seconds after which deadlines are looked at although no process exited."""


@dataclass(slots=True)
class _Progress:
    """When each thing was done, in trio's time; what the view tells as "ago"."""

    began: float
    pulse: Pulse
    nudge: Nudge = field(default_factory=Nudge)
    times: dict[str, float] = field(default_factory=dict)
    hups: int = 0
    relaunches: int = 0
    reloads: int = 0
    winch_was_pending: bool = False

    def mark(self, what: str) -> None:
        self.times[what] = trio.current_time()

    def ago(self, what: str) -> float | None:
        at = self.times.get(what)
        return None if at is None else trio.current_time() - at


@dataclass(frozen=True, slots=True)
class RolledBack:
    """How it ended: the fresh start of the old version, where one was needed, and its orphans."""

    relaunched: int | None
    retiring: frozenset[int]
    note: str  # what a person should know although the old generation serves


async def roll_back(world: World, limits: Limits) -> RolledBack:
    """Return when the old generation serves, the candidate is gone and its files are off the disk.

    Raises OperationFailed when that cannot be proved: a person is needed. It may be cancelled at
    any point and begun again: every step starts from what is seen.
    """
    run = world.run
    assert run is not None
    await spawn.find_late_candidate(world, run)
    old, candidate = world.active, world.candidate
    with Pulse(POLL) as pulse:
        progress = _Progress(began=trio.current_time(), pulse=pulse)
        if old is None:
            old = await _start_previous(world, run, candidate)
            progress.relaunches = 1
        old = await _step_by_step(world, run, limits, old, candidate, progress)
    note = await _finish(world, run, old, candidate)
    return RolledBack(
        relaunched=old.id if progress.relaunches else None,
        retiring=frozenset(one.id for one in world.generations if one.role is Role.RETIRING),
        note=note,
    )


async def _step_by_step(
    world: World,
    run: UpgradeRun,
    limits: Limits,
    old: Generation,
    candidate: Generation | None,
    progress: _Progress,
) -> Generation:
    """Return the generation that serves, once nothing is left to do."""
    while True:
        spawn.let_run(world, old)
        view = _look(world, run, old, candidate, progress)
        step = next_step(view, limits)
        if step is Step.DONE:
            if candidate is not None and candidate.remember(world.find_strays(candidate)):
                continue  # a worker that the dead master forked in its last moment
            return old
        if step is Step.GIVE_UP:
            raise OperationFailed(
                "rollback_failed",
                f"cannot bring the old generation back: old master "
                f"{'alive' if view.old_alive else 'gone'} with {view.old_accepting} of "
                f"{view.old_expected} workers, candidate "
                f"{'alive' if view.candidate_alive else 'gone'} with {view.candidate_workers}",
            )
        if step is Step.WAIT:
            if view.winch_sent and not (view.winch_consumed and view.old_accepting):
                progress.nudge.when_due(old)
            await _wait(view, candidate, progress.pulse)
            continue
        world.log.info("rollback.step", step=step.value, upgrade_id=run.id)
        if step is Step.RELAUNCH_OLD:
            old = await _relaunch_old(world, run, old, candidate, progress)
            continue
        if step is Step.RELOAD_OLD or (step is Step.HUP_OLD and not view.candidate_alive):
            # The old master reads its configuration: as it was, without the private listener.
            await tidy(world, _LEFT_OVER, _restore_include(world, run))
        _carry_out(step, old, candidate, progress)


async def _relaunch_old(
    world: World,
    run: UpgradeRun,
    old: Generation,
    candidate: Generation | None,
    progress: _Progress,
) -> Generation:
    """A fresh start of the old version; the dead `old` again where it was killed while it started.

    Raises OperationFailed where that was the last try, or it fails for another reason.
    """
    await put_previous_back(world, run)
    old.role = Role.RETIRING
    sources = [old] if candidate is None else [candidate, old]
    progress.relaunches += 1
    try:
        return await relaunch(world, old.program, sources)
    except OperationFailed as exc:
        if exc.reason != "start_failed" or progress.relaunches >= MOST_RELAUNCHES:
            raise
        world.log.warning("rollback.start_failed", upgrade_id=run.id, detail=exc.detail)
        return old


async def _start_previous(
    world: World, run: UpgradeRun, candidate: Generation | None
) -> Generation:
    """The old generation died with its supervisor: start its version on the candidate's sockets."""
    if run.previous is None or candidate is None:
        raise OperationFailed("no_generation", "cannot roll back: no old generation is known")
    previous = await trio.to_thread.run_sync(world.store.get, run.previous)
    await put_previous_back(world, run)
    program = replace(
        candidate.program, version=previous.version or "", sha256=previous.sha256,
        stored=previous.id,
    )  # fmt: skip
    return await relaunch(world, program, [candidate])


def _look(
    world: World,
    run: UpgradeRun,
    old: Generation,
    candidate: Generation | None,
    progress: _Progress,
) -> View:
    brood = old.look()
    alive = candidate is not None and candidate.alive
    theirs = procfs.brood_of([])
    if candidate is not None:
        if not alive and "gone" not in progress.times:
            progress.mark("gone")
            candidate.remember(world.find_strays(candidate))
        if not alive and "reaped" not in progress.times and _is_reaped(candidate, old):
            progress.mark("reaped")
        theirs = candidate.look()
        if theirs.all_but_masters:
            progress.times.pop("alone", None)
        elif "alone" not in progress.times:
            progress.mark("alone")
    had = run.winch_workers
    fresh_start = progress.relaunches > 0
    return View(
        old_alive=old.alive and not old.quitting,
        old_accepting=len(brood.accepting - (had or frozenset())),
        old_expected=old.program.workers,
        old_starting=len(brood.starting),
        old_unshifted=len(brood.accepting & (had or frozenset())),
        winch_sent=had is not None and not fresh_start,
        winch_consumed=_is_consumed(had, brood, progress),
        candidate_alive=alive,
        candidate_stopped=candidate is not None and candidate.master.stopped,
        candidate_ready=candidate is not None and candidate.ready,
        candidate_accepting=len(theirs.accepting | theirs.starting),
        candidate_workers=len(theirs.all_but_masters),
        candidate_alone_for=progress.ago("alone"),
        waited=trio.current_time() - progress.began,
        candidate_gone_for=progress.ago("gone"),
        candidate_reaped_for=progress.ago("reaped"),
        hups=progress.hups,
        hup_ago=progress.ago("hup"),
        quit_ago=progress.ago("quit"),
        workers_quit_ago=progress.ago("workers_quit"),
        term_ago=progress.ago("term"),
        kill_ago=progress.ago("kill"),
        reloaded=_may_not_reload(progress),
        relaunches=progress.relaunches,
        hasten=run.hasten,
    )


def _is_consumed(had: frozenset[int] | None, brood: procfs.Brood, progress: _Progress) -> bool:
    """Every worker from before WINCH is leaving or gone, and all titles have had time to tell."""
    if had is None:
        return True
    if had & (brood.accepting | brood.starting):
        progress.winch_was_pending = True
        return False
    if progress.winch_was_pending and "consumed" not in progress.times:
        # Workers that somebody else's HUP has started are being told to leave as well.
        progress.mark("consumed")
    since = progress.ago("consumed")
    return since is None or since >= TITLES_SETTLE


def _may_not_reload(progress: _Progress) -> bool:
    """A true reload has been sent and may still reduce the workers.

    One that nginx handled together with the candidate's end leaves two sets behind, and is due
    again.
    """
    if progress.reloads >= MOST_HUPS:
        return True
    return progress.reloads > 0 and (progress.ago("hup") or 0) < SURPLUS_STAYS


def _is_reaped(candidate: Generation, old: Generation) -> bool:
    """The old master has taken note of the candidate's end: no zombie of it is left there."""
    stat = procfs.read_stat(candidate.master.pid)
    return stat is None or stat.start != candidate.master.start or stat.parent != old.master.pid


def _carry_out(
    step: Step, old: Generation, candidate: Generation | None, progress: _Progress
) -> None:
    if step in (Step.HUP_OLD, Step.RELOAD_OLD):
        old.master.send(signal.SIGHUP)
        progress.mark("hup")
        progress.hups += 1
        progress.reloads += step is Step.RELOAD_OLD
        return
    assert candidate is not None
    candidate.told_to_stop = True
    if step is Step.QUIT_CANDIDATE:
        candidate.master.send(signal.SIGQUIT)
        progress.mark("quit")
    elif step is Step.QUIT_WORKERS:
        candidate.signal_workers(signal.SIGQUIT)
        progress.mark("workers_quit")
    elif step is Step.TERM_CANDIDATE:
        candidate.master.send(signal.SIGTERM)
        progress.mark("term")
    elif step is Step.TERM_WORKERS:
        # Those that do not react first; the others may still be serving their last answers.
        candidate.signal_workers(signal.SIGTERM, candidate.look().accepting or None)
        progress.mark("term")
    elif step is Step.KILL_CANDIDATE:
        candidate.look()
        candidate.master.send(signal.SIGKILL)
        progress.mark("kill")
    elif step is Step.KILL_WORKERS:
        candidate.signal_workers(signal.SIGKILL)
        progress.mark("kill")


async def _wait(view: View, candidate: Generation | None, pulse: Pulse) -> None:
    """Until the next look: at the next exit once only connections drain, else a moment."""
    draining = view.candidate_workers and not view.candidate_accepting
    if candidate is not None and draining and view.old_accepting >= view.old_expected:
        with trio.move_on_after(LOOK_AGAIN):
            await candidate.any_exit()
        return
    await pulse.tick()


async def _finish(
    world: World, run: UpgradeRun, old: Generation, candidate: Generation | None
) -> str:
    """Files as they were before: pid file, binary and modules, the probe listener's include."""
    if candidate is not None:
        world.generations.drop(candidate)
    notes = [await tidy(world, _LEFT_OVER, _restore_include(world, run))]
    # Before the small files: a cold start must never find the rejected binary.
    notes.append(await put_previous_back(world, run))
    notes.append(await tidy(world, _LEFT_OVER, settle_pid_file(world, old)))
    gone = old if candidate is None else candidate
    notes.append(await tidy(world, _LEFT_OVER, remove_leftovers(world, gone, old)))
    old.role = Role.ACTIVE
    return "; ".join(filter(None, notes))


async def _restore_include(world: World, run: UpgradeRun) -> None:
    if run.include_written:
        await trio.to_thread.run_sync(world.listener.restore, run.include_text)
        run.include_written = False
