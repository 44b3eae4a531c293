"""A datagram socket that nginx sends its errors to: `error_log syslog:server=unix:PATH alert;`.

The kernel says who sent a message (SO_PASSCRED, unix(7)), whatever the message says. nginx opens
its end without blocking and drops what does not fit: a full queue, or nobody at this end, costs
lines and never a request (seen with 1.18 and 1.26; the queue holds `net.unix.max_dgram_qlen`
messages). A process whose connection was lost connects anew with its next message.

The file belongs to the supervisor, and to nobody else may be written to, as soon as it is known
which user the workers have: it is theirs then.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.core.error_log import MESSAGE, Entry, parse_datagram
from supervisor.core.errors import ConfigError
from supervisor.edges.unix_paths import Presence, identity, presence

AT_ONCE = 64
"""Messages that are taken in one turn."""

_LARGEST = MESSAGE + 1024  # with the head; what is longer is nobody's
_CREDENTIALS = struct.Struct("iii")  # struct ucred: pid, uid, gid
_FOR_ALL = 0o666


@dataclass(frozen=True, slots=True)
class Heard:
    """One message; `pid` is the sender's as the kernel sees it, 0 where it is out of sight."""

    pid: int
    entry: Entry


class SyslogSocket:
    """The supervisor's end; whoever made it closes it."""

    def __init__(self, path: str, mode: int, bound: socket.socket) -> None:
        self.path = path
        self._mode = mode
        self._socket = bound
        self._file = identity(path)
        self._owner: tuple[int, int] | None = None

    @classmethod
    def bind(cls, path: str, mode: int) -> SyslogSocket:
        """A new one at `path`. Raises ConfigError.

        Root's is open to all until `give_to` is told the workers' user: nginx may start meanwhile.
        """
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _remove_stale(path)
            first = _FOR_ALL if os.geteuid() == 0 else mode
            # As for the control socket: the file's mode is the inode's, less the umask.
            os.fchmod(bound.fileno(), first)
            bound.bind(path)
            opened = cls(path, mode, bound)
            opened._change(first, None)  # less the umask so far
        except OSError as exc:
            bound.close()
            raise ConfigError(
                f"cannot create the syslog socket {path!r}: {exc.strerror}; check the folder's "
                "owner and mode, or name another path",
                reason="syslog_socket_path",
            ) from exc
        except ConfigError:
            bound.close()
            raise
        return opened

    @classmethod
    def inherit(cls, path: str, mode: int, fds: Iterable[int]) -> SyslogSocket | None:
        """The one that a predecessor in this process has bound to `path`; others are closed."""
        found: SyslogSocket | None = None
        for fd in fds:
            bound = socket.socket(fileno=fd)
            if found is None and bound.getsockname() == path and os.path.exists(path):
                bound.setblocking(False)
                found = cls(path, mode, bound)
            else:
                bound.close()
        return found

    @property
    def fd(self) -> int:
        """Readable where a message waits; to be handed on."""
        return self._socket.fileno()

    def give_to(self, owner: tuple[int, int]) -> None:
        """Only this user and group may send from now on, and root. Raises OSError."""
        if owner != self._owner:
            self._owner = owner
            self._change(self._mode, owner if os.geteuid() == 0 else None)

    def _change(self, mode: int, owner: tuple[int, int] | None) -> None:
        """Of the socket itself: who may write to its folder could have put a link in its place."""
        there = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(there)
            if not stat.S_ISSOCK(found.st_mode) or (found.st_dev, found.st_ino) != self._file:
                raise OSError(errno.ESTALE, "somebody has put something else in its place")
            name = f"/proc/self/fd/{there}"
            if owner is not None:
                os.chown(name, *owner)
            os.chmod(name, mode)
        finally:
            os.close(there)

    def receive(self) -> list[Heard]:
        """The messages that wait, at most `AT_ONCE`; what is none of nginx's is passed over."""
        heard: list[Heard] = []
        for _ in range(AT_ONCE):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                break
            entry = None if flags & socket.MSG_TRUNC else parse_datagram(data)
            if entry is not None:
                heard.append(Heard(_sender(ancillary), entry))
        return heard

    def close(self) -> None:
        """Close it, and remove its file where that is ours still."""
        self._socket.close()
        if self._file is not None and identity(self.path) == self._file:
            os.unlink(self.path)


def _sender(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, _, _ = _CREDENTIALS.unpack_from(data)
            return int(pid)
    return 0


def _remove_stale(path: str) -> None:
    """Make room for a socket whose owner is gone. Raises ConfigError, OSError."""
    found = presence(path, socket.SOCK_DGRAM)
    if found is Presence.STALE:
        os.unlink(path)
    elif found is Presence.OTHER:
        raise ConfigError(
            f"cannot create the syslog socket {path!r}: a file of another kind is there; remove "
            "it, or name another path",
            reason="syslog_socket_path",
        )
    elif found is Presence.ANSWERED:
        raise ConfigError(
            f"cannot create the syslog socket {path!r}: another process has it; stop that, or give "
            "this supervisor a path of its own",
            reason="syslog_socket_in_use",
        )
