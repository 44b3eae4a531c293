"""What the tests of the control socket share: a fake backend, served by the real server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from supervisor.edges.control import ControlSettings, Gate, Limits, serve_control
from tests.control.fake_backend import FakeBackend, gate_for


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        yield Path(name)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def limits() -> Limits:
    """Override with a parametrised fixture of the same name to test a limit."""
    return Limits()


@pytest.fixture
def gate() -> Gate:
    """Who runs the tests is an admin; override it as `limits`."""
    return gate_for(os.geteuid())


@pytest.fixture
async def control(
    folder: Path, backend: FakeBackend, limits: Limits, gate: Gate
) -> AsyncIterator[str]:
    """The path of a socket that the real server serves."""
    settings = ControlSettings(socket=str(folder / "control.sock"))
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await serve_control(
                settings,
                backend,
                gate=gate,
                version="0.1.0",
                limits=limits,
                task_status=task_status,
            )

        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()
