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

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_INET_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2, of any address
# struct inet_diag_msg: family, state, timer, retrans, id (48 bytes), then five 32-bit numbers:
# expires, receive queue, send queue, uid, inode
_INET_ANSWER = struct.Struct("=BBBB48sIIIII")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_UNIX_ANSWER = struct.Struct("=BBBBIII")  # struct unix_diag_msg
_SHOW_NAME, _SHOW_LENGTHS = 0x1, 0x10
_NAME, _LENGTHS = 0, 4  # attributes of the answer
_ATTRIBUTE = struct.Struct("=HH")
_ANY_COOKIE = 0xFFFFFFFF


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
    for data in _dump(_INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN)):
        _, _, _, _, identity, _, waiting, limit, _, inode = _INET_ANSWER.unpack_from(data)
        (port,) = struct.unpack_from("!H", identity)
        size = 4 if family == socket.AF_INET else 16
        host = ip_address(identity[4 : 4 + size])
        yield Waiting(inode=inode, address=_shown(host, port), waiting=waiting, limit=limit)


def _unix() -> Iterator[Waiting]:
    show = _SHOW_NAME | _SHOW_LENGTHS
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << _LISTEN, 0, show, _ANY_COOKIE, _ANY_COOKIE
    )
    for data in _dump(request):
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


def _dump(request: bytes) -> Iterator[bytes]:
    """The answers to one request. Raises OSError where the kernel gives none."""
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)  # the kernel answers within the call
        netlink.sendto(header + request, (0, 0))
        while True:
            data = netlink.recv(65536)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", data, _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def _from_proc() -> Iterator[Waiting]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                next(file, None)  # the heading
                for line in file:
                    fields = line.split()
                    if int(fields[3], 16) != _LISTEN:
                        break  # listening sockets come first (tcp_seq_start)
                    digits, _, port = fields[1].partition(":")
                    raw = bytes.fromhex(digits)
                    words = struct.unpack(f"!{len(raw) // 4}I", raw)
                    host = ip_address(struct.pack(f"={len(words)}I", *words))
                    _, _, waiting = fields[4].partition(":")
                    yield Waiting(
                        inode=int(fields[9]), address=_shown(host, int(port, 16)),
                        waiting=int(waiting, 16), limit=0,
                    )  # fmt: skip
        except OSError:
            continue  # no IPv6 here


def _shown(host: object, port: int) -> str:
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"
