"""What nginx told is used again for a crash start, while nothing that it depends on changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest
import trio

from supervisor.core.errors import SupervisorError
from supervisor.operations import start
from supervisor.operations.facts import facts_on_disk
from tests.e2e.harness.site import put
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build

SETTLED = 0.15
"""Seconds after which a change of a file cannot be taken for one within the same tick."""


async def told(made: Lab) -> tuple[int, bool]:
    """How many workers the configuration asks for, and whether nginx was asked for that."""
    before = made.world.facts_seen
    facts = await facts_on_disk(made.world)
    return facts.workers, before is None or made.world.facts_seen is not before


def other_workers(made: Lab) -> None:
    made.configure(workers=3)


def a_new_file_in_an_empty_folder(made: Lab) -> None:
    (made.folder / "conf.d" / "new.conf").write_text("# nothing")


def written_in_place_with_its_old_times(made: Lab) -> None:
    path = made.folder / "nginx.conf"
    before = path.stat()
    made.configure(workers=3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)


def another_binary(made: Lab) -> None:
    put(made.build.path, made.binary)


def another_environment(made: Lab) -> None:
    world = made.world
    nginx = replace(world.settings.nginx, environment=MappingProxyType({"TZ": "UTC"}))
    world.settings = replace(world.settings, nginx=nginx)


@pytest.mark.parametrize(
    "change",
    [
        other_workers, a_new_file_in_an_empty_folder, written_in_place_with_its_old_times,
        another_binary, another_environment,
    ],
)  # fmt: skip
async def test_asked_again_after_a_change(oldest: Build, change: Callable[[Lab], None]) -> None:
    async with lab(oldest) as made:
        (made.folder / "conf.d").mkdir()
        made.configure(listens="include {folder}/conf.d/*.conf;")
        await trio.sleep(SETTLED)
        assert await told(made) == (2, True)
        assert await told(made) == (2, False)
        change(made)
        await trio.sleep(SETTLED)
        assert await told(made) == (made.workers, True)
        assert await told(made) == (made.workers, False)


async def test_not_remembered_where_a_file_was_changed_a_moment_ago(oldest: Build) -> None:
    """It may be changed again, with the same size and times; a file in place of one does so."""
    async with lab(oldest) as made:
        await trio.sleep(SETTLED)
        assert await told(made) == (2, True)
        made.configure(workers=3)
        assert await told(made) == (3, True)
        made.configure(workers=4)
        assert await told(made) == (4, True)


async def test_a_file_beside_the_private_listener_is_noticed(oldest: Build) -> None:
    async with lab(oldest) as made:
        made.configure(listens="include {folder}/*.part;")
        await trio.sleep(SETTLED)
        assert await told(made) == (2, True)
        (made.folder / "new.part").write_text("# nothing")
        await trio.sleep(SETTLED)
        assert await told(made) == (2, True)


async def test_not_remembered_where_a_folder_may_be_new(oldest: Build) -> None:
    async with lab(oldest) as made:
        made.configure(listens="include {folder}/*/some.conf;")
        assert await told(made) == (2, True)
        assert await told(made) == (2, True)


async def test_a_start_that_fails_is_followed_by_one_that_asks(oldest: Build) -> None:
    async with lab(oldest) as made:
        (made.folder / "access").mkdir()
        made.configure(listens="access_log {folder}/access/access.log;")
        await trio.sleep(SETTLED)
        active = await made.start()
        assert made.world.facts_seen is not None
        shutil.rmtree(made.folder / "access")  # nothing that would be noticed
        os.kill(active.master.pid, 9)
        await active.master.wait_exited()
        for reason in ("start_failed", "config_rejected"):
            with pytest.raises(SupervisorError) as failed:
                await start.start(made.world, rescue=False, cold=False)
            assert failed.value.reason == reason
