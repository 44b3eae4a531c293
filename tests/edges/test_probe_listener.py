"""The private address: written for nginx, checked against the kernel."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.core.probe_settings import ProbeSettings, parse_probe
from supervisor.core.settings import ProbeListenerSettings
from supervisor.edges import probe_listener, socket_owners
from supervisor.edges.owner_finding import OwnerFinder
from supervisor.edges.probe_listener import Ports, ProbeListener, Sharing
from tests.e2e.harness.ports import lease

V4, V6 = socket.AF_INET, socket.AF_INET6
HAS_V6 = probe_listener._has_ipv6()
LOOPBACK = [(V4, "127.0.0.1"), *([(V6, "::1")] if HAS_V6 else [])]

LISTENER = """
import socket, sys
held = []
for port in sys.argv[1:]:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # A connection of an earlier test may be in TIME_WAIT here, as for nginx.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", int(port)))
    one.listen()
    held.append(one)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def first() -> Iterator[int]:
    """The first of three neighbouring ports that are nobody else's."""
    with lease() as ports:
        yield ports[0]


@pytest.fixture
def listener(tmp_path: Path, first: int) -> ProbeListener:
    return ProbeListener(
        ProbeListenerSettings(
            include_file=str(tmp_path / "probe.conf"), first_port=first, last_port=first + 2
        )
    )


@contextmanager
def listening(*ports: int) -> Iterator[int]:
    """A process that listens on `ports`; its pid."""
    command = [sys.executable, "-c", LISTENER, *map(str, ports)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(timeout=30)


@pytest.fixture(params=["sock_diag", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways of asking the kernel give the same answers."""
    if request.param == "proc":

        def refuse(*_args: object, **_kwargs: object) -> None:
            raise OSError("no sock_diag here")

        real = socket.socket

        def sockets_without_netlink(family: int = -1, *args: int, **kwargs: int) -> socket.socket:
            if family == socket.AF_NETLINK:
                refuse()
            return real(family, *args, **kwargs)

        monkeypatch.setattr(socket_owners.socket, "socket", sockets_without_netlink)
    socket_owners.has_diag.cache_clear()
    assert socket_owners.has_diag() is (request.param == "sock_diag")
    yield
    socket_owners.has_diag.cache_clear()


# --- ports ---


def test_ports_are_used_in_turn(listener: ProbeListener, first: int) -> None:
    assert [listener.choose_port() for _ in range(4)] == [first, first + 1, first + 2, first]
    assert listener.choose_port({first + 1}) == first + 2


def test_a_busy_port_is_passed_over(listener: ProbeListener, first: int) -> None:
    with listening(first, first + 2):
        assert listener.choose_port() == first + 1
        with pytest.raises(Refusal) as caught:
            listener.choose_port({first + 1})
    assert caught.value.reason == "no_probe_port"
    assert f"{first} to {first + 2}" in caught.value.detail


@pytest.mark.parametrize(("family", "host"), LOOPBACK)
def test_a_port_of_either_family_may_be_busy(
    listener: ProbeListener, first: int, family: socket.AddressFamily, host: str
) -> None:
    with socket.create_server((host, first), family=family):
        assert listener.choose_port() == first + 1


# --- the file ---


def test_the_file_holds_what_nginx_needs(listener: ProbeListener, tmp_path: Path) -> None:
    assert listener.text() is None
    listener.write(Ports(plain=18931))
    text = listener.text()
    assert text is not None
    assert "listen 127.0.0.1:18931 reuseport;\n" in text
    assert ("listen [::1]:18931 reuseport;\n" in text) is probe_listener._has_ipv6()
    assert (tmp_path / "probe.conf").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["probe.conf"]


def test_a_port_for_tls_speaks_as_the_block_does(listener: ProbeListener) -> None:
    for http2, options in ((False, "ssl reuseport"), (True, "ssl http2 reuseport")):
        listener.write(Ports(plain=18931, tls=18932, http2=http2))
        text = listener.text() or ""
        assert "listen 127.0.0.1:18931 reuseport;\n" in text
        assert f"listen 127.0.0.1:18932 {options};\n" in text
        assert (f"listen [::1]:18932 {options};\n" in text) is HAS_V6


def dump(listens: str) -> str:
    include = f"include {INCLUDED};"
    return f"# configuration file /c:\nhttp {{ server {{ {listens} {include} }} }}\n"


INCLUDED = "/run/probe.conf"


def https(url: str = "https://127.0.0.1/") -> ProbeSettings:
    return parse_probe({"name": "p", "type": "http", "url": url}, 1)


def test_a_port_for_tls_is_chosen_where_a_probe_can_use_it(first: int) -> None:
    settings = ProbeListenerSettings(include_file=INCLUDED, first_port=first, last_port=first + 1)
    listener = ProbeListener(settings)
    plain = Ports(plain=first)
    listener.learn(dump("listen 80; listen 443 ssl http2;"))
    assert listener.choose_ports([https("http://127.0.0.1/")]).tls is None
    assert listener.choose_ports([https("https://127.0.0.1:444/")]).tls is None
    ports = listener.choose_ports([https()])
    assert (ports.plain, ports.tls, ports.http2) == (first, first + 1, True)
    assert ports.all == (first, first + 1)
    assert listener.why_not(https()) is None
    assert listener.why_not(https(), tls=False) is not None
    assert listener.without_tls(ports, "no certificate") == Ports(plain=first, http2=True)
    assert "refuses ssl" in (listener.why_not(https(), tls=False) or "")
    assert "no certificate" in (listener.why_not(https(), tls=False) or "")
    with listening(first + 1):
        assert listener.choose_ports([https()]) == plain
    assert "no second port" in (listener.why_not(https(), tls=False) or "")
    listener.learn(dump("listen 80;"))
    assert listener.choose_ports([https()]).tls is None


def test_without_ipv6_only_ipv4_is_written(
    listener: ProbeListener, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(probe_listener, "_has_ipv6", lambda: False)
    listener.write(Ports(plain=18931))
    assert "[::1]" not in (listener.text() or "")
    assert listener.choose_port() == first


def test_the_file_can_be_put_back(listener: ProbeListener, tmp_path: Path) -> None:
    (tmp_path / "probe.conf").write_bytes(b"# \xff by hand\n")
    before = listener.text()
    listener.write(Ports(plain=18931))
    listener.restore(before)
    assert (tmp_path / "probe.conf").read_bytes() == b"# \xff by hand\n"
    listener.restore(None)
    listener.restore(None)
    assert os.listdir(tmp_path) == []


def test_a_planted_symlink_is_replaced_and_never_followed(
    listener: ProbeListener, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "probe.conf").symlink_to(victim)
    with pytest.raises(Refusal, match="only a regular file"):
        listener.text()
    listener.write(Ports(plain=18931))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "probe.conf").is_symlink()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    listener = ProbeListener(ProbeListenerSettings(include_file=str(folder / "probe.conf")))
    assert listener.text() is None
    listener.restore(None)
    with pytest.raises(Refusal) as caught:
        listener.write(Ports(plain=18931))
    assert caught.value.reason == "probe_file_not_writable"
    assert f"mkdir -p {folder}" in caught.value.detail
    assert not folder.exists()


def test_a_folder_in_its_place_is_an_error(listener: ProbeListener, tmp_path: Path) -> None:
    (tmp_path / "probe.conf").mkdir()
    for act in (
        listener.text,
        lambda: listener.write(Ports(plain=1)),
        lambda: listener.restore(None),
    ):
        with pytest.raises(Refusal) as caught:
            act()
        assert caught.value.reason == "probe_file_not_writable"
    assert os.listdir(tmp_path) == ["probe.conf"]


def test_a_full_disk_leaves_the_old_text(listener: ProbeListener, tmp_path: Path) -> None:
    class FullDisk(probe_listener.REAL_DISK.__class__):  # type: ignore[name-defined, misc]
        def write(self, fd: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    listener.write(Ports(plain=18931))
    before = listener.text()
    full = ProbeListener(
        ProbeListenerSettings(include_file=str(tmp_path / "probe.conf")), disk=FullDisk()
    )
    with pytest.raises(Refusal, match="free space"):
        full.write(Ports(plain=18932))
    assert listener.text() == before
    assert os.listdir(tmp_path) == ["probe.conf"]


# --- who listens ---


@pytest.mark.usefixtures("way")
def test_sharing_is_seen_by_the_sockets(listener: ProbeListener, first: int) -> None:
    with listening(first) as candidate, listening(first + 1) as old:
        assert listener.exclusive_to(first, candidate, old) is Sharing.EXCLUSIVE
        assert listener.exclusive_to(first, candidate, None) is Sharing.EXCLUSIVE
        assert listener.exclusive_to(first + 1, candidate, old) is Sharing.ABSENT
        assert listener.exclusive_to(first + 2, candidate, old) is Sharing.NOBODY
        with listening(first) as stranger:
            assert listener.exclusive_to(first, candidate, stranger) is Sharing.SHARED
            assert listener.exclusive_to(first, candidate, old) is Sharing.SHARED
            assert listener.exclusive_to(first, candidate, None) is Sharing.SHARED
        assert listener.exclusive_to(first, candidate, old) is Sharing.EXCLUSIVE
    assert listener.exclusive_to(first, candidate, old) is Sharing.NOBODY


def test_what_was_proved_is_not_looked_for_again(
    listener: ProbeListener, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = socket_owners.inodes_of
    monkeypatch.setattr(socket_owners, "inodes_of", lambda pid: looked.append(pid) or real(pid))
    with listening(first) as candidate, listening(first + 1) as old:
        for _ in range(3):
            assert listener.exclusive_to(first, candidate, old) is Sharing.EXCLUSIVE
        assert looked == [candidate, old]
        with listening(first):  # others are looked at anew
            assert listener.exclusive_to(first, candidate, old) is Sharing.SHARED
        assert listener.exclusive_to(first, candidate, old) is Sharing.EXCLUSIVE
        assert listener.exclusive_to(first, candidate, candidate) is Sharing.SHARED
        assert looked.count(candidate) == 4
        monkeypatch.setattr(probe_listener.procfs, "is_alive", lambda _pid: False)
        listener.exclusive_to(first, candidate, old)
        assert looked.count(candidate) == 5
    assert listener.exclusive_to(first, candidate, old) is Sharing.NOBODY


@pytest.mark.usefixtures("way")
def test_a_listener_on_all_addresses_counts(listener: ProbeListener, first: int) -> None:
    for family, host in [(V4, "0.0.0.0"), *([(V6, "::")] if HAS_V6 else [])]:
        with socket.socket(family) as wide:
            wide.bind((host, first))
            wide.listen()
            assert socket_owners.listening_inodes(first) == {os.fstat(wide.fileno()).st_ino}
    assert socket_owners.listening_inodes(first) == set()


Connect = Callable[[], tuple[socket.socket, socket.socket]]


def connection_to(family: socket.AddressFamily, host: str, *, client: str) -> Connect:
    def connect() -> tuple[socket.socket, socket.socket]:
        with socket.socket(family) as server:
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind((host, 0))
            server.listen()
            ours = socket.create_connection((client, server.getsockname()[1]), timeout=30)
            theirs, _ = server.accept()
            return ours, theirs

    return connect


async def owner(
    here: tuple[object, ...], there: tuple[object, ...], pids: Collection[int]
) -> int | None:
    return await OwnerFinder(lambda: pids)(here, there)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "connect",
    [
        *(connection_to(family, host, client=host) for family, host in LOOPBACK),
        *([connection_to(V6, "::", client="127.0.0.1")] if HAS_V6 else []),  # v4-mapped there
    ],
)
async def test_the_owner_of_a_connection_is_found(connect: Connect) -> None:
    ours, theirs = connect()
    with ours:
        here, there = ours.getsockname(), ours.getpeername()
        with theirs:
            inode = socket_owners.connection_inode(there, here)
            assert inode == os.fstat(theirs.fileno()).st_ino
            assert await owner(here, there, {os.getpid()}) == os.getpid()
            with listening() as other:
                assert await owner(here, there, {other}) is None
                found = await owner(here, there, [other, os.getpid()])
                assert found == os.getpid()
            assert await owner(here, there, {2**22 + 1}) is None
    assert await owner(here, there, {os.getpid()}) is None


@pytest.mark.usefixtures("way")
async def test_a_connection_that_nobody_accepted_has_no_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address, timeout=30) as ours:
            here = ours.getsockname()
            assert await owner(here, address, {os.getpid()}) is None
            ready, _, _ = select.select([server], [], [], 30)
            assert ready
        # And one that never was: the kernel names the listener, which is no connection.
        assert await owner(("127.0.0.1", 1), address, {os.getpid()}) is None


def test_sockets_of_a_process() -> None:
    with socket.socket() as one:
        assert os.fstat(one.fileno()).st_ino in socket_owners.inodes_of(os.getpid())
    assert socket_owners.inodes_of(2**22 + 1) == frozenset()
