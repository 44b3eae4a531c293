"""A client in the middle of its request: the worker that has it cannot leave before it is over."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor.edges.socket_owners import connection_inode
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import LIMIT


class Unfinished:
    """A request of which the first half was sent, on a connection that a worker has accepted."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def finish(self) -> str:
        """Send the rest; the whole answer. Raises OSError when the connection was cut."""
        self._connection.sendall(b"Connection: close\r\n\r\n")
        received = b""
        while part := self._connection.recv(65536):
            received += part
        return received.decode()


@contextmanager
def request(port: int) -> Iterator[Unfinished]:
    """Whoever serves on this port has accepted it by now, and waits for the rest."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: site.test\r\n")
        peer, own = connection.getpeername(), connection.getsockname()
        until("it is accepted", lambda: connection_inode(peer, own) is not None)
        yield Unfinished(connection)
