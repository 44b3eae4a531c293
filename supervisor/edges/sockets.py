"""Which listening sockets a process has open, and who else holds an address.

The kernel knows which sockets a master would pass on; its configuration on disk may have changed
since. Everything here blocks and belongs in a
thread.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import psutil

from supervisor.core.nginx_listen import ANY_IPV4, ANY_IPV6, AddressKind, Listen, Transport
from supervisor.edges import linux

Address = tuple[AddressKind, str, int, Transport]


class _Connection(Protocol):
    @property
    def family(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def laddr(self) -> object: ...
    @property
    def raddr(self) -> object: ...
    @property
    def status(self) -> str: ...
    @property
    def pid(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class HeldSockets:
    """The listening sockets of one process, with how many it has of each address."""

    counts: Counter[Address]

    @property
    def unix_paths(self) -> frozenset[str]:
        """The paths of its unix listeners."""
        return frozenset(host for kind, host, _, _ in self.counts if kind is AddressKind.UNIX)

    def covers(self, listen: Listen) -> bool:
        """nginx would not bind `listen` anew: it is held, or a held wildcard serves it."""
        if listen.address in self.counts:
            return True
        any_host = {AddressKind.TCP: ANY_IPV4, AddressKind.TCP6: ANY_IPV6}.get(listen.kind)
        if any_host is None or listen.binds:
            return False
        return (listen.kind, any_host, listen.port, listen.transport) in self.counts

    def meets(self, listens: Iterable[Listen]) -> bool:
        """One of `listens` could not be bound as long as these are open."""
        return any(in_the_way(held, listen) for held in self.counts for listen in listens)


def held_by(pid: int) -> HeldSockets | None:
    """What process `pid` listens on; None where it is gone or may not be looked at."""
    try:
        return HeldSockets(Counter(_addresses_by_duplicating(pid)))
    except ProcessLookupError:
        return None
    except OSError:
        pass  # pidfd_getfd is forbidden (a container), or the kernel has none: look in /proc/net
    try:
        connections = _connections(psutil.Process(pid))("all")
    except psutil.Error:
        return None
    addresses = (_address_of(connection) for connection in connections)
    return HeldSockets(Counter(address for address in addresses if address is not None))


def _addresses_by_duplicating(pid: int) -> Iterator[Address]:
    """The addresses of the listeners of `pid`, asked from the sockets themselves.

    /proc/net/tcp would list every connection of the machine: 15 ms for 7,600 of them.
    """
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                is_socket = os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
            except FileNotFoundError:
                continue  # it was closed meanwhile
            if not is_socket:
                continue
            with socket.socket(fileno=linux.take_fd(pidfd, int(name))) as duplicate:
                address = listening_address(duplicate) or _unix_datagram(duplicate)
            if address is not None:
                yield address
    finally:
        os.close(pidfd)


def listening_address(found: socket.socket) -> Address | None:
    """What `found` listens on; None where it does not, or is no socket of nginx's `listen`."""
    is_datagram = found.type == socket.SOCK_DGRAM
    if not is_datagram and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    name = found.getsockname()
    if found.family == socket.AF_UNIX:
        return None if is_datagram else (AddressKind.UNIX, str(name), 0, Transport.TCP)
    if found.family not in (socket.AF_INET, socket.AF_INET6) or not name[1]:
        return None  # without a port it was not bound yet
    if is_datagram and peer_of(found):
        return None
    kind = AddressKind.TCP6 if found.family == socket.AF_INET6 else AddressKind.TCP
    return kind, name[0], name[1], Transport.UDP if is_datagram else Transport.TCP


def _unix_datagram(found: socket.socket) -> Address | None:
    """What a `listen unix:PATH udp` is bound to; a client's socket (syslog) has no name."""
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_DGRAM:
        return None
    name = found.getsockname()
    is_path = isinstance(name, str) and bool(name)
    return (AddressKind.UNIX, name, 0, Transport.UDP) if is_path else None


def unix_paths(fds: Iterable[int]) -> frozenset[str]:
    """The paths that those of `fds` are bound to which are unix sockets; they stay open."""
    paths = set()
    for fd in fds:
        with socket.socket(fileno=os.dup(fd)) as found:
            if found.family == socket.AF_UNIX:
                paths.add(str(found.getsockname()))
    return frozenset(paths)


def peer_of(found: socket.socket) -> object:
    """Whom it is connected to, None where to nobody.

    A datagram socket with a peer is a client's (syslog, a resolver).
    """
    try:
        return found.getpeername()
    except OSError:
        return None


def is_busy(listen: Listen) -> bool:
    """Whether binding `listen` fails because the address is taken; tried as nginx would bind it.

    Nothing is listened on. Host names and unix sockets are not tried.
    """
    family = {AddressKind.TCP: socket.AF_INET, AddressKind.TCP6: socket.AF_INET6}.get(listen.kind)
    if family is None:
        return False
    kind = socket.SOCK_DGRAM if listen.transport is Transport.UDP else socket.SOCK_STREAM
    with socket.socket(family, kind) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.reuseport:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # A name would be resolved here: an address that is none raises gaierror at once.
            socket.getaddrinfo(listen.host, listen.port, family, kind, 0, socket.AI_NUMERICHOST)
            tried.bind((listen.host, listen.port))
        except socket.gaierror:
            return False
        except OSError as exc:
            return exc.errno == errno.EADDRINUSE
    return False


def everyones_listeners() -> list[tuple[int, Address]]:
    """Who listens on what, as far as that can be seen; of those that share a socket, one."""
    try:
        found = _connections(psutil)("inet")
    except psutil.Error:
        return []
    pairs = ((connection.pid, _address_of(connection)) for connection in found)
    return [(pid, address) for pid, address in pairs if pid is not None and address is not None]


def in_the_way(held: Address, listen: Listen) -> bool:
    """As long as `held` is open, `listen` cannot be bound."""
    kind, host, port, transport = held
    same_place = (kind, port, transport) == (listen.kind, listen.port, listen.transport)
    wildcards = {ANY_IPV4, ANY_IPV6}
    return same_place and (host == listen.host or bool({host, listen.host} & wildcards))


def _connections(source: object) -> Callable[[str], Sequence[_Connection]]:
    """psutil 6 renamed `Process.connections`; the old name warns there."""
    name = "net_connections" if hasattr(source, "net_connections") else "connections"
    return cast("Callable[[str], Sequence[_Connection]]", getattr(source, name))


def _address_of(connection: _Connection) -> Address | None:
    place = connection.laddr
    if connection.family == socket.AF_UNIX:
        # Only a listener has a name here: the channels between nginx's processes have none.
        if not place or connection.type != socket.SOCK_STREAM:
            return None
        return AddressKind.UNIX, str(place), 0, Transport.TCP
    is_datagram = connection.type == socket.SOCK_DGRAM
    is_listener = not connection.raddr if is_datagram else connection.status == psutil.CONN_LISTEN
    if not place or not is_listener:
        return None
    host, port = cast("tuple[str, int]", place)
    kind = AddressKind.TCP6 if connection.family == socket.AF_INET6 else AddressKind.TCP
    return kind, host, port, Transport.UDP if is_datagram else Transport.TCP


def proportional_memory(pids: Iterable[int]) -> int:
    """The memory of the processes in bytes, shared pages counted once; those unseen count 0."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(b"Pss:")) * 1024
    return total


def available_memory() -> int:
    """The memory in bytes that can be had without swapping, in this machine and this cgroup."""
    available = int(psutil.virtual_memory().available)
    left = _left_in_cgroup()
    return available if left is None else min(available, left)


def _left_in_cgroup() -> int | None:
    """What is left under memory.max of the closest limit (cgroup v2); None without one."""
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            own = next(line[3:].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    left: int | None = None
    folder = os.path.normpath("/sys/fs/cgroup" + own)
    while folder.startswith("/sys/fs/cgroup"):
        try:
            limit, used = _number(f"{folder}/memory.max"), _number(f"{folder}/memory.current")
            here = limit - used + _reclaimable(folder)
            left = here if left is None else min(left, here)
        except (OSError, ValueError):
            pass  # no such file in the root, and "max" is no number
        folder = os.path.dirname(folder)
    return left


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _reclaimable(folder: str) -> int:
    """The page cache counts as used, and the kernel takes it back when it needs room."""
    with open(f"{folder}/memory.stat", encoding="ascii") as file:
        found = dict(line.split() for line in file)
    return int(found.get("inactive_file", 0)) + int(found.get("active_file", 0))
