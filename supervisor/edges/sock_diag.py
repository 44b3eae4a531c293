"""Questions about sockets to the kernel, over netlink (sock_diag(7)): some microseconds each."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

ANY_COOKIE = 0xFFFFFFFF
LISTENING = 10
"""TCP_LISTEN, which the kernel uses of unix sockets as well."""

INET_ANSWER = struct.Struct("=BBBB48sIIIII")
"""struct inet_diag_msg: family, state, timer, retrans, identity; then expires, receive queue, send
queue, uid, inode."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr


def ask(request: bytes, *, dump: bool) -> Iterator[bytes]:
    """The answers to one request: about each socket that matches (`dump`), or about one.

    Raises OSError where the kernel gives none: ENOENT, there is no such socket; others, it does
    not answer such questions.
    """
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
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
            if not dump:
                return
