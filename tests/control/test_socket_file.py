"""The socket's file: mode, stale and living predecessors, and paths that cannot be used."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.core.errors import ConfigError, SupervisorError
from supervisor.edges import control_socket
from supervisor.edges.control_socket import control_listener


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_the_mode_is_exact_whatever_the_umask(folder: Path, mode: int, umask: int) -> None:
    path = folder / "s"
    before = os.umask(umask)
    try:
        async with control_listener(str(path), mode=mode):
            assert stat.S_IMODE(path.lstat().st_mode) == mode
            assert stat.S_ISSOCK(path.lstat().st_mode)
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_stale_socket_is_replaced(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with control_listener(str(path), mode=0o600):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


async def test_a_socket_left_by_a_killed_process_is_replaced(folder: Path) -> None:
    path = folder / "s"
    script = (
        "import os, signal, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "s.listen(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert ended.returncode == -9
    assert path.exists()
    async with control_listener(str(path), mode=0o600):
        pass


async def test_a_living_supervisors_socket_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    async with control_listener(str(path), mode=0o600):
        before = path.lstat()
        with pytest.raises(SupervisorError, match="another process listens there") as caught:
            async with control_listener(str(path), mode=0o600):
                pytest.fail("it was taken")
        assert caught.value.reason == "control_socket_in_use"
        assert path.lstat().st_ino == before.st_ino


async def test_a_hanging_supervisors_socket_with_a_full_queue_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(path))
        hanging.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for client in (first, second):
                client.setblocking(False)
                client.connect_ex(str(path))
            with pytest.raises(SupervisorError, match="another process listens there"):
                async with control_listener(str(path), mode=0o600):
                    pytest.fail("it was taken")


async def test_a_socket_of_another_type_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(path))
        with pytest.raises(SupervisorError) as caught:
            async with control_listener(str(path), mode=0o600):
                pytest.fail("it was taken")
    assert caught.value.reason == "control_socket_in_use"


@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "dangling symlink"])
async def test_a_file_of_another_kind_is_left_alone(folder: Path, kind: str) -> None:
    path = folder / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "symlink":
            path.symlink_to(folder)
        case _:
            path.symlink_to(folder / "nothing")
    before = path.lstat()
    with pytest.raises(ConfigError, match="a file of another kind is there"):
        async with control_listener(str(path), mode=0o600):
            pytest.fail("it was taken")
    assert path.lstat() == before


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [
        ("x" * 200, "control_socket_path_too_long", "the kernel takes 107"),
        ("missing/s", "control_socket_folder_missing", "is missing; create it"),
        ("file/s", "control_socket_path", "is no folder"),
    ],
)
async def test_a_path_that_cannot_be_used(folder: Path, name: str, reason: str, text: str) -> None:
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot ") as caught:
        async with control_listener(str(folder / name), mode=0o600):
            pytest.fail("it was used")
    assert caught.value.reason == reason
    assert text in caught.value.detail


async def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="relative"):
        async with control_listener("control.sock", mode=0o600):
            pytest.fail("it was used")


async def test_the_longest_path_that_the_kernel_takes(folder: Path) -> None:
    path = folder / ("x" * (107 - len(str(folder)) - 1))
    assert len(str(path)) == 107
    async with control_listener(str(path), mode=0o600):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    with pytest.raises(ConfigError):
        async with control_listener(str(path) + "x", mode=0o600):
            pytest.fail("it was used")


async def test_a_folder_on_a_file_system_without_sockets() -> None:
    with pytest.raises(ConfigError, match="cannot create the control socket '/proc/s'"):
        async with control_listener("/proc/s", mode=0o600):
            pytest.fail("it was used")


async def test_a_successors_socket_is_not_removed(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as successor:
        async with control_listener(str(path), mode=0o600):
            path.unlink()
            successor.bind(str(path))
        assert path.exists()


async def test_a_removed_socket_is_no_error_at_the_end(folder: Path) -> None:
    path = folder / "s"
    async with control_listener(str(path), mode=0o600):
        path.unlink()
    assert list(folder.iterdir()) == []


async def test_of_two_at_once_one_waits_for_the_others_bind(folder: Path) -> None:
    path = folder / "s"
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:

            async def bind() -> None:
                async with control_listener(str(path), mode=0o600):
                    assert path.exists()

            nursery.start_soon(bind)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not path.exists()
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


async def test_a_lock_that_is_never_given_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "LOCK_TIMEOUT", 0.05)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(SupervisorError, match="holds a lock on the folder"):
            async with control_listener(str(folder / "s"), mode=0o600):
                pytest.fail("it was taken")
    finally:
        os.close(fd)


async def test_nothing_is_left_when_cancelled(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with trio.CancelScope() as scope:
        async with control_listener(str(folder / "s"), mode=0o600):
            scope.cancel()
            await trio.sleep_forever()
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
