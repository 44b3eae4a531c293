"""Reloads from their request to their record in the history: asked for, foreign, left half done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.core import commands
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.model import Phase, State, Verdict
from supervisor.core.reload_judge import Objection
from supervisor.core.settings import OnForeignFailure
from supervisor.edges import config_restore
from supervisor.operations import guard, reload
from supervisor.operations.config_copies import copy_of_running
from supervisor.operations.reload import ReloadEnd, Steps
from supervisor.operations.world import GuardRun, World
from supervisor.verdicts import Verdicts, utc_now

if TYPE_CHECKING:
    from supervisor.edges.generation import Generation
    from supervisor.jury import Jury

Reply = dict[str, object]


class Reloads:
    """Carries them out one at a time, as the engine asks; foreign ones are judged beside that."""

    def __init__(
        self,
        world: World,
        jury: Jury,
        verdicts: Verdicts,
        *,
        new_id: Callable[[], str],
        resume: Callable[[], Awaitable[None]],
    ) -> None:
        self._world = world
        self._jury = jury
        self._verdicts = verdicts
        self._new_id = new_id
        self._resume = resume
        self._asked = False  # to have what was left half done ended

    async def run(self, command: commands.Reload, tell: Callable[[Reply], None]) -> Reply:
        """Reload; the verdict, which is in the history. Raises Refusal where nothing was done.

        What somebody has left half done is ended first, with a verdict of its own.
        """
        world = self._world
        if world.guard is not None:
            ended = await self._finish(world.guard, tell)
            if command.resume:
                return ended
        elif command.resume:
            raise Refusal("nothing_to_resume", "cannot resume a reload: none is left half done")
        steps, run_id = Steps(tell), self._new_id()
        with self._story_of(run_id):
            world.log.info("reload.begun", guarded=command.guard)
            if command.guard:
                end = await guard.guarded(world, run_id, self._jury, steps)
            else:
                end = await reload.reload(world, self._jury, steps)
            return await self._record(run_id, end, by="operator", guarded=command.guard)

    async def _finish(self, run: GuardRun, tell: Callable[[Reply], None]) -> Reply:
        with self._story_of(run.id):
            end = await guard.finish(self._world, run, self._jury, Steps(tell))
            return await self._record(run.id, end, by=run.by, guarded=True)

    @contextmanager
    def _story_of(self, run_id: str) -> Iterator[None]:
        """What is logged belongs to this reload, also where it is refused."""
        self._world.reload_id = run_id
        try:
            yield
        except SupervisorError as exc:
            verdict = "refused" if isinstance(exc, Refusal) else "failed"
            tell = self._world.log.warning if verdict == "refused" else self._world.log.error
            tell("reload.verdict", by="operator", verdict=verdict, reason=exc.reason,
                 detail=exc.detail, judged=False, elapsed_s=0.0)  # fmt: skip
            raise
        finally:
            self._world.reload_id = None

    async def _record(self, run_id: str, end: ReloadEnd, *, by: str, guarded: bool) -> Reply:
        told: Reply = {
            "event": "verdict", "operation": "reload", "time": utc_now(), "upgrade_id": run_id,
            "by": by, "verdict": end.verdict.value, "reason": end.reason, "detail": end.detail,
            "from_version": None, "to_version": None, "judged": end.judged,
            "elapsed_s": round(sum(end.phases.values()), 6), "phases": dict(end.phases),
        }  # fmt: skip
        await self._verdicts.keep(told)
        if guarded:
            await guard.close(self._world)
        self._tell(end.verdict, told)
        return told

    def _tell(self, verdict: Verdict, told: Reply) -> None:
        log = self._world.log
        tell = {Verdict.FAILED: log.error, Verdict.ROLLED_BACK: log.warning}.get(verdict, log.info)
        fields = {name: told[name] for name in _LOGGED}
        tell("reload.verdict", **fields)

    # --- what was left half done ----------------------------------------------------------------

    def settled(self, state: State) -> None:
        """The state has changed: what was left is ended as soon as nginx serves."""
        left = self._world.guard
        at_rest = state.phase in (Phase.IDLE, Phase.DRAINING) and not state.reloading
        if left is not None and left.left and at_rest and not self._asked:
            self._asked = True
            self._world.background(self._ask)

    async def _ask(self) -> None:
        try:
            await self._resume()
        finally:
            self._asked = False  # one that was refused is asked for again

    # --- by somebody else -----------------------------------------------------------------------

    def judge_foreign(self, generation: Generation, before: str | None) -> None:
        """Somebody else had `generation` reloaded: watch what becomes of it, beside all else."""
        world, now = self._world, trio.current_time()
        ages = [one.age for pid, one in generation.workers.items() if pid in generation.accepted]
        witnesses = self._jury.passing_at(now - max(ages, default=0.0))
        world.background(partial(self._judge_foreign, generation, before, witnesses))

    async def _judge_foreign(
        self, generation: Generation, before: str | None, witnesses: frozenset[str]
    ) -> None:
        world = self._world
        world.foreign_hearing = over = trio.Event()
        try:
            await self._judge(generation, before, witnesses)
        except SupervisorError as exc:
            world.log.error("reload.not_judged", reason=exc.reason, detail=exc.detail)  # noqa: TRY400 - no bug of ours
        except Exception:  # a bug of ours must not end the supervisor
            world.log.exception("operation.bug", operation="judge_foreign")
        finally:
            over.set()
            if world.foreign_hearing is over:
                world.foreign_hearing = None

    async def _judge(
        self, generation: Generation, before: str | None, witnesses: frozenset[str]
    ) -> None:
        world, steps, run_id = self._world, Steps(), self._new_id()
        steps.enter("soaking")
        heard = await self._jury.hear(
            witnesses, generation.accepted, world.settings.reload.foreign_window
        )
        found = heard.objection
        if found is None:
            detail = f"somebody else reloaded nginx{heard.note}"
            if heard.interrupted:
                detail += "; something else began before it was judged to the end"
            end = steps.end(Verdict.COMMITTED, "reloaded", detail, judged=heard.judged)
            await self._record(run_id, end, by="foreign", guarded=False)
            return
        name = f"g{generation.id}"
        world.log.error(
            "generation.foreign_reload_failed", generation=name, upgrade_id=run_id,
            reason=found.reason,
            detail=f"somebody else reloaded nginx, and it does not serve as before: {found.detail}",
        )  # fmt: skip
        hint = "correct the configuration, then nginxctl reload"
        if world.settings.reload.on_foreign_failure is OnForeignFailure.RESTORE:
            problem = await self._take_back(generation, before, run_id, witnesses, found)
            if not problem:
                return  # its verdict comes from there
            hint = f"it is not taken back: {problem}; {hint}"
        detail = f"somebody else reloaded nginx: {found.detail}; {hint}"
        end = steps.end(Verdict.FAILED, found.reason, detail, judged=heard.judged)
        await self._record(run_id, end, by="foreign", guarded=False)

    async def _take_back(
        self, generation: Generation, before: str | None, run_id: str, witnesses: frozenset[str],
        found: Objection,
    ) -> str:  # fmt: skip
        """Have the previous configuration put back; why that is not possible."""
        world = self._world
        if before is None or world.guard is not None:
            return "the configuration before it is not known"
        try:
            after = await copy_of_running(world, generation)
            await trio.to_thread.run_sync(self._expect_restorable, before, after)
            run = GuardRun(
                id=run_id, old=before, new=after, witnesses=tuple(sorted(witnesses)), by="foreign",
                restoring=True, reason=found.reason, detail=found.detail, left=True,
            )  # fmt: skip
            await trio.to_thread.run_sync(world.configs.write_guard, run.known())
        except SupervisorError as exc:
            return exc.detail
        world.guard = run
        self._asked = True
        world.background(self._ask)
        return ""

    def _expect_restorable(self, before: str, after: str) -> None:
        store = self._world.configs
        hashes = {**store.load(before).hashes, **store.load(after).hashes}
        config_restore.expect_restorable(hashes)


_LOGGED = ("upgrade_id", "by", "verdict", "reason", "detail", "judged", "elapsed_s")
