"""Cold starts, crash starts on the sockets of orphans, and starts that fail."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Role
from supervisor.edges.process import Process
from supervisor.operations import choice, start
from supervisor.operations.facts import Facts
from supervisor.operations.listeners import hold
from supervisor.operations.world import World
from tests.operations.lab import Lab, dead, lab
from tools.nginx_builds import candidate
from tools.nginx_cache import Build


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_cold_start_serves_and_can_be_upgraded(each_build: Build) -> None:
    async with lab(each_build) as made:
        active = await made.start()
        assert procfs.read_stat(active.master.pid).parent == os.getpid()  # type: ignore[union-attr]  # it lives
        await made.assert_serves_alone(active)


async def test_a_crash_start_takes_the_sockets_of_orphans(each_build: Build) -> None:
    """Under load: the orphans serve until the new master does, so that nobody is refused."""
    async with lab(each_build) as made:
        dying = await made.start()
        load = Load(made)
        with load:
            os.kill(dying.master.pid, signal.SIGKILL)
            await dead(dying.master.pid)
            done = await start.start(made.world, rescue=False, cold=False)
            assert done.retiring == {dying.id}
            assert dying.role is Role.RETIRING
            await made.end_retiring()
            asked = load.asked
            await made.until("more is asked", lambda: load.asked > asked + 20)
        assert load.failed == []
        active = made.world.active
        assert active is not None
        assert active is not dying
        await made.assert_serves_alone(active)


async def test_a_crash_start_when_nothing_is_left(oldest: Build) -> None:
    async with lab(oldest) as made:
        await _end(made, await made.start())
        await start.start(made.world, rescue=False, cold=False)
        assert made.world.active is not None
        await made.assert_serves_alone(made.world.active)


async def test_a_configuration_that_is_mended_between_two_tests_blames_no_binary(
    oldest: Build, newest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file on disk was tested before somebody had finished writing, the good one after that."""
    async with lab(oldest) as made:
        await _end(made, await made.start())
        shutil.copy(newest.path, made.folder / "new")
        os.replace(made.folder / "new", made.binary)
        made.break_configuration()
        read = choice.read_facts

        async def mended(world: World, binary: str, argv: Sequence[str]) -> Facts:
            made.configure()
            return await read(world, binary, argv)

        monkeypatch.setattr(choice, "read_facts", mended)
        with pytest.raises(SupervisorError) as caught:
            await start.start(made.world, rescue=False, cold=True)
        assert caught.value.reason == "config_rejected"
        await start.start(made.world, rescue=False, cold=True)
        assert made.world.active is not None
        await made.assert_serves_alone(made.world.active, newest)


async def _end(made: Lab, dying: Generation) -> None:
    workers = dying.look().workers
    os.kill(dying.master.pid, signal.SIGSTOP)  # or it would start new ones
    for pid in (*workers, dying.master.pid):
        os.kill(pid, signal.SIGKILL)
    await made.until("all dead", lambda: not made.processes())
    await dead(dying.master.pid)


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("exit_at_once", {"start_failed"}),
        # Or they were gone before anybody saw them: of a fork there is no event.
        ("workers_fatal", {"worker_fatal", "no_workers"}),
        ("hang", {"start_timeout"}),
    ],
)
async def test_a_start_that_fails_leaves_nothing(
    oldest: Build, kind: str, reasons: set[str]
) -> None:
    async with lab(oldest) as made:
        made.binary.unlink()
        made.binary.write_bytes(candidate(oldest, kind, always=1).read_bytes())
        made.binary.chmod(0o755)
        if kind == "hang":
            made.shorten_start_timeout(1.5)
        files = _open_files()
        with pytest.raises(OperationFailed) as caught:
            await made.start()
        assert caught.value.reason in reasons
        assert made.processes() == []
        assert _open_files() == files
        # The intermediate may have been ended before it could reap its child, which is ours then.
        made.world.reap_strays()
        assert _zombies() == []


def _zombies() -> list[int]:
    found = []
    for pid in procfs.children(os.getpid()):
        stat = procfs.read_stat(pid)
        if stat is not None and not stat.alive:
            found.append(pid)
    return found


async def test_a_start_that_is_cancelled_leaves_nothing(oldest: Build) -> None:
    async with lab(oldest) as made:
        for after in (0.0, 0.004, 0.008, 0.012, 0.016, 0.02, 0.024, 0.028):
            files = _open_files()
            with trio.move_on_after(after):
                await made.start()
            if made.world.active is not None:
                break  # it was up, and is known: whoever cancelled it can end it
            await made.until("nothing lives", lambda: not made.processes())
            assert _open_files() == files
        made.world.reap_strays()


async def test_the_error_of_a_failed_start_has_nginxs_words(oldest: Build) -> None:
    async with lab(oldest) as made:
        with socket.create_server(("127.0.0.1", made.port)):
            with pytest.raises(OperationFailed) as caught:
                await made.start()
            assert caught.value.reason == "start_failed"
            assert "exited with code 1" in caught.value.detail
            assert f"bind() to 127.0.0.1:{made.port} failed (98: " in caught.value.detail


async def test_a_stale_unix_socket_does_not_keep_nginx_from_starting(each_build: Build) -> None:
    async with lab(each_build, listens="listen unix:{folder}/nginx.sock;") as made:
        path = made.folder / "nginx.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        active = await made.start()
        await made.assert_serves_alone(active)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_file_where_a_socket_should_be_is_never_removed(oldest: Build) -> None:
    """A connect to a regular file is refused as one to a stale socket is."""
    async with lab(oldest, listens="listen unix:{folder}/precious;") as made:
        (made.folder / "precious").write_text("data")
        with pytest.raises(OperationFailed):
            await made.start()
        assert (made.folder / "precious").read_text() == "data"


async def test_a_socket_that_somebody_serves_is_never_removed(oldest: Build) -> None:
    async with lab(oldest, listens="listen unix:{folder}/nginx.sock;") as made:
        path = made.folder / "nginx.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            with pytest.raises(OperationFailed):
                await made.start()
            assert path.exists()


async def test_what_nginx_inherits(oldest: Build) -> None:
    """Nothing but the standard three: whatever it got would live in all later generations."""
    async with lab(oldest) as made:
        with open(os.devnull) as extra:
            os.set_inheritable(extra.fileno(), True)
            active = await made.start()
            fds = Path(f"/proc/{active.master.pid}/fd")
            targets = {int(fd.name): os.readlink(fd) for fd in fds.iterdir()}
            assert targets[0] == "/dev/null"
            assert targets[1].startswith("/memfd:nginx-stdout")
            assert sorted(one for one in targets.values() if one == "/dev/null") == ["/dev/null"]
            assert os.readlink(f"/proc/{active.master.pid}/cwd") == "/"


class Load:
    """Asks again and again on new connections, from a thread; every failure is kept."""

    def __init__(self, made: Lab) -> None:
        self._made = made
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked = 0
        self.failed: list[Exception] = []

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._made.ask()
            except (OSError, AssertionError) as exc:
                self.failed.append(exc)
            self.asked += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


async def test_orphans_whose_sockets_cannot_be_taken_leave_first(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose seccomp profile forbids pidfd_getfd."""

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Process, "take_fd", forbidden)
    async with lab(oldest) as made:
        made.configure(listens=f"listen unix:{made.folder}/nginx.sock;")
        first = await made.start()
        first.look()
        hold(made.world, first)
        os.kill(first.master.pid, signal.SIGKILL)
        await dead(first.master.pid)
        hold(made.world, first)  # as whoever watches it may do once more
        assert made.world.held.report()["available"] is False
        await start.start(made.world, rescue=False, cold=False)
        active = made.world.active
        assert active is not None
        assert active is not first
        told = [one for one in made.log if one["event"] == "start.orphans_leave_first"]
        assert len(told) == 1
        assert "pidfd_getfd" in told[0]["detail"]
        await made.until("the orphans are gone", lambda: first.gone)
        made.world.generations.drop(first)
        await made.assert_serves_alone(active)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{made.folder}/nginx.sock")
