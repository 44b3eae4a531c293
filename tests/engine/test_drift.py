"""A package manager that takes longer than a status waits is asked once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio

from supervisor import drift
from supervisor.drift import Drift
from supervisor.edges.packages import Package

PACKAGE = Package(manager="dpkg", name="nginx", version="1", state="installed", intact=True)


def world(binary: Path) -> Any:
    return cast(
        "Any",
        SimpleNamespace(
            active=None,
            settings=SimpleNamespace(nginx=SimpleNamespace(binary=str(binary))),
            store=SimpleNamespace(has_placed=lambda _: False),
            log=Mock(),
        ),
    )


async def test_a_look_that_takes_long_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = [], trio.Event()

    async def owner_of(path: Path) -> Package:
        asked.append(path)
        await answer.wait()
        return PACKAGE

    monkeypatch.setattr("supervisor.edges.packages.owner_of", owner_of)
    monkeypatch.setattr(drift, "LIMIT", 0.1)
    looks = Drift(world(tmp_path / "nginx"))
    assert (await looks.look()).package is None
    assert (await looks.look()).package is None
    answer.set()
    monkeypatch.setattr(drift, "LIMIT", 30.0)
    assert (await looks.look()).package == PACKAGE
    assert (await looks.look()).package == PACKAGE
    assert asked == [tmp_path / "nginx"]


async def test_a_look_that_fails_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def owner_of(_: Path) -> Package:
        raise ValueError("odd")

    monkeypatch.setattr("supervisor.edges.packages.owner_of", owner_of)
    seen = world(tmp_path / "nginx")
    assert (await Drift(seen).look()).package is None
    assert "odd" in seen.log.warning.call_args.kwargs["detail"]
