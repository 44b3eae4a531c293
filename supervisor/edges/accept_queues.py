"""How many connections wait at each listening socket of this network namespace to be accepted.

The kernel tells by sock_diag(7): for a listener the "receive queue" is what waits, the "send queue"
what may wait at most. Where it does not answer, /proc/net/tcp has the first of the two.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from supervisor.edges import sock_diag
from supervisor.edges.sock_diag import ANY_COOKIE, INET_ANSWER, LISTENING
from supervisor.edges.socket_owners import endpoint_of

_INET_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2, of any address
_UNIX_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_UNIX_ANSWER = struct.Struct("=BBBBIII")  # struct unix_diag_msg
_SHOW_NAME, _SHOW_LENGTHS = 0x1, 0x10
_NAME, _LENGTHS = 0, 4  # attributes of the answer
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One listening socket."""

    inode: int
    address: str
    waiting: int
    limit: int  # 0 where nobody told


def accept_queues() -> list[Waiting]:
    """Every listening stream socket, TCP and unix; of unix ones none where the kernel is mute."""
    try:
        found = [*_inet(socket.AF_INET), *_inet(socket.AF_INET6)]
    except OSError:
        found = list(_from_proc())
    with suppress(OSError):  # no unix_diag here: those are not looked at
        found += _unix()
    return found


def _inet(family: int) -> Iterator[Waiting]:
    request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << LISTENING)
    for data in sock_diag.ask(request, dump=True):
        _, _, _, _, identity, _, waiting, limit, _, inode = INET_ANSWER.unpack_from(data)
        (port,) = struct.unpack_from("!H", identity)
        size = 4 if family == socket.AF_INET else 16
        host = ip_address(identity[4 : 4 + size])
        yield Waiting(inode=inode, address=_shown(host, port), waiting=waiting, limit=limit)


def _unix() -> Iterator[Waiting]:
    show = _SHOW_NAME | _SHOW_LENGTHS
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << LISTENING, 0, show, ANY_COOKIE, ANY_COOKIE
    )
    for data in sock_diag.ask(request, dump=True):
        _, _, _, _, inode, _, _ = _UNIX_ANSWER.unpack_from(data)
        attributes = dict(_attributes(data[_UNIX_ANSWER.size :]))
        if _LENGTHS not in attributes:
            continue
        waiting, limit = struct.unpack_from("=II", attributes[_LENGTHS])
        name = os.fsdecode(attributes.get(_NAME, b"").rstrip(b"\0")).replace("\0", "@")
        yield Waiting(inode=inode, address=f"unix:{name}", waiting=waiting, limit=limit)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _from_proc() -> Iterator[Waiting]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                next(file, None)  # the heading
                for line in file:
                    fields = line.split()
                    if int(fields[3], 16) != LISTENING:
                        break  # listening sockets come first (tcp_seq_start)
                    host, port = endpoint_of(fields[1])
                    _, _, waiting = fields[4].partition(":")
                    yield Waiting(
                        inode=int(fields[9]), address=_shown(host, port),
                        waiting=int(waiting, 16), limit=0,
                    )  # fmt: skip
        except OSError:
            continue  # no IPv6 here


def _shown(host: object, port: int) -> str:
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"
