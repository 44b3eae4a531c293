"""A supervisor finds what lives: by its record, by the pid file, and nothing by a pid alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from supervisor.core import commands
from supervisor.core.errors import Refusal
from supervisor.core.events import Succeeded
from supervisor.core.settings import nginx_argv
from supervisor.edges import pidfile, procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.journal import History
from supervisor.edges.runtime_state import KnownMaster, RuntimeState
from supervisor.operations import ending, pidfiles, preflight, recover, shift, start
from supervisor.operations.adoption import on_record
from supervisor.operations.world import UpgradeRun
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build


def _record(made: Lab, *generations: Generation) -> None:
    """What the supervisor that then died had on disk."""
    RuntimeState(made.folder / "state").save(on_record(generations))


def _forget(made: Lab) -> None:
    """The supervisor is dead: its successor knows nothing but what is on disk."""
    for generation in list(made.world.generations):
        made.world.generations.drop(generation)
    made.world.run = None
    made.world.last_program = None
    made.world.sessions.clear()
    made.world.pid_path = ""


async def _recover(made: Lab) -> Succeeded | None:
    state = made.folder / "state"
    return await recover.recover(made.world, RuntimeState(state), History(state))


async def test_adopted_by_the_record(each_build: Build) -> None:
    async with lab(each_build) as made:
        active = await made.start()
        made.world.generations.reserve()
        _record(made, active)
        pid = active.master.pid
        _forget(made)
        found = await _recover(made)
        assert found is not None
        assert found.generation == active.id
        adopted = made.world.active
        assert adopted is not None
        assert adopted.master.pid == pid
        assert set(adopted.workers) == set(procfs.children(pid))
        await made.assert_serves_alone(adopted)


async def test_adopted_by_the_pid_file(each_build: Build) -> None:
    """Started by hand or by a distribution's unit: nobody has it on record."""
    async with lab(each_build) as made:
        argv = [str(made.binary), "-p", f"{made.folder}/", "-c", str(made.folder / "nginx.conf")]
        await trio.run_process(argv)
        await made.until("it serves", lambda: len(made.processes()) == 1 + made.workers)
        found = await _recover(made)
        assert found is not None
        adopted = made.world.active
        assert adopted is not None
        assert adopted.program.version == each_build.version
        assert adopted.program.stored is not None
        await made.assert_serves_alone(adopted)


async def test_a_pid_file_that_names_a_foreign_process(oldest: Build) -> None:
    """It is neither adopted nor ever signalled, and nginx is started."""
    async with lab(oldest) as made:
        with subprocess.Popen(["sleep", "60"]) as foreign:
            made.pid_path.write_text(f"{foreign.pid}\n")
            assert await _recover(made) is None
            active = await made.start()
            await made.assert_serves_alone(active)
            deadlines = ending.Deadlines(quit=2, term=1, kill=3)
            await ending.stop_all(made.world, deadlines, now=False)
            assert foreign.poll() is None
            foreign.kill()


async def test_a_pid_file_that_is_a_planted_link(oldest: Build) -> None:
    async with lab(oldest) as made:
        (made.folder / "target").write_text(f"{os.getpid()}\n")
        made.pid_path.symlink_to(made.folder / "target")
        assert await _recover(made) is None
        assert made.world.active is None


async def test_orphans_of_a_master_that_died_with_its_supervisor(oldest: Build) -> None:
    """They serve on until another master does; what else is in their session is left alone."""
    async with lab(oldest) as made:
        active = await made.start()
        workers = set(active.look().accepting)
        _record(made, active)
        active.master.send(signal.SIGKILL)
        await active.master.wait_exited()
        await active.master.exit_status()  # reaped: the workers have another parent by now
        _forget(made)
        assert await _recover(made) is None
        (orphaned,) = made.world.generations
        assert orphaned.role is Role.RETIRING
        assert not orphaned.alive
        assert set(orphaned.workers) == workers
        again = await made.start()
        assert set(again.look().accepting).isdisjoint(workers)
        assert orphaned.look().accepting == workers
        orphaned.signal_workers(signal.SIGQUIT)
        await orphaned.all_exited()
        made.world.generations.drop(orphaned)
        await made.assert_serves_alone(again)


async def test_the_pid_file_of_an_old_master_that_was_killed(oldest: Build) -> None:
    """Its supervisor died before it could remove it; one of a living process is somebody's."""
    async with lab(oldest) as made:
        active = await made.start()
        oldbin = pidfile.oldbin_path(made.pid_path)
        with subprocess.Popen(["true"]) as dead_by_now:
            dead_by_now.wait()
        for pid, stays in ((dead_by_now.pid, False), (os.getpid(), True)):
            oldbin.write_text(f"{pid}\n")
            _record(made, active)
            _forget(made)
            assert await _recover(made) is not None
            assert oldbin.exists() is stays
            active = made.world.active
            assert active is not None


@pytest.mark.parametrize("change", ["start_ticks", "boot_id"])
async def test_a_master_on_record_that_is_another_process(oldest: Build, change: str) -> None:
    async with lab(oldest) as made:
        with subprocess.Popen(["sleep", "60"]) as foreign:
            stat = procfs.read_stat(foreign.pid)
            assert stat is not None
            known = KnownMaster(
                generation=1, pid=foreign.pid,
                start_ticks=stat.start - (change == "start_ticks"),
                boot_id="another" if change == "boot_id" else procfs.boot_id(),
                version="1", sha256="", version_id="", role="active", pid_path=str(made.pid_path),
            )  # fmt: skip
            RuntimeState(made.folder / "state").save([known])
            assert await _recover(made) is None
            foreign.kill()


@pytest.mark.parametrize("phase", ["spawning", "canary", "shifting", "soaking"])
async def test_an_upgrade_that_a_dead_supervisor_left(
    oldest: Build, newest: Build, phase: str
) -> None:
    async with lab(oldest) as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        if phase == "soaking":
            await shift.shift(made.world)
        run = made.world.run
        assert run is not None
        warning = {"guard": "quic", "severity": "warning", "detail": "best effort"}
        record = {
            "upgrade_id": run.id, "phase": phase, "candidate": new.id, "active": old.id,
            "previous": run.previous, "to_version": run.to_version, "include_written": False,
            "warnings": [{**warning, "more": 1}, {**warning, "detail": 1}, "nonsense"],
        }  # fmt: skip
        made.world.journal.append(record)
        _record(made, *((old,) if phase == "spawning" else (old, new)))
        pid = old.master.pid
        _forget(made)
        found = await _recover(made)
        assert found is not None
        assert found.interrupted is not None
        assert found.interrupted.upgrade_id == run.id
        assert not found.interrupted.committed
        assert made.world.run is not None
        assert made.world.run.warnings == [warning]
        await made.roll_back()
        active = made.world.active
        assert active is not None
        assert active.master.pid == pid
        await made.assert_serves_alone(active)


async def test_two_masters_that_no_record_explains(oldest: Build) -> None:
    """One of them is active, the other is left alone and said; no upgrade begins."""
    async with lab(oldest) as made:
        first = await made.start()
        second = await start.relaunch(made.world, first.program, [first])
        await pidfiles.settle_pid_file(made.world, second)
        _forget(made)
        found = await _recover(made)
        assert found is not None
        assert not found.retiring
        active = made.world.active
        assert active is not None
        assert active.master.pid == second.master.pid
        (other,) = [one for one in made.world.generations if one is not active]
        assert other.master.pid == first.master.pid
        said = [line for line in made.log if line["event"] == "generation.unexplained"]
        assert [each["pid"] for each in said] == [first.master.pid]
        # The next supervisor leaves it alone as well.
        _record(made, *made.world.generations)
        _forget(made)
        found = await _recover(made)
        assert found is not None
        assert not found.retiring
        active = made.world.active
        assert active is not None
        assert active.master.pid == second.master.pid
        assert [one.bystander for one in made.world.generations if one is not active] == [True]
        made.world.run = UpgradeRun(id="u1")
        with pytest.raises(Refusal) as caught:
            await preflight.prepare(made.world, commands.Upgrade())
        assert caught.value.reason == "foreign_upgrade"
        assert f"kill -QUIT {first.master.pid}" in caught.value.detail
        os.kill(first.master.pid, signal.SIGQUIT)
        await made.until("it is forgotten", lambda: list(made.world.generations) == [active])
        await made.until("the pid file, which it has deleted, is back", made.pid_path.exists)
        await made.assert_serves_alone(active)


@pytest.mark.parametrize("foreign", ["configuration", "network"])
async def test_a_master_of_another_site_in_our_cgroup(oldest: Build, foreign: str) -> None:
    """It runs the same file; what tells it apart is what it listens on, and where."""
    async with lab(oldest) as made:
        other = made.folder / "other.conf"
        text = (made.folder / "nginx.conf").read_text()
        other.write_text(text.replace(f":{made.port};", f":{made.world.listener.choose_port()};"))
        config = other if foreign == "configuration" else made.folder / "nginx.conf"
        argv = [str(made.binary), "-p", f"{made.folder}/", "-c", str(config)]
        await trio.run_process(["unshare", "-n", *argv] if foreign == "network" else argv)
        await made.until("it serves", lambda: len(made.processes()) == 1 + made.workers)
        made.pid_path.unlink()
        assert await _recover(made) is None
        assert not list(made.world.generations)


LAUNCHING = """
import sys, trio
from supervisor.edges.capture import Capture
from supervisor.edges.launch import Launch

async def main():
    async with await Launch.begin(sys.argv[1:], {}, output=Capture.create()) as launching:
        print(launching.master.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_supervisor_that_died_in_the_middle_of_a_launch(
    oldest: Build, newest: Build
) -> None:
    """nginx has recorded the intermediate as its parent: left there, it takes no USR2."""
    async with lab(oldest) as made:
        nginx = made.world.settings.nginx
        argv = [nginx.binary, *nginx_argv(nginx)]
        with subprocess.Popen(
            [sys.executable, "-c", LAUNCHING, *argv], stdout=subprocess.PIPE
        ) as supervisor:
            assert supervisor.stdout is not None
            pid = int(supervisor.stdout.readline())
            supervisor.kill()  # nginx is not ready yet, as a rule
        found = await _recover(made)
        assert found is not None
        active = made.world.active
        assert active is not None
        assert active.master.pid == pid
        (said,) = [line for line in made.log if line["event"] == "launch.leftover_ended"]
        assert said["master"] == pid
        await made.to_canary(newest.path, newest.version)
        await made.roll_back()
        await made.assert_serves_alone(active)


async def test_nothing_is_there(oldest: Build, tmp_path: Path) -> None:
    async with lab(oldest) as made:
        assert await _recover(made) is None
        assert made.locked == [str(made.pid_path)]
