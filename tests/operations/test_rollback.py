"""Rollbacks on real nginx; a stopped old master makes signals coalesce, so that races are certain.

Each ends the same way: the old generation alone, exact in its workers, its pid file and the disk.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.core.errors import OperationFailed
from supervisor.core.rollback import Limits
from supervisor.edges import procfs, socket_owners
from supervisor.edges.generation import Generation
from supervisor.edges.launch import Launch
from supervisor.operations import shift, spawn, start
from tests.operations.lab import LIMIT, QUICK, Lab, dead, freeze, freeze_now, lab, pending
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

PATIENT = replace(
    QUICK, winch=LIMIT, self_revive=LIMIT, revive=LIMIT, react=LIMIT, drain=LIMIT, term=LIMIT
)
"""For what does react, however busy the machine is: no harsher step comes in between."""


async def test_before_the_shift_no_hup_is_sent(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        done = await made.roll_back(PATIENT)
        assert done.relaunched is None
        assert made.steps() == ["quit_candidate"]
        assert not new.alive
        await made.assert_serves_alone(old)


async def test_after_the_shift_hup_is_sent_once(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_soak(newest.path, newest.version)
        await made.roll_back(PATIENT)
        assert made.steps() == ["hup_old", "quit_candidate"]
        await made.assert_serves_alone(old)


async def test_race_a_winch_is_still_pending_when_the_rollback_begins(
    old_build: Build, newest: Build
) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        await freeze(old.master.pid)
        await _begin_shift(made, old)
        assert made.world.run is not None
        assert made.world.run.winch_workers
        assert procfs.brood_of(procfs.children(old.master.pid)).accepting
        await made.roll_back()
        await made.assert_serves_alone(old)


async def _begin_shift(made: Lab, old: Generation) -> None:
    """As far as WINCH to the old master, which is frozen."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shift.shift, made.world)
        await pending(old.master.pid, signal.SIGWINCH)
        nursery.cancel_scope.cancel()


async def test_race_a_somebody_else_sends_hup_beside_our_winch(
    old_build: Build, newest: Build
) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        await freeze(old.master.pid)
        await _begin_shift(made, old)
        os.kill(old.master.pid, signal.SIGHUP)
        os.kill(old.master.pid, signal.SIGCONT)
        await made.until(
            "HUP was handled and WINCH was not",
            lambda: len(procfs.brood_of(procfs.children(old.master.pid)).accepting) == 4,
        )
        await made.roll_back()
        await made.assert_serves_alone(old)


async def test_a_shift_gets_through_race_a(old_build: Build, newest: Build) -> None:
    """The same coalescing must not cost the upgrade: the shift completes."""
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        await freeze(old.master.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shift.shift, made.world)
            await pending(old.master.pid, signal.SIGWINCH)
            os.kill(old.master.pid, signal.SIGHUP)
            os.kill(old.master.pid, signal.SIGCONT)
        assert not procfs.brood_of(procfs.children(old.master.pid)).accepting
        await made.roll_back()
        await made.assert_serves_alone(old)


def _on_step(made: Lab, step: str, do: Any) -> None:
    """Do something in the moment between the decision for `step` and the step itself."""

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "rollback.step" and event["step"] == step:
            made.told.remove(hear)
            do()

    made.told.append(hear)


async def test_race_b_the_candidate_dies_beside_our_hup(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_soak(newest.path, newest.version)

        def die() -> None:
            freeze_now(old.master.pid)
            os.kill(new.master.pid, signal.SIGKILL)

        _on_step(made, "hup_old", die)
        await made.roll_back()
        assert "reconfiguring" in made.error_log  # a true reload: the race did happen
        await made.assert_serves_alone(old)


async def test_race_b_with_a_configuration_that_the_old_version_rejects(
    old_build: Build, newest: Build
) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_soak(newest.path, newest.version)
        good = (made.folder / "nginx.conf").read_text()

        def die() -> None:
            made.break_configuration()
            freeze_now(old.master.pid)
            os.kill(new.master.pid, signal.SIGKILL)

        _on_step(made, "hup_old", die)
        done = await made.roll_back()
        # The old workers serve by what is in memory; only the disk's next cold start would fail.
        assert "rejects the configuration on disk" in done.note
        (made.folder / "nginx.conf").write_text(good)
        await made.assert_serves_alone(old)


async def test_race_c_the_candidate_dies_just_before_winch(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        new.signal_workers(signal.SIGTERM)
        await freeze(old.master.pid)
        os.kill(new.master.pid, signal.SIGKILL)
        await dead(new.master.pid)
        async with trio.open_nursery() as nursery:

            async def shifting() -> None:
                with pytest.raises(OperationFailed) as caught:
                    await shift.shift(made.world)
                assert caught.value.reason == "candidate_exited"

            nursery.start_soon(shifting)
            await pending(old.master.pid, signal.SIGWINCH)
            os.kill(old.master.pid, signal.SIGCONT)
        assert not procfs.brood_of(procfs.children(old.master.pid)).accepting
        await made.roll_back()
        assert "hup_old" in made.steps()
        await made.assert_serves_alone(old)


async def test_a_true_reload_in_a_rollback_does_not_open_the_probe_listener(
    oldest: Build, newest: Build
) -> None:
    """The include is as before the upgrade when the old master reads its configuration again."""
    async with lab(oldest) as made:
        await made.start()
        run = made.offer(newest.path, newest.version)
        ports = made.world.listener.choose_ports(())
        run.port = ports.plain
        run.include_text = made.world.listener.text()
        run.include_written = True
        made.world.listener.write(ports)
        await spawn.spawn(made.world)
        old = made.world.active
        assert old is not None
        os.kill(old.master.pid, signal.SIGHUP)
        await made.until(
            "a second set of workers",
            lambda: len(procfs.brood_of(procfs.children(old.master.pid)).accepting) == 4,
        )
        await made.roll_back()
        assert made.steps()[-1] == "reload_old"
        assert not (made.folder / "probe.conf").exists()
        assert not _listens_on_probe_port(made)
        await made.assert_serves_alone(old)


def _listens_on_probe_port(made: Lab) -> bool:
    active = made.world.active
    assert active is not None
    assert made.world.run is not None
    port = made.world.run.port
    assert port is not None
    listening = socket_owners.listening_inodes(port)
    return bool(listening & socket_owners.inodes_of(active.master.pid))


async def test_a_double_set_of_workers_is_reduced(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        for count in (4, 6):
            os.kill(old.master.pid, signal.SIGHUP)
            await made.until(
                "one more set of workers",
                lambda count=count: (
                    len(procfs.brood_of(procfs.children(old.master.pid)).accepting) == count
                ),
            )
        await made.roll_back(PATIENT)
        assert made.steps() == ["quit_candidate", "reload_old"]
        await made.assert_serves_alone(old)


# --- candidates that do not obey -----------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True], ids=["canary", "soak"])
async def test_stopped_candidate(old_build: Build, newest: Build, *, shifted: bool) -> None:
    async with lab(old_build) as made:
        await made.start()
        go = made.to_soak if shifted else made.to_canary
        old, new = await go(newest.path, newest.version)
        await freeze(new.master.pid)
        await made.roll_back(PATIENT)
        assert made.steps()[-2:] == ["quit_workers", "kill_candidate"]
        await made.assert_serves_alone(old)


@pytest.mark.parametrize("shifted", [False, True], ids=["canary", "soak"])
@pytest.mark.parametrize("kind", ["spin_master", "deaf_master", "hang_workers"])
async def test_candidate_that_does_not_react(
    oldest: Build, newest: Build, kind: str, *, shifted: bool
) -> None:
    async with lab(oldest) as made:
        await made.start()
        knobs = {} if kind == "deaf_master" else {"delay_ms": 100}
        bad = candidate(newest, kind, **knobs)
        go = made.to_soak if shifted else made.to_canary
        old, new = await go(bad, newest.version)
        if kind == "spin_master":
            naps = _naps(new.master.pid)
            await made.until("it spins", lambda: _naps(new.master.pid) > naps + 50)
        await made.roll_back()
        await made.assert_serves_alone(old)


def _naps(pid: int) -> int:
    """How often it went to sleep: a master that waits for signals does so once for each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


async def test_candidate_that_hangs_before_its_pid_file(oldest: Build, newest: Build) -> None:
    async with lab(oldest) as made:
        old = await made.start()
        made.offer(candidate(newest, "hang"), newest.version)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawn.spawn, made.world)
            await made.until("it is seen", lambda: made.world.candidate is not None)
            nursery.cancel_scope.cancel()
        await made.roll_back()
        assert made.steps() == ["kill_candidate"]
        await made.assert_serves_alone(old)


async def test_candidate_that_has_not_appeared_yet(old_build: Build, newest: Build) -> None:
    """USR2 is pending at a stopped master: what it will start must not be overlooked."""
    async with lab(old_build) as made:
        old = await made.start()
        made.offer(newest.path, newest.version)
        await freeze(old.master.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawn.spawn, made.world)
            await pending(old.master.pid, signal.SIGUSR2)
            await trio.sleep(0.3)  # it is not told to be ignored: a pending signal is none
            nursery.cancel_scope.cancel()
        assert made.world.candidate is None
        await made.roll_back()
        assert "start new binary process" in made.error_log
        await made.assert_serves_alone(old)


async def test_workers_of_a_killed_candidate_are_ended(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_soak(newest.path, newest.version)
        orphans = new.look().accepting
        assert len(orphans) == made.workers
        os.kill(new.master.pid, signal.SIGKILL)
        await dead(new.master.pid)
        await made.roll_back(PATIENT)
        assert "quit_workers" in made.steps()
        assert "hup_old" not in made.steps()  # nginx revives its workers by itself
        await made.assert_serves_alone(old)


async def test_orphans_that_hang_are_killed(oldest: Build, newest: Build) -> None:
    async with lab(oldest) as made:
        await made.start()
        old, new = await made.to_soak(
            candidate(newest, "hang_workers", delay_ms=100), newest.version
        )
        await made.until("nobody answers", lambda: _is_silent(made))
        os.kill(new.master.pid, signal.SIGKILL)
        await made.roll_back()
        assert "kill_workers" in made.steps()
        await made.assert_serves_alone(old)


def _is_silent(made: Lab) -> bool:
    try:
        made.ask(timeout=0.2)
    except TimeoutError:
        return True
    return False


# --- old masters that are gone -------------------------------------------------------------


async def test_old_master_killed_in_the_canary(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        os.kill(old.master.pid, signal.SIGKILL)
        await dead(old.master.pid)
        done = await made.roll_back()
        assert made.steps()[0] == "relaunch_old"
        assert done.relaunched is not None
        fresh = made.world.generations.get(done.relaunched)
        assert fresh is not None
        await made.end_retiring()
        await made.assert_serves_alone(fresh)


async def test_both_masters_killed(old_build: Build, newest: Build) -> None:
    async with lab(old_build) as made:
        await made.start()
        old, new = await made.to_soak(newest.path, newest.version)
        os.kill(old.master.pid, signal.SIGKILL)
        os.kill(new.master.pid, signal.SIGKILL)
        await dead(old.master.pid)
        await dead(new.master.pid)
        done = await made.roll_back()
        fresh = made.world.generations.get(done.relaunched)
        assert fresh is not None
        await made.end_retiring()
        await made.assert_serves_alone(fresh)


async def test_what_was_started_in_its_place_is_killed_as_well(
    oldest: Build, newest: Build
) -> None:
    """Everything dies again while the candidate is being ended: nothing else would start nginx."""
    async with lab(oldest) as made:
        await made.start()
        old, _ = await made.to_soak(newest.path, newest.version)
        os.kill(old.master.pid, signal.SIGKILL)
        await dead(old.master.pid)

        def strike() -> None:
            for each in list(made.world.generations):
                for process in (each.master, *each.workers.values()):
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

        _on_step(made, "quit_candidate", strike)
        done = await made.roll_back()
        assert made.steps().count("relaunch_old") == 2
        fresh = made.world.generations.get(done.relaunched)
        assert fresh is not None
        await made.end_retiring()
        await made.assert_serves_alone(fresh)


async def test_what_starts_in_its_place_is_killed_before_it_is_ready(
    oldest: Build, newest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(oldest) as made:
        await made.start()
        old, _ = await made.to_canary(newest.path, newest.version)
        os.kill(old.master.pid, signal.SIGKILL)
        await dead(old.master.pid)
        killed: list[int] = []
        prove = start._prove_ready

        async def kill_first(launching: Launch, fresh: Generation, *rest: Any) -> None:
            if len(killed) < 2:
                killed.append(fresh.master.pid)
                os.kill(fresh.master.pid, signal.SIGKILL)
            await prove(launching, fresh, *rest)

        monkeypatch.setattr(start, "_prove_ready", kill_first)
        done = await made.roll_back()
        assert made.steps().count("relaunch_old") == 3
        fresh = made.world.generations.get(done.relaunched)
        assert fresh is not None
        await made.end_retiring()
        await made.assert_serves_alone(fresh)


# --- the rollback itself is disturbed ------------------------------------------------------


async def test_cancelled_at_each_step_and_begun_again(oldest: Build, newest: Build) -> None:
    async with lab(oldest) as made:
        await made.start()
        old, _ = await made.to_soak(newest.path, newest.version)
        for step in ("hup_old", "quit_candidate"):
            if step in made.steps():
                break  # nginx was so quick that the cancelled one still came to it
            with trio.CancelScope() as scope:
                _on_step(made, step, scope.cancel)
                await made.roll_back()
            assert scope.cancelled_caught
        await made.roll_back()
        await made.assert_serves_alone(old)


async def test_nothing_comes_back(oldest: Build, newest: Build) -> None:
    """An old master that cannot start workers: an error says what is seen, no endless loop."""
    async with lab(oldest) as made:
        await made.start()
        old, new = await made.to_canary(newest.path, newest.version)
        new.signal_workers(signal.SIGKILL)
        await freeze(old.master.pid)
        os.kill(new.master.pid, signal.SIGKILL)
        await dead(new.master.pid)
        async with trio.open_nursery() as nursery:

            async def shifting() -> None:
                with suppress(OperationFailed):
                    await shift.shift(made.world)

            nursery.start_soon(shifting)
            await pending(old.master.pid, signal.SIGWINCH)
            nursery.cancel_scope.cancel()
        made.break_configuration()  # and race C, so that only a reload could help
        limits = Limits(winch=0.2, self_revive=0.2, revive=0.2, react=0.2, drain=0.2)
        with pytest.raises(OperationFailed) as caught:
            await made.roll_back(limits)
        assert caught.value.reason == "rollback_failed"
        assert made.steps().count("hup_old") == 3
        made.configure()
        await made.roll_back(QUICK)
        await made.assert_serves_alone(old)
