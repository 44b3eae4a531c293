"""Asking for another supervisor, with an engine in virtual time; nothing is executed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
import trio
from trio.testing import MockClock

from supervisor import succession
from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges.handover import HandOver
from supervisor.succession import FRESH, Succession
from supervisor.waiters import Reply
from tests.engine.conftest import Running, engine_with
from tests.fakes import FakeEffects, Held


class Scene:
    """A supervisor that is asked to replace itself, and everything around it."""

    def __init__(self, one: Running) -> None:
        self.one = one
        self.said: list[str] = []  # to the service manager, and to the door
        self.executed: list[Sequence[str]] = []
        self.outcome: Exception = OperationFailed("exec_failed", "no such file")
        self.verdicts: list[Exception | None] = []  # of the program on disk, the next first
        self.test_takes = 1.0
        self.hushed: Exception | None = None
        hand_over = HandOver()
        hand_over.replace_program = self._execute  # type: ignore[method-assign]
        service = SimpleNamespace(
            reloading=lambda: self.said.append("reloading"),
            ready_again=lambda: self.said.append("ready"), environment={"NOTIFY_SOCKET": "@x"},
        )  # fmt: skip
        self.world = SimpleNamespace(
            run=None,
            log=one.engine._log,
            generations={1: object(), 2: object()},
            foreign_hearing=None,
        )
        self.succession = Succession(
            hand_over=hand_over,
            program=cast(Any, SimpleNamespace(
                argv=("/python",), config=None, environment={"A": "b"}, check=self._check
            )),
            version="1", engine=one.engine, world=cast(Any, self.world),
            door=cast(Any, SimpleNamespace(hush=self._hush, speak=lambda: None)),
            service=cast(Any, service), nursery=one.nursery,
        )  # fmt: skip
        self.replies: list[Reply] = []

    async def _check(self) -> str:
        await trio.sleep(self.test_takes)
        problem = self.verdicts.pop(0) if self.verdicts else None
        if problem is not None:
            raise problem
        return "2"

    async def _hush(self, _limit: float) -> None:
        await trio.lowlevel.checkpoint()
        if self.hushed is not None:
            raise self.hushed

    def _execute(self, argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
        assert environment == {"A": "b", "NOTIFY_SOCKET": "@x"}
        self.executed.append(argv)
        raise self.outcome

    async def ask(self, *, now: bool = False) -> Reply:
        """The last reply."""
        async with self.succession.submit(commands.SelfUpgrade(now=now)) as replies:
            told = [reply async for reply in replies]
        self.replies += told
        return told[-1]


@pytest.fixture(autouse=True)
def settings_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    async def same(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(succession, "expect_replaceable", same)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with engine_with(FakeEffects()) as one:
        yield Scene(one)


async def test_an_execve_that_fails_is_told_and_everything_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with scene() as the:
        last = await the.ask()
        assert (last["verdict"], last["reason"]) == ("failed", "exec_failed")
        assert the.said == ["reloading", "ready"]
        assert [one["event"] for one in the.replies] == [
            "accepted", "supervisor_restarting", "verdict",
        ]  # fmt: skip
        assert await the.ask() != {}
        assert len(the.executed) == 2
        assert the.one.phase == "idle"


async def test_a_program_that_does_not_work_is_refused_before_anything(
    autojump_clock: MockClock,
) -> None:
    async with scene() as the:
        the.verdicts = [Refusal("self_check_failed", "no module")]
        last = await the.ask()
        assert (last["verdict"], last["reason"]) == ("refused", "self_check_failed")
        assert the.executed == []
        assert len(the.replies) == 1
        assert "supervisor.not_replaced" in the.one.logged()


async def test_a_second_wish_is_refused_while_the_first_waits(autojump_clock: MockClock) -> None:
    """And what was tested long before the moment is tested again."""
    async with scene() as the:
        preflight = Held(Refusal("config_rejected", "bad"))
        the.one.effects.expect(Operation.PREFLIGHT, preflight)
        client = the.one.ask(commands.Upgrade())
        await the.one.quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(the.ask)
            await trio.sleep(2)
            second = await the.ask()
            assert (second["verdict"], second["reason"]) == ("refused", "self_upgrade_in_progress")
            the.succession.request()  # by a signal: it is in the log
            assert the.one.logged().count("supervisor.not_replaced") == 2
            await trio.sleep(FRESH)
            the.verdicts = [Refusal("self_check_failed", "somebody has broken it meanwhile")]
            preflight.release.set()
        assert (await client.verdict())["verdict"] == "refused"
        assert the.replies[-1]["reason"] == "self_check_failed"
        assert "waiting" in [one["event"] for one in the.replies]
        assert the.executed == []


async def test_what_ends_a_generation_is_waited_for(autojump_clock: MockClock) -> None:
    """Its pid file is being seen to; the machine does not know of that yet."""
    async with scene() as the:
        the.one.engine.state = replace(the.one.engine.state, retiring=frozenset({2}))
        del the.world.generations[2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(the.ask)
            await trio.sleep(3)
            assert the.executed == []
            settled = trio.Event()
            the.world.generations[2] = object()
            the.world.run = SimpleNamespace(stored=object(), settled=settled)
            the.one.engine.when_quiet(the.succession._attempt)
            await trio.sleep(0.1)
            assert the.executed == []  # the binary is not known to be on disk yet
            settled.set()
        assert len(the.executed) == 1


async def test_a_foreign_reload_that_is_being_judged_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    """Else nobody would ever say what became of it."""
    async with scene() as the:
        judged = the.world.foreign_hearing = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(the.ask)
            await trio.sleep(3)
            assert the.executed == []
            the.world.foreign_hearing = None
            judged.set()
        assert len(the.executed) == 1


@pytest.mark.parametrize("where", ["hush", "execute", "check"])
async def test_a_bug_ends_nothing(autojump_clock: MockClock, where: str) -> None:
    async with scene() as the:
        bug = ZeroDivisionError("ours")
        if where == "hush":
            the.hushed = bug
        elif where == "execute":
            the.outcome = bug
        else:
            the.verdicts = [bug]
        last = await the.ask()
        assert (last["verdict"], last["reason"]) == ("failed", "internal_error")
        assert "ours" in str(last["detail"])
        assert "supervisor.replacement_bug" in the.one.logged()
        the.hushed, the.outcome = None, OperationFailed("exec_failed", "no")
        assert (await the.ask())["reason"] == "exec_failed"
