"""Tells the service manager how things are (sd_notify(3)); does nothing where there is none.

What the manager does not take at once, since it is slow or its queue is full, waits for `run`: the
caller never does. The order is kept; of several lines for people only the newest is. A word that
says how the service is (READY, RELOADING, STOPPING) waits for as long as it takes: a manager that
has missed it would end a start that was none too slow.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass

import trio

VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_PERIOD, WATCHDOG_PROCESS = "WATCHDOG_USEC", "WATCHDOG_PID"
STARTED_PROCESS = "SYSTEMD_EXEC_PID"
_PATIENCE = 5.0
"""Seconds for which a word that only counts now waits for a manager that takes none."""
_AGAIN = 1.0
"""Seconds until a word is tried again that the system had no memory or descriptor for."""
_LAST_WORD = 1.0
"""Seconds for which the process waits with the word that it ends with."""
_MOST_WAITING = 32
_NEVER = 2**64 - 1  # USEC_INFINITY
_PASSING = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Watchdog:
    """What the manager expects of this process; see sd_watchdog_enabled(3)."""

    seconds: float | None = None  # a sign of life at least so often; None: it expects none
    environment: tuple[tuple[str, str], ...] = ()  # for a program that takes this one's place
    problem: str = ""  # why a value that was given is of no use

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], *, pid: int) -> Watchdog:
        """As the two variables say, which are removed. Without WATCHDOG_PID it is for whoever
        finds them; one of another process is not for us."""
        period, process = environ.pop(WATCHDOG_PERIOD, None), environ.pop(WATCHDOG_PROCESS, None)
        if period is None or (process is not None and _number(process) not in (None, pid)):
            return cls()
        microseconds = _number(period)
        if process is not None and _number(process) is None:
            return cls(problem=f"{WATCHDOG_PROCESS}={process!r} is no process")
        if microseconds is None or not 0 < microseconds < _NEVER:
            return cls(problem=f"{WATCHDOG_PERIOD}={period!r} is no time in microseconds")
        given = ((WATCHDOG_PERIOD, period), (WATCHDOG_PROCESS, str(pid)))
        return cls(seconds=microseconds / 1e6, environment=given)


class Notifier:
    """Datagrams to `address`; None: nobody listens. No method raises or blocks.

    (`failed` excepted, which may block for a second.) `deaf` says that a service manager has
    started this process and yet listens to none of this: the unit is of another type.
    """

    def __init__(
        self, address: str | None, *, watchdog: Watchdog = Watchdog(), deaf: bool = False
    ) -> None:
        self._given = address
        self.watchdog = watchdog
        self.deaf = deaf
        self._waiting: deque[bytes] = deque()
        self._wake = trio.Event()
        self._address: str | None = None
        if address is not None and len(address) > 1 and address[0] in "/@":
            # "@" stands for the zero byte that begins an abstract address (unix(7)).
            self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """As the variables say, which are removed: no child shall speak in our name."""
        pid = os.getpid()
        address = environ.pop(VARIABLE, None)
        started_by_manager = environ.get(STARTED_PROCESS) == str(pid)
        watchdog = Watchdog.from_environment(environ, pid=pid)
        return cls(address, watchdog=watchdog, deaf=address is None and started_by_manager)

    @property
    def listened_to(self) -> bool:
        """Whether there is anyone to speak to."""
        return self._address is not None

    @property
    def environment(self) -> dict[str, str]:
        """What a program that takes this one's place needs to speak to the same manager."""
        told = {} if self._given is None else {VARIABLE: self._given}
        return told | dict(self.watchdog.environment)

    def ready(self, status: str, *, error: int | None = None) -> None:
        """The service is up (READY=1), also after `reloading`; `error`: how that went (errno)."""
        how = [] if error is None else [f"ERRNO={error}"]
        self._send("READY=1", _status(status), *how)

    def status(self, text: str) -> None:
        """One line for people."""
        self._send(_status(text))

    def reloading(self) -> None:
        """The configuration is read again, or the program replaced; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """The service goes down."""
        self._send("STOPPING=1", _status(status))

    def alive(self, *, extend: float | None = None) -> None:
        """A sign of life; `extend`: starting or stopping may take so many seconds from now on."""
        words = ["WATCHDOG=1"] if self.watchdog.seconds is not None else []
        if extend is not None:
            words.append(f"EXTEND_TIMEOUT_USEC={int(extend * 1e6)}")
        if words:
            self._send(*words)

    def failed(self, error: int, text: str) -> None:
        """The process ends over this; may block for a second, since nothing comes after it."""
        waiting, self._waiting = self._waiting, deque()
        for words in (*waiting, _message(f"ERRNO={error}", _status(text))):
            self._deliver(words, patience=_LAST_WORD)

    async def run(self) -> None:
        """Deliver what had to wait; one task, until cancelled."""
        while True:
            await self._wake.wait()
            while self._waiting:
                words = self._waiting[0]
                with trio.move_on_after(math.inf if _must_arrive(words) else _PATIENCE):
                    await self._deliver_late(words)
                self._waiting.popleft()
            self._wake = trio.Event()

    async def _deliver_late(self, words: bytes) -> None:
        """Deliver `words` as soon as there is room; not to a manager that is gone."""
        # No event tells when there is memory, or a descriptor, again.
        while not await self._deliver_to_room(words):  # noqa: ASYNC110
            await trio.sleep(_AGAIN)

    async def _deliver_to_room(self, words: bytes) -> bool:
        """As `_deliver`, once the manager has room."""
        assert self._address is not None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
                datagrams.setblocking(False)
                # Only of a connected socket the kernel says when its peer has room
                # (unix_dgram_poll).
                datagrams.connect(self._address)
                while True:
                    await trio.lowlevel.wait_writable(datagrams)
                    with contextlib.suppress(BlockingIOError):
                        datagrams.send(words)
                        return True
        except OSError as exc:
            return exc.errno not in _PASSING

    def _send(self, *fields: str) -> None:
        words = _message(*fields)
        if not self._waiting and self._deliver(words, patience=0.0):
            return
        if self._waiting and _only_for_people(words) and _only_for_people(self._waiting[-1]):
            if len(self._waiting) > 1:  # the first is being delivered
                self._waiting.pop()
        elif len(self._waiting) >= _MOST_WAITING:
            self._make_room()
        self._waiting.append(words)
        self._wake.set()

    def _make_room(self) -> None:
        """Drop the oldest word, rather one that only counts now; the first is being delivered."""
        found = (
            index
            for index, words in enumerate(self._waiting)
            if index > 0 and not _must_arrive(words)
        )
        del self._waiting[next(found, 1)]

    def _deliver(self, words: bytes, *, patience: float) -> bool:
        """Whether that is done with: a manager that is gone is no reason to fail or to wait."""
        if self._address is None:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(patience)
                datagrams.sendto(words, self._address)
        except TimeoutError:
            return False
        except (OSError, ValueError) as exc:
            return getattr(exc, "errno", None) not in _PASSING
        return True


def _message(*fields: str) -> bytes:
    return "\n".join(fields).encode("utf-8", "replace")


def _only_for_people(words: bytes) -> bool:
    return words.startswith(b"STATUS=")


def _must_arrive(words: bytes) -> bool:
    return words.startswith((b"READY=", b"RELOADING=", b"STOPPING="))


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
