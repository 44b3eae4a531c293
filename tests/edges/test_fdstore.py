"""The service manager's store: what is put in, taken back, and removed before anybody waits."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from supervisor.edges.fdstore import DescriptorStore, Kept, name_of, receive
from supervisor.edges.held import HeldListeners

LIMIT = 30.0


class Manager:
    """The other end, as systemd is: keeps what it is sent, until it is told to remove it."""

    def __init__(self, path: str) -> None:
        self.address = path
        self.kept: dict[str, int] = {}
        self.said: list[str] = []
        self.asleep = threading.Event()
        self._awake = threading.Event()
        self._awake.set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path.replace("@", "\0", 1))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def sleep(self) -> None:
        """Take nothing until `wake`."""
        self._awake.clear()

    def wake(self) -> None:
        self._awake.set()

    def close(self) -> None:
        self.wake()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.address.replace("@", "\0", 1))
        self._reader.join()
        self._socket.close()
        for fd in self.kept.values():
            os.close(fd)

    def _read(self) -> None:
        while True:
            self._awake.wait()
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
            if not message:
                return
            self._act(message.decode().splitlines(), fds)

    def _act(self, lines: list[str], fds: list[int]) -> None:
        self.said += lines
        fields = dict(line.split("=", 1) for line in lines)
        name = fields.get("FDNAME", "")
        if "FDSTORE" in fields:
            assert fields["FDPOLL"] == "0"
            (self.kept[name],) = fds
            return
        if "FDSTOREREMOVE" in fields:
            os.close(self.kept.pop(name))
        for fd in fds:
            os.close(fd)


@contextmanager
def manager(path: str) -> Iterator[Manager]:
    found = Manager(path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify") if request.param == "file" else f"@fdstore-{os.getpid()}"
    with manager(path) as found:
        yield found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def held_by(store: DescriptorStore, **settings: bool) -> HeldListeners:
    return HeldListeners(store=store, **settings)


def port_of(found: socket.socket) -> int:
    return int(found.getsockname()[1])


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


async def settled(store: DescriptorStore) -> None:
    with trio.fail_after(LIMIT):
        assert await store.settle(LIMIT)


# --- putting in and removing -------------------------------------------------------------------


async def test_what_is_dropped_is_closed_by_the_manager_too(
    systemd: Manager, listener: socket.socket
) -> None:
    store, port = DescriptorStore(systemd.address), port_of(listener)
    held = held_by(store)
    held.inherit([Kept(os.dup(listener.fileno()), "")])
    (one,) = held.kept
    inode = os.fstat(listener.fileno()).st_ino
    assert one.name == f"listener-{inode}-127.0.0.1_{port}"
    listener.close()
    assert held.release() == (f"127.0.0.1:{port}",)
    await settled(store)
    assert systemd.kept == {}
    assert systemd.said[:3] == ["FDSTORE=1", f"FDNAME={one.name}", "FDPOLL=0"]
    assert refuses(port)
    store.close()


async def test_a_manager_that_takes_its_time_is_waited_for(
    systemd: Manager, listener: socket.socket
) -> None:
    store = DescriptorStore(systemd.address)
    systemd.sleep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        count = 2000  # more than any queue takes (net.unix.max_dgram_qlen)
        for number in range(count):
            store.put(listener.fileno(), f"name-{number}")
        for number in range(count):
            store.remove(f"name-{number}")
        assert not await store.settle(0.01)
        systemd.wake()
        await settled(store)
        nursery.cancel_scope.cancel()
    assert systemd.said.count("FDSTOREREMOVE=1") == count
    assert systemd.kept == {}
    store.close()


async def test_nothing_is_waited_for_where_nothing_was_removed(
    systemd: Manager, listener: socket.socket
) -> None:
    store = DescriptorStore(systemd.address)
    systemd.sleep()
    store.put(listener.fileno(), "name")
    assert await store.settle(0.0)
    systemd.wake()
    store.remove("name")
    await settled(store)
    systemd.sleep()
    assert await store.settle(0.0)
    store.close()


@pytest.mark.parametrize("where", ["socket", "dup", "sendmsg"])
async def test_what_the_manager_was_not_told_is_not_settled(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No descriptor is left, or too many are on their way (ETOOMANYREFS)."""
    with manager(str(tmp_path / "notify")) as systemd:
        store = DescriptorStore(systemd.address)
        store.put(listener.fileno(), "one")
        with monkeypatch.context() as short:
            if where == "socket":
                short.setattr("supervisor.edges.fdstore._connected", failing(errno.EMFILE))
            elif where == "dup":
                short.setattr(os, "dup", failing(errno.EMFILE))
            else:
                short.setattr(socket.socket, "sendmsg", failing(errno.ETOOMANYREFS))
            store.remove("one")
            assert not await store.settle(LIMIT)
            assert not await store.settle(LIMIT)
        await settled(store)
        assert systemd.kept == {}
        store.close()


def failing(number: int) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("address", [None, "", "/", "no/path", "vsock:2:1", "/nowhere/at/all"])
async def test_no_manager(address: str | None, listener: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = DescriptorStore(address)
    store.put(listener.fileno(), "name")
    store.remove("name")
    await settled(store)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_manager_that_is_gone_keeps_nobody_waiting(
    tmp_path: Path, listener: socket.socket
) -> None:
    with manager(str(tmp_path / "notify")) as systemd:
        store = DescriptorStore(systemd.address)
        store.put(listener.fileno(), "one")
        store.remove("one")
        await settled(store)
    before = len(os.listdir("/proc/self/fd"))
    store.put(listener.fileno(), "two")
    store.remove("two")
    await settled(store)
    assert len(os.listdir("/proc/self/fd")) <= before


# --- taking back -------------------------------------------------------------------------------


def test_settings_that_do_not_want_it_have_it_removed(
    systemd: Manager, listener: socket.socket
) -> None:
    store = DescriptorStore(systemd.address)
    fd = os.dup(listener.fileno())
    store.put(fd, "theirs")
    held = held_by(store, enabled=False)
    changed = held.inherit([Kept(fd, "theirs")])
    assert changed.taken == ()
    assert changed.dropped == (f"127.0.0.1:{port_of(listener)}",)
    assert held.kept == ()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    trio.run(settled, store)
    assert systemd.kept == {}
    store.close()


def test_what_is_no_listener_is_removed(systemd: Manager) -> None:
    store = DescriptorStore(systemd.address)
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    for number, fd in enumerate((reading, writing, ours.fileno(), theirs.fileno())):
        store.put(fd, f"n{number}")
    given = [Kept(fd, f"n{no}") for no, fd in enumerate((reading, writing, ours.detach(), 9999))]
    changed = held_by(store).inherit(given)
    assert changed.taken == ()
    assert changed.dropped == ("n0", "n1", "n2", "n3")
    trio.run(settled, store)
    assert systemd.kept == {}
    theirs.close()
    store.close()


def test_its_name_there_is_kept(systemd: Manager, listener: socket.socket) -> None:
    """Whatever names another supervisor has given, it is removed by that one."""
    store = DescriptorStore(systemd.address)
    store.put(listener.fileno(), "of-another-version")
    held = held_by(store)
    held.inherit([Kept(os.dup(listener.fileno()), "of-another-version")])
    assert [one.name for one in held.kept] == ["of-another-version"]
    files = len(os.listdir("/proc/self/fd"))
    held.inherit([Kept(os.dup(listener.fileno()), "of-another-version")])
    assert len(held.kept) == 1
    assert len(os.listdir("/proc/self/fd")) == files
    held.release()
    trio.run(settled, store)
    assert systemd.kept == {}
    store.close()


def test_who_ends_without_serving_has_it_all_removed(
    systemd: Manager, listener: socket.socket
) -> None:
    before = DescriptorStore(systemd.address)
    before.put(listener.fileno(), "theirs")
    before.close()
    store = DescriptorStore(systemd.address, (Kept(-1, "theirs"), Kept(-1, "")))
    store.forget()
    trio.run(settled, store)
    assert systemd.kept == {}
    store.close()


@pytest.mark.parametrize(("given", "count"), [
    ({}, 0),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, 2),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "2"}, 2),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, 2),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "4", "LISTEN_FDNAMES": "a:b:c:d"}, 2),  # not there
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "-1"}, 0),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "9" * 30}, 2),
    ({"LISTEN_PID": "OWN", "LISTEN_FDS": "x"}, 0),
    ({"LISTEN_PID": "OWN"}, 0),
    ({"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, 0),
    ({"LISTEN_PID": "", "LISTEN_FDS": "2"}, 0),
    ({"LISTEN_FDS": "2"}, 0),
])  # fmt: skip
def test_only_what_is_for_this_process_is_taken(given: dict[str, str], count: int) -> None:
    """In a process of its own, since the numbers begin at 3."""
    one, two = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", _RECEIVES, *(f"{key}={value}" for key, value in given.items())],
        stdin=one, stderr=two, stdout=subprocess.PIPE, text=True,
    ) as asked:  # fmt: skip
        assert asked.stdout is not None
        told = asked.stdout.read()
    os.close(one)
    os.close(two)
    assert told.split("\n")[0] == f"{count} left= inheritable={'' if count else '34'}"


_RECEIVES = """
import os, sys
os.dup2(0, 3); os.dup2(0, 4)
os.closerange(5, 64)
given = dict(one.split("=", 1) for one in sys.argv[1:])
if given.get("LISTEN_PID") == "OWN":
    given["LISTEN_PID"] = str(os.getpid())
from supervisor.edges.fdstore import receive
kept = receive(given)
assert [one.fd for one in kept] == [3, 4][:len(kept)]
inheritable = "".join(str(fd) for fd in (3, 4) if os.get_inheritable(fd))
print(len(kept), f"left={''.join(given)}", f"inheritable={inheritable}")
"""


def test_names_are_names_to_systemd() -> None:
    assert name_of(7, "[::1]:80") == "listener-7-[__1]_80"
    assert name_of(7, "unix:/run/a b\n\xe9") == "listener-7-unix_/run/a_b__"
    assert len(name_of(7, "unix:/" + 300 * "x")) == 200
    assert receive({}) == ()
