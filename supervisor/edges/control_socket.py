"""The control socket's file: made with the right mode, never taken from a living supervisor.

A socket file that nobody listens on is what a killed supervisor left behind. It is replaced; one
that answers is not. Between the test and the bind another supervisor could do the same, so both
happen under a lock on the folder: flock(2) takes a directory as well, and that leaves no lock
file behind.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from supervisor import wire
from supervisor.core.errors import ConfigError, SupervisorError
from supervisor.edges.unix_paths import Presence, identity, presence

BACKLOG = 128
LOCK_TIMEOUT = 2.0
"""Seconds to wait for another supervisor that binds in the same folder at the same moment."""

_LOCK_POLL = 0.02  # flock has no event; contention lasts for one bind, a fraction of this


@asynccontextmanager
async def control_listener(
    path: str, *, mode: int, inherited: socket.socket | None = None
) -> AsyncIterator[trio.SocketListener]:
    """A listener on `path`, whose file has `mode` from its first moment on.

    `inherited` is one that a predecessor in this process has made there: it is used as it is, and
    no client notices. Leaving closes it and removes the file, unless the path meanwhile names
    another file.

    Raises:
        SupervisorError: `control_socket_in_use`, a process listens there.
        ConfigError: the path is relative, too long, in a missing folder, names something that is
            no socket, or may not be written.
    """
    check_socket_path(path)
    if inherited is None:
        async with _folder_lock(path):
            with _translated(path):
                _remove_stale(path)
                listening = _listen(path, mode)
    else:
        listening = inherited
        with _translated(path):
            os.chmod(path, mode)  # the settings may be others by now
    with listening:
        ours = identity(path)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            if ours is not None and identity(path) == ours:
                os.unlink(path)


def check_socket_path(path: str) -> None:
    """Raise ConfigError where `path` can never be the control socket's."""
    length = len(os.fsencode(path))
    if not os.path.isabs(path):
        raise ConfigError(
            f"cannot use the control socket {path!r}: the path is relative; give an absolute one",
            reason="control_socket_path",
        )
    if length > wire.SUN_PATH_MAX:
        raise ConfigError(
            f"cannot use the control socket {path!r}: the path has {length} bytes and the kernel "
            f"takes {wire.SUN_PATH_MAX}; choose a shorter one",
            reason="control_socket_path_too_long",
        )
    folder = os.path.dirname(path)
    if not os.path.exists(folder):
        raise ConfigError(
            f"cannot create the control socket {path!r}: the folder {folder!r} is missing; "
            "create it (systemd: RuntimeDirectory=)",
            reason="control_socket_folder_missing",
        )
    if not os.path.isdir(folder):
        raise ConfigError(
            f"cannot create the control socket {path!r}: {folder!r} is no folder; "
            "name another path",
            reason="control_socket_path",
        )


@asynccontextmanager
async def _folder_lock(path: str) -> AsyncIterator[None]:
    folder = os.path.dirname(path)
    with _translated(path):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = trio.current_time() + LOCK_TIMEOUT
        while not _lock(fd):
            if trio.current_time() > deadline:
                raise SupervisorError(
                    "control_socket_in_use",
                    f"cannot create the control socket {path!r}: another process holds a lock on "
                    f"the folder {folder!r}; end it, or choose another folder",
                )
            await trio.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(fd)  # and with it the lock


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale(path: str) -> None:
    found = presence(path, socket.SOCK_STREAM)
    if found is Presence.STALE:
        os.unlink(path)
    elif found is Presence.OTHER:
        raise ConfigError(
            f"cannot create the control socket {path!r}: a file of another kind is there; "
            "remove it, or name another path",
            reason="control_socket_path",
        )
    elif found is Presence.ANSWERED:
        raise SupervisorError(
            "control_socket_in_use",
            f"cannot create the control socket {path!r}: another process listens there; "
            "stop that supervisor, or give this one a socket of its own",
        )


def _listen(path: str, mode: int) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The kernel gives the file the mode of the socket's own inode, less the umask
        # (unix_bind_bsd in net/unix/af_unix.c), so there is no moment at which it is wider.
        os.fchmod(bound.fileno(), mode)
        bound.bind(path)
        os.chmod(path, mode)  # what the umask took away
        bound.listen(BACKLOG)  # under the lock: without it another supervisor finds it stale
    except BaseException:
        bound.close()
        raise
    return bound


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(
            f"cannot create the control socket {path!r}: {exc.strerror}; "
            "check the folder's owner and mode, or name another path",
            reason="control_socket_path",
        ) from exc
