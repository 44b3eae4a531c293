"""The control socket and its connections, handed on when the supervisor is replaced.

The socket's file is never made anew: who connects meanwhile waits in the backlog. A connection goes
along as well, with what has been read of it and not been answered, so that a client that waits for
a verdict gets it on the same connection, from the new program. A call that only looks is answered
afresh there. Only a connection in the middle of a message to a client that does not take it ends.

trio takes a datum from the kernel and gives it to the task a moment later. So before anything is
handed on, `hush` has the accepting and the reading end where nothing is in between.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import trio

from supervisor.edges.handover import HandOver, Parcel, close_all

SOCKET = "control_socket"
CONNECTIONS = "control_connections"

_STILL = 3
"""So many turns of all tasks in a row with nothing to say: then nothing is on its way."""
_LOOK = 0.001


class Handable(Protocol):
    """A connection, as far as this module needs it."""

    @property
    def fd(self) -> int:
        """Its descriptor."""
        ...

    @property
    def speaking(self) -> bool:
        """A reply is being sent, or waits to be."""
        ...

    async def park(self) -> None:
        """Return when nothing is being read any more."""
        ...

    def unpark(self) -> None:
        """Read again."""
        ...

    def to_data(self, number_of: NumberOf) -> dict[str, object] | None:
        """What a successor needs besides the descriptor; None where it cannot go on with it."""
        ...


NumberOf = Callable[[Any], int | None]
"""The number of the caller whose replies come in this channel."""


class Door:
    """Everything that comes in by the control socket, to be stopped and handed on."""

    def __init__(self, hand_over: HandOver, number_of: NumberOf = lambda _: None) -> None:
        self._listener: PausableListener | None = None
        self._connections: dict[Handable, None] = {}
        self._number_of = number_of
        self._received = hand_over.take(SOCKET)
        self._came = hand_over.take(CONNECTIONS)
        hand_over.register(SOCKET, self._give_socket)
        hand_over.register(CONNECTIONS, self._give_connections)

    # --- from a predecessor -------------------------------------------------------------------

    def inherited(self, path: str) -> socket.socket | None:
        """The predecessor's listening socket where it is that of `path`; else it is closed."""
        parcel, self._received = self._received, None
        for fd in () if parcel is None else parcel.fds:
            with suppress(OSError):
                found = socket.socket(fileno=fd)
                if _listens_at(found, path):
                    return found
                name = found.getsockname()
                found.close()
                if isinstance(name, str) and name != path:
                    os.unlink(name)  # nobody will ever listen there again
        return None

    def came(self) -> Iterator[tuple[trio.SocketStream, Mapping[str, Any]]]:
        """The predecessor's connections, each with its data; once."""
        parcel, self._came = self._came, None
        if parcel is None or not isinstance(parcel.data, list):
            close_all(() if parcel is None else parcel.fds)
            return
        for data in parcel.data:
            with suppress(OSError, LookupError, TypeError, ValueError):
                stream = socket.socket(fileno=int(data["fd"]))
                yield trio.SocketStream(trio.socket.from_stdlib_socket(stream)), data

    def forget(self) -> None:
        """Close the predecessor's connections: nobody knows what they wait for."""
        parcel, self._came = self._came, None
        close_all(() if parcel is None else parcel.fds)

    # --- while it serves ----------------------------------------------------------------------

    def hang(self, listener: trio.SocketListener) -> PausableListener:
        """`listener`, so that it can be paused."""
        self._listener = PausableListener(listener)
        return self._listener

    def enter(self, connection: Handable) -> None:
        """A connection is there."""
        self._connections[connection] = None

    def leave(self, connection: Handable) -> None:
        """It is over."""
        self._connections.pop(connection, None)

    # --- to a successor -----------------------------------------------------------------------

    async def hush(self, limit: float) -> None:
        """Return when nothing is being accepted, read or sent; at most after `limit` seconds.

        Calls that were read before are answered meanwhile. `speak` ends it.
        """
        if self._listener is not None:
            await self._listener.pause()
        for _ in range(_STILL):  # what was accepted last becomes a connection
            await trio.lowlevel.checkpoint()
        for connection in list(self._connections):
            await connection.park()
        still, deadline = 0, trio.current_time() + limit
        while still < _STILL and trio.current_time() < deadline:
            if any(one.speaking for one in self._connections):
                still = 0
                await trio.sleep(_LOOK)
            else:
                still += 1
                await trio.lowlevel.checkpoint()

    def speak(self) -> None:
        """Accept and read again."""
        for connection in self._connections:
            connection.unpark()
        if self._listener is not None:
            self._listener.resume()

    def _give_socket(self) -> Parcel:
        return Parcel(fds=() if self._listener is None else (self._listener.fd,))

    def _give_connections(self) -> Parcel:
        given = [
            {**data, "fd": one.fd}
            for one in self._connections
            if (data := one.to_data(self._number_of)) is not None
        ]
        return Parcel(fds=tuple(int(str(one["fd"])) for one in given), data=given)


class PausableListener(trio.abc.Listener[trio.SocketStream]):
    """A listener whose `accept` can be made to wait, with nothing accepted and not yet returned."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._scope: trio.CancelScope | None = None
        self._open = trio.Event()
        self._open.set()
        self._idle = trio.Event()

    @property
    def fd(self) -> int:
        """The listening socket's descriptor."""
        return self._listener.socket.fileno()

    async def accept(self) -> trio.SocketStream:
        """See trio.abc.Listener."""
        while True:
            await self._open.wait()
            try:
                with trio.CancelScope() as self._scope:
                    return await self._listener.accept()
            finally:
                self._scope = None
                self._idle.set()

    async def pause(self) -> None:
        """Return when nothing is being accepted; what was accepted just now has been returned."""
        if self._open.is_set():
            self._open = trio.Event()
        if self._scope is not None:
            self._idle = trio.Event()
            self._scope.cancel()
            await self._idle.wait()

    def resume(self) -> None:
        """Accept again."""
        self._open.set()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._listener.aclose()


def _listens_at(found: socket.socket, path: str) -> bool:
    """Whether `found` is the socket that the file at `path` leads to, as far as can be told.

    A socket does not tell its file's inode; but whoever makes another file there unlinks this one
    first, and then a connection to `path` does not come here. The name has to do, and a file.
    """
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    try:
        return bool(found.getsockname() == path) and stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
