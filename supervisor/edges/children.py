"""Children that nobody waits for: those of a program that was replaced in this process.

A probe's command or a test of the configuration may run at that moment. What it would have told is
asked for again, so it is ended; its exit status is taken, or it would stay a zombie. Nobody else is
touched: in a container the supervisor is the parent of every orphan, and a script that became the
supervisor by `exec` may have started others before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import weakref
from collections.abc import Iterable

import trio

from supervisor.edges import linux, procfs

LIMIT = 10.0
"""Seconds for the kernel to end a process that was killed."""


_started: weakref.WeakSet[trio.Process] = weakref.WeakSet()


def note(process: trio.Process) -> trio.Process:
    """`process` was started to be waited for; whoever did so ends it where it is not."""
    _started.add(process)
    return process


def running() -> list[int]:
    """Those that were noted and have not ended."""
    return sorted(one.pid for one in _started if one.returncode is None)


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
