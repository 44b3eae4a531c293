"""Reloads up to their record: by whom, ended by whom, and what follows where they fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from supervisor.core import commands
from supervisor.core.errors import Refusal
from supervisor.core.model import Phase, Rules, State
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.settings import OnForeignFailure, ReloadSettings
from supervisor.jury import Jury
from supervisor.operations import guard
from supervisor.operations.reload import Heard
from supervisor.reloads import Reloads
from supervisor.verdicts import Verdicts
from tests.operations.lab import Lab
from tests.operations.test_guard import BAD, change, folder, serving, texts
from tests.operations.test_guard import Jury as PaperJury
from tools.nginx_cache import Build

IDLE = State(rules=Rules(), restarts=RestartPolicy(), phase=Phase.IDLE)
GUARDED, RESUME = commands.Reload(guard=True), commands.Reload(guard=True, resume=True)


class Foreign(PaperJury):
    """Knows who was up before."""

    def passing_at(self, at: float) -> frozenset[str]:
        assert at <= trio.current_time()
        return frozenset({"home"})


class Office:
    """`Reloads` with its records on paper, and whoever asks for what was left to be ended."""

    def __init__(self, made: Lab, jury: Foreign) -> None:
        self.made, self.jury = made, jury
        self.kept: list[dict[str, Any]] = []
        self.told: list[dict[str, object]] = []
        self.asked = 0
        self.refuse = 0
        self.reloads = Reloads(
            made.world, cast(Jury, jury), cast(Verdicts, self), new_id=self.new_id,
            resume=self.resume,
        )  # fmt: skip

    def new_id(self) -> str:
        return f"r{len(self.kept) + 1}"

    async def keep(self, told: dict[str, Any]) -> None:
        self.kept.append(told)

    async def resume(self) -> None:
        self.asked += 1
        if self.refuse >= self.asked:
            return
        await self.reloads.run(RESUME, self.told.append)

    @property
    def ends(self) -> list[tuple[str, str, str]]:
        return [(one["by"], one["verdict"], one["reason"]) for one in self.kept]


@asynccontextmanager
async def office(build: Build, *says: Heard) -> AsyncIterator[Office]:
    async with serving(build) as made:
        yield Office(made, Foreign(list(says)))


def restoring(made: Lab) -> None:
    made.world.settings = replace(
        made.world.settings, reload=ReloadSettings(on_foreign_failure=OnForeignFailure.RESTORE)
    )


async def by_somebody(one: Office, before: str | None) -> None:
    """What `learn_reload` tells: the new workers accept, and this is what was read before."""
    active = one.made.world.active
    assert active is not None
    active.accepted = active.look().accepting
    one.reloads.judge_foreign(active, before)
    await one.made.until("the record", lambda: one.kept)


async def test_what_is_recorded(oldest: Build) -> None:
    async with office(oldest, Heard(judged=True), BAD) as one:
        told = await one.reloads.run(commands.Reload(), one.told.append)
        assert [each["phase"] for each in one.told] == ["preflight", "shifting", "soaking"]
        assert told == one.kept[0]
        assert told["upgrade_id"] == "r1"
        assert told["elapsed_s"] == pytest.approx(sum(told["phases"].values()))  # type: ignore[attr-defined]
        change(one.made)
        await one.reloads.run(GUARDED, one.told.append)
        assert one.ends == [
            ("operator", "committed", "reloaded"),
            ("operator", "rolled_back", "reload_probes_failed"),
        ]
        assert one.made.world.guard is None
        assert guard.left_behind(one.made.world.configs) is None
        with pytest.raises(Refusal) as caught:
            await one.reloads.run(RESUME, one.told.append)
        assert caught.value.reason == "nothing_to_resume"
        assert one.made.world.reload_id is None


async def test_a_refused_reload_is_in_the_log(oldest: Build) -> None:
    async with office(oldest) as one:
        ids: list[str | None] = []
        one.made.world.progress = lambda _: None
        config = one.made.folder / "nginx.conf"
        config.write_text(config.read_text() + "nonsense;\n")
        with pytest.raises(Refusal):
            await one.reloads.run(commands.Reload(), lambda _: ids.append(one.made.world.reload_id))
        assert set(ids) == {"r1"}
        (said,) = (each for each in one.made.log if each["event"] == "reload.verdict")
        assert (said["verdict"], said["reason"]) == ("refused", "config_rejected")
        assert one.made.world.reload_id is None


async def test_what_was_left_is_ended_once_nginx_serves(oldest: Build) -> None:
    async with office(oldest) as one:
        before = texts(one.made)
        change(one.made)
        await guard.guarded(one.made.world, "r0", PaperJury())
        left = one.made.world.guard = guard.left_behind(one.made.world.configs)
        assert left is not None
        left.restoring, left.reason = True, "reload_probes_failed"
        one.refuse = 1  # as while another reload runs
        one.reloads.settled(replace(IDLE, phase=Phase.STARTING))
        one.reloads.settled(replace(IDLE, reloading=True))
        await trio.testing.wait_all_tasks_blocked()
        assert one.asked == 0
        for number in (1, 2):
            one.reloads.settled(IDLE)
            one.reloads.settled(IDLE)
            await one.made.until("it was asked", lambda number=number: one.asked == number)  # type: ignore[misc]
        await one.made.until("the record", lambda: one.kept)
        assert one.ends == [("operator", "rolled_back", "reload_probes_failed")]
        assert one.kept[0]["upgrade_id"] == "r0"
        assert texts(one.made) == before


async def test_what_was_left_comes_before_what_is_asked(oldest: Build) -> None:
    async with office(oldest) as one:
        change(one.made)
        await guard.guarded(one.made.world, "r0", PaperJury())
        told = await one.reloads.run(commands.Reload(), one.told.append)
        assert [each["upgrade_id"] for each in one.kept] == ["r0", "r2"]
        assert told["upgrade_id"] == "r2"


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_foreign_reload_that_serves(oldest: Build, interrupted: bool) -> None:  # noqa: FBT001
    heard = Heard(judged=not interrupted, interrupted=interrupted)
    async with office(oldest, heard) as one:
        await by_somebody(one, "x")
        assert one.ends == [("foreign", "committed", "reloaded")]
        assert ("something else began" in one.kept[0]["detail"]) is interrupted
        assert one.made.world.foreign_hearing is None


@pytest.mark.parametrize("why", ["report", "unknown", "link", "restore"])
async def test_a_foreign_reload_that_fails(oldest: Build, why: str) -> None:
    async with office(oldest, BAD) as one:
        world, before = one.made.world, texts(one.made)
        active = world.active
        assert active is not None
        copy = active.program.config_copy
        change(one.made)
        ended = await guard.guarded(world, "r0", PaperJury())  # stands for somebody's HUP
        assert ended.reason == "reloaded"
        await guard.close(world)
        if why != "report":
            restoring(one.made)
        if why == "link":
            real = one.made.folder / "real"
            folder(one.made).rename(real)
            folder(one.made).symlink_to(real)
        await by_somebody(one, None if why == "unknown" else copy)
        verdict = "rolled_back" if why == "restore" else "failed"
        assert one.ends == [("foreign", verdict, "reload_probes_failed")]
        assert (texts(one.made) == before) is (why == "restore")
        assert ("it is not taken back" in one.kept[0]["detail"]) is (why in ("unknown", "link"))
        (said,) = [
            each for each in one.made.log if each["event"] == "generation.foreign_reload_failed"
        ]
        assert said["level"] == "error"


async def test_a_fault_in_judging_ends_nothing(oldest: Build) -> None:
    class Broken(Foreign):
        async def hear(self, *_: object) -> Heard:
            raise ZeroDivisionError

    async with serving(oldest) as made:
        active = made.world.active
        assert active is not None
        Office(made, Broken()).reloads.judge_foreign(active, None)
        await made.until("the log", lambda: "operation.bug" in [one["event"] for one in made.log])
        assert made.world.foreign_hearing is None
