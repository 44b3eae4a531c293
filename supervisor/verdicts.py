"""What an upgrade leaves on disk: its journal while it runs, its verdict, the files it judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.model import Phase, State, Verdict
from supervisor.edges.generation import Role
from supervisor.edges.journal import History
from supervisor.operations.world import UpgradeRun, World

_INTENDS = ("USR2", "WINCH", "QUIT or HUP")
"""Written with the record of the spawning, on disk before the first of these is sent.

It stands for all later ones: no later phase waits for the disk. docs/adr/0005 says why.
"""

_CONDEMNS = frozenset(
    {
        "candidate_exited", "start_timeout", "no_workers", "worker_died", "worker_fatal",
        "workers_respawning", "probe_failed", "error_log",
        "worker_failing", "worker_not_answering",
        "memory_grows", "descriptors_grow", "master_burns_cpu", "worker_spinning",
        "worker_stalled", "accept_queue_stalled", "candidate_deaf", "cache_manager_died",
    }
)  # fmt: skip
"""Reasons of a rollback that speak against the candidate's binary; the others blame something else
(an operator, a disk, the old master), or leave it open."""


class Verdicts:
    """Writes them, and everything that follows from one; in the engine's task."""

    def __init__(
        self, world: World, history: History, remember_masters: Callable[[], None]
    ) -> None:
        self._world = world
        self._history = history
        self._remember_masters = remember_masters
        self._writing = trio.Lock()  # a rescue's incident comes beside the engine's verdicts
        self.last: dict[str, object] | None = history.last(was_begun)
        world.version_of_upgrade = self._version_of_upgrade

    # --- the journal ------------------------------------------------------------------------

    async def record(self, before: State, after: State) -> None:
        """The transition, and what was known when it happened; see `ports.Effects.record`."""
        upgrade = after.upgrade or before.upgrade
        run = self._world.run
        if upgrade is None or after.upgrade is None:
            return
        record: dict[str, object] = {
            "upgrade_id": upgrade.id,
            "phase": after.phase.value,
            "time": utc_now(),
            "reason": upgrade.reason,
            "candidate": after.candidate,
            "active": after.active,
        }
        if run is not None:
            record |= run.known()
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

    # --- the verdict ------------------------------------------------------------------------

    def describe(self, verdict: Mapping[str, object], run: UpgradeRun | None) -> dict[str, object]:
        """`verdict` with the versions that it is about; `run` is the upgrade that it ends."""
        active = self._world.active
        told: dict[str, object] = {
            "event": "verdict", "operation": "upgrade", "time": utc_now(), "upgrade_id": "",
            "from_version": None, "to_version": None, "judged": False,
        }  # fmt: skip
        if active is not None:
            told |= {"from_version": active.program.version, "from_id": active.program.stored}
        if run is not None:
            told |= {
                "operation": run.operation,
                "upgrade_id": run.id,
                "judged": run.judged,
                "from_version": run.from_version or told["from_version"],
                "from_id": run.previous or told.get("from_id"),
                "to_version": run.to_version,
                "warnings": list(run.warnings),
                "changed": list(run.changed),
                "kept": run.kept,
            }
        return {**told, **verdict}

    async def pronounce(self, told: dict[str, object], run: UpgradeRun | None) -> None:
        """`told` is in the history when this returns, and what follows from it is done.

        A disk that does not take it is said in its detail, and it is kept: in the journal for a
        successor, and for the next verdict of this supervisor.
        """
        if told["verdict"] == Verdict.COMMITTED.value and run is not None and run.quit_sent:
            self._world.committed_id = run.id
            self._promote()
        if told["verdict"] != Verdict.DONE.value:
            await self.keep(told)
        if run is not None:
            await self._close(run, told)

    async def keep(self, told: dict[str, object]) -> None:
        """Put a verdict into the history, after those that had to wait. Any task may ask."""
        if was_begun(told):
            self.last = told
        verdict = dict(told)
        self._world.unwritten.append(verdict)
        problem = await self._flush()
        if problem is None:
            return
        told["detail"] = f"{told['detail']} (not in the history yet: {problem.detail})"
        record = {"upgrade_id": told.get("upgrade_id"), "phase": None, "verdict": verdict}
        with suppress(SupervisorError):  # then only this life remembers it
            await trio.to_thread.run_sync(self._world.journal.append, record)

    async def _flush(self) -> SupervisorError | None:
        """Write the verdicts that wait; what keeps the disk from taking them."""
        waiting = self._world.unwritten
        async with self._writing:
            try:
                while waiting:
                    await trio.to_thread.run_sync(self._history.append, waiting[0])
                    del waiting[0]
            except SupervisorError as exc:
                self._world.log.error("history.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
                return exc
        return None

    def _version_of_upgrade(self, upgrade_id: str) -> str | None:
        """The id of what ran before; its version for a verdict that an older supervisor wrote."""
        verdict = self._history.find(upgrade_id) or {}
        before = verdict.get("from_id") or verdict.get("from_version")
        return None if before is None else str(before)

    def _promote(self) -> None:
        """The candidate is the active generation now, and the old one retires."""
        old, candidate = self._world.active, self._world.candidate
        if old is not None:
            old.role = Role.RETIRING
        if candidate is not None:
            candidate.role = Role.ACTIVE
            candidate.changed.set()  # what it listens on is held from now on
            self._world.last_program = candidate.program
            self._world.pid_path = candidate.program.pid_path

    async def _close(self, run: UpgradeRun, told: dict[str, object]) -> None:
        try:
            await trio.to_thread.run_sync(
                self._settle_files, run, str(told["verdict"]), str(told["reason"])
            )
            if self._world.unwritten:
                await self._flush()
            if not self._world.unwritten:
                await trio.to_thread.run_sync(self._world.journal.close_upgrade)
        except SupervisorError as exc:
            # The verdict stands; a successor that finds the journal sees it in the history.
            self._world.log.error("state.not_written", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        active = self._world.active
        if active is not None:
            active.accepted = active.brood().accepting  # what a rollback did is nobody else's doing
        self._world.run = None
        self._world.release_old_locks()
        self._remember_masters()

    # --- the files --------------------------------------------------------------------------

    def _settle_files(self, run: UpgradeRun, verdict: str, reason: str) -> None:
        """What the verdict means for the version store and for what preflight left behind."""
        world, plan, stored = self._world, run.plan, run.stored
        if plan is not None:
            plan.discard()  # of one that was installed nothing is left to discard
        if verdict in (Verdict.REFUSED.value, Verdict.DONE.value):
            if run.include_written:
                world.listener.restore(run.include_text)
            self._prune(run)  # a refused binary was stored to be checked
            return
        if stored is None:  # of a supervisor that died; what it committed is active by now
            active = world.active
            if verdict == Verdict.COMMITTED.value and active and active.program.stored:
                world.store.mark_good(active.program.stored)
            return
        if stored.id == run.previous:
            return
        if verdict == Verdict.COMMITTED.value and run.quit_sent:
            world.store.mark_good(stored.id)
        elif verdict != Verdict.COMMITTED.value and reason in _CONDEMNS:
            world.store.mark_bad(stored.id)
        self._prune(run)

    def _prune(self, run: UpgradeRun) -> None:
        world = self._world
        in_use = {one.program.sha256 for one in world.generations}
        stored = None if run.stored is None else run.stored.id
        protect = [one for one in (run.previous, stored) if one is not None]
        world.store.prune(in_use, protect=protect, destination=Path(world.settings.nginx.binary))


def was_begun(verdict: Mapping[str, object]) -> bool:
    """Whether it ends an upgrade or a rollback that was begun: a refusal has no phase behind it."""
    if verdict.get("operation") in ("reload", "detach"):
        return False
    return verdict.get("verdict") != Verdict.REFUSED.value or bool(verdict.get("phases"))


def utc_now() -> str:
    """The wall clock as records and replies have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
