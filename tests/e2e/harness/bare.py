"""nginx without a supervisor, driven by signals as an operator does it by hand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.e2e.harness import processes
from tests.e2e.harness.cradle import LIMIT, Cradle
from tests.e2e.harness.site import Site

POLL = 0.002


def until(what: str, holds: Callable[[], bool], limit: float = LIMIT, poll: float = POLL) -> None:
    """Return when `holds` does. Raises TimeoutError that says `what` was awaited.

    For what has no event to wait for: titles, /proc, the effects of signals on nginx.
    """
    end = time.monotonic() + limit
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit:g} s: {what}")
        time.sleep(poll)


class Bare:
    """A master and its successors in a cradle."""

    def __init__(self, site: Site, cradle: Cradle) -> None:
        self._site, self._cradle = site, cradle

    def start(self) -> int:
        """Start nginx, which makes itself a daemon; the master's pid once its workers run."""
        launcher = self._cradle.run(self._site.argv, env={}, output=self._site.folder / "bare.log")
        if self._cradle.wait(launcher) != 0:
            raise RuntimeError((self._site.folder / "bare.log").read_text(encoding="utf-8"))
        until("a master with workers", lambda: bool(self.masters()) and self.serves(self.master))
        return self.master

    def masters(self) -> list[int]:
        """The living masters, oldest first."""
        return [seen.pid for seen in self._cradle.living() if seen.is_master]

    @property
    def master(self) -> int:
        """The oldest living master."""
        return self.masters()[0]

    def workers(self, master: int) -> list[processes.Seen]:
        """Its living workers."""
        return [seen for seen in processes.children(master) if seen.is_worker]

    def serves(self, master: int) -> bool:
        """Whether its full set of workers accepts."""
        accepting = [one for one in self.workers(master) if one.is_accepting]
        return len(accepting) == self._site.options.workers

    def usr2(self, old: int) -> int:
        """Start the binary that is now on disk; the new master's pid once it serves."""
        os.kill(old, signal.SIGUSR2)
        new: list[int] = []

        def appeared() -> bool:
            new[:] = [one for one in self.masters() if one != old]
            return bool(new) and self.serves(new[0])

        until("a second master with workers", appeared)
        return new[0]

    def winch(self, old: int) -> None:
        """Tell the old workers to leave; returns when none accepts any more."""
        os.kill(old, signal.SIGWINCH)
        until("no accepting worker", lambda: not any(one.is_accepting for one in self.workers(old)))

    def quit(self, master: int, limit: float = LIMIT) -> None:
        """End a master; returns when it is gone, after its connections have."""
        os.kill(master, signal.SIGQUIT)
        until(f"{master} gone", lambda: processes.look(master) is None, limit)
