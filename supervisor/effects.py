"""Carries out what the engine asks for: operations on nginx, the journal, the probes, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, assert_never

import trio

from supervisor.core import commands
from supervisor.core.actions import Operation, Run, Watch
from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.core.events import InterruptedUpgrade, Succeeded
from supervisor.core.model import Phase, State, Verdict
from supervisor.core.rollback import Limits
from supervisor.edges.descriptors import NO_DESCRIPTOR, RESERVE
from supervisor.edges.journal import History
from supervisor.edges.runtime_state import RuntimeState
from supervisor.evidence import Evidence
from supervisor.operations import (
    ending,
    guard,
    listeners,
    preflight,
    reading,
    recover,
    reload,
    rollback,
    shift,
    spawn,
    start,
    takeover,
)
from supervisor.operations.adoption import on_record
from supervisor.operations.restore import replaced_since
from supervisor.operations.world import UpgradeRun, World
from supervisor.reloads import Reloads
from supervisor.service import Service
from supervisor.verdicts import Verdicts, utc_now
from supervisor.waiters import OF_NO_CANDIDATE

ROOM = 16
"""Descriptors that starting nginx takes: pipes, what its tests are run with, a file of output."""

_MUST_BE_DONE = (Operation.RECOVER, Operation.START, Operation.RESCUE, Operation.ROLL_BACK,
                 Operation.STOP)  # fmt: skip
"""Also when no descriptor is left: what is kept in reserve is for them."""


class NginxEffects:
    """The real `Effects`: one nginx, its files, and whoever wants to know."""

    def __init__(
        self,
        world: World,
        evidence: Evidence,
        history: History,
        runtime: RuntimeState,
        service: Service,
        reloads: Callable[[Verdicts], Reloads],
    ) -> None:
        self._world = world
        self._evidence = evidence
        self._history = history
        self._verdicts = Verdicts(world, history, self._remember_masters)
        self._reloads = reloads(self._verdicts)
        self._runtime = runtime
        self._service = service
        self.starts = 0
        self._drains: dict[int, float] = {}  # until when each retiring generation may take
        self._drain_left: dict[int, float] = {}  # what a predecessor has left of that
        self._masters_changed = trio.Event()
        world.remember = self._remember_masters
        world.reloaded = self._reloads.judge_foreign
        self._cold = True  # the next start is no restart after a crash
        self._looked = False  # for what a predecessor has left

    @property
    def last_verdict(self) -> dict[str, object] | None:
        """The newest verdict."""
        return self._verdicts.last

    # --- operations -------------------------------------------------------------------------

    async def operate(self, run: Run, state: State) -> Succeeded:
        """Carry out one long operation; see `Effects.operate`."""
        if run.operation in _MUST_BE_DONE:
            RESERVE.make_room(ROOM)
        try:
            return await self._operate(run)
        except OSError as exc:
            if exc.errno not in NO_DESCRIPTOR:
                raise
            detail = f"cannot {run.operation.value}: {exc.strerror}; raise LimitNOFILE="
            raise OperationFailed("no_descriptors", detail.replace("_", " ")) from exc

    async def _operate(self, run: Run) -> Succeeded:
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
                return await self._commit(overruled=run.overruled)
            case Operation.ROLL_BACK:
                return await self._roll_back()
            case Operation.STOP:
                return await self._stop(run.command)
            case Operation.TAKE_OVER:
                self._evidence.expect_new_passes()
                done = await takeover.take_over(self._world)
                self._remember_masters()
                return done
            case _ as never:
                assert_never(never)

    async def _commit(self, *, overruled: bool) -> Succeeded:
        evidence, upgrade = self._evidence, self._world.run
        await evidence.last_look(overruled=overruled)
        expect_good = partial(evidence.expect_good, overruled=overruled)
        await shift.commit(self._world, expect_good)
        return Succeeded(
            judged=upgrade is not None and upgrade.judged,
            doubt=evidence.doubt,
            at=trio.current_time(),
        )

    async def _recover(self) -> Succeeded:
        found = await self._adopt()
        if found is not None:
            return found
        started = await self._start(rescue=False)
        run = self._world.run
        if run is None:
            return started
        detail = f"the supervisor and nginx died during the upgrade; {started.note or 'restarted'}"
        left = InterruptedUpgrade(upgrade_id=run.id, candidate=None, detail=detail)
        return replace(started, interrupted=left)

    async def _adopt(self) -> Succeeded | None:
        """What a predecessor has left, once; None where nothing of nginx lives."""
        configs = self._world.configs
        self._world.guard = await trio.to_thread.run_sync(guard.left_behind, configs)
        found = await recover.recover(self._world, self._runtime, self._history)
        self._looked = True
        if found is not None:
            self._cold = False
            known = await trio.to_thread.run_sync(self._runtime.configurations.load)
            reading.recall(self._world, known)
            self.starts += 1  # what was adopted counts as the first: the next is a restart
            self._remember_masters()
        return found

    async def _start(self, *, rescue: bool) -> Succeeded:
        await guard.settle_before_start(self._world)
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
            "event": "verdict", "operation": "incident", "time": utc_now(),
            "upgrade_id": f"{datetime.now(UTC):%Y%m%dT%H%M%S}-rescue",
            "reason": "candidate_exited_in_drain", "from_version": before, "to_version": None,
            "judged": False,
        }  # fmt: skip
        try:
            done = await self._start(rescue=True)
        except SupervisorError as exc:
            incident |= {"verdict": Verdict.FAILED.value, "detail": exc.detail}
            await self._verdicts.keep(incident)
            raise
        after = None if world.active is None else world.active.program.version
        detail = f"nginx {before} died while the old generation drained; {after} was started"
        incident |= {"to_version": after, "detail": detail}
        incident["verdict"] = Verdict.ROLLED_BACK.value
        await self._verdicts.keep(incident)
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
        if not self._looked:
            # Told to stop before it was known what there is: nginx is to be stopped all the same.
            with suppress(SupervisorError):
                await self._adopt()
        now = isinstance(command, commands.Stop) and command.now
        await ending.stop_all(self._world, deadlines, now=now)
        self._cold = True
        self._remember_masters()
        return Succeeded(note="nginx is stopped")

    async def reload(
        self, command: commands.Reload, tell: Callable[[dict[str, object]], None]
    ) -> dict[str, object]:
        """Reload the active generation; see `Effects.reload`."""
        try:
            return await self._reloads.run(command, tell)
        finally:
            self._world.release_old_locks()

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
            quit=self._drain_left.pop(generation, settings.upgrade.drain_timeout),
            term=settings.stop.term_timeout,
            kill=settings.stop.kill_timeout,
        )
        self._drains[generation] = trio.current_time() + deadlines.quit
        try:
            await ending.drain(self._world, leaving, deadlines, self._world.hasten)
        finally:
            self._drains.pop(generation, None)
        self._remember_masters()

    def drain_left(self) -> float | None:
        """Seconds until the last of the drains that run is over at the latest; None: none runs."""
        if not self._drains:
            return None
        return max(0.0, max(self._drains.values()) - trio.current_time())

    def lacking(self) -> str:
        """What the candidate lacks to be proved healthy."""
        return self._evidence.lacking

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
        if active is not None:
            active.changed.set()  # what it uses is looked at from now on

    async def record(self, before: State, after: State) -> None:
        """See `Effects.record`."""
        await self._verdicts.record(before, after)

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
        masters = on_record(self._world.generations)
        try:
            await trio.to_thread.run_sync(self._runtime.save, masters)
            await reading.learn_files(self._world)
            known = reading.to_record(self._world)
            await trio.to_thread.run_sync(self._runtime.configurations.save, known)
        except SupervisorError as exc:
            # Only a successor would miss it, and it finds the masters by their pid file as well.
            self._world.log.error("state.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours

    async def pronounce(self, verdict: Mapping[str, object]) -> dict[str, object]:
        """The verdict on disk, the roles of the generations as it says, the journal closed."""
        given = dict(verdict)
        run = self._world.run if given.pop("of_running") else None
        told = self._verdicts.describe(given, run)
        if run is not None and told["verdict"] == Verdict.COMMITTED.value:
            await self._tell_replaced(run, told)
        if run is not None and self._evidence.not_observed:
            told["detail"] = f"{told['detail']}; {self._evidence.not_observed}"
        told |= OF_NO_CANDIDATE
        if run is not None and run.candidate_id is not None:
            told |= self._evidence.lookout.observed.report()
        left = self.drain_left()
        if told["reason"] == "previous_generation_draining" and left is not None:
            told["detail"] = f"{told['detail']}; they are ended in {left:.0f} s at the latest"
        await self._verdicts.pronounce(told, run)
        return told

    # --- over the replacement of the supervisor -----------------------------------------------

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process."""
        now = trio.current_time()
        return {
            "starts": self.starts,
            "told_ready": self._service.told_ready,
            "cold": self._cold,
            "drains": [[generation, end - now] for generation, end in self._drains.items()],
        }

    def from_data(self, data: Mapping[str, Any], *, age: float) -> None:
        """Go on from what another one knew `age` seconds ago.

        Raises KeyError, TypeError or ValueError where `data` is no such thing.
        """
        self._looked, self._cold = True, False  # so much is known whatever the data say
        self._drain_left = {int(one): max(0.0, float(left) - age) for one, left in data["drains"]}
        self.starts, self._cold = int(data["starts"]), bool(data["cold"])
        self._service.inherit(told_ready=bool(data["told_ready"]))
        self._remember_masters()

    async def _tell_replaced(self, run: UpgradeRun, told: dict[str, object]) -> None:
        """A package that arrived during the upgrade: what serves is not what a cold start tries."""
        changed = await replaced_since(self._world, run)
        if changed:
            detail = (
                f"{changed}; what serves is {run.to_version}, and nginxctl upgrade takes the file"
            )
            self._world.log.warning("supervisor.incident", reason="binary_changed", detail=detail)
            told["detail"] = f"{told['detail']}; {detail}"

    # --- telling ----------------------------------------------------------------------------

    async def let_go(self, *, asked: bool) -> str:
        """See `Effects.let_go`."""
        world, active = self._world, self._world.active
        # What nobody looks after must not be held: a reload of what is left could not bind it.
        listeners.release(world, "nginx is left to itself")
        world.held.configure(enabled=False, with_reuseport=False)
        await listeners.settle(world)
        await self._write_masters()
        fields: dict[str, object] = {}
        if active is None or not active.alive:
            detail = "the supervisor ends, and nginx does not run"
        else:
            fields = {"generation": f"g{active.id}", "pid": active.master.pid}
            detail = (
                f"nginx {active.program.version} serves on (master {active.master.pid}), and "
                "nobody restarts it; the next start of the supervisor adopts it"
            )
        world.log.warning("supervisor.detached", **fields, detail=detail)
        if asked:
            told = {"operation": "detach", "verdict": Verdict.DONE.value, "reason": "detached",
                    "detail": detail, "elapsed_s": 0.0}  # fmt: skip
            await self._verdicts.keep(self._verdicts.describe(told, None))
        return detail

    def settled(self, state: State) -> None:
        """Tell whoever has to know of the change; close what nobody would accept from."""
        self._reloads.settled(state)
        active = self._world.active
        serves = active is not None and active.alive and not active.quitting
        if state.phase in (Phase.DEGRADED, Phase.STOPPED) and not serves:
            listeners.release(self._world, "nginx is not started again by itself")
        self._service.settled(state)
