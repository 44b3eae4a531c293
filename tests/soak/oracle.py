"""Says after every deed whether all is as it has to be, from outside and by the supervisor's word.

The invariants are those that the README opens with, and what a supervisor may never do over a long
time: grow, leave processes behind, forget whom its sockets belong to.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from supervisor.edges.socket_owners import inodes_of
from tests.e2e.harness import checks
from tests.soak.world import UnexpectedError, World
from tools.casualties import unexplained
from tools.quick_load import QuickLoad

MORE_DESCRIPTORS = 8
"""Beyond those of a supervisor at rest: a client or two of its socket, a second generation's."""
MORE_MEMORY = 48 * 1024 * 1024
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Oracle:
    """Checks one world under one load. Every method raises where something is wrong."""

    def __init__(self, world: World, load: QuickLoad) -> None:
        self._world, self._load = world, load
        self._baseline: dict[int, tuple[int, int]] = {}  # of each supervisor: descriptors, memory
        self._verdicts = len(world.nginx.history())
        self.matched: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()

    def check(self) -> None:
        """After a deed: settled, nothing left behind or grown, one verdict each, nothing lost."""
        world = self._world
        world.quiet()
        checks.assert_settled(world.nginx, world.serving.build, world.serving.sha)
        self._check_held()
        self._check_zombies()
        self._check_growth()
        self._check_history()
        world.end()
        self._check_requests()

    def _check_held(self) -> None:
        """What the master serves clients on is held, and nothing that it does not listen on.

        It has more: the private probe listener of the last upgrade, which is held only where
        `hold_reuseport` says so.
        """
        (master,) = self._world.masters()

        def right() -> bool:
            every, public = _listening(), _listening(self._world.port)
            theirs, ours = inodes_of(master.pid), inodes_of(self._world.nginx.pid)
            held = self._world.nginx.look()["held_listeners"]["count"]
            whole = theirs & public == ours & public == public
            return bool(public) and whole and ours & every <= theirs and held == len(ours & every)

        self._world.until("the held listeners are the master's", right)

    def _check_zombies(self) -> None:
        family = {one.pid for one in self._world.nginx.cradle.living()}
        self._world.until("no zombie", lambda: not _zombies(family))

    def _check_growth(self) -> None:
        pid = self._world.nginx.pid
        seen = (_descriptors(pid), _memory(pid))
        descriptors, memory = self._baseline.setdefault(pid, seen)
        self._world.until(
            f"no more than {descriptors} descriptors",
            lambda: _descriptors(pid) <= descriptors + MORE_DESCRIPTORS,
        )
        if seen[1] > memory + MORE_MEMORY:
            raise UnexpectedError(f"the supervisor grew from {memory} to {seen[1]} bytes")

    def _check_history(self) -> None:
        """Each upgrade has one verdict, which is the one that its caller was told."""
        history = self._world.nginx.history()
        ids = [one["upgrade_id"] for one in history]
        if len(set(ids)) != len(ids):
            raise UnexpectedError(f"an upgrade with two verdicts: {history[-4:]}")
        if not self._world.accepted <= set(ids):
            raise UnexpectedError(f"begun and without a verdict: {self._world.accepted - set(ids)}")
        new = history[self._verdicts :]
        self._verdicts = len(history)
        self.verdicts.update(one["verdict"] for one in new)
        upgrades = [one for one in new if one["operation"] != "reload"]  # those may be nobody's
        written = {(one["upgrade_id"], one["verdict"], one["reason"]) for one in upgrades}
        told = {(one["upgrade_id"], one["verdict"], one["reason"]) for one in self._world.verdicts}
        if not told <= written or (told != written and not self._world.open_ended):
            raise UnexpectedError(f"told {told}, written {written}")
        if any(verdict == "failed" for _, verdict, _ in written):
            raise UnexpectedError(f"a person is needed: {written}")

    def _check_requests(self) -> None:
        """Every request that failed lost its worker to a kill, or was to be lost by the deed."""
        world = self._world
        lap = self._load.lap()
        if lap.no_port:
            raise UnexpectedError("the load ran out of ports: its counts would mean nothing")
        left = unexplained(lap.failures, world.kills)
        bad = [one for one in left if not any(each.excuses(one) for each in world.windows)]
        excused = Counter(one.cause for one in left)
        self.matched += Counter(one.cause for one in lap.failures) - excused
        self.excused += excused
        if bad:
            told = "\n  ".join(map(str, bad[:20]))
            raise UnexpectedError(f"{len(bad)} requests were lost:\n  {told}")
        del world.windows[:-20], world.kills[:-200]


def _listening(port: int | None = None) -> set[int]:
    """The inodes of all listening TCP sockets, or of those of one port (proc(5))."""
    found = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}", encoding="ascii") as table:
            rows = [line.split() for line in table if " 0A " in line]
        found |= {int(row[9]) for row in rows if port is None or row[1].endswith(f":{port:04X}")}
    return found


def _zombies(family: set[int]) -> list[int]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat[0] == "Z" and int(stat[1]) in family:
            found.append(pid)
    return found


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
