"""Which worker holds the other end of a probe's connection: found in bounded time, beside the rest.

The kernel tells the inode of the other end at once, and then the descriptors of the workers have to
be gone through for it: some microseconds for each, and a worker of a busy host has tens of
thousands. So only the workers that are asked about are looked at, in a thread of its own, the
newest descriptors first, and with no more than `BUDGET`: then the worker could not be known. Where
that happens again and again the search is given up; and all searches of one aim together take no
more than a small share of a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

import trio

from supervisor.edges import socket_owners
from supervisor.edges.socket_owners import SearchEnded, SocketAddress

BUDGET = 0.2
"""Seconds of CPU time that one search may take."""
GIVE_UP_AFTER = 5
"""Searches in a row that ended so, after which there are no more."""
ALLOWANCE, SHARE = 1.0, 0.05
"""Seconds of CPU time for all searches, and so much more for each second that has passed."""
AT_ONCE = 100
"""Descriptors of all workers together that are gone through in less time than a thread begins."""
CHEAP = 2000
"""... and that are worth it where the answer will most likely name the worker itself."""


class Owner(Protocol):
    """From our end and the other end of a connection: the worker that holds the other end.

    None where nobody has accepted it yet, where it is no worker of the generation, and where that
    could not be found in time. `cheaply`: only where it costs next to nothing.
    """

    async def __call__(
        self, here: SocketAddress, there: SocketAddress, *, cheaply: bool = False
    ) -> int | None:
        """Search; cancelling leaves a thread that ends by itself, as its budget does."""
        ...


class OwnerFinder:
    """The owner of connections to one generation; one for each aim of the probes."""

    def __init__(self, workers: Callable[[], Collection[int]], *, budget: float = BUDGET) -> None:
        self._workers = workers
        self._budget = budget
        self._ended = 0  # searches in a row without a result in time
        self._began = time.monotonic()
        self._spent = 0.0  # seconds of CPU time

    @property
    def gave_up(self) -> bool:
        """The workers have too many descriptors open for any further search."""
        return self._ended >= GIVE_UP_AFTER

    async def __call__(
        self, here: SocketAddress, there: SocketAddress, *, cheaply: bool = False
    ) -> int | None:
        """See Owner."""
        workers = tuple(self._workers())
        open_files = _descriptors(workers)
        if (
            self.gave_up
            or self._is_overspent
            or (cheaply and (open_files is None or open_files > CHEAP))
        ):
            return None
        search = partial(self._search, there, here, workers)
        try:
            if open_files is not None and open_files <= AT_ONCE and socket_owners.has_diag():
                found = search()
            else:
                found = await trio.to_thread.run_sync(search, abandon_on_cancel=True)
        except SearchEnded:
            self._ended += 1
            return None
        if found is not None:
            self._ended = 0
        return found

    @property
    def _is_overspent(self) -> bool:
        return self._spent > ALLOWANCE + SHARE * (time.monotonic() - self._began)

    def _search(
        self, own: SocketAddress, peer: SocketAddress, workers: Collection[int]
    ) -> int | None:
        """In a thread, or where it is short in the supervisor's own."""
        began = time.thread_time()
        try:
            inode = socket_owners.connection_inode(own, peer)
            if inode is None:
                return None
            return socket_owners.owner_of(inode, workers, seconds=self._budget)
        finally:
            self._spent += time.thread_time() - began


def _descriptors(pids: Collection[int]) -> int | None:
    """Of all together; None where the kernel does not tell it."""
    counts = [socket_owners.descriptors_of(pid) for pid in pids]
    known = [one for one in counts if one is not None]
    return sum(known) if len(known) == len(counts) else None
