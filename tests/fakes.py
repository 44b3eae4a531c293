"""Stand-ins for what the engine needs done. Whatever a test did not expect raises."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import trio

from supervisor.core import actions, commands
from supervisor.core.actions import Operation, Run
from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.core.events import Succeeded
from supervisor.core.model import State

Answer = Succeeded | Exception


class Held:
    """An operation that goes on until it is released or cancelled.

    `cleanup`: virtual seconds that it takes, shielded, when it is cancelled. `deaf`: it answers
    although it was cancelled.
    """

    def __init__(
        self, answer: Answer | None = None, *, cleanup: float = 0.0, deaf: bool = False
    ) -> None:
        self.answer: Answer = Succeeded() if answer is None else answer
        self.cleanup, self.deaf = cleanup, deaf
        self.started, self.release = trio.Event(), trio.Event()
        self.cancelled = False
        self.over_at: float | None = None

    async def wait(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled = True
            with trio.CancelScope(shield=True):
                await trio.sleep(self.cleanup)
            if not self.deaf:
                raise
        finally:
            self.over_at = trio.current_time()


class FakeEffects:
    """The engine's `Effects`: operations answer as they were told to, in order.

    `calls` is everything that was asked for, in order. An operation (or a drain, or a reload) that
    no answer was given for raises, and is in `unexpected` besides, since the engine survives it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.unexpected: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.unwritable: SupervisorError | None = None  # what writing to the disk raises
        self._answers: dict[Operation | str, deque[Answer | Held]] = {}
        self._upgrade_id = ""

    def expect(self, what: Operation | str, *answers: Answer | Held) -> None:
        """Answer the next times that `what` is asked for; operations, "reload", "retire"."""
        self._answers.setdefault(what, deque()).extend(answers)

    def leftovers(self) -> list[Operation | str]:
        """What was expected and never asked for."""
        return [what for what, answers in self._answers.items() if answers]

    def names(self) -> list[str]:
        """The calls in order, without their arguments."""
        return [str(call[0]) for call in self.calls]

    async def _answer(self, what: Operation | str) -> Succeeded:
        answers = self._answers.get(what)
        if not answers:
            self.unexpected.append(f"{what}")
            raise AssertionError(f"nobody expected {what}")
        answer = answers.popleft()
        if isinstance(answer, Held):
            await answer.wait()
            answer = answer.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    # --- Effects ----------------------------------------------------------------------------

    async def operate(self, run: Run, state: State) -> Succeeded:
        self.calls.append((run.operation.value, state.phase.value, run.command))
        return await self._answer(run.operation)

    async def record(self, before: State, after: State) -> None:
        self.calls.append(("record", before.phase.value, after.phase.value))
        if self.unwritable is not None:
            raise self.unwritable
        await trio.lowlevel.checkpoint()

    def begin(self, state: State) -> None:
        assert state.upgrade is not None
        self._upgrade_id = state.upgrade.id
        self.calls.append(("begin", state.upgrade.id))

    def aim(self, watch: actions.Watch) -> None:
        self.calls.append(("aim", watch.value))

    async def pronounce(self, verdict: Mapping[str, object]) -> dict[str, object]:
        self.calls.append(("pronounce", verdict["verdict"], verdict["reason"]))
        if self.unwritable is not None:
            raise self.unwritable
        await trio.lowlevel.checkpoint()
        told: dict[str, object] = {"event": "verdict", "upgrade_id": self._upgrade_id, **verdict}
        del told["of_running"]
        self.history.append(told)
        return told

    async def reload(
        self, command: commands.Reload, tell: Callable[[dict[str, object]], None]
    ) -> dict[str, object]:
        self.calls.append(("reload", command))
        tell({"event": "phase", "phase": "shifting"})
        done = await self._answer("reload")
        return {
            "event": "verdict", "verdict": "committed", "reason": "reloaded", "detail": done.note,
            "judged": True, "elapsed_s": 1.5, "phases": {"shifting": 1.5},
        }  # fmt: skip

    def reopen(self) -> str:
        self.calls.append(("reopen",))
        return "logs reopened"

    async def let_go(self, *, asked: bool) -> str:
        self.calls.append(("let_go", asked))
        return "nginx serves on"

    async def retire(self, generation: int) -> None:
        self.calls.append(("retire", generation))
        await self._answer("retire")

    def lacking(self) -> str:
        """Nothing is looked at here."""
        return ""

    def hasten(self) -> None:
        self.calls.append(("hasten",))

    def settled(self, state: State) -> None:
        self.calls.append(("settled", state.phase.value))


def failed(reason: str, detail: str = "it failed") -> OperationFailed:
    """What an operation raises."""
    return OperationFailed(reason, detail)
