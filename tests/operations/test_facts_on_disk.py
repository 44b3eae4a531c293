"""What nginx told is used again for a crash start, while nothing that it depends on changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from supervisor.core.errors import SupervisorError
from supervisor.operations import start
from supervisor.operations.facts import facts_on_disk
from tests.e2e.harness.site import put
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build


async def told(made: Lab) -> tuple[int, bool]:
    """How many workers the configuration asks for, and whether nginx was asked for that."""
    before = made.world.facts_seen
    facts = await facts_on_disk(made.world)
    return facts.workers, before is None or made.world.facts_seen is not before


def other_workers(made: Lab) -> None:
    made.configure(workers=3)


def a_new_file_in_an_empty_folder(made: Lab) -> None:
    (made.folder / "conf.d" / "new.conf").write_text("# nothing")


def another_binary(made: Lab) -> None:
    put(made.build.path, made.binary)


def another_environment(made: Lab) -> None:
    world = made.world
    nginx = replace(world.settings.nginx, environment=MappingProxyType({"TZ": "UTC"}))
    world.settings = replace(world.settings, nginx=nginx)


@pytest.mark.parametrize(
    "change", [other_workers, a_new_file_in_an_empty_folder, another_binary, another_environment]
)
async def test_asked_again_after_a_change(oldest: Build, change: Callable[[Lab], None]) -> None:
    async with lab(oldest) as made:
        (made.folder / "conf.d").mkdir()
        made.configure(listens="include {folder}/conf.d/*.conf;")
        assert await told(made) == (2, True)
        assert await told(made) == (2, False)
        change(made)
        assert await told(made) == (made.workers, True)
        assert await told(made) == (made.workers, False)


async def test_not_remembered_where_a_folder_may_be_new(oldest: Build) -> None:
    async with lab(oldest) as made:
        made.configure(listens="include {folder}/*/some.conf;")
        assert await told(made) == (2, True)
        assert await told(made) == (2, True)


async def test_a_start_that_fails_is_followed_by_one_that_asks(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        assert made.world.facts_seen is not None
        status = os.stat(made.folder / "nginx.conf")
        text = (made.folder / "nginx.conf").read_text()
        broken = text.replace("worker_processes", "workers_process?")
        (made.folder / "nginx.conf").write_text(broken.ljust(len(text)))
        os.utime(made.folder / "nginx.conf", ns=(status.st_atime_ns, status.st_mtime_ns))
        os.kill(active.master.pid, 9)
        await active.master.wait_exited()
        for reason in ("start_failed", "config_rejected"):
            with pytest.raises(SupervisorError) as failed:
                await start.start(made.world, rescue=False, cold=False)
            assert failed.value.reason == reason
