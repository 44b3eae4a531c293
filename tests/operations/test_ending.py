"""Stopping: in which order, what is left of masters that do not obey, and the pid files."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest
import trio
import trio.testing

from supervisor.operations import ending, spawn
from tests.operations.lab import Lab, accepted, dead, freeze, lab, pending
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

QUICK = ending.Deadlines(quit=2.0, term=1.0, kill=3.0)


def _assert_nothing_left(made: Lab) -> None:
    assert made.processes() == []
    assert list(made.world.generations) == []
    assert not made.pid_path.exists()
    assert not made.oldbin_path.exists()


async def test_stop(each_build: Build) -> None:
    async with lab(each_build, listens="listen unix:{folder}/nginx.sock;") as made:
        active = await made.start()
        await ending.stop_all(made.world, QUICK, now=False)
        assert active.exit is not None
        assert active.exit.orderly
        _assert_nothing_left(made)
        # The next start is not kept from it by what this stop left behind, on any version.
        await made.assert_serves_alone(await made.start())


async def test_the_candidate_is_stopped_first(old_build: Build, newest: Build) -> None:
    async with lab(old_build, listens="listen unix:{folder}/nginx.sock;") as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        await ending.stop_all(made.world, QUICK, now=False)
        log = made.error_log
        assert f"new binary process {new.master.pid} exited with code 0" in log
        # After the # stands the thread's id, and 0 in a build without threads.
        last_words = re.search(rf"{old.master.pid}#\d+: exit\n", log)
        assert last_words is not None
        assert log.index(f"new binary process {new.master.pid} exited") < last_words.start()
        _assert_nothing_left(made)
        # What an upgrade had put on disk is undone by a stop.
        await made.assert_serves_alone(await made.start())


async def test_stop_beside_a_candidate_that_is_about_to_appear(
    old_build: Build, newest: Build
) -> None:
    """USR2 was sent and the upgrade cancelled: its child must not outlive the stop."""
    async with lab(old_build) as made:
        old = await made.start()
        made.offer(newest.path, newest.version)
        await freeze(old.master.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawn.spawn, made.world)
            await pending(old.master.pid, signal.SIGUSR2)
            nursery.cancel_scope.cancel()
        assert made.world.candidate is None
        os.kill(old.master.pid, signal.SIGCONT)
        await ending.stop_all(made.world, QUICK, now=False)
        _assert_nothing_left(made)


async def test_a_stopped_master_is_ended_as_soon_as_its_workers_are(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        await freeze(active.master.pid)
        began = trio.current_time()
        await ending.stop_all(
            made.world, ending.Deadlines(quit=60.0, term=60.0, kill=5.0), now=False
        )
        assert trio.current_time() - began < 50
        _assert_nothing_left(made)


@pytest.mark.parametrize("kind", ["spin_master", "deaf_master", "hang_workers"])
async def test_what_does_not_obey_is_killed(oldest: Build, newest: Build, kind: str) -> None:
    async with lab(oldest) as made:
        await made.start()
        knobs = {} if kind == "deaf_master" else {"delay_ms": 100}
        _, new = await made.to_canary(candidate(newest, kind, **knobs), newest.version)
        deadlines = ending.Deadlines(quit=0.6, term=0.3, kill=3.0)
        await ending.stop_all(made.world, deadlines, now=False)
        assert not new.alive
        _assert_nothing_left(made)


async def test_stop_now_cuts_connections(oldest: Build) -> None:
    async with lab(oldest) as made:
        await made.start()
        with socket.create_connection(("127.0.0.1", made.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")  # and never the end of it
            await accepted(client)
            began = trio.current_time()
            await ending.stop_all(
                made.world, ending.Deadlines(quit=60.0, term=5.0, kill=5.0), now=True
            )
            assert trio.current_time() - began < 50
        _assert_nothing_left(made)


async def test_drain_waits_for_connections_until_it_is_hastened(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        hasten = trio.Event()
        with socket.create_connection(("127.0.0.1", made.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            await accepted(client)
            client_known = lambda: active.look().draining  # noqa: E731
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    ending.drain,
                    made.world,
                    active,
                    ending.Deadlines(quit=60.0, term=5.0, kill=5.0),
                    hasten,
                )
                await made.until("it drains", client_known)
                assert active.alive
                hasten.set()
        assert made.processes() == []


async def test_orphans_are_ended_too(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        os.kill(active.master.pid, signal.SIGKILL)
        await dead(active.master.pid)
        assert len(made.processes()) == made.workers
        await ending.stop_all(made.world, QUICK, now=False)
        _assert_nothing_left(made)


async def test_a_worker_that_nobody_knew_is_found(oldest: Build) -> None:
    """A master forks, then is killed before anyone looked: its late worker is a stray."""
    async with lab(oldest) as made:
        active = await made.start()
        late = sorted(active.look().workers)[0]
        active.workers.pop(late).close()
        os.kill(active.master.pid, signal.SIGKILL)
        await dead(active.master.pid)
        assert late in made.world.find_strays(active) or late in active.workers
        await ending.stop_all(made.world, QUICK, now=False)
        _assert_nothing_left(made)


async def test_a_master_that_is_killed_in_the_drain(oldest: Build) -> None:
    """Its workers were not told by it: they must not accept until the drain's deadline."""
    async with lab(oldest) as made:
        active = await made.start()
        await freeze(active.master.pid)
        active.signal_workers(signal.SIGSTOP)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                ending.drain,
                made.world,
                active,
                ending.Deadlines(quit=60.0, term=60.0, kill=5.0),
                made.world.hasten,
            )
            await trio.testing.wait_all_tasks_blocked()
            os.kill(active.master.pid, signal.SIGKILL)
            active.signal_workers(signal.SIGCONT)
        assert trio.current_time() - began < 50
        assert made.processes() == []
