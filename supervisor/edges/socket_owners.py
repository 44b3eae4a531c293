"""Whose is this socket? Answered by the kernel: an inode, and the processes that have it open.

One socket among hundreds of thousands is asked for by its addresses (sock_diag(7), a netlink call
of some microseconds). Where that is not to be had (a kernel without inet_diag, a sandbox), the same
is read from /proc/net/tcp and tcp6, which list all of them (proc(5)).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from supervisor.edges import sock_diag
from supervisor.edges.sock_diag import ANY_COOKIE, INET_ANSWER, LISTENING

LOOPBACK = frozenset({"127.0.0.1", "::1", "0.0.0.0", "::"})  # noqa: S104 - compared, not bound
"""The local addresses at which a connection to 127.0.0.1 or ::1 can arrive."""

SocketAddress = tuple[object, ...]
"""As Python's sockets tell it: (host, port) or (host, port, flow, scope)."""

_ANY_STATE = 0xFFFFFFFF
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 up to its id
_PORTS = struct.Struct("!HH")
_ID_END = struct.Struct("=III")  # interface, cookie
_HEX_LINE_MINIMUM = 10  # columns of /proc/net/tcp up to the inode


class _NoDiag(Exception):  # noqa: N818 - caught in this module, the sign to read /proc
    """The kernel does not answer sock_diag requests."""


@cache
def has_diag() -> bool:
    """Whether the kernel answers about one socket; else each question reads the list of all."""
    try:
        _ask(socket.AF_INET, _ANY_STATE, _NOBODY, _NOBODY, dump=False)
    except _NoDiag:
        return False
    return True


def listening_inodes(port: int) -> frozenset[int]:
    """The inodes of all sockets that listen on `port` at a loopback or wildcard address."""
    try:
        return frozenset(_diag_listeners(port))
    except _NoDiag:
        return frozenset(_proc_listeners(port))


def connection_inode(here: SocketAddress, there: SocketAddress) -> int | None:
    """The inode of the connected socket whose own address is `here` and whose peer is `there`.

    None where there is none, or where nobody has accepted the connection yet.
    """
    own, peer = _numeric(here), _numeric(there)
    try:
        inode = _diag_connection(own, peer)
    except _NoDiag:
        inode = _proc_connection(own, peer)
    return inode or None  # 0: no process has it


def inodes_of(pid: int) -> frozenset[int]:
    """The inodes of all sockets that `pid` has open; empty when it is gone or not ours to see."""
    return frozenset(_inodes_of(pid))


def owner_of(inode: int, pids: Iterable[int], *, seconds: float = math.inf) -> int | None:
    """The first of `pids` that has the socket `inode` open, None where none has. Blocks.

    One look costs some microseconds for each descriptor of these processes, and to list them one
    for each. A new descriptor gets the lowest number that is free. So where there is no gap, what
    was opened just now is the last one: that is looked at first, without a list. Else it is most
    often near the first gap; then comes the rest. Raises SearchEnded after `seconds` of CPU time.
    """
    ends = time.thread_time() + seconds
    pids = tuple(pids)
    for pid in pids:
        last = descriptors_of(pid) or 0
        if _holds(pid, range(last + 3, max(-1, last - _LAST), -1), inode, ends):
            return pid
    rest: list[tuple[int, list[int]]] = []
    for pid in pids:
        numbers = _numbers(pid)
        new, old = _newest_first(numbers)
        if _holds(pid, new, inode, ends):
            return pid
        rest.append((pid, old))
    return next((pid for pid, old in rest if _holds(pid, old, inode, ends)), None)


class SearchEnded(Exception):  # noqa: N818 - no error: it takes longer than it may
    """It was not found in the time that it may take."""


def descriptors_of(pid: int) -> int | None:
    """How many descriptors `pid` has open; None where that cannot be told without counting."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size or None  # Linux 6.2; 0 before
    except OSError:
        return 0


_LAST = 64
"""Numbers below the number of descriptors that are looked at without a list."""
_AROUND = 1024
"""Numbers on each side of the first gap that are looked at first."""
_CLOCK_EVERY = 64


def _numbers(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return []


def _newest_first(numbers: list[int]) -> tuple[list[int], list[int]]:
    """The numbers near the first gap, and all others."""
    low, high = 0, len(numbers)
    while low < high:  # as far as each number stands at its own place there is no gap
        middle = (low + high) // 2
        low, high = (middle + 1, high) if numbers[middle] == middle else (low, middle)
    begin, end = max(0, low - _AROUND), low + _AROUND
    return numbers[begin:low][::-1] + numbers[low:end], numbers[end:] + numbers[:begin]


def _holds(pid: int, numbers: Sequence[int], inode: int, ends: float) -> bool:
    wanted = f"socket:[{inode}]"
    try:
        folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for at, number in enumerate(numbers):
            if not at % _CLOCK_EVERY and time.thread_time() > ends:
                raise SearchEnded
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(str(number), dir_fd=folder) == wanted:
                    return True
    finally:
        os.close(folder)
    return False


def _inodes_of(pid: int) -> Iterator[int]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("socket:["):
                yield int(target[8:-1])


# --- addresses ---

_Address = IPv4Address | IPv6Address
_Endpoint = tuple[_Address, int]


_NOBODY: _Endpoint = (IPv4Address("127.0.0.1"), 0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One TCP socket of the kernel's."""

    own: _Endpoint
    peer: _Endpoint
    state: int
    inode: int

    def listens_at(self, port: int) -> bool:
        """Whether a connection to `port` of a loopback address can arrive here."""
        return self.state == LISTENING and self.own[1] == port and str(self.own[0]) in LOOPBACK


def _numeric(address: SocketAddress) -> _Endpoint:
    host, port = str(address[0]).partition("%")[0], address[1]
    assert isinstance(port, int)
    return ip_address(host), port


def _spellings(own: _Endpoint, peer: _Endpoint) -> Iterator[tuple[_Endpoint, _Endpoint]]:
    """A connection over IPv4 may have been accepted by a socket of either family (ipv6(7))."""
    yield own, peer
    if isinstance(own[0], IPv4Address):
        yield _mapped(own), _mapped(peer)


def _mapped(one: _Endpoint) -> _Endpoint:
    return IPv6Address(f"::ffff:{one[0]}"), one[1]


# --- sock_diag ---


def _diag_connection(own: _Endpoint, peer: _Endpoint) -> int:
    for mine, theirs in _spellings(own, peer):
        family = socket.AF_INET if mine[0].version == 4 else socket.AF_INET6
        for found in _ask(family, _ANY_STATE, mine, theirs, dump=False):
            # Without such a connection the kernel names the listener that would get it.
            if found.state != LISTENING:
                return found.inode
    return 0


def _diag_listeners(port: int) -> Iterator[int]:
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        nobody = ip_address(any_address)
        for found in _ask(family, 1 << LISTENING, (nobody, port), (nobody, 0), dump=True):
            if found.listens_at(port):
                yield found.inode


def _ask(family: int, states: int, own: _Endpoint, peer: _Endpoint, *, dump: bool) -> list[_Row]:
    """Every socket that matches. Raises _NoDiag."""
    identity = (
        _PORTS.pack(own[1], peer[1])
        + own[0].packed.ljust(16, b"\0")
        + peer[0].packed.ljust(16, b"\0")
        + _ID_END.pack(0, ANY_COOKIE, ANY_COOKIE)
    )
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + identity
    try:
        return [_decode(one) for one in sock_diag.ask(request, dump=dump)]
    except OSError as exc:
        if exc.errno == errno.ENOENT and not dump:  # there is no such connection
            return []
        raise _NoDiag from exc


def _decode(message: bytes) -> _Row:
    family, state, _timer, _retrans, identity, *_, inode = INET_ANSWER.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    port, peer_port = _PORTS.unpack_from(identity)
    own, peer = identity[4 : 4 + size], identity[20 : 20 + size]
    return _Row((ip_address(own), port), (ip_address(peer), peer_port), state, inode)


# --- /proc/net ---


def _proc_connection(own: _Endpoint, peer: _Endpoint) -> int:
    wanted = set(_spellings(own, peer))
    return next((row.inode for row in _proc_rows() if (row.own, row.peer) in wanted), 0)


def _proc_listeners(port: int) -> Iterator[int]:
    return (row.inode for row in _proc_rows(only_listening=True) if row.listens_at(port))


def _proc_rows(*, only_listening: bool = False) -> Iterator[_Row]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                next(file, None)  # the heading
                for line in file:
                    fields = line.split()
                    if len(fields) < _HEX_LINE_MINIMUM:
                        continue
                    state = int(fields[3], 16)
                    if only_listening and state != LISTENING:
                        break  # listening sockets come first (tcp_seq_start)
                    own, peer = endpoint_of(fields[1]), endpoint_of(fields[2])
                    yield _Row(own, peer, state, int(fields[9]))
        except OSError:
            continue  # no IPv6 here


def endpoint_of(text: str) -> _Endpoint:
    """An address as /proc/net/tcp shows it: 32-bit words in the machine's byte order."""
    digits, _, port = text.partition(":")
    raw = bytes.fromhex(digits)
    words = struct.unpack(f"!{len(raw) // 4}I", raw)
    return ip_address(struct.pack(f"={len(words)}I", *words)), int(port, 16)
