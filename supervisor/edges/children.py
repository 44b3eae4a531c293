"""Children that nobody waits for: those of a program that was replaced in this process.

A probe's command or a test of the configuration may run at that moment. What it would have told is
asked for again, so it is ended; its exit status is taken, or it would stay a zombie.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterable

import trio

from supervisor.edges import linux, procfs

LIMIT = 10.0
"""Seconds for the kernel to end a process that was killed."""


def besides(tracked: Collection[int], sessions: Collection[int]) -> list[int]:
    """The children of this process that are neither in `tracked` nor in one of `sessions`."""
    found = []
    for pid in procfs.children(os.getpid()):
        stat = procfs.read_stat(pid)
        if stat is not None and pid not in tracked and stat.session not in sessions:
            found.append(pid)
    return found


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
