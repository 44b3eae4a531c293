"""A load of thousands of requests per second, each on a connection of its own, all accounted for.

    with QuickLoad(QuickPlan(port=8080, requests=1_000_000)) as load:
        ...
        tally = load.stop()

Each process has one epoll loop with non-blocking sockets: connect, send, read until the server
closes, compare status and body. Every request that was begun has exactly one result, and every
failed one is told with its own address and port and its times, so that whoever kills a worker can
say which of them it had accepted (`tools.casualties`).

A connection is closed with a reset after the server's end was read: so neither side keeps it in
TIME_WAIT, and local ports cannot run out. Should one be missing all the same, that is counted as
`no_port`: such a request never began.

The processes are told what to do (`lap`, `stop`) by lines on their stdin and answer by lines of
JSON; they end when their stdin closes, so they cannot outlive their parent.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.load_client import big_content

ANSWER_LIMIT = 30.0
"""Seconds within which a process must answer; more than any request may take."""
KEPT = 20_000
"""Failures between two laps that are kept one by one; more are counted all the same."""
TICKS = 10_000
"""Latencies are counted in ticks of a tenth of a millisecond."""

_IP_BIND_ADDRESS_NO_PORT = 24  # not in Python's socket module before 3.12
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_SWEEP = 0.05
_STDIN = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickPlan:
    """What is asked, by how many processes, and how much is under way at once in each."""

    port: int
    address: str = "127.0.0.1"
    processes: int = 2
    at_once: int = 16
    rate: float = 0.0  # requests per second and process; 0: as many as go
    requests: int = 0  # in all; 0: until told to stop
    timeout: float = 5.0
    path: str = "/"
    body: str = "ok\n"
    slow: int = 0  # of each process, beside those at once: big answers that the server sends slowly
    slow_path: str = "/slow"
    slow_size: int = 24 * 1024  # of `big_content`
    first_source: int = 2  # requests come from 127.0.0.N and the next seven addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One request that failed; times are of the monotonic clock, which all processes share."""

    cause: str
    address: str
    port: int
    began: float
    ended: float
    text: str

    def __str__(self) -> str:
        spent = 1000 * (self.ended - self.began)
        where = f"{self.address}:{self.port}"
        return f"{self.began:.3f} {where} {self.cause} after {spent:.0f} ms: {self.text}"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was counted; `sent` equals `ok` plus all of `failed`."""

    ok: int = 0
    slow: int = 0
    """How many of `ok` were slow ones; `latencies` has only the others."""
    failed: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    no_port: int = 0
    pending: int = 0
    """Requests that have no result yet; 0 after `stop`."""

    @property
    def sent(self) -> int:
        """Requests that have ended."""
        return self.ok + sum(self.failed.values())

    def add(self, other: Tally) -> None:
        """Count what `other` counted, too."""
        self.ok += other.ok
        self.slow += other.slow
        self.failed += other.failed
        self.versions += other.versions
        self.latencies += other.latencies
        self.failures += other.failures
        self.no_port += other.no_port
        self.pending = other.pending

    def latency(self, share: float) -> float:
        """Seconds within which this share of the good answers came, to a tenth of a millisecond."""
        left = share * sum(self.latencies.values())
        for ticks, number in sorted(self.latencies.items()):
            left -= number
            if left <= 0:
                return (ticks + 1) / TICKS
        return 0.0

    def as_json(self) -> dict[str, object]:
        """For the pipe."""
        return {
            "ok": self.ok,
            "slow": self.slow,
            "failed": dict(self.failed),
            "versions": dict(self.versions),
            "latencies": list(self.latencies.items()),
            "failures": [asdict(one) for one in self.failures],
            "no_port": self.no_port,
            "pending": self.pending,
        }


def from_json(told: dict[str, Any]) -> Tally:
    """What `as_json` wrote."""
    return Tally(
        ok=told["ok"],
        slow=told["slow"],
        failed=Counter(told["failed"]),
        versions=Counter(told["versions"]),
        latencies=Counter(dict(told["latencies"])),
        failures=[Failure(**one) for one in told["failures"]],
        no_port=told["no_port"],
        pending=told["pending"],
    )


# --- the client -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What one kind of request sends, and how a good answer ends."""

    text: bytes
    end: bytes


def _asked(path: str, body: bytes) -> _Asked:
    text = f"GET {path} HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n"
    return _Asked(text.encode(), b"\r\n\r\n" + body)


class _Request:
    """One request under way."""

    __slots__ = ("address", "asked", "began", "data", "port", "sent", "socket")

    def __init__(self, made: socket.socket, asked: _Asked, address: str, began: float) -> None:
        self.socket = made
        self.asked = asked
        self.address = address
        self.began = began
        self.port = 0
        self.data = b""
        self.sent = False


class Client:
    """One process's loop; `run` returns when it was told to stop and nothing is under way."""

    def __init__(self, plan: QuickPlan) -> None:
        self._plan = plan
        self._quick = _asked(plan.path, plan.body.encode())
        self._slow = _asked(plan.slow_path, big_content(0, plan.slow_size))
        self._slow_live = 0
        self._target = (plan.address, plan.port)
        self._sources = [f"127.0.0.{plan.first_source + number}" for number in range(8)]
        self._tally = Tally()
        self._epoll = select.epoll()
        self._live: dict[int, _Request] = {}  # in the order in which they began
        self._begun = 0
        self._due = time.monotonic()
        self._stopping = False
        self._orders = b""

    def run(self) -> None:
        """Make requests, each counted once, and answer orders."""
        self._epoll.register(_STDIN, select.EPOLLIN)
        swept = time.monotonic()
        while True:
            now = time.monotonic()
            wait = self._begin_more(now)
            for fd, _ in self._epoll.poll(wait):
                if fd == _STDIN:
                    if not self._hear():
                        return
                elif (request := self._live.get(fd)) is not None:
                    self._go_on(request)
            if now - swept > _SWEEP:
                swept = now
                self._give_up()
            if self._stopping and not self._live:
                self._tell()
                return

    def _begin_more(self, now: float) -> float:
        """Begin what is due; how long to wait for whatever comes next."""
        plan = self._plan
        # Not for ever where all are refused at once.
        for _ in range(plan.slow):
            if not self._all_begun() and self._slow_live < plan.slow:
                self._begin(self._slow)
        for _ in range(plan.at_once):
            if self._all_begun() or len(self._live) - self._slow_live >= plan.at_once:
                break
            if plan.rate:
                if self._due > now:
                    return min(_SWEEP, self._due - now)
                # Who was held up does not make up for it: that would be a burst.
                self._due = max(self._due, now - 0.1) + 1 / plan.rate
            if not self._begin(self._quick):
                break
        return _SWEEP

    def _all_begun(self) -> bool:
        return self._stopping or 0 < self._plan.requests <= self._begun

    def _begin(self, asked: _Asked) -> bool:
        """Begin one; False where this machine has no port for it."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        address = self._sources[self._begun % len(self._sources)]
        made.bind((address, 0))
        request = _Request(made, asked, address, time.monotonic())
        code = made.connect_ex(self._target)
        if code == errno.EADDRNOTAVAIL:
            self._tally.no_port += 1
            made.close()
            return False
        request.port = made.getsockname()[1]
        self._begun += 1
        self._live[made.fileno()] = request
        self._slow_live += asked is self._slow
        if code not in (0, errno.EINPROGRESS):
            self._fail(request, OSError(code, os.strerror(code)))
            return True
        # Over loopback the connection is there by now, unless the queue is full.
        if self._send(request):
            self._epoll.register(made.fileno(), select.EPOLLIN)
        elif made.fileno() >= 0:
            self._epoll.register(made.fileno(), select.EPOLLOUT)
        return True

    def _send(self, request: _Request) -> bool:
        """Whether the request was sent; it is a few dozen bytes and goes whole or not at all."""
        try:
            request.sent = request.socket.send(request.asked.text) == len(request.asked.text)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._fail(request, exc)
            return False
        return request.sent

    def _go_on(self, request: _Request) -> None:
        if not request.sent:
            if not self._send(request):
                return
            self._epoll.modify(request.socket.fileno(), select.EPOLLIN)
        try:
            while part := request.socket.recv(65536):
                request.data += part
        except BlockingIOError:
            return
        except OSError as exc:
            self._fail(request, exc)
            return
        self._check(request)

    def _check(self, request: _Request) -> None:
        """The server has closed: is the answer whole and right?"""
        data = request.data
        if data.startswith(b"HTTP/1.1 200 ") and data.endswith(request.asked.end):
            self._tally.ok += 1
            if request.asked is self._slow:
                self._tally.slow += 1
            else:
                self._tally.latencies[int((time.monotonic() - request.began) * TICKS)] += 1
            version = data.partition(b"X-Version: ")[2].partition(b"\r")[0]
            self._tally.versions[version.decode("latin-1")] += 1
            self._drop(request)
        elif b"\r\n\r\n" not in data or (data.startswith(b"HTTP/1.1 200 ") and _is_cut(data)):
            self._count("cut", request, f"closed after {len(data)} bytes")
        else:
            self._count("bad", request, repr(data[:60] + b" ... " + data[-20:]))

    def _fail(self, request: _Request, exc: OSError) -> None:
        if exc.errno == errno.ECONNREFUSED:
            cause = "refused"
        elif exc.errno in (errno.ECONNRESET, errno.EPIPE):
            cause = "reset"
        else:
            cause = "other"
        self._count(cause, request, f"{exc.strerror} after {len(request.data)} bytes")

    def _count(self, cause: str, request: _Request, text: str) -> None:
        self._tally.failed[cause] += 1
        if len(self._tally.failures) < KEPT:
            self._tally.failures.append(
                Failure(
                    cause=cause, address=request.address, port=request.port, began=request.began,
                    ended=time.monotonic(), text=text,
                )
            )  # fmt: skip
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        del self._live[request.socket.fileno()]
        self._slow_live -= request.asked is self._slow
        request.socket.close()  # which takes it out of the epoll, too

    def _give_up(self) -> None:
        """End what takes too long, unless its answer has come while we were held up."""
        late = time.monotonic() - self._plan.timeout
        while self._live:
            fd, oldest = next(iter(self._live.items()))
            if oldest.began > late:
                return
            self._go_on(oldest)
            if fd in self._live and self._live[fd] is oldest:
                place = f"{len(oldest.data)} bytes came" if oldest.sent else "not connected"
                self._count("timeout", oldest, place)

    # --- orders -----------------------------------------------------------------------------

    def _hear(self) -> bool:
        part = os.read(_STDIN, 4096)
        if not part:
            return False
        *lines, self._orders = (self._orders + part).split(b"\n")
        for line in lines:
            if line == b"stop":
                self._stopping = True
            else:
                self._tell()
        return True

    def _tell(self) -> None:
        self._tally.pending = len(self._live)
        text = json.dumps(self._tally.as_json()) + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()
        self._tally = Tally()


def _is_cut(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    return length.isdigit() and len(body) < int(length)


# --- its owner ------------------------------------------------------------------------------------


class QuickLoad:
    """The processes of one load; leaving the block ends them, whatever state they are in.

    `within` is a command that runs another one elsewhere, for instance in a network namespace.
    """

    def __init__(self, plan: QuickPlan, *, within: Sequence[str] = ()) -> None:
        self._plan = plan
        self._within = tuple(within)
        self._processes: list[subprocess.Popen[str]] = []
        self.total = Tally()

    def __enter__(self) -> QuickLoad:
        number = self._plan.processes
        for index in range(number):
            share = self._plan.requests // number + (index < self._plan.requests % number)
            plan = replace(
                self._plan, requests=share, first_source=self._plan.first_source + 8 * index
            )
            command = [sys.executable, "-E", "-m", "tools.quick_load", json.dumps(asdict(plan))]
            self._processes.append(
                subprocess.Popen(
                    [*self._within, *command],
                    cwd=Path(__file__).resolve().parent.parent,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    process_group=0,  # the terminal's interrupt is for its owner
                )
            )
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()

    def lap(self) -> Tally:
        """What has ended since the last lap; `total` has all. Raises TimeoutError."""
        return self._ask("lap")

    def stop(self) -> Tally:
        """Begin nothing more, wait for what is under way; the last lap. Raises TimeoutError."""
        return self._ask("stop")

    def _ask(self, word: str) -> Tally:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(word + "\n")
            process.stdin.flush()
        found = Tally()
        pending = 0
        for told in map(_line, self._processes):
            found.add(told)
            pending += told.pending
        found.pending = pending
        self.total.add(found)
        return found


def _line(process: subprocess.Popen[str]) -> Tally:
    assert process.stdout is not None
    # A watchdog instead of select(): the pipe is buffered text.
    watchdog = threading.Timer(ANSWER_LIMIT, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
        watchdog.join()
    if not line:
        raise TimeoutError(f"the load has ended, or did not answer within {ANSWER_LIMIT:g} s")
    return from_json(json.loads(line))


def main(arguments: Iterable[str]) -> int:
    """One process of the load."""
    (plan,) = arguments
    Client(QuickPlan(**json.loads(plan))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
