"""Verdicts that come from two tasks at once, or that the disk does not take yet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import structlog
import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges.journal import History, Journal
from supervisor.operations.world import World
from supervisor.verdicts import Verdicts


class SlowHistory(History):
    """A disk that takes its time, or nothing."""

    full = False

    def append(self, verdict: Mapping[str, object]) -> None:
        time.sleep(0.02)
        if self.full:
            raise OperationFailed("no_space", "the disk is full")
        super().append(verdict)


def made(folder: Path) -> tuple[Verdicts, SlowHistory, World]:
    history = SlowHistory(folder)
    world = cast(
        "World",
        SimpleNamespace(
            unwritten=[], journal=Journal(folder), log=structlog.get_logger(), run=None
        ),
    )
    return Verdicts(world, history, lambda: None), history, world


def verdict(upgrade_id: str) -> dict[str, Any]:
    return {"upgrade_id": upgrade_id, "verdict": "refused", "reason": "starting", "detail": "x"}


async def test_verdicts_from_many_tasks_are_each_written_once(tmp_path: Path) -> None:
    verdicts, history, world = made(tmp_path)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(verdicts.keep, verdict(f"u{number}"))
    assert sorted(one["upgrade_id"] for one in history.entries()) == [f"u{n}" for n in range(8)]
    assert world.unwritten == []


async def test_a_verdict_waits_for_the_disk_and_goes_first(tmp_path: Path) -> None:
    verdicts, history, world = made(tmp_path)
    history.full = True
    told = verdict("first")
    await verdicts.keep(told)
    assert "the disk is full" in told["detail"]
    (kept,) = world.journal.read().records
    assert kept["verdict"] == verdict("first")
    history.full = False
    await verdicts.keep(verdict("second"))
    assert [one["upgrade_id"] for one in history.entries()] == ["first", "second"]
    assert history.entries()[0]["detail"] == "x"
