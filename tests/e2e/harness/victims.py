"""Stop the supervisor at a point, hit somebody, and let it go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.harness import paused, processes, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cases import Case, Victim
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.supervised import Supervised

STOPPED = 1.0
"""Seconds for which a supervisor is stopped where that is the fault."""

STAYS_STOPPED = 6.0
"""Seconds after which a process of nginx that was stopped is continued, unless it is dead or the
upgrade was decided before."""


class Points:
    """The supervisor of a site stops at points; `Supervised.program` has to be ours."""

    def __init__(self, nginx: Supervised) -> None:
        self._nginx = nginx
        self._file = nginx.site.folder / "pause"
        self._reached = nginx.site.folder / "pause.reached"
        nginx.program = [sys.executable, Path(paused.__file__)]
        nginx.environment[paused.VARIABLE] = str(self._file)

    def arm(self, name: str, number: int = 1) -> None:
        """The supervisor will stop at this point; once."""
        self._reached.unlink(missing_ok=True)
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{name} {number}")
        beside.rename(self._file)

    def disarm(self) -> None:
        """It will not stop any more."""
        self._file.unlink(missing_ok=True)

    def wait(self, over: Callable[[], bool] = lambda: False) -> None:
        """Return when the supervisor has stopped there. Raises AssertionError if `over` before."""

        def stopped() -> bool:
            seen = processes.look(self._nginx.pid)
            if self._reached.exists():
                return seen is not None and seen.state == "T"
            assert seen is not None, "the supervisor has ended before the point"
            assert not over(), "it was over before the point was reached"
            return False

        until("the point", stopped)

    def go_on(self) -> None:
        """The stopped supervisor continues."""
        os.kill(self._nginx.pid, signal.SIGCONT)


def find(nginx: Supervised, victim: Victim, first: Seen) -> list[Seen]:
    """The processes that are `victim` now; `first` is the master from before all this."""
    old = [one for one in nginx.masters() if is_same(one, first)]
    new = [one for one in nginx.masters() if not is_same(one, first)]
    if victim in (Victim.OLD_MASTER, Victim.NEW_MASTER):
        return old if victim is Victim.OLD_MASTER else new
    theirs = {one.pid for one in new}
    wanted = victim in (Victim.NEW_WORKERS, Victim.NEW_WORKER)
    # The others are the old master's, or its orphans.
    found = [one for one in nginx.nginx() if one.is_worker and (one.parent in theirs) is wanted]
    return found[:1] if victim in (Victim.OLD_WORKER, Victim.NEW_WORKER) else found


def is_same(one: Seen, other: Seen) -> bool:
    return (one.pid, one.started) == (other.pid, other.started)


def is_alive(one: Seen) -> bool:
    """That very process, and no later one with its pid."""
    now = processes.look(one.pid)
    return now is not None and now.started == one.started


def hit(victims: list[Seen], case: Case) -> None:
    """Send the signal; for all but SIGSTOP, return when each has ended."""
    number = signal.Signals[f"SIG{case.signal}"]
    for one in victims:
        if is_alive(one):
            os.kill(one.pid, number)
    if number == signal.SIGSTOP:
        for one in victims:
            until("stopped", lambda one=one: is_stopped(one))  # type: ignore[misc]
        return
    until("their end", lambda: not any(map(is_alive, victims)))


def is_stopped(one: Seen) -> bool:
    now = processes.look(one.pid)
    return now is None or now.state == "T"


def continue_all(victims: list[Seen]) -> None:
    """SIGCONT to those that are still there."""
    for one in victims:
        if is_alive(one):
            os.kill(one.pid, signal.SIGCONT)


def continue_when_decided(victims: list[Seen], asked: subprocess.Popen[str] | None) -> None:
    """SIGCONT once the upgrade has its verdict, at the latest after a while."""
    if asked is None:
        time.sleep(STOPPED)
    else:
        with suppress(subprocess.TimeoutExpired):
            asked.wait(STAYS_STOPPED)
    continue_all(victims)


def open_files(pid: int) -> Counter[str]:
    """What the process has open, counted by kind."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        kinds[target.partition(":[")[0]] += 1
    return kinds


def fewest_open_files(pid: int) -> Counter[str]:
    """The same, without what is open for a moment (the connection of a probe)."""
    seen = open_files(pid)
    for _ in range(5):
        time.sleep(0.01)
        seen &= open_files(pid)
    return seen


def assert_nothing_leaked(nginx: Supervised, before: Counter[str]) -> None:
    """The supervisor has no more files open than before, but error logs that it follows by now.

    A supervisor that adopts nginx from its record learns the names of those with the next
    operation that asks nginx for its configuration.
    """
    more: Counter[str] = Counter()

    def same() -> bool:
        now = open_files(nginx.pid)
        followed = {one for one in now if one.endswith("/error.log") and now[one] == 1}
        more.clear()
        more.update({one: many for one, many in (now - before).items() if one not in followed})
        return not more

    try:
        until("no more open files", same, poll=0.02)
    except TimeoutError as exc:
        raise AssertionError(f"the supervisor leaks {dict(more)}") from exc


def assert_no_zombies(nginx: Supervised) -> None:
    """Nobody of the family leaves a dead child unreaped."""
    left: list[str] = []

    def none() -> bool:
        family = {nginx.cradle.pid, *(one.pid for one in nginx.cradle.living())}
        left[:] = [line for line in zombies() if int(line.split()[1]) in family]
        return not left

    try:
        until("no zombies", none, poll=0.02)
    except TimeoutError as exc:
        raise AssertionError(f"zombies (pid, parent, name): {left}") from exc


def zombies() -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            before, _, rest = Path(f"/proc/{name}/stat").read_text().rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = rest.split()
        if fields[0] == "Z":
            found.append(f"{name} {fields[1]} {before.partition('(')[2]}")
    return found


@contextmanager
def held_connection(port: int) -> Iterator[None]:
    """The worker that has taken it waits for the rest of a request, and cannot leave meanwhile."""
    with unfinished.request(port):
        yield


def let_time_pass(seconds: float = STOPPED) -> None:
    """What is stopped stays stopped for a while: that is the fault."""
    time.sleep(seconds)
