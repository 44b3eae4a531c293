"""What nginx gives away without being asked, as values: each says whose doing it is.

A signal in this sense is a piece of evidence beside the probes: a line of the error log, the end
of a process, what a process uses, a queue in front of a listener. It belongs to one generation, or
says that nobody could tell to which; then it never speaks for or against a candidate.

Times are monotonic seconds; they come with the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from typing import Any


class ProcessKind(Enum):
    """What a process of nginx is there for."""

    MASTER = "master"
    WORKER = "worker"
    CACHE = "cache"  # the cache manager, and the cache loader, which ends by itself


class Severity(IntEnum):
    """The levels of nginx's error log, the worst one first (ngx_log.h)."""

    EMERG = 1
    ALERT = 2
    CRIT = 3
    ERROR = 4
    WARN = 5
    NOTICE = 6
    INFO = 7
    DEBUG = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of an error log; `generation` is None where the pid is nobody's that we know."""

    generation: int | None
    pid: int
    level: Severity
    text: str  # bounded and printable
    at: float
    log: str = ""  # where it stands, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnded:
    """A process is gone; `code` and `signal` both None: nobody knows how."""

    generation: int
    pid: int
    kind: ProcessKind
    code: int | None
    signal: int | None
    draining: bool  # it was seen leaving before
    at: float
    lived: float | None = None  # seconds from its start to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process uses at one moment; None: it could not be seen."""

    generation: int
    pid: int
    kind: ProcessKind
    age: float  # seconds since the process was started
    memory: int | None  # bytes, its proportional share (PSS)
    descriptors: int | None  # that it has open
    cpu: float  # seconds that all its threads have used so far
    at: float
    sockets: int | None = None  # so many of the descriptors, about; None: they were not looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How one process gets on at one moment; None, or an empty text: it could not be seen.

    `awake` and `calls` are of the thread that has been awake longest. A thread that waits for a
    processor is awake: so a host that is overloaded cannot make a process look idle.
    """

    generation: int
    pid: int
    kind: ProcessKind
    age: float  # seconds since the process was started
    state: str  # a letter, as in proc(5)
    at: float
    place: str = ""  # the function of the kernel in which its main thread sleeps
    awake: float | None = None  # seconds that the thread has run or waited for a processor so far
    calls: int | None = None  # of the thread, to read and to write, so far
    turns: int | None = None  # how often its main thread was given a processor so far
    unfetched: bool | None = None  # something is ready at its epoll instance
    deaf_to: str = ""  # of a master: the signals that it has no handler for, between blanks
    blocked: bool = False  # of a master: QUIT waits, as it does outside of the master's loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The connections that wait at one listening socket for somebody to accept them."""

    generation: int  # whose workers are to accept
    address: str
    waiting: int
    limit: int
    at: float
    socket: int = 0  # its inode
    siblings: int = 0  # other sockets at the same address, of other workers (reuseport)


Signal = LogLine | ProcessEnded | Usage | Progress | Queue

_KINDS: Mapping[str, type[Signal]] = {
    one.__name__: one for one in (LogLine, ProcessEnded, Usage, Progress, Queue)
}
_ENUMS: Mapping[str, type[Enum]] = {"kind": ProcessKind, "level": Severity}


def to_data(signal: Signal, *, now: float) -> dict[str, object]:
    """`signal` for another process; its time as seconds before `now`."""
    fields = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in asdict(signal).items()
    }
    return {**fields, "at": now - signal.at, "is": type(signal).__name__}


def from_data(data: Mapping[str, Any], *, now: float) -> Signal:
    """What `to_data` was given, in this process's time. Raises KeyError, TypeError, ValueError."""
    fields = {
        name: _ENUMS[name](value) if name in _ENUMS else value
        for name, value in data.items()
        if name != "is"
    }
    return _KINDS[data["is"]](**{**fields, "at": now - data["at"]})
