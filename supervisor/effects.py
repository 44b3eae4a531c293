"""Carries out what the engine asks for: operations on nginx, the journal, the probes, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import assert_never

import trio

from supervisor.core import commands
from supervisor.core.actions import Operation, Run, Watch
from supervisor.core.errors import SupervisorError
from supervisor.core.events import Succeeded
from supervisor.core.model import Phase, State, Verdict
from supervisor.core.rollback import Limits
from supervisor.edges.generation import Role
from supervisor.edges.journal import History
from supervisor.edges.notify import Notifier
from supervisor.edges.procfs import boot_id
from supervisor.edges.runtime_state import KnownMaster, RuntimeState
from supervisor.engine import public_state
from supervisor.evidence import Evidence
from supervisor.operations import ending, preflight, recover, reload, rollback, shift, spawn, start
from supervisor.operations.world import UpgradeRun, World

_ALL = 10_000
_INTENDS = ("USR2", "WINCH", "QUIT or HUP")
"""Written with the record of the spawning, on disk before the first of these is sent.

How far the upgrade came after that matters only to a supervisor that finds living processes, and
where they have lived on, so has the page cache: a power cut ends all of nginx, and the next start
goes by the spawning record (the old files come back) or by the verdict. So no later phase waits
for the disk.
"""

_NOT_ITS_FAULT = frozenset(
    {
        "operator", "stopped", "supervisor_died", "active_exited", "usr2_ignored", "winch_ignored",
        "probe_listener_shared", "foreign_binary",
    }
)  # fmt: skip
"""Reasons of a rollback that say nothing about the candidate's binary."""


class NginxEffects:
    """The real `Effects`: one nginx, its files, and whoever wants to know."""

    def __init__(
        self,
        world: World,
        evidence: Evidence,
        history: History,
        runtime: RuntimeState,
        notifier: Notifier,
    ) -> None:
        self._world = world
        self._evidence = evidence
        self._history = history
        self._runtime = runtime
        self._notifier = notifier
        self._told_ready = False
        self._told: tuple[object, ...] = ()
        self.last_verdict: dict[str, object] | None = history.last()
        self.starts = 0
        self._drains: dict[int, float] = {}  # until when each retiring generation may take
        self._masters_changed = trio.Event()
        self._cold = True  # the next start is no restart after a crash
        world.version_of_upgrade = self._version_of_upgrade

    # --- operations -------------------------------------------------------------------------

    async def operate(self, run: Run, state: State) -> Succeeded:
        """Carry out one long operation; see `Effects.operate`."""
        match run.operation:
            case Operation.RECOVER:
                return await self._recover()
            case Operation.START:
                return await self._start(rescue=False)
            case Operation.RESCUE:
                return await self._rescue()
            case Operation.PREFLIGHT:
                assert run.command is not None
                if self._world.run is not None and isinstance(run.command, commands.Rollback):
                    self._world.run.operation = "rollback"
                await self._evidence.baseline()
                return await preflight.prepare(self._world, run.command)
            case Operation.SPAWN:
                await spawn.spawn(self._world)
                return Succeeded()
            case Operation.SHIFT:
                await shift.shift(self._world)
                return Succeeded()
            case Operation.COMMIT:
                await shift.commit(self._world)
                return Succeeded(at=trio.current_time())
            case Operation.ROLL_BACK:
                return await self._roll_back()
            case Operation.STOP:
                return await self._stop(run.command)
            case _ as never:
                assert_never(never)

    async def _recover(self) -> Succeeded:
        found = await recover.recover(self._world, self._runtime, self._history)
        if found is None:
            return await self._start(rescue=False)
        self._cold = False
        self.starts += 1  # what was adopted counts as the first: the next is a restart
        self._remember_masters()
        return found

    async def _start(self, *, rescue: bool) -> Succeeded:
        done = await start.start(self._world, rescue=rescue, cold=self._cold)
        self._cold = False
        self.starts += 1
        self._remember_masters()
        return done

    async def _rescue(self) -> Succeeded:
        """The version before the one that died just after its commit; on record by itself."""
        world = self._world
        before = None if world.last_program is None else world.last_program.version
        incident: dict[str, object] = {
            "event": "verdict", "operation": "incident", "time": _now(),
            "upgrade_id": f"{datetime.now(UTC):%Y%m%dT%H%M%S}-rescue",
            "reason": "candidate_exited_in_drain", "from_version": before, "to_version": None,
            "judged": False,
        }  # fmt: skip
        try:
            done = await self._start(rescue=True)
        except SupervisorError as exc:
            incident |= {"verdict": Verdict.FAILED.value, "detail": exc.detail}
            await self._keep(incident)
            self.last_verdict = incident
            raise
        after = None if world.active is None else world.active.program.version
        detail = f"nginx {before} died while the old generation drained; {after} was started"
        incident |= {"to_version": after, "detail": detail}
        incident["verdict"] = Verdict.ROLLED_BACK.value
        await self._keep(incident)
        self.last_verdict = incident
        return done

    async def _roll_back(self) -> Succeeded:
        settings = self._world.settings.upgrade
        limits = Limits(drain=settings.rollback_quit_timeout, term=settings.rollback_term_timeout)
        ended = await rollback.roll_back(self._world, limits)
        return Succeeded(generation=ended.relaunched, retiring=ended.retiring, note=ended.note)

    async def _stop(self, command: commands.Command | None) -> Succeeded:
        stop = self._world.settings.stop
        deadlines = ending.Deadlines(
            quit=stop.quit_timeout, term=stop.term_timeout, kill=stop.kill_timeout
        )
        now = isinstance(command, commands.Stop) and command.now
        await ending.stop_all(self._world, deadlines, now=now)
        self._cold = True
        self._remember_masters()
        return Succeeded(note="nginx is stopped")

    async def reload(self) -> tuple[str, str]:
        """Reload the active generation; see `Effects.reload`."""
        return await reload.reload(self._world)

    def reopen(self) -> str:
        """USR1 to every living master."""
        return reload.reopen(self._world)

    async def retire(self, generation: int) -> None:
        """See a retiring generation off; see `Effects.retire`."""
        leaving = self._world.generations.get(generation)
        if leaving is None:
            return
        settings = self._world.settings
        deadlines = ending.Deadlines(
            quit=settings.upgrade.drain_timeout,
            term=settings.stop.term_timeout,
            kill=settings.stop.kill_timeout,
        )
        self._drains[generation] = trio.current_time() + deadlines.quit
        try:
            await ending.drain(self._world, leaving, deadlines, self._world.hasten)
        finally:
            self._drains.pop(generation, None)
        self._remember_masters()

    def hasten(self) -> None:
        """Every drain that runs insists now; later ones wait again."""
        self._world.hasten.set()
        self._world.hasten = trio.Event()
        if self._world.run is not None:
            self._world.run.hasten = True

    def aim(self, watch: Watch) -> None:
        """Aim the probes."""
        self._evidence.aim(watch)

    # --- what lasts -------------------------------------------------------------------------

    def begin(self, state: State) -> None:
        """Open the record of an upgrade."""
        assert state.upgrade is not None
        active = self._world.active
        self._world.run = UpgradeRun(
            id=state.upgrade.id,
            from_version=None if active is None else active.program.version,
        )

    async def record(self, before: State, after: State) -> None:
        """The transition, and what was known when it happened, on disk."""
        upgrade = after.upgrade or before.upgrade
        run = self._world.run
        if upgrade is None or after.upgrade is None:
            return
        record: dict[str, object] = {
            "upgrade_id": upgrade.id,
            "phase": after.phase.value,
            "time": _now(),
            "reason": upgrade.reason,
            "candidate": after.candidate,
            "active": after.active,
        }
        if run is not None:
            record |= {
                "previous": run.previous,
                "to_version": run.to_version,
                "include_text": run.include_text,
                "include_written": run.include_written,
            }
        if after.phase is Phase.SPAWNING:
            record["intends"] = _INTENDS
        durable = after.phase in (Phase.PREFLIGHT, Phase.SPAWNING)
        append = partial(self._world.journal.append, record, durable=durable)
        if durable:
            await trio.to_thread.run_sync(append)
        else:
            append()  # into the page cache: shorter than the way to a thread and back
        if after.phase is Phase.CANARY:
            self._remember_masters()

    def _remember_masters(self) -> None:
        """Have the masters put on record soon: a successor looks there first for whom to adopt."""
        self._masters_changed.set()

    async def keep_record(self) -> None:
        """Write the record of masters whenever it has changed; one task, until cancelled.

        Beside the engine, so that no signal waits for it: a successor that misses the newest
        master finds it as the child of the one before, or by the pid file.
        """
        while True:
            await self._masters_changed.wait()
            self._masters_changed = trio.Event()
            await self._write_masters()

    async def _write_masters(self) -> None:
        masters = [
            KnownMaster(
                generation=one.id, pid=one.master.pid, start_ticks=one.master.start,
                boot_id=boot_id(), version=one.program.version, sha256=one.program.sha256,
                version_id=one.program.stored or "", role=one.role.value,
                workers=tuple(sorted(one.workers)), pid_path=one.program.pid_path,
                worker_processes=one.program.workers,
            )
            for one in self._world.generations
        ]  # fmt: skip
        try:
            await trio.to_thread.run_sync(self._runtime.save, masters)
        except SupervisorError as exc:
            # Only a successor would miss it, and it finds the masters by their pid file as well.
            self._world.log.error("state.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours

    async def pronounce(self, verdict: Mapping[str, object]) -> dict[str, object]:
        """The verdict on disk, the roles of the generations as it says, the journal closed."""
        given = dict(verdict)
        of_running = bool(given.pop("of_running"))
        world, run = self._world, self._world.run
        told: dict[str, object] = {"event": "verdict", "operation": "upgrade", "time": _now()}
        if of_running and run is not None:
            told["operation"] = run.operation
        told |= {"upgrade_id": "", "from_version": None, "to_version": None, "judged": False}
        active = world.active
        if active is not None:
            told |= {"from_version": active.program.version, "from_id": active.program.stored}
        if of_running and run is not None:
            told["upgrade_id"] = run.id
            told["judged"] = run.judged
            told["from_version"] = run.from_version or told["from_version"]
            told["from_id"] = run.previous or told.get("from_id")
            told["to_version"] = run.to_version
        told |= given
        if told["reason"] == "canary_inconclusive" and self._evidence.lacking:
            told["detail"] = f"{told['detail']}: {self._evidence.lacking}"
        if told["reason"] == "previous_generation_draining" and self._drains:
            left = max(0.0, max(self._drains.values()) - trio.current_time())
            told["detail"] = f"{told['detail']}; they are ended in {left:.0f} s at the latest"
        if told["verdict"] == Verdict.COMMITTED.value and run is not None and run.quit_sent:
            self._promote()
        if told["verdict"] != Verdict.DONE.value:
            await self._keep(told)
            self.last_verdict = told
        if of_running:
            await self._close(run, str(told["verdict"]), str(told["reason"]))
        return told

    async def _keep(self, told: dict[str, object]) -> None:
        """The verdict in the history; a disk that does not take it is said, not fatal."""
        try:
            await trio.to_thread.run_sync(self._history.append, told)
        except SupervisorError as exc:
            told["detail"] = f"{told['detail']} (not in the history: {exc.detail})"
            self._world.log.error("history.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours

    def _version_of_upgrade(self, upgrade_id: str) -> str | None:
        """The id of what ran before; its version for a verdict that an older supervisor wrote."""
        for verdict in self._history.entries(_ALL):
            if verdict.get("upgrade_id") == upgrade_id:
                before = verdict.get("from_id") or verdict.get("from_version")
                return None if before is None else str(before)
        return None

    def _promote(self) -> None:
        """The candidate is the active generation now, and the old one retires."""
        old, candidate = self._world.active, self._world.candidate
        if old is not None:
            old.role = Role.RETIRING
        if candidate is not None:
            candidate.role = Role.ACTIVE
            self._world.last_program = candidate.program
            self._world.pid_path = candidate.program.pid_path

    async def _close(self, run: UpgradeRun | None, verdict: str, reason: str) -> None:
        try:
            if run is not None:
                await trio.to_thread.run_sync(self._settle_files, run, verdict, reason)
            await trio.to_thread.run_sync(self._world.journal.close_upgrade)
        except SupervisorError as exc:
            # The verdict stands; a successor that finds the journal sees it in the history.
            self._world.log.error("state.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        self._world.run = None
        self._remember_masters()

    def _settle_files(self, run: UpgradeRun, verdict: str, reason: str) -> None:
        """What the verdict means for the version store and for what preflight left behind."""
        world, plan = self._world, run.plan
        if verdict in (Verdict.REFUSED.value, Verdict.DONE.value):
            if plan is not None:
                plan.discard()
            if run.include_written:
                world.listener.restore(run.include_text)
            self._prune(run)  # a refused binary was stored to be checked
            return
        if plan is None:  # of a supervisor that died; what it committed is active by now
            active = world.active
            if verdict == Verdict.COMMITTED.value and active and active.program.stored:
                world.store.mark_good(active.program.stored)
            return
        if plan.stored.id == run.previous:
            return
        if verdict == Verdict.COMMITTED.value and run.quit_sent:
            world.store.mark_good(plan.stored.id)
        elif verdict != Verdict.COMMITTED.value and reason not in _NOT_ITS_FAULT:
            world.store.mark_bad(plan.stored.id)
        self._prune(run)

    def _prune(self, run: UpgradeRun) -> None:
        world, plan = self._world, run.plan
        in_use = {one.program.sha256 for one in world.generations}
        stored = None if plan is None else plan.stored.id
        protect = [one for one in (run.previous, stored) if one is not None]
        world.store.prune(in_use, protect=protect, destination=Path(world.settings.nginx.binary))

    # --- telling ----------------------------------------------------------------------------

    def settled(self, state: State) -> None:
        """Tell the service manager, once READY and then each change of state."""
        active = self._world.active
        version = "" if active is None else f" g{active.id} nginx {active.program.version}"
        told = (state.phase, version)
        if told == self._told:
            return
        self._told = told
        text = f"{public_state(state)}:{version} ({state.phase.value})"
        if state.phase is Phase.STOPPING:
            self._notifier.status(text)
        elif not self._told_ready and state.phase in (Phase.IDLE, Phase.DRAINING):
            self._told_ready = True
            self._notifier.ready(text)
        else:
            self._notifier.status(text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
