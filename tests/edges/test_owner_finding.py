"""Whose connection is it, found in bounded time among a great many descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from supervisor.edges import owner_finding, socket_owners
from supervisor.edges.owner_finding import GIVE_UP_AFTER, OwnerFinder
from supervisor.edges.socket_owners import SearchEnded

MANY = 15_000
LONG = 60.0  # seconds of CPU time: no search takes as long
HOLDER = """
import resource, socket, sys
many = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, many + 200), hard))
server = socket.create_server(("127.0.0.1", 0))
held = [socket.socket() for _ in range(many)]
if sys.argv[2:]:  # gaps, as where connections were closed: the next one gets the lowest number
    for one in held[many // 2 :: 400]:
        one.close()
print(server.getsockname()[1], flush=True)
while sys.stdin.readline():
    held.append(server.accept()[0])
    print("accepted", flush=True)
"""


@dataclass(frozen=True)
class Holder:
    """A process with many sockets open, and one that it has accepted just now."""

    pid: int
    here: tuple[object, ...]
    there: tuple[object, ...]


@contextmanager
def holder(many: int, *words: str) -> Iterator[Holder]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(many), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as ours:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "accepted\n"
            yield Holder(process.pid, ours.getsockname(), ours.getpeername())
        process.stdin.close()


@pytest.mark.parametrize("words", [(), ("gap",)], ids=["dense", "gap"])
async def test_what_was_accepted_just_now_is_found_first(words: tuple[str, ...]) -> None:
    with holder(MANY, *words) as busy, holder(10) as other:
        inode = socket_owners.connection_inode(busy.there, busy.here)
        assert inode is not None
        new, old = socket_owners._newest_first(socket_owners._numbers(busy.pid))
        assert len(new) < len(old)
        assert socket_owners._holds(busy.pid, new, inode, float("inf"))
        for workers in ([busy.pid], [other.pid, busy.pid], [busy.pid, other.pid]):
            finder = OwnerFinder(partial(list, workers), budget=LONG)
            assert await finder(busy.here, busy.there) == busy.pid
            assert await finder(other.here, other.there) == (
                other.pid if other.pid in workers else None
            )


async def test_the_search_has_a_limit_and_is_given_up() -> None:
    with holder(MANY) as busy, holder(10) as stranger:
        # Nobody of those that are looked at has it: each look would go through everything.
        finder = OwnerFinder(lambda: [busy.pid], budget=0.0)
        for _ in range(GIVE_UP_AFTER):
            assert not finder.gave_up
            assert await finder(stranger.here, stranger.there) is None
        assert finder.gave_up
        inode = socket_owners.connection_inode(stranger.there, stranger.here)
        assert inode is not None
        with pytest.raises(SearchEnded):
            socket_owners.owner_of(inode, [busy.pid], seconds=0.0)
        assert socket_owners.owner_of(inode, [busy.pid]) is None


async def test_all_searches_together_take_a_small_share_of_a_cpu() -> None:
    with holder(10) as one:
        finder = OwnerFinder(lambda: [one.pid])
        assert await finder(one.here, one.there) == one.pid
        assert finder._spent > 0.0
        finder._spent = owner_finding.ALLOWANCE + 1.0
        assert await finder(one.here, one.there) is None
        finder._began -= 2.0 / owner_finding.SHARE  # a while later
        assert await finder(one.here, one.there) == one.pid


async def test_a_search_that_ends_well_is_no_reason_to_give_up() -> None:
    with holder(10) as one, holder(10) as stranger:
        finder = OwnerFinder(lambda: [one.pid])
        finder._ended = GIVE_UP_AFTER - 1
        assert await finder(stranger.here, stranger.there) is None  # found that it is nobody's
        assert await finder(one.here, one.there) == one.pid
        assert finder._ended == 0


async def test_a_cheap_look_leaves_a_busy_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(10) as one:
        assert await OwnerFinder(lambda: [one.pid])(one.here, one.there, cheaply=True) == one.pid
        # A kernel that does not tell how many there are (before 6.2).
        monkeypatch.setattr(socket_owners, "descriptors_of", lambda _pid: None)
        assert await OwnerFinder(lambda: [one.pid])(one.here, one.there, cheaply=True) is None
        assert await OwnerFinder(lambda: [one.pid])(one.here, one.there) == one.pid
        monkeypatch.setattr(socket_owners, "descriptors_of", lambda _pid: owner_finding.CHEAP + 1)
        assert await OwnerFinder(lambda: [one.pid])(one.here, one.there, cheaply=True) is None


async def test_the_supervisors_own_thread_is_not_held_up() -> None:
    """While a worker with many descriptors is gone through, everything else goes on."""
    with holder(MANY) as busy, holder(10) as stranger:
        turns = 0
        finder = OwnerFinder(lambda: [busy.pid], budget=LONG)
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                nonlocal turns
                while True:
                    await trio.sleep(0)
                    turns += 1

            nursery.start_soon(count)
            assert await finder(stranger.here, stranger.there) is None
            nursery.cancel_scope.cancel()
    # Searched in this thread it would have been one or two.
    assert turns > 20


def test_how_many_descriptors_a_process_has() -> None:
    before = socket_owners.descriptors_of(os.getpid())
    assert before is None or before > 2  # None: Linux before 6.2
    assert socket_owners.descriptors_of(2**22 + 1) == 0
