"""Reload and reopen."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from supervisor.core.errors import SupervisorError
from supervisor.operations import reload
from tests.operations.lab import dead, lab
from tools.nginx_cache import Build


async def test_reload(each_build: Build) -> None:
    async with lab(each_build) as made:
        active = await made.start()
        before = active.look().accepting
        made.configure(workers=3)
        reason, detail = await reload.reload(made.world)
        assert reason == "reloaded"
        assert detail.startswith("3 workers")
        assert not before & active.look().accepting
        assert active.program.workers == 3
        assert made.world.config_matches()
        await made.assert_serves_alone(active)


async def test_a_rejected_configuration_is_not_loaded(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        before = active.look().accepting
        text = (made.folder / "nginx.conf").read_text()
        made.break_configuration()
        with pytest.raises(SupervisorError) as caught:
            await reload.reload(made.world)
        assert caught.value.reason == "config_rejected"
        assert "this" in caught.value.detail
        assert active.look().accepting == before
        assert "SIGHUP" not in made.error_log
        (made.folder / "nginx.conf").write_text(text)
        await made.assert_serves_alone(active)


async def test_a_reload_that_nginx_drops_is_told(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test cannot see: an address that is taken by the time nginx binds it."""
    monkeypatch.setattr(reload, "RELOAD_LIMIT", 3.5)
    async with lab(oldest) as made:
        active = await made.start()
        before = active.look().accepting
        other = made.world.listener.choose_port()
        import socket

        with socket.create_server(("127.0.0.1", other)):
            made.configure(listens=f"listen 127.0.0.1:{other};")
            with pytest.raises(SupervisorError) as caught:
                await reload.reload(made.world)
            assert caught.value.reason == "reload_ignored"
            assert active.look().accepting == before


async def test_a_master_that_dies_in_a_reload(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        os.kill(active.master.pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def reloading() -> None:
                with pytest.raises(SupervisorError) as caught:
                    await reload.reload(made.world)
                assert caught.value.reason == "not_running"

            nursery.start_soon(reloading)
            await made.until("HUP was sent", lambda: _pending(active.master.pid))
            os.kill(active.master.pid, signal.SIGKILL)
            await dead(active.master.pid)


def _pending(pid: int) -> bool:
    from supervisor.edges import procfs

    return procfs.pending(pid, signal.SIGHUP)


async def test_reopen_reaches_every_generation(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        (made.folder / "error.log").rename(made.folder / "error.log.1")
        said = reload.reopen(made.world)
        assert f"g{old.id}" in said
        assert f"g{new.id}" in said
        pids = [*made.processes()]
        target = str(made.folder / "error.log")
        await made.until(
            "every process writes to the new file",
            lambda: all(target in _targets(pid) for pid in pids),
        )
        await made.roll_back()
        await made.assert_serves_alone(old)


def _targets(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
    return found
