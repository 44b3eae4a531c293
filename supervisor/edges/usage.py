"""What nginx's processes use and how they get on, from /proc; each look blocks, so use a thread.

What is read of a process costs 0.1 ms, but for its proportional share of memory (smaps_rollup),
for which the kernel goes through its page tables: 0.3 ms for a small one, 10 ms for 500 MB, and the
process cannot change its memory meanwhile. So that is measured seldom, and never for a big one;
in between the private memory that came since (statm) is added to what was measured.

Shared memory is left out of it: the zones of a new generation start empty and fill up.

Where something may not be looked at it is None, or an empty text. Sources: proc(5); for the
counters in schedstat Documentation/scheduler/sched-stats.rst; for st_size of /proc/PID/fd Linux
6.2.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.core.signals import ProcessKind, Progress, Usage
from supervisor.edges import linux, procfs

EXACT_EVERY = 10.0
"""Seconds between two measurements of the proportional share of one process, at least ..."""
EXACT_COST = 200
"""... and this many times what the last one took."""
EXACT_MOST = 256 * 2**20
"""Bytes of a process from which on it is not measured: it could not map memory for milliseconds."""
LOOKED_AT = 64
"""Descriptors of one process of which the kind is looked at; the others are taken to be alike."""
LISTED = 20_000
"""Descriptors of one process that are counted where the kernel does not tell their number."""
THREADS = 64
"""Threads of one process that are looked at."""
EPOLL_WITHIN = 4096
"""Numbers of descriptors among which nginx's epoll instance is: it is opened before connections."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_TOLD = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGTERM, signal.SIGCHLD, signal.SIGWINCH,
)  # fmt: skip
"""What a master is told by."""


@dataclass(slots=True)
class _Known:
    """What is remembered of one process between two looks."""

    start: int
    exact: int = 0  # bytes that it had at the last measurement, above its private ones
    exact_at: float = -1.0  # when the next measurement is due; negative: at once
    epoll: int | None = None  # its epoll instance
    sought: bool = False  # ... was looked for
    descriptors: int | None = None  # how many it had when ...
    sockets: int | None = None  # ... so many of them were sockets


@dataclass(slots=True)
class Sampler:
    """Looks at the processes of one generation; one look at a time."""

    generation: int
    _known: dict[int, _Known] = field(default_factory=dict)

    def look(
        self, kinds: Iterable[tuple[int, ProcessKind]], *, at: float, exact: bool = True
    ) -> list[Usage | Progress]:
        """What each process uses and how it gets on; those that are gone are left out.

        `at` is what the samples say; `exact` allows the measurement that may block.
        """
        found: list[Usage | Progress] = []
        living = dict(kinds)
        for pid in self._known.keys() - living.keys():
            del self._known[pid]
        for pid, kind in living.items():
            found += self._look_at(pid, kind, at, exact=exact)
        return found

    def _look_at(
        self, pid: int, kind: ProcessKind, at: float, *, exact: bool
    ) -> list[Usage | Progress]:
        fields = _stat(pid)
        if fields is None or fields[0] in (b"Z", b"X"):
            return []
        start = int(fields[19])
        known = self._known.get(pid)
        if known is None or known.start != start:
            known = self._known[pid] = _Known(start)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - start / _TICK
        cpu = (int(fields[11]) + int(fields[12])) / _TICK
        descriptors = _descriptors(pid)
        usage = Usage(
            generation=self.generation, pid=pid, kind=kind, age=age,
            memory=_memory(pid, known, exact=exact), descriptors=descriptors, cpu=cpu, at=at,
            sockets=_known_sockets(pid, known, descriptors),
        )  # fmt: skip
        run = _busiest(pid, threads=int(fields[17]))
        own = _schedstat(f"/proc/{pid}")
        deaf_to, blocked = _deafness(pid) if kind is ProcessKind.MASTER else ("", False)
        progress = Progress(
            generation=self.generation, pid=pid, kind=kind, age=age,
            state=fields[0].decode(), place=_place(pid),
            awake=cpu if run is None else run[1], calls=_calls(pid, pid if run is None else run[0]),
            turns=None if own is None else own[1],
            unfetched=_unfetched(pid, known) if kind is ProcessKind.WORKER else None,
            deaf_to=deaf_to, blocked=blocked, at=at,
        )  # fmt: skip
        return [usage, progress]


def processes_of(master: int, start: int) -> list[tuple[int, ProcessKind]]:
    """The master and its workers and cache processes that are past their initialisation.

    Empty where the master that began at `start` is gone.
    """
    stat = procfs.read_stat(master)
    if stat is None or not stat.alive or stat.start != start:
        return []
    brood = procfs.brood_of(procfs.children(master))
    return [
        (master, ProcessKind.MASTER),
        *((pid, ProcessKind.WORKER) for pid in sorted(brood.workers)),
        *((pid, ProcessKind.CACHE) for pid in sorted(brood.cache)),
    ]


# --- memory ---


def _memory(pid: int, known: _Known, *, exact: bool) -> int | None:
    """Its proportional share of private memory, as far as that is known; at least about."""
    raw = _read(f"/proc/{pid}/statm").split()
    if len(raw) < 3:
        return None
    resident, shared = int(raw[1]) * _PAGE, int(raw[2]) * _PAGE
    private = max(0, resident - shared)
    began = time.perf_counter()
    if exact and began >= known.exact_at and resident <= EXACT_MOST:
        measured = _proportional(pid)
        took = time.perf_counter() - began
        known.exact_at = began + max(EXACT_EVERY, EXACT_COST * took)
        if measured is not None:
            known.exact = measured - private
    return max(0, private + known.exact)


def _proportional(pid: int) -> int | None:
    found = {}
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        name, _, value = line.partition(b":")
        if name in (b"Pss", b"Pss_Anon"):
            found[name] = int(value.split()[0]) * 1024
    return found.get(b"Pss_Anon", found.get(b"Pss"))


# --- descriptors ---


def _descriptors(pid: int) -> int | None:
    """How many it has open, from `LISTED` on at least so many; None where nobody may know."""
    folder = f"/proc/{pid}/fd"
    try:
        told = os.stat(folder).st_size
        if told:
            return told
        count = 0
        with os.scandir(folder) as entries:
            for _ in entries:
                count += 1
                if count >= LISTED:
                    break
    except OSError:
        return None
    return count


def _known_sockets(pid: int, known: _Known, descriptors: int | None) -> int | None:
    """`_sockets`, not looked for again where their number has not changed."""
    if descriptors != known.descriptors:
        known.sockets = None if descriptors is None else _sockets(pid, descriptors)
        known.descriptors = descriptors
    return known.sockets


def _sockets(pid: int, descriptors: int) -> int | None:
    """About how many of its descriptors are sockets, from those at numbers spread over all."""
    numbers = descriptors + descriptors // 8 + 8  # with some gaps between them
    step = max(1, numbers // LOOKED_AT)
    looked, sockets = 0, 0
    for number in range(0, numbers, step):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
        except OSError:
            return None
        looked += 1
        sockets += target.startswith("socket:")
    return round(descriptors * sockets / looked) if looked else None


# --- progress ---


def _schedstat(folder: str) -> tuple[float, int] | None:
    """Seconds that a thread has run or waited for a processor, and how often it was given one."""
    fields = _read(f"{folder}/schedstat").split()
    if len(fields) < 3:
        return None
    return (int(fields[0]) + int(fields[1])) / 1e9, int(fields[2])


def _busiest(pid: int, *, threads: int) -> tuple[int, float] | None:
    """The thread that has been awake longest, and how long; None where the kernel does not tell."""
    numbers = [pid]
    if threads > 1:
        try:
            numbers = [int(one) for one in os.listdir(f"/proc/{pid}/task")[:THREADS]]
        except OSError:
            return None
    found = [(told[0], one) for one in numbers if (told := _schedstat(f"/proc/{pid}/task/{one}"))]
    if not found:
        return None
    awake, thread = max(found)
    return thread, awake


def _calls(pid: int, thread: int) -> int | None:
    """The reads and writes of a thread so far."""
    counts = 0
    fields = _read(f"/proc/{pid}/task/{thread}/io").splitlines()
    for line in fields:
        name, _, value = line.partition(b":")
        if name in (b"syscr", b"syscw"):
            counts += int(value)
    return counts if fields else None


def _place(pid: int) -> str:
    place = _read(f"/proc/{pid}/wchan").decode("ascii", "replace")
    return "" if place == "0" else place


def _deafness(pid: int) -> tuple[str, bool]:
    """The signals that a master has no handler for; whether QUIT waits now."""
    deaf = [one.name.removeprefix("SIG") for one in _TOLD if not procfs.catches(pid, one)]
    return " ".join(deaf), procfs.blocks(pid, signal.SIGQUIT)


def _unfetched(pid: int, known: _Known) -> bool | None:
    """Whether something is ready at the epoll instance of a worker; None where it has none.

    An epoll instance is itself readable while its process has events to fetch (epoll(7)); asking
    takes none of them away.
    """
    if not known.sought:
        known.sought, known.epoll = True, _epoll_of(pid)
    if known.epoll is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        duplicate = linux.take_fd(pidfd, known.epoll)
    except OSError:
        return None
    finally:
        os.close(pidfd)
    try:
        if not _is_epoll(os.readlink(f"/proc/self/fd/{duplicate}")):
            return None
        poller = select.poll()
        poller.register(duplicate, select.POLLIN)
        return bool(poller.poll(0))
    finally:
        os.close(duplicate)


def _epoll_of(pid: int) -> int | None:
    """The number of nginx's own epoll instance: it watches what was opened before it.

    A library may have another one, to which it adds what it opens later.
    """
    gaps = 0
    for number in range(EPOLL_WITHIN):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            gaps += 1
            if gaps > LOOKED_AT:
                return None
            continue
        if _is_epoll(target):
            watched = [
                int(line.split()[1])
                for line in _read(f"/proc/{pid}/fdinfo/{number}").splitlines()
                if line.startswith(b"tfd:")
            ]
            if any(one < number for one in watched):
                return number
    return None


def _is_epoll(target: str) -> bool:
    return target == "anon_inode:[eventpoll]"


# --- reading ---


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on."""
    raw = _read(f"/proc/{pid}/stat")
    return raw[raw.rindex(b")") + 2 :].split() if raw else None


def _read(path: str) -> bytes:
    """All of a small file; empty where it is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:  # it died meanwhile (ESRCH), or may not be looked at (EACCES)
        return b""
    finally:
        os.close(fd)
