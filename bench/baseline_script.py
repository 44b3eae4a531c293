"""What a careful operator's script does: bare signals to known pids, and polls of /proc.

This is nginx's own time, as nearly as anyone outside nginx can see it. The supervisor is compared
with it by `bench.upgrade_overhead`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL = 0.0005
LIMIT = 10.0

_WORKER = b"nginx: worker process"
_LEAVING = b"nginx: worker process is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Seconds of each step, in their order."""

    new_workers: float  # USR2 until the new generation's workers accept
    old_workers_gone: float  # WINCH until the old ones are gone
    last: float  # QUIT to the old master until it is gone; or HUP, then QUIT to the new one

    @property
    def total(self) -> float:
        """All steps."""
        return self.new_workers + self.old_workers_gone + self.last


def children(pid: int) -> list[int]:
    """The children of a master; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(one) for one in text.split()]


def title(pid: int) -> bytes:
    """The command line as nginx has set it; empty for a zombie and for nobody."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def accepting(master: int) -> int:
    """How many workers of `master` accept."""
    titles = [title(pid) for pid in children(master)]
    return sum(one.startswith(_WORKER) and not one.startswith(_LEAVING) for one in titles)


def any_worker(master: int) -> bool:
    """Whether `master` has a worker, leaving or not."""
    return any(title(pid).startswith(_WORKER) for pid in children(master))


def poll(what: str, holds: Callable[[], bool]) -> None:
    """Return when `holds` does. Raises TimeoutError."""
    end = time.monotonic() + LIMIT
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {LIMIT:g} s: {what}")
        time.sleep(POLL)


class Exit:
    """The exit of one process, told by the kernel; open it before the process may exit."""

    def __init__(self, pid: int) -> None:
        self.fd = os.pidfd_open(pid)

    def wait(self) -> None:
        """Return when the process has exited. Raises TimeoutError."""
        ready, _, _ = select.select([self.fd], [], [], LIMIT)
        os.close(self.fd)
        if not ready:
            raise TimeoutError(f"no exit within {LIMIT:g} s")


def spawn(old: int, workers: int) -> tuple[int, float]:
    """USR2; the new master once its workers accept, and the seconds until then."""
    began = time.monotonic()
    os.kill(old, signal.SIGUSR2)
    new: list[int] = []

    def up() -> bool:
        # A just-forked child has its parent's title until it execs; only the new master has
        # children of its own.
        new[:] = [pid for pid in children(old) if accepting(pid) == workers]
        return bool(new)

    poll("new workers", up)
    return new[0], time.monotonic() - began


def shift(old: int) -> float:
    """WINCH; the seconds until the old workers are gone."""
    began = time.monotonic()
    os.kill(old, signal.SIGWINCH)
    poll("old workers gone", lambda: not any_worker(old))
    return time.monotonic() - began


def quit_master(master: int) -> float:
    """QUIT; the seconds until the master is gone."""
    gone = Exit(master)
    began = time.monotonic()
    os.kill(master, signal.SIGQUIT)
    gone.wait()
    return time.monotonic() - began


def upgrade(old: int, workers: int) -> tuple[int, Steps]:
    """USR2, WINCH, QUIT; the new master and the times."""
    new, spawned = spawn(old, workers)
    shifted = shift(old)
    return new, Steps(new_workers=spawned, old_workers_gone=shifted, last=quit_master(old))


def roll_back(old: int, new: int, workers: int) -> float:
    """HUP to the old master, then QUIT to the new one; the seconds until it is gone."""
    began = time.monotonic()
    os.kill(old, signal.SIGHUP)
    poll("old workers back", lambda: accepting(old) == workers)
    quit_master(new)
    return time.monotonic() - began
