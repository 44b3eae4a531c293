"""Kill workers so that it is known, connection by connection, whom that cost an answer.

Each process is stopped first. A stopped worker accepts nothing more, so its open descriptors say
exactly which connections it had accepted; then it is killed. A client that lost its connection is
*matched* where its address and port are in such a list and its end came after that kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.edges import linux
from tools.quick_load import Failure

STOP_LIMIT = 10.0
NEAR = 5.0
"""Seconds after a kill within which a client has noticed it: it waits no longer for an answer."""

Peer = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """One process that was killed on purpose."""

    pid: int
    at: float
    """When it had stopped, of the monotonic clock; SIGKILL came right after."""
    accepted: frozenset[Peer]
    """The other ends of the connections that it had."""

    def explains(self, failure: Failure) -> bool:
        """Whether this kill is what the client has seen."""
        return (
            failure.cause in ("reset", "cut")
            and (failure.address, failure.port) in self.accepted
            and failure.began <= self.at <= failure.ended <= self.at + NEAR
        )


def kill(pids: Iterable[int], *, port: int) -> list[Killed]:
    """Stop all of `pids` in this order, note what each had accepted on `port`, and kill them.

    A master comes before its workers, so that it replaces none of them. Who has gone meanwhile is
    left out. Raises TimeoutError when one does not stop.
    """
    killed = []
    for pid in pids:
        if _stop(pid):
            # Noted at once: who watches nginx may kill what is stopped before we do.
            at = time.monotonic()
            killed.append(Killed(pid=pid, at=at, accepted=_accepted(pid, port)))
    for one in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    return killed


def unexplained(failures: Iterable[Failure], kills: Iterable[Killed]) -> list[Failure]:
    """The failures for which no kill is the cause; each connection counts once."""
    by_peer: dict[Peer, list[Killed]] = {}
    for one in kills:
        for peer in one.accepted:
            by_peer.setdefault(peer, []).append(one)
    return [
        failure
        for failure in failures
        if not any(
            one.explains(failure) for one in by_peer.get((failure.address, failure.port), ())
        )
    ]


def _stop(pid: int) -> bool:
    """Stop it; False when it is gone. The kernel says T once it runs no more."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    end = time.monotonic() + STOP_LIMIT
    while (state := _state(pid)) != "T":
        if state in ("", "Z", "X"):
            return False
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} did not stop within {STOP_LIMIT:g} s")
        time.sleep(0.0002)
    return True


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _accepted(pid: int, port: int) -> frozenset[Peer]:
    """The other ends of the connections to `port` that a stopped process has.

    Each of its sockets is asked through a duplicate, which is closed before it is killed. To look
    for them in /proc/net/tcp would take seconds where that is long, and clients would wait.
    """
    pidfd = linux.open_pidfd(pid)
    if pidfd is None:
        return frozenset()
    try:
        peers = [_peer(pidfd, number, port) for number in _sockets(pid)]
    finally:
        os.close(pidfd)
    return frozenset(peer for peer in peers if peer is not None)


def _sockets(pid: int) -> list[int]:
    """Its descriptors that are sockets."""
    folder = f"/proc/{pid}/fd"
    try:
        return [
            int(name)
            for name in os.listdir(folder)
            if os.readlink(f"{folder}/{name}").startswith("socket:")
        ]
    except FileNotFoundError:
        return []  # it has gone


def _peer(pidfd: int, number: int, port: int) -> Peer | None:
    try:
        duplicate = linux.take_fd(pidfd, number)
    except ProcessLookupError:
        return None
    with socket.socket(fileno=duplicate) as found:
        if found.family != socket.AF_INET or found.getsockname()[1] != port:
            return None
        try:
            host, peer_port = found.getpeername()
        except OSError:  # it listens, or its client has gone
            return None
        return host, peer_port
