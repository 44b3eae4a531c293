"""Duplicates of listening sockets: exactly those of the master, and only as long as it has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.core.nginx_listen import AddressKind, Listen, Transport
from supervisor.edges.capture import Capture
from supervisor.edges.fdstore import Kept
from supervisor.edges.held import Changed, HeldListeners
from supervisor.edges.process import Process
from tests.edges.launched_nginx import Site, free_port, launch, site_of
from tools.nginx_builds import builds


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(builds()[0], tmp_path) as made:
        yield made


async def test_listeners(site: Site, tmp_path: Path) -> None:
    site.configure(
        listens=f"listen unix:{site.folder}/nginx.sock; listen 127.0.0.1:{free_port()} reuseport;"
    )
    output = Capture.create()
    launched = await launch(site, output)
    output.close()
    with socket.create_connection(("127.0.0.1", site.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")  # a connection is no listener
        for process in (launched.master, *launched.workers.values()):
            files = len(os.listdir("/proc/self/fd"))
            taken = HeldListeners().for_successor([process])
            addresses = set()
            for fd in taken:
                assert not os.get_inheritable(fd)
                with socket.socket(fileno=fd) as sock:
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    addresses.add(sock.getsockname())
            assert f"{site.folder}/nginx.sock" in addresses
            assert ("127.0.0.1", site.port) in addresses
            assert len(os.listdir("/proc/self/fd")) == files
    launched.close()


_SOCKETS = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); asking.connect(udp.getsockname())
bound = socket.socket(); bound.bind(("127.0.0.1", 0))
pair = socket.socketpair()
local = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
print(udp.getsockname()[1], flush=True)
sys.stdin.read()
"""


async def test_datagram_listeners() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SOCKETS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        port = int(other.stdout.readline())
        process = Process.open(other.pid)
        assert process is not None
        (taken,) = HeldListeners().for_successor([process])
        with socket.socket(fileno=taken) as sock:
            assert sock.getsockname() == ("127.0.0.1", port)
        other.stdin.close()
        other.wait()
        assert HeldListeners().for_successor([process]) == []
        process.close()


_OBEYS = """
import os, socket, sys
sockets = {}
for line in sys.stdin:
    what, name, *more = line.split()
    if what in ("listen", "bind"):
        host, colon, port = name.rpartition(":")
        family = socket.AF_INET6 if host else socket.AF_INET
        if name.startswith("/"):
            family = socket.AF_UNIX
        sockets[name] = one = socket.socket(family)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if "reuseport" in more:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        host = host.strip("[]") or ("0.0.0.0" if "wildcard" in more else "127.0.0.1")
        one.bind(name if name.startswith("/") else (host, int(port)))
        if what == "listen":
            one.listen()
    elif what == "start":
        sockets[name].listen()
    else:
        sockets.pop(name).close()
    print("done", flush=True)
"""


class Listener:
    """A process that listens where it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        held = Process.open(process.pid)
        assert held is not None
        self.master = held

    def tell(self, *words: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def die(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def listener(*places: str) -> Iterator[Listener]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _OBEYS], stdin=pipe, stdout=pipe, text=True
    ) as process:
        one = Listener(process)
        for place in places:
            one.tell("listen", place)
        try:
            yield one
        finally:
            process.kill()
            one.master.close()


@contextmanager
def holding(*, enabled: bool = True, with_reuseport: bool = False) -> Iterator[HeldListeners]:
    files = len(os.listdir("/proc/self/fd"))
    held = HeldListeners(enabled=enabled, with_reuseport=with_reuseport)
    yield held
    held.release()
    assert len(os.listdir("/proc/self/fd")) == files


def listen_of(port: str, host: str = "127.0.0.1") -> Listen:
    return Listen(kind=AddressKind.TCP, host=host, port=int(port))


def addresses(fds: list[int]) -> list[object]:
    """What they are bound to; they are closed."""
    found = []
    for fd in fds:
        with socket.socket(fileno=fd) as one:
            found.append(one.getsockname())
    return found


def test_what_the_master_listens_on_is_followed() -> None:
    a, b = str(free_port()), str(free_port())
    with listener(a) as one, holding() as held:
        assert held.follow(one.master) == Changed(taken=(f"127.0.0.1:{a}",))
        assert held.follow(one.master) == Changed()
        one.tell("listen", b)
        assert held.follow(one.master).taken == (f"127.0.0.1:{b}",)
        one.tell("close", a)
        assert held.follow(one.master).dropped == (f"127.0.0.1:{a}",)
        held_now = {"available": True, "count": 1, "addresses": [f"127.0.0.1:{b}"], "detail": None}
        assert held.report() == held_now
        one.tell("listen", a)  # a duplicate would keep the address bound
        one.die()
        assert held.follow(one.master) == Changed()
        assert addresses(held.for_successor([])) == [("127.0.0.1", int(b))]


def test_one_that_listens_no_more_was_told_to_quit() -> None:
    a = str(free_port())
    with listener(a) as one, holding() as held:
        held.follow(one.master)
        one.tell("close", a)
        assert held.follow(one.master) == Changed()
        assert held.release() == (f"127.0.0.1:{a}",)
        one.tell("listen", a)


@pytest.mark.parametrize("with_reuseport", [False, True])
def test_reuseport(*, with_reuseport: bool) -> None:
    a, b = str(free_port()), str(free_port())
    with listener(b) as one, holding(with_reuseport=with_reuseport) as held:
        one.tell("listen", a, "reuseport")
        assert len(held.follow(one.master).taken) == 1 + with_reuseport
        found = addresses(held.for_successor([one.master]))
        assert sorted(found, key=str) == sorted([("127.0.0.1", int(a)), ("127.0.0.1", int(b))])
        assert len(addresses(held.for_successor([]))) == 1 + with_reuseport


def test_unix_sockets_that_nobody_can_reach_are_not_handed_on(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with listener(path) as one, holding() as held:
        assert held.follow(one.master).taken == (f"unix:{path}",)
        assert addresses(held.for_successor([one.master])) == [path]
        os.unlink(path)
        assert held.for_successor([one.master]) == []
        held.release()
        held.follow(one.master)
        assert held.for_successor([one.master]) == []
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(path)
            assert held.for_successor([one.master]) == []


def test_what_nobody_would_inherit_is_dropped(tmp_path: Path) -> None:
    a, b, path = str(free_port()), str(free_port()), str(tmp_path / "a.sock")
    with listener(a, b, path) as one, holding() as held:
        held.follow(one.master)
        unix = Listen(kind=AddressKind.UNIX, host=path, port=0)
        assert held.keep_only([listen_of(a), listen_of(b, "localhost"), unix]) == ()
        assert held.keep_only([listen_of(a), listen_of(b, "0.0.0.0"), unix]) == (f"127.0.0.1:{b}",)
        udp = Listen(kind=AddressKind.TCP, host="127.0.0.1", port=int(a), transport=Transport.UDP)
        # A unix socket is in nobody's way, and nginx removes its file where it inherits it.
        assert held.keep_only([udp]) == (f"127.0.0.1:{a}",)
        assert addresses(held.for_successor([])) == [path]


def test_what_keeps_a_listener_from_being_bound_is_dropped() -> None:
    a, b = str(free_port()), str(free_port())  # a lease of ports is a descriptor
    both = [listen_of(a), listen_of(a, "0.0.0.0")]
    with listener(a) as one, holding() as held:
        held.follow(one.master)
        one.die()
        # nginx binds the wildcard alone for these two, and could not.
        assert held.keep_only([listen_of(a), listen_of(b)]) == ()
        assert held.keep_only(both) == (f"127.0.0.1:{a}",)


def test_a_wildcard_serves_an_address_of_its_port() -> None:
    a = str(free_port())
    with listener() as one, holding() as held:
        one.tell("listen", a, "wildcard")
        held.follow(one.master)
        one.die()
        assert held.keep_only([listen_of(a), listen_of(a, "0.0.0.0")]) == ()


def test_a_socket_for_both_families_is_in_the_way_of_one_for_each() -> None:
    a = str(free_port())
    wanted = [listen_of(a, "0.0.0.0"), Listen(kind=AddressKind.TCP6, host="::", port=int(a))]
    with listener(f"[::]:{a}") as one, holding() as held:
        held.follow(one.master)
        one.die()
        assert held.keep_only(wanted[1:]) == ()
        assert held.keep_only(wanted) == (f"[::]:{a}",)


def test_a_socket_that_listens_only_later_is_held_then() -> None:
    """A master that reloads opens, binds and listens: a look may come in between."""
    a, b = str(free_port()), str(free_port())
    with listener(a) as one, holding() as held:
        one.tell("bind", b)
        assert held.follow(one.master).taken == (f"127.0.0.1:{a}",)
        one.tell("start", b)
        assert held.follow(one.master).taken == (f"127.0.0.1:{b}",)


def test_what_was_opened_since_the_last_look_is_handed_on_as_well() -> None:
    a, b = str(free_port()), str(free_port())
    with listener(a) as one, holding() as held:
        held.follow(one.master)
        one.tell("listen", b)
        expected = [("127.0.0.1", int(a)), ("127.0.0.1", int(b))]
        assert sorted(addresses(held.for_successor([one.master]))) == sorted(expected)
        assert addresses(held.for_successor([], [one.master])) == expected[:1]


def test_descriptors_are_left_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [str(free_port()) for _ in range(4)]
    with listener(*places) as one, holding() as held:
        with monkeypatch.context() as patched:
            patched.setattr("supervisor.edges.linux.most_files", lambda: 261)
            assert len(held.follow(one.master).taken) == 2
            assert held.follow(one.master) == Changed()
            assert held.report()["available"] is False
            assert "LimitNOFILE" in str(held.problem)
        held.release()
        assert len(held.follow(one.master).taken) == 4
        assert held.report()["available"] is True


def test_switched_off_nothing_is_held_but_relatives_are_asked() -> None:
    a = str(free_port())
    with listener(a) as one, holding() as held:
        held.follow(one.master)
        held.configure(enabled=False, with_reuseport=False)
        assert held.follow(one.master) == Changed()
        off = "switched off: [restart] hold_listeners"
        assert held.report() == {"available": False, "count": 0, "addresses": [], "detail": off}
        assert held.for_successor([]) == []
        assert addresses(held.for_successor([one.master])) == [("127.0.0.1", int(a))]
        held.configure(enabled=True, with_reuseport=False)
        assert held.follow(one.master).taken == (f"127.0.0.1:{a}",)


def test_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(_self: Process, _fd: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    with listener(str(free_port())) as one, holding() as held:
        with monkeypatch.context() as patched:
            patched.setattr(Process, "take_fd", forbid)
            assert held.follow(one.master) == Changed()
            assert held.report()["available"] is False
            assert "CAP_SYS_PTRACE" in str(held.problem)
            assert held.for_successor([one.master]) == []
        assert len(held.follow(one.master).taken) == 1
        assert held.report()["available"] is True


def test_what_a_predecessor_held_is_held_on_to() -> None:
    a, b = str(free_port()), str(free_port())
    with listener(a) as one, holding() as before, holding() as after:
        one.tell("listen", b)
        before.follow(one.master)
        after.inherit([Kept(os.dup(one.fd), one.name) for one in before.kept])
        before.release()
        assert after.report()["count"] == 2
        assert after.follow(one.master) == Changed()
        one.die()
        assert len(addresses(after.for_successor([]))) == 2


def test_what_settings_do_not_want_any_more_is_closed() -> None:
    a = str(free_port())
    with listener() as one, holding(with_reuseport=True) as before, holding() as after:
        one.tell("listen", a, "reuseport")
        before.follow(one.master)
        after.inherit([Kept(os.dup(one.fd), one.name) for one in before.kept])
        assert before.release() != ()
        assert after.report()["count"] == 0
