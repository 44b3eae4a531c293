"""The file of a unix socket: whose it is, and whether anybody is behind it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from enum import Enum


class Presence(Enum):
    """What is at the path of a unix socket."""

    NOTHING = "nothing"
    STALE = "stale"  # a socket without anybody
    ANSWERED = "answered"
    OTHER = "other"  # no socket


def presence(path: str, kind: socket.SocketKind) -> Presence:
    """What is there now, asked for by connecting to it, without waiting. Raises OSError."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return Presence.NOTHING
    if not stat.S_ISSOCK(found.st_mode):
        return Presence.OTHER
    with socket.socket(socket.AF_UNIX, kind) as trial:
        trial.setblocking(False)  # the backlog of a stopped supervisor may be full
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return Presence.STALE
        except OSError as exc:
            # A full backlog is somebody's, and so is a socket of another type.
            if exc.errno not in {errno.EAGAIN, errno.EPROTOTYPE}:
                raise
    return Presence.ANSWERED


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what is there; None: nothing that can be seen."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
