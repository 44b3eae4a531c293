"""What it costs to find the worker that holds a probe's connection on a busy host.

    python -m bench.owner_search [--workers N] [--sockets N] [--rounds N]

Real processes hold as many sockets as the limits allow, and one of them accepts one connection
more: the search has to find it among all descriptors. The alternative is the plain way, to list and
read every descriptor of one worker after the other in the thread that asks. Beside each search a
task of the same thread wakes up every half millisecond: its longest pause is how long the
supervisor did nothing else, which must not be much longer than without any search.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial

import trio
import trio.lowlevel

from supervisor.edges import socket_owners
from supervisor.edges.owner_finding import BUDGET, OwnerFinder
from tests.edges.test_owner_finding import Holder, holder

SWITCH_INTERVAL = 0.0005  # as the supervisor has it
ROUNDS = 20


async def timed(search: Callable[[], Awaitable[int | None]]) -> tuple[float, float, int | None]:
    """Seconds of one search, the longest pause of another task meanwhile, and what was found."""
    longest, last = 0.0, time.perf_counter()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            await trio.sleep(0.0005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        await trio.lowlevel.checkpoint()
        began = time.perf_counter()
        found = await search()
        took = time.perf_counter() - began
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return took, longest, found


async def plainly(there: Holder, pids: Sequence[int]) -> int | None:
    """As one would write it."""
    await trio.lowlevel.checkpoint()
    inode = socket_owners.connection_inode(there.there, there.here)
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{inode}]":
                return pid
    return None


async def bench(workers: int, sockets: int, rounds: int) -> None:
    """Print the table."""
    with ExitStack() as stack:
        busy = [stack.enter_context(holder(sockets)) for _ in range(workers)]
        stranger = stack.enter_context(holder(10))
        pids = [one.pid for one in busy]
        print(f"{workers} workers with {sockets} sockets each, {rounds} rounds; milliseconds")
        print(f"{'':34}{'median':>8}{'most':>8}{'pause':>8}  found")
        rows: list[tuple[str, Callable[[], Awaitable[int | None]]]] = [
            ("plain, connection of the last one", partial(plainly, busy[-1], pids)),
            ("plain, connection of a stranger", partial(plainly, stranger, pids)),
            ("ours, connection of the last one", partial(_ours, busy[-1], pids)),
            ("ours, connection of a stranger", partial(_ours, stranger, pids)),
            ("nothing but the other task", _nothing),
        ]
        for name, search in rows:
            seen = [await timed(search) for _ in range(rounds)]
            took = [one[0] * 1000 for one in seen]
            pause = statistics.median(one[1] * 1000 for one in seen)
            found = sum(one[2] is not None for one in seen)
            print(
                f"{name:34}{statistics.median(took):8.1f}{max(took):8.1f}{pause:8.2f}"
                f"  {found} of {rounds}"
            )
        print(f"the budget of one search is {BUDGET * 1000:.0f} ms of CPU time")


async def _ours(there: Holder, pids: Sequence[int]) -> int | None:
    return await OwnerFinder(lambda: pids)(there.here, there.there)


async def _nothing() -> None:
    await trio.sleep(0.01)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--sockets", type=int, default=19_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL)
    trio.run(bench, given.workers, given.sockets, given.rounds)


if __name__ == "__main__":
    main()
