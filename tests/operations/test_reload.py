"""Reload and reopen."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.model import Verdict
from supervisor.edges import old_files, procfs
from supervisor.edges.placing import sha256_of
from supervisor.operations import facts, reload, start
from tests.operations.lab import Lab, dead, lab
from tools.nginx_cache import Build


async def test_reload(each_build: Build) -> None:
    async with lab(each_build) as made:
        active = await made.start()
        before = active.look().accepting
        made.configure(workers=3)
        ended = await reload.reload(made.world)
        assert (ended.verdict, ended.reason) == (Verdict.COMMITTED, "reloaded")
        assert ended.detail.startswith("3 workers")
        assert list(ended.phases) == ["preflight", "shifting", "soaking"]
        assert not ended.judged
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
    oldest: Build,
) -> None:
    """What the test cannot see: an address that is taken by the time nginx binds it."""
    async with lab(oldest) as made:
        active = await made.start()
        before = active.look().accepting
        other = made.world.listener.choose_port()
        import socket

        with socket.create_server(("127.0.0.1", other)):
            made.configure(listens=f"listen 127.0.0.1:{other};")
            ended = await reload.reload(made.world)
            assert (ended.verdict, ended.reason) == (Verdict.FAILED, "reload_ignored")
            assert f"bind() to 127.0.0.1:{other} failed (98: " in ended.detail
            assert active.look().accepting == before


async def test_a_master_that_dies_in_a_reload(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        os.kill(active.master.pid, signal.SIGSTOP)
        # A HUP that comes before it has stopped would be handled first.
        await made.until("the master is stopped", lambda: active.master.stopped)
        async with trio.open_nursery() as nursery:

            async def reloading() -> None:
                ended = await reload.reload(made.world)
                assert (ended.verdict, ended.reason) == (Verdict.FAILED, "not_running")

            nursery.start_soon(reloading)
            await made.until("HUP was sent", lambda: _pending(active.master.pid))
            os.kill(active.master.pid, signal.SIGKILL)
            await dead(active.master.pid)


def _pending(pid: int) -> bool:
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


# --- what runs is not what is on disk ---------------------------------------------------------


def _put(source: Path, target: Path) -> None:
    """As a package manager does: another file takes the name."""
    beside = target.with_name(".new")
    shutil.copy(source, beside)
    beside.rename(target)


def _add(made: Lab, text: str) -> None:
    """Directives at the beginning of the main context."""
    path = made.folder / "nginx.conf"
    path.write_text(f"{text}\n{path.read_text()}")


def _module(made: Lab) -> Path:
    folder = made.folder / "modules"
    folder.mkdir(exist_ok=True)
    return folder / "marker.so"


async def _reload_to(made: Lab, workers: int) -> None:
    """A change of the configuration takes effect."""
    before = made.workers
    path = made.folder / "nginx.conf"
    path.write_text(
        path.read_text().replace(f"worker_processes {before}", f"worker_processes {workers}")
    )
    made.workers = workers
    active = made.world.active
    assert active is not None
    assert (await reload.reload(made.world)).reason == "reloaded"
    assert len(active.look().accepting) == workers


@pytest.mark.parametrize("arrived", ["newer", "broken", "nothing"])
async def test_a_package_has_replaced_the_binary(
    oldest: Build, newest: Build, tmp_path: Path, arrived: str
) -> None:
    """Between its arrival and the upgrade the running nginx is reloaded, as certbot does."""
    async with lab(oldest) as made:
        active = await made.start()
        if arrived == "nothing":
            made.binary.unlink()
        else:
            broken = tmp_path / "broken"
            broken.write_text("no nginx")
            _put(newest.path if arrived == "newer" else broken, made.binary)
        await _reload_to(made, 3)
        assert active.program.version == oldest.version
        path = made.folder / "nginx.conf"
        good = path.read_text()
        _add(made, "no_such_directive on;")
        with pytest.raises(SupervisorError) as caught:
            await reload.reload(made.world)
        assert caught.value.reason == "config_rejected"
        assert "no_such_directive" in caught.value.detail
        assert f"the program of process {active.master.pid}" in caught.value.detail
        path.write_text(good)
        await _reload_to(made, 2)


@pytest.mark.needs("marker")
@pytest.mark.parametrize("arrived", ["newer", "nothing"])
async def test_a_package_has_replaced_binary_and_module(
    oldest: Build, newest: Build, arrived: str
) -> None:
    """The master has the module mapped and does not open it again; a new one it opens."""
    async with lab(oldest) as made:
        module = _module(made)
        shutil.copy(oldest.marker_module, module)
        _add(made, f"load_module {module};")
        active = await made.start()
        if arrived == "newer":
            _put(newest.path, made.binary)
            _put(newest.marker_module, module)
        else:
            module.unlink()
        await _reload_to(made, 3)
        path = made.folder / "nginx.conf"
        good = path.read_text()
        if arrived == "newer":
            assert "reload.not_tested" not in [one["event"] for one in made.log]
            _add(made, "no_such_directive on;")
            with pytest.raises(SupervisorError) as caught:
                await reload.reload(made.world)
            assert caught.value.reason == "config_rejected"
            another = module.with_name("another.so")
            shutil.copy(newest.marker_module, another)
            path.write_text(good.replace(str(module), str(another)))
            with pytest.raises(SupervisorError) as caught:
                await reload.reload(made.world)
            assert caught.value.reason == "module_mismatch"
            assert str(another) in caught.value.detail
            path.write_text(good)
        await _reload_to(made, 2)
        assert active.alive
        assert active.program.version == oldest.version


@pytest.mark.needs("marker")
async def test_a_kernel_that_gives_no_view_of_its_own(
    oldest: Build, newest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without CAP_SYS_ADMIN: then nginx itself decides at HUP."""
    monkeypatch.setattr(old_files, "_PROGRAM", f"raise SystemExit('{old_files.NO_VIEW}: so')")
    async with lab(oldest) as made:
        module = _module(made)
        shutil.copy(oldest.marker_module, module)
        _add(made, f"load_module {module};")
        active = await made.start()
        _put(newest.marker_module, module)
        await _reload_to(made, 3)
        assert "reload.not_tested" in [one["event"] for one in made.log]
        monkeypatch.setattr(reload, "RELOAD_LIMIT", 2.0)
        before = active.look().accepting
        _add(made, "no_such_directive on;")
        ended = await reload.reload(made.world)
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, "reload_ignored")
        assert active.look().accepting == before


async def test_a_configuration_that_takes_long_to_read_is_waited_for(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash of names that all sizes are tried for, as it has no room for them in any."""
    names = "\n".join(f"{hashlib.sha1(b'%d' % one).hexdigest()} 1;" for one in range(2000))
    async with lab(oldest) as made:
        await made.start()
        hashed = "map_hash_max_size 200000; map_hash_bucket_size 64;"
        config = made.folder / "nginx.conf"
        text = config.read_text()
        assert text.count("http {") == 1
        large = f"http {{ {hashed} map $host $known {{ {names} }}"
        config.write_text(text.replace("http {", large))
        monkeypatch.setattr(reload, "RELOAD_LIMIT", 0.2)
        ended = await reload.reload(made.world)
        assert (ended.verdict, ended.reason) == (Verdict.COMMITTED, "reloaded"), ended
        assert ended.phases["shifting"] > 0.2


async def test_an_executable_that_may_not_be_seen(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(oldest) as made:
        await made.start()
        monkeypatch.setattr(procfs, "executable", lambda _pid: None)
        assert facts.program_of(made.world, 1) == str(made.binary)
        await _reload_to(made, 3)


# --- what a reload changes lasts --------------------------------------------------------------


@pytest.mark.needs("marker")
async def test_a_crash_after_a_reload_that_added_a_module(oldest: Build, newest: Build) -> None:
    """What ran comes back: with the module, whatever is on disk by then."""
    async with lab(oldest) as made:
        remembered: list[str | None] = []
        made.world.remember = lambda: remembered.append(
            None if made.world.active is None else made.world.active.program.stored
        )
        active = await made.start()
        module = _module(made)
        shutil.copy(oldest.marker_module, module)
        _add(made, f"load_module {module};\nenv ADDED=1;")
        await _reload_to(made, 3)
        program = made.world.last_program
        assert program is active.program
        assert program.workers == 3
        assert program.environment == ("ADDED=1",)
        assert remembered == [program.stored]
        _put(newest.marker_module, module)
        for pid in (active.master.pid, *active.workers):
            with suppress(ProcessLookupError):  # a worker that had left
                os.kill(pid, signal.SIGKILL)
        await dead(active.master.pid)
        await made.until("it is gone", lambda: active.exit is not None and active.gone)
        await start.start(made.world, rescue=False, cold=False)
        assert made.world.active is not None
        await made.assert_serves_alone(made.world.active)
        assert sha256_of(module) == sha256_of(oldest.marker_module)


async def test_a_reload_that_moves_the_pid_file_moves_the_lock(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        path = made.folder / "nginx.conf"
        text = path.read_text()
        moved = made.folder / "logs" / "moved.pid"
        path.write_text(text.replace(f"pid {made.pid_path};", f"pid {moved};"))
        assert str(moved) not in made.locked
        await reload.reload(made.world)
        assert made.locked[-1] == str(moved)
        assert made.world.pid_path == str(moved)
        assert moved.read_text().strip() == str(active.master.pid)
        assert not made.pid_path.exists()


async def test_a_pid_file_that_another_supervises_is_not_taken(oldest: Build) -> None:
    def taken(path: str) -> None:
        raise Refusal("already_supervised", f"cannot supervise {path}")

    async with lab(oldest) as made:
        active = await made.start()
        before = active.look().accepting
        path = made.folder / "nginx.conf"
        text = path.read_text()
        path.write_text(text.replace("nginx.pid", "logs/moved.pid"))
        made.world.lock = taken
        with pytest.raises(SupervisorError) as caught:
            await reload.reload(made.world)
        assert caught.value.reason == "already_supervised"
        assert active.look().accepting == before
        assert "SIGHUP" not in made.error_log
        path.write_text(text)
        await made.assert_serves_alone(active)
