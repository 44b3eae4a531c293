"""The single owner of the state: takes events, asks the machine, has its actions carried out.

One task reads the queue. Everything that takes time runs in child tasks that report back only as
events, so `status` and a second command are answered while an upgrade runs. A transition within
an upgrade is in the journal before the first of its actions is carried out; which of these records
are fsynced, so that a power cut cannot take them either, is in docs/adr/0005.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from supervisor.core import actions, commands, events
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.machine import step
from supervisor.core.model import UPGRADING, Phase, State, Timer, Verdict
from supervisor.core.succession import state_from_data, state_to_data
from supervisor.waiters import OF_NO_UPGRADE, Reply, Waiters

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from supervisor.ports import Effects


@dataclass(frozen=True, slots=True)
class _Posted:
    """An event, with the number of the phase or of the operation that it belongs to."""

    event: events.Event | None  # None: look whether anything else is to be done
    phase: int | None = None
    operation: int | None = None
    passed: trio.Event | None = None  # to be set when the loop comes to it


class Engine:
    """Owns the state; `run` is its one task."""

    def __init__(
        self,
        state: State,
        effects: Effects,
        log: FilteringBoundLogger,
        *,
        new_upgrade_id: Callable[[], str],
        clock: Callable[[], float],
        accepts: Callable[[], bool] = lambda: True,
    ) -> None:
        self.state = state
        self.exit_code: int | None = None
        self.phase_times: dict[str, float] = {}
        self._effects = effects
        self._log = log
        self._new_upgrade_id = new_upgrade_id
        self._clock = clock
        self._accepts = accepts  # whether anyone takes new connections, orphans as well
        self._send, self._receive = trio.open_memory_channel[_Posted](math.inf)
        self._phase_number = 0  # timers of earlier phases are not heard
        self._operation_number = 0  # nor are operations that were ended or replaced
        self._operation: trio.CancelScope | None = None
        self._operation_over: trio.Event | None = None
        self._timers: list[trio.CancelScope] = []
        self._armed: dict[Timer, float] = {}  # until when
        self._interlude: Callable[[], Awaitable[bool]] | None = None
        self._next_start: float | None = None
        self._waiters = Waiters()
        self._phase_since = clock()
        self._nursery: trio.Nursery | None = None

    # --- in ---------------------------------------------------------------------------------

    def post(self, event: events.Event) -> None:
        """Put `event` into the queue; never blocks, callable from any task of this thread."""
        self._send.send_nowait(_Posted(event))

    @asynccontextmanager
    async def submit(
        self, command: commands.Command
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Reply]]:
        """Ask for `command`; the channel yields progress and ends with the final reply.

        Leaving the block (a client that hangs up) never cancels what was begun. A channel that
        ends without a final reply means that the supervisor ends.
        """
        upgrade_id = ""
        if isinstance(command, commands.Upgrade | commands.Rollback):
            upgrade_id = self._new_upgrade_id()
            self._tell_asked(command, upgrade_id)
        waiting = self._waiters.listen(command, at=self._clock(), upgrade_id=upgrade_id)
        async with waiting as (number, replies):
            if number is not None:
                asked = events.Requested(request=number, command=command, upgrade_id=upgrade_id)
                self.post(asked)
            yield replies

    def _tell_asked(self, command: commands.Upgrade | commands.Rollback, upgrade_id: str) -> None:
        """Who asks for what, since a story begins with it; who, is bound by the caller's task."""
        under_way = self.state.upgrade
        if under_way is not None and isinstance(command, commands.Rollback) and not command.to:
            upgrade_id = under_way.id
        wishes = {
            name: value
            for name, value in asdict(command).items()
            if value is not None and value is not False
        }
        self._log.info(
            "upgrade.requested", upgrade_id=upgrade_id, operation=type(command).__name__.lower(),
            **wishes,
        )  # fmt: skip

    async def wait_told(self, seconds: float) -> None:
        """Return when every caller has taken its last reply; at most after `seconds`."""
        await self._waiters.wait_told(seconds)

    @property
    def waiters(self) -> Waiters:
        """Who waits for what; for what is answered beside the machine."""
        return self._waiters

    @property
    def quiet(self) -> bool:
        """Nothing is under way: no event waits, no operation runs, nobody is being answered."""
        over = self._operation_over is None or self._operation_over.is_set()
        waits = self._send.statistics().current_buffer_used
        return over and not waits and not self.state.reloading and self.exit_code is None

    def when_quiet(self, interlude: Callable[[], Awaitable[bool]]) -> None:
        """Have `interlude` run in the engine's own task as soon as nothing is under way.

        It is asked again, after the next event, until it returns True. No event is handled
        meanwhile; those that come wait.
        """
        self._interlude = interlude
        self._send.send_nowait(_Posted(None))

    async def goes_round(self) -> None:
        """Return when the engine's loop has come to what is asked now: it is not stuck."""
        passed = trio.Event()
        self._send.send_nowait(_Posted(None, passed=passed))
        await passed.wait()

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process to go on from here; to be asked when quiet."""
        now = self._clock()
        return {
            "state": state_to_data(self.state, at=now),
            "timers": {timer.value: at - now for timer, at in self._armed.items()},
            "phase_times": self.phase_times,
            "phase_for": now - self._phase_since,
            "waiters": self._waiters.to_data(at=now),
        }

    def from_data(self, data: Mapping[str, Any], *, at: float) -> tuple[actions.Action, ...]:
        """Go on from what another engine wrote at `at`; what to begin `run` with.

        Raises KeyError, TypeError or ValueError where `data` is no such thing.
        """
        state = state_from_data(
            data["state"], rules=self.state.rules, restarts=self.state.restarts, at=at
        )
        left = {Timer(name): at + left for name, left in data["timers"].items()}
        phase_times = {str(name): float(spent) for name, spent in data["phase_times"].items()}
        since = at - data["phase_for"]
        self._waiters.from_data(data["waiters"], at=at)
        self.state, self.phase_times, self._phase_since = state, phase_times, since
        now = self._clock()
        timers = tuple(
            actions.Arm(timer=timer, seconds=max(0.0, end - now)) for timer, end in left.items()
        )
        retire = tuple(actions.Retire(generation=one) for one in sorted(state.retiring))
        return (*timers, *retire)

    def elapsed(self) -> tuple[float, float]:
        """Seconds of the running upgrade so far, and of the phase that it is in."""
        phase = self._clock() - self._phase_since
        return sum(self.phase_times.values()) + phase, phase

    def next_start(self) -> float | None:
        """Seconds until nginx is started again, where the supervisor waits for that."""
        return None if self._next_start is None else max(0.0, self._next_start - self._clock())

    # --- the loop ---------------------------------------------------------------------------

    async def run(
        self,
        *first: actions.Action,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> int:
        """Work until the machine says exit; returns the exit code.

        Cancelling stops the supervisor's own work and leaves nginx as it is.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                for action in first:
                    await self._carry_out(action)
                code = await self._listen()
                nursery.cancel_scope.cancel()
        finally:
            self._waiters.dismiss()
        return code

    async def _listen(self) -> int:
        while self.exit_code is None:
            if self._interlude is not None and self.quiet and await self._interlude():
                self._interlude = None
            posted = await self._receive.receive()
            if posted.passed is not None:
                posted.passed.set()
            if posted.event is None:
                continue
            if posted.phase not in (None, self._phase_number):
                continue
            if posted.operation not in (None, self._operation_number):
                continue
            await self._handle(posted.event)
        return self.exit_code

    async def _handle(self, event: events.Event) -> None:
        before = self.state
        after, todo = step(before, event)
        unrecorded = None
        if after.phase is not before.phase:
            await self._leave_phase(before, after)
            unrecorded = await self._record(before, after)
            self._account(before)
            self._tell_transition(before, after)
        self.state = after
        for action in todo:
            if unrecorded is not None and _needs_record(action):
                self._fail_operation(unrecorded)
            else:
                await self._carry_out(action)
        self._effects.settled(self.state)

    async def _record(self, before: State, after: State) -> SupervisorError | None:
        """Put the transition on disk where it is one of an upgrade; the error where that fails."""
        if before.upgrade is None and after.upgrade is None:
            return None
        try:
            await self._effects.record(before, after)
        except SupervisorError as exc:
            self._log.error("journal.not_written", reason=exc.reason, detail=exc.detail)
            return exc
        return None

    def _fail_operation(self, cause: SupervisorError) -> None:
        """What would be done is not on disk, so it is not done: the operation fails instead."""
        self._operation_number += 1
        failed = events.Failed(reason=cause.reason, detail=cause.detail, at=self._clock())
        self._send.send_nowait(_Posted(failed, operation=self._operation_number))

    async def _leave_phase(self, before: State, after: State) -> None:
        """Timers and operation of the old phase end before anything of the new one begins."""
        self._phase_number += 1
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._armed.clear()
        self._next_start = None
        await self._end_operation()

    def _account(self, before: State) -> None:
        """The time since the phase began is its own, with the recording of what comes next."""
        now = self._clock()
        if before.upgrade is not None:
            # A stop during an upgrade undoes it on disk, which is what a rollback is.
            phase = before.phase if before.phase in UPGRADING else Phase.ROLLING_BACK
            spent = self.phase_times.get(phase.value, 0.0)
            self.phase_times[phase.value] = spent + now - self._phase_since
        self._phase_since = now

    async def _end_operation(self) -> None:
        self._operation_number += 1
        if self._operation is not None and self._operation_over is not None:
            self._operation.cancel()
            await self._operation_over.wait()
        self._operation = self._operation_over = None

    def _tell_transition(self, before: State, after: State) -> None:
        upgrade = after.upgrade or before.upgrade
        name = "upgrade.state_changed" if upgrade else "supervisor.state_changed"
        fields: dict[str, object] = {
            "from_state": before.phase.value,
            "to_state": after.phase.value,
        }
        if upgrade is not None:
            fields["upgrade_id"] = upgrade.id
        if after.reason:
            fields["reason"] = after.reason
            if after.detail:
                fields["detail"] = after.detail
        if after.candidate or after.active:
            fields["generation"] = f"g{after.candidate or after.active}"
        self._tell_level(after.phase)(name, **fields)
        if after.upgrade is not None:
            self.progress(
                {
                    "event": "phase",
                    "phase": after.phase.value,
                    "upgrade_id": after.upgrade.id,
                    "reason": after.upgrade.reason,
                    "detail": after.upgrade.detail or None,
                }
            )

    def _tell_level(self, entered: Phase) -> Callable[..., object]:
        """An outage must be heard where only errors are, and trouble where warnings are."""
        if entered is Phase.DEGRADED or (entered is Phase.BACKOFF and not self._accepts()):
            return self._log.error
        if entered in (Phase.BACKOFF, Phase.ROLLING_BACK):
            return self._log.warning
        return self._log.info

    def progress(self, reply: Reply) -> None:
        """Tell everyone who waits for the running upgrade what was seen."""
        self._waiters.progress(reply)

    # --- out --------------------------------------------------------------------------------

    async def _carry_out(self, action: actions.Action) -> None:
        nursery = self._nursery
        assert nursery is not None
        match action:
            case actions.Run():
                await self._start_operation(nursery, action)
            case actions.Aim(watch):
                self._effects.aim(watch)
            case actions.Arm(timer=timer, seconds=seconds):
                if seconds <= 0:
                    fired = self._fired(timer)
                    self._send.send_nowait(_Posted(fired, phase=self._phase_number))
                    return
                if timer is Timer.BACKOFF:
                    self._next_start = self._clock() + seconds
                scope = trio.CancelScope()
                self._timers.append(scope)
                self._armed[timer] = self._clock() + seconds
                nursery.start_soon(self._wait_timer, timer, seconds, scope, self._phase_number)
            case actions.BeginUpgrade(request):
                self._begin(request)
            case actions.Attach(request):
                self._attach(request)
            case actions.Refuse(request=request, reason=reason, detail=detail):
                if reason == "not_running" and (left := self.next_start()) is not None:
                    detail = f"{detail} (else in {left:.1f} s)"
                await self._refuse(request, reason, detail)
            case actions.Complete(request=request, detail=detail):
                self._answer(request, "done", "done", detail)
            case actions.Settle():
                self._settle(action)
            case actions.Pronounce():
                await self._pronounce(action)
            case actions.ReportIncident(reason=reason, detail=detail):
                self._log.warning("supervisor.incident", reason=reason, detail=detail)
                self.progress({"event": "incident", "reason": reason, "detail": detail})
            case actions.ReloadActive(request=request, command=command):
                nursery.start_soon(self._reload, request, command)
            case actions.ReopenLogs(request):
                await self._reopen(request)
            case actions.Retire(generation=generation):
                nursery.start_soon(self._retire, generation)
            case actions.HastenDrain():
                self._effects.hasten()
            case actions.LetGo(request):
                serving = await self._effects.let_go(asked=request is not None)
                if request is not None:
                    self._answer(request, "done", "detached", serving)
            case actions.Exit(code):
                self.exit_code = code

    async def _start_operation(self, nursery: trio.Nursery, run: actions.Run) -> None:
        await self._end_operation()
        scope, over = trio.CancelScope(), trio.Event()
        self._operation, self._operation_over = scope, over
        nursery.start_soon(self._operate, run, scope, over, self._operation_number)

    async def _operate(
        self, run: actions.Run, scope: trio.CancelScope, over: trio.Event, number: int
    ) -> None:
        try:
            with scope:
                event: events.Event
                try:
                    event = await self._effects.operate(run, self.state)
                except SupervisorError as exc:
                    event = events.Failed(reason=exc.reason, detail=exc.detail, at=self._clock())
                except Exception as exc:  # noqa: BLE001 - a bug of ours must not end an upgrade midway
                    self._log.exception("operation.bug", operation=run.operation.value)
                    event = _bug(run, exc, self._clock())
                self._send.send_nowait(_Posted(event, operation=number))
        finally:
            over.set()

    async def _wait_timer(
        self, timer: Timer, seconds: float, scope: trio.CancelScope, phase: int
    ) -> None:
        with scope:
            await trio.sleep(seconds)
            self._armed.pop(timer, None)
            self._send.send_nowait(_Posted(self._fired(timer), phase=phase))

    def _fired(self, timer: Timer) -> events.TimerFired:
        lacking = self._effects.lacking() if timer is Timer.CANARY_LIMIT else ""
        return events.TimerFired(timer, lacking=lacking)

    async def _reload(self, request: int, command: commands.Reload) -> None:
        self._waiters.accept(request)
        try:
            told = await self._effects.reload(
                command, lambda reply: self._waiters.tell(request, reply)
            )
        except SupervisorError as exc:
            verdict = "refused" if isinstance(exc, Refusal) else "failed"
            self._answer(request, verdict, exc.reason, exc.detail)
        except Exception as exc:  # noqa: BLE001 - a bug of ours must not end the supervisor
            self._log.exception("operation.bug", operation="reload")
            self._answer(request, "failed", "internal_error", _fault("reload", exc))
        else:
            self._waiters.finish(request, told)
        self.post(events.ReloadEnded())

    async def _reopen(self, request: int) -> None:
        try:
            self._answer(request, "done", "reopened", self._effects.reopen())
        except SupervisorError as exc:
            await self._refuse(request, exc.reason, exc.detail)

    async def _retire(self, generation: int) -> None:
        try:
            await self._effects.retire(generation)
        except SupervisorError as exc:
            self._log.error("generation.stuck", generation=f"g{generation}", detail=exc.detail)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the supervisor
            self._log.exception("operation.bug", operation="retire", generation=f"g{generation}")
        self.post(events.GenerationGone(generation=generation))

    # --- answers ----------------------------------------------------------------------------

    def _begin(self, request: int) -> None:
        """An upgrade was accepted."""
        upgrade = self.state.upgrade
        assert upgrade is not None
        self.phase_times = {}
        self._waiters.attach(request, to_verdict=True)
        self._effects.begin(self.state)
        self._waiters.accept(request, upgrade_id=upgrade.id)
        self.progress({"event": "phase", "phase": "preflight", "upgrade_id": upgrade.id})

    def _attach(self, request: int) -> None:
        waiter = self._waiters.get(request)
        follows = (commands.Promote, commands.Rollback, commands.Drain)
        asked = None if waiter is None else waiter.command
        to_verdict = self.state.upgrade is not None and isinstance(asked, follows)
        self._waiters.attach(request, to_verdict=to_verdict)
        self._waiters.accept(request)

    def _settle(self, settle: actions.Settle) -> None:
        """Answer everyone who waits for what is no upgrade."""
        detail = settle.detail
        if not settle.ok and self.state.phase is Phase.BACKOFF:
            delay = self.state.restarts.last_delay
            detail = f"{detail}; the supervisor tries again in {delay:g} s"
        verdict = "done" if settle.ok else "refused" if settle.unchanged else "failed"
        self._waiters.settle(verdict, settle.reason, detail, at=self._clock())

    async def _refuse(self, request: int, reason: str, detail: str) -> None:
        """A refusal of an upgrade is a verdict with an id of its own, in the history too."""
        waiter = self._waiters.get(request)
        asked: dict[str, object] = {}
        if waiter is not None and isinstance(waiter.command, commands.Upgrade | commands.Rollback):
            asked = {"upgrade_id": waiter.upgrade_id, "operation": waiter.operation}
        verdict = Verdict.REFUSED.value
        self._log.warning("request.refused", **asked, verdict=verdict, reason=reason, detail=detail)
        if asked and waiter is not None:
            told = await self._put_on_disk(
                {
                    "upgrade_id": waiter.upgrade_id,
                    "operation": waiter.operation,
                    "verdict": Verdict.REFUSED.value,
                    "reason": reason,
                    "detail": detail,
                    "elapsed_s": 0.0,
                    "phases": {},
                    "of_running": False,
                }
            )
            self._waiters.finish(request, told)
            return
        self._answer(request, "refused", reason, detail)

    async def _put_on_disk(self, verdict: dict[str, object]) -> Reply:
        """The verdict as it is told; one that cannot be recorded is told all the same, and says so.

        The state of nginx is what it is: whoever waits must hear of it, and the supervisor must
        not end over it.
        """
        try:
            return await self._effects.pronounce(verdict)
        except SupervisorError as exc:
            self._log.error("verdict.not_recorded", reason=exc.reason, detail=exc.detail)
            detail = f"{verdict['detail']} (this verdict is not in the history: {exc.detail})"
            told = {"event": "verdict", **OF_NO_UPGRADE, **verdict, "detail": detail}
            del told["of_running"]
            return told

    def _answer(self, request: int, verdict: str, reason: str, detail: str) -> None:
        self._waiters.answer(request, verdict, reason, detail, at=self._clock())

    async def _pronounce(self, verdict: actions.Pronounce) -> None:
        phases = {name: round(spent, 6) for name, spent in self.phase_times.items()}
        told = await self._put_on_disk(
            {
                "verdict": verdict.verdict.value,
                "reason": verdict.reason,
                "detail": verdict.detail,
                "phases": phases,
                "elapsed_s": round(sum(phases.values()), 6),
                "of_running": True,
            }
        )
        tell = {"rolled_back": self._log.warning, "failed": self._log.error}
        fields = {name: value for name, value in told.items() if name not in ("event", "time")}
        if self.state.active is not None:
            fields["generation"] = f"g{self.state.active}"  # which serves from now on
        tell.get(str(told["verdict"]), self._log.info)("upgrade.verdict", **fields)
        self._waiters.pronounce(told)


def _needs_record(action: actions.Action) -> bool:
    """Going forward is intent before act; going back must be possible with a full disk as well."""
    return isinstance(action, actions.Run) and action.operation in (
        actions.Operation.PREFLIGHT,
        actions.Operation.SPAWN,
        actions.Operation.SHIFT,
        actions.Operation.COMMIT,
    )


def _bug(run: actions.Run, exc: Exception, now: float) -> events.Failed:
    """An operation that failed by a fault of the supervisor: the machine goes on as for any."""
    detail = _fault(run.operation.value.replace("_", " "), exc)
    return events.Failed(reason="internal_error", detail=detail, at=now)


def _fault(what: str, exc: Exception) -> str:
    return (
        f"cannot {what}: a fault in the supervisor ({type(exc).__name__}: {exc}); "
        "please report it with the log"
    )
