"""Who is at the other end of a unix socket, as the kernel recorded it at connect(2).

Sources: unix(7) for SO_PEERCRED; sk_getsockopt in net/core/sock.c for SO_PEERGROUPS (Linux 4.13).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass

import trio

_UCRED = "iII"  # struct ucred: pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python's socket module does not name it
_USUAL_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups
_MOST_BYTES = 65536 * 4  # NGROUPS_MAX (limits.h) numbers

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process; `groups` are its supplementary groups, and may repeat `gid`."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def peer_of(connected: socket.socket | trio.socket.SocketType) -> Peer:
    """Who called connect(2): the credentials of that moment, whatever they are now."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_UCRED))
    pid, uid, gid = struct.unpack(_UCRED, raw)
    return Peer(pid=pid, uid=uid, gid=gid, groups=_groups_of(connected))


def _groups_of(connected: socket.socket | trio.socket.SocketType) -> tuple[int, ...]:
    try:
        raw = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _USUAL_BYTES)
    except OSError as exc:
        if exc.errno == errno.ERANGE:
            raw = _many_groups_of(connected.fileno())
        elif exc.errno == errno.ENOPROTOOPT:  # an old kernel: nobody has a role by such a group
            return ()
        else:
            raise
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _many_groups_of(fd: int) -> bytes:
    buffer = ctypes.create_string_buffer(_MOST_BYTES)
    length = ctypes.c_uint32(_MOST_BYTES)
    arguments = (socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(length))
    if _libc.getsockopt(fd, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]
