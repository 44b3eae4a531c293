"""What /proc says about nginx's processes: cheap enough to be asked every half millisecond.

Sources: proc(5); ngx_setproctitle.c and ngx_process_cycle.c for the titles. A title alone tells
nothing, since a worker that was just forked carries its master's: the kernel's PF_FORKNOEXEC flag
tells a fork from a process that has exec'd (include/linux/sched.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from signal import Signals
from typing import Final

from supervisor.edges.descriptors import RESERVE

_PF_FORKNOEXEC: Final = 0x40
_MASTER: Final = b": master process"
_WORKER: Final = b": worker process"
_LEAVING: Final = b" is shutting down"
_CACHE: Final = b": cache "


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """The fields of /proc/PID/stat that matter here; `start` is in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    session: int
    flags: int
    start: int

    @property
    def alive(self) -> bool:
        """Neither a zombie nor dead."""
        return self.state not in "ZX"

    @property
    def stopped(self) -> bool:
        """Stopped by a signal, or by a tracer."""
        return self.state in "Tt"

    @property
    def has_execed(self) -> bool:
        """It runs a program of its own choosing and is no mere fork of its parent."""
        return not self.flags & _PF_FORKNOEXEC


def read_stat(pid: int) -> Stat | None:
    """The process `pid`, None when there is none."""
    raw = _read(f"/proc/{pid}/stat")
    if not raw:
        return None
    # The name may hold blanks and brackets: everything counts from the last bracket on.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        flags=int(fields[6]),
        start=int(fields[19]),
    )


def zombie_status(pid: int, start: int) -> int | None:
    """How the zombie `pid` ended, as wait(2) will tell its parent; None where it is none.

    Field 52 of its stat file, which is 0 for whoever may not look at the process (proc(5)).
    """
    stat = read_stat(pid)
    if stat is None or stat.alive or stat.start != start:
        return None
    raw = _read(f"/proc/{pid}/stat")
    fields = raw[raw.rfind(b")") + 2 :].split()
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:  # a zombie has no program any more: we may look, then
        return int(fields[49]) if len(fields) > 49 and fields[19] == b"%d" % start else None
    except OSError:
        pass
    return None


def is_alive(pid: int) -> bool:
    """Whether there is a process `pid` that is no zombie."""
    stat = read_stat(pid)
    return stat is not None and stat.alive


def children(pid: int) -> list[int]:
    """The children of `pid` now, zombies as well; empty when it is gone."""
    raw = _read(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in raw.split()] if raw else []


def everyone() -> list[int]:
    """The pids of all processes."""
    with RESERVE.borrowed(lambda: os.listdir("/proc")) as names:
        return [int(name) for name in names if name.isdigit()]


def members(session: int) -> frozenset[int]:
    """The living processes of a session."""
    stats = map(read_stat, everyone())
    return frozenset(one.pid for one in stats if one and one.alive and one.session == session)


def is_master(pid: int) -> bool:
    """Whether `pid` shows the title of a master, as a worker that was just forked does too."""
    return _MASTER in title(pid)


def title(pid: int) -> bytes:
    """The command line as the process shows it; empty for a zombie."""
    return _read(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" ")


def title_room(pid: int) -> int | None:
    """Bytes that the title of `pid` has at most, with its end; None where that may not be seen.

    Its arguments and its environment, which lie behind each other (proc(5), fields 48 to 51).
    """
    raw = _read(f"/proc/{pid}/stat")
    fields = raw[raw.rfind(b")") + 2 :].split()
    if len(fields) < 49:
        return None
    return int(fields[48]) - int(fields[45]) or None


def umask(pid: int) -> int | None:
    """The umask of `pid`; None when it is gone."""
    status = _read(f"/proc/{pid}/status")
    at = status.find(b"\nUmask:")
    return None if at < 0 else int(status[at + 7 : status.index(b"\n", at + 1)], 8)


def same_world(pid: int) -> bool:
    """Whether `pid` sees the same processes and network as we do: it is in no other container."""
    for kind in ("pid", "net"):
        try:
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
                return False
        except OSError:
            return False
    return True


def runs_as_we_do(pid: int) -> bool:
    """Whether `pid` has our user, and is in no other container as far as that can be seen.

    Anybody can give a process any title; only what such a one runs may be run by us as well.
    """
    owner = identity(pid)
    if owner is None or owner[0] != os.geteuid():
        return False
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return True


def catches(pid: int, signal: Signals) -> bool:
    """Whether `pid` has a handler for `signal`: nginx's USR2 handler means that it may be sent."""
    return bool(_mask(pid, b"SigCgt:") >> (signal - 1) & 1)


def blocks(pid: int, signal: Signals) -> bool:
    """Whether `signal` stays pending at `pid` for now."""
    return bool(_mask(pid, b"SigBlk:") >> (signal - 1) & 1)


def pending(pid: int, signal: Signals) -> bool:
    """Whether `signal` was sent to `pid` and no handler has run for it yet."""
    return bool(_mask(pid, b"ShdPnd:") >> (signal - 1) & 1)


def _mask(pid: int, field: bytes) -> int:
    status = _read(f"/proc/{pid}/status")
    at = status.find(field)
    if at < 0:
        return 0
    return int(status[at + len(field) : status.index(b"\n", at)], 16)


def executable(pid: int) -> tuple[int, int] | None:
    """Device and inode of the program that `pid` runs; None when gone or not permitted."""
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def identity(pid: int) -> tuple[int, int] | None:
    """Effective user and group of `pid`; None when it is gone.

    Not from the owner of /proc/PID, which is root's for a process that may not be dumped.
    """
    status = _read(f"/proc/{pid}/status")
    numbers = []
    for field in (b"\nUid:", b"\nGid:"):
        at = status.find(field)
        if at < 0:
            return None
        numbers.append(int(status[at + len(field) :].split(maxsplit=2)[1]))
    return numbers[0], numbers[1]


def boot_id() -> str:
    """This boot's identity; start times mean nothing across boots."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


class ChildKind(Enum):
    """What a child of a master is."""

    STARTING = "starting"  # forked, not yet past its initialisation
    ACCEPTING = "accepting"
    DRAINING = "draining"
    CACHE = "cache"  # cache manager or loader: accepts nothing
    MASTER = "master"  # a new master: it has exec'd
    STRANGER = "stranger"  # has exec'd as another user: no master, whatever it shows
    DEAD = "dead"


def classify(pid: int, start: int | None = None) -> ChildKind:
    """What the child `pid` of a master is now; dead where it did not begin at `start`."""
    stat = read_stat(pid)
    if stat is None or not stat.alive or (start is not None and stat.start != start):
        return ChildKind.DEAD
    if stat.has_execed:
        # A worker that was broken into can exec what it likes; what a master runs, we run as well.
        return ChildKind.MASTER if runs_as_we_do(pid) else ChildKind.STRANGER
    shown = title(pid)
    if _WORKER in shown:
        return ChildKind.DRAINING if _LEAVING in shown else ChildKind.ACCEPTING
    if _CACHE in shown:
        return ChildKind.CACHE
    return ChildKind.STARTING


@dataclass(frozen=True, slots=True)
class Brood:
    """The children of one master by kind."""

    accepting: frozenset[int]
    draining: frozenset[int]
    starting: frozenset[int]
    cache: frozenset[int]
    masters: frozenset[int]

    @property
    def workers(self) -> frozenset[int]:
        """Accepting and draining ones."""
        return self.accepting | self.draining

    @property
    def all_but_masters(self) -> frozenset[int]:
        """Everything that belongs to this generation."""
        return self.accepting | self.draining | self.starting | self.cache


def brood_of(pids: Iterable[int], starts: Mapping[int, int] | None = None) -> Brood:
    """`pids`, which are or were children of one master, by kind; dead ones and strangers left out.

    `starts` says when those began that may have been given away again.
    """
    kinds: dict[ChildKind, set[int]] = {kind: set() for kind in ChildKind}
    for pid in pids:
        kinds[classify(pid, None if starts is None else starts.get(pid))].add(pid)
    return Brood(
        accepting=frozenset(kinds[ChildKind.ACCEPTING]),
        draining=frozenset(kinds[ChildKind.DRAINING]),
        starting=frozenset(kinds[ChildKind.STARTING]),
        cache=frozenset(kinds[ChildKind.CACHE]),
        masters=frozenset(kinds[ChildKind.MASTER]),
    )


def _read(path: str) -> bytes:
    try:
        with RESERVE.borrowed(lambda: open(path, "rb", buffering=0)) as opened, opened as file:
            parts = []
            while part := file.read(65536):
                parts.append(part)
            return b"".join(parts)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
