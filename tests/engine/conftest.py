"""An engine with fake effects, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import wait_all_tasks_blocked

from supervisor.core import commands
from supervisor.core.actions import Operation, Run
from supervisor.core.events import Event, Succeeded
from supervisor.core.model import Rules, State
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import VerdictPolicy
from supervisor.engine import Engine
from supervisor.waiters import Reply
from tests.fakes import FakeEffects, Held

FRESH = State(rules=Rules(), restarts=RestartPolicy())


@dataclass
class Running:
    """A running engine, and what a test asks of it."""

    engine: Engine
    effects: FakeEffects
    nursery: trio.Nursery
    log: LogCapture
    code: int | None = None
    over: trio.Event = field(default_factory=trio.Event)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        first = Run(operation=Operation.RECOVER)
        self.code = await self.engine.run(first, task_status=task_status)
        self.over.set()

    async def quiet(self) -> None:
        """Until nobody has anything to do now; no virtual time passes."""
        await wait_all_tasks_blocked()

    def ask(self, command: commands.Command) -> Client:
        """A client asks, in a task of its own."""
        client = Client()
        self.nursery.start_soon(client.follow, self.engine, command)
        return client

    async def tell(self, event: Event) -> None:
        self.engine.post(event)
        await self.quiet()

    @property
    def phase(self) -> str:
        return self.engine.state.phase.value

    def armed(self) -> int:
        """How many timers are still to fire."""
        return sum(not one.cancel_called for one in self.engine._timers)

    def logged(self) -> list[str]:
        return [entry["event"] for entry in self.entries]

    @property
    def entries(self) -> list[MutableMapping[str, Any]]:
        return list(self.log.entries)


class Client:
    """Someone who waits for replies."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.ended = trio.Event()
        self._scope = trio.CancelScope()

    async def follow(self, engine: Engine, command: commands.Command) -> None:
        with self._scope:
            async with engine.submit(command) as replies:
                async for reply in replies:
                    self.replies.append(reply)
        self.ended.set()

    def hang_up(self) -> None:
        self._scope.cancel()

    async def verdict(self) -> Reply:
        """The final reply; exactly one, and the last."""
        await self.ended.wait()
        finals = [one for one in self.replies if one["event"] == "verdict"]
        assert finals == self.replies[-1:]
        return finals[0]

    def events(self) -> list[object]:
        return [one.get("phase", one["event"]) for one in self.replies]


@pytest.fixture
def effects() -> FakeEffects:
    return FakeEffects()


@asynccontextmanager
async def engine_with(
    effects: FakeEffects, first: Succeeded | Exception | Held | None = None, **rules: Any
) -> AsyncIterator[Running]:
    """An engine whose nginx serves as g1 (or whose recovery answers as `first` says)."""
    log, numbers = LogCapture(), count(1)
    logger = structlog.wrap_logger(
        None, processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    engine = Engine(
        replace(FRESH, rules=Rules(policy=VerdictPolicy(**rules))),
        effects,
        logger,
        new_upgrade_id=lambda: f"u{next(numbers)}",
        clock=trio.current_time,
    )
    effects.expect(Operation.RECOVER, first or Succeeded(generation=1))
    async with trio.open_nursery() as nursery:
        running = Running(engine=engine, effects=effects, nursery=nursery, log=log)
        await nursery.start(running.run)
        await running.quiet()
        yield running
        nursery.cancel_scope.cancel()
    assert effects.unexpected == []
    assert effects.leftovers() == []
