"""Whose child is whose: who is waited for, who is ended, and who is only reaped.

Every process of ours is started by `start`, so that its exit status goes to whoever started it. All
other children are orphans that came to us as subreaper, or as PID 1 of a container: `reap` takes
them once they are dead, or they would stay zombies until the process table is full.

A program that was replaced in this process leaves children that nobody waits for. A probe's command
or a test of the configuration may run at that moment. What it would have told is asked for again,
so it is ended. No living process but these is touched: a script that became the supervisor by
`exec` may have started others before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import trio

from supervisor.edges import linux, procfs

LIMIT = 10.0
"""Seconds for the kernel to end a process that was killed."""


_started: weakref.WeakSet[trio.Process] = weakref.WeakSet()
_own: weakref.WeakKeyDictionary[trio.Process, int] = weakref.WeakKeyDictionary()  # its start
_beginning = 0  # processes that may have been forked, and whose pid nobody has told yet
_postponed: Callable[[], None] | None = None


@contextlib.contextmanager
def beginning() -> Iterator[None]:
    """Nobody is reaped while the block lasts: a dead child may be one that it is starting."""
    global _beginning, _postponed
    _beginning += 1
    try:
        yield
    finally:
        _beginning -= 1
        if not _beginning and _postponed is not None:
            again, _postponed = _postponed, None
            again()


async def start(command: Sequence[str], **options: Any) -> trio.Process:
    """As trio.lowlevel.open_process; its exit status goes to the caller and nobody else."""
    with beginning():
        process = await trio.lowlevel.open_process(list(command), **options)
        stat = procfs.read_stat(process.pid)
        assert stat is not None  # dead perhaps, and not reaped
        _own[process] = stat.start
    return process


def _is_unreaped(process: trio.Process) -> bool:
    """Whether nobody has its exit status yet.

    `returncode` would not do: it takes the status (trio.Process.poll), and whoever waits for the
    process may need its pid, which then is free, to end its group.
    """
    stat = procfs.read_stat(process.pid)
    return stat is not None and stat.start == _own.get(process)


def reap(tracked: Callable[[], Container[int]], again: Callable[[], None]) -> int:
    """Take all dead children that are neither ours nor `tracked`; how many these were.

    Where that cannot be told at this moment, `again` is called when it can. Costs one system call
    where nobody is dead, and two for each that is.
    """
    global _postponed
    if _beginning:
        _postponed = again
        return 0
    found = 0
    spared: Container[int] | None = None
    while (pid := _first_dead()) is not None:
        if spared is None:
            spared = _Spared(tracked())
        if pid in spared:
            # The kernel tells no other one before this one is reaped: each is looked at.
            return found + _reap_each(spared)
        found += _reap(pid)
    return found


class _Spared:
    """The pids whose exit status somebody wants."""

    def __init__(self, tracked: Container[int]) -> None:
        self._tracked = tracked
        self._own = {one.pid for one in _own if _is_unreaped(one)}

    def __contains__(self, pid: object) -> bool:
        return pid in self._own or pid in self._tracked


def _first_dead() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _reap_each(spared: Container[int]) -> int:
    found = 0
    for pid in procfs.children(os.getpid()):
        if pid not in spared:
            stat = procfs.read_stat(pid)
            if stat is not None and not stat.alive:
                found += _reap(pid)
    return found


def _reap(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    return False


def note(process: trio.Process) -> trio.Process:
    """`process` was started to be waited for; whoever did so ends it where it is not."""
    _started.add(process)
    return process


def running() -> list[int]:
    """Those that were noted and that nobody has reaped."""
    return sorted(one.pid for one in _started if _is_unreaped(one))


async def end(pids: Iterable[int]) -> None:
    """Return when these children of this process, and their groups, are ended and reaped."""
    with trio.move_on_after(LIMIT):
        for pid in pids:
            await _end(pid)


async def _end(pid: int) -> None:
    stat = procfs.read_stat(pid)
    if stat is None or stat.parent != os.getpid():
        return
    pidfd = linux.open_pidfd(pid)  # of a zombie as well; nobody else reaps it
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if stat.session == pid else os.kill(pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)
        linux.reap(pidfd)
    finally:
        os.close(pidfd)
