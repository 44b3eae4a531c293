"""The clients of the load: threads with blocking sockets, so that every error has one place.

Every request has one result: an answer with the expected status and body, or a cause of failure.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

BUCKET = 0.1
SAMPLES = 20
"""Failures that are kept in words; more are only counted."""

LINE = 16
_READ = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who asks what, how often, and for how long at most. Rates are requests per second in all."""

    port: int
    address: str = "127.0.0.1"  # or the path of a unix socket; the port is then not used
    new: int = 4
    new_rate: float = 100.0
    keepalive: int = 4
    keepalive_rate: float = 60.0
    idle: int = 2
    idle_pause: float = 0.7
    slow: int = 1
    slow_seconds: float = 3.0
    slow_size: int = 2 * 1024 * 1024
    slow_path: str = "/big"
    path: str = "/"
    body: str = "ok\n"
    timeout: float = 10.0
    seconds: float = 300.0


def big_content(start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of the big file: numbered lines, so that no two are equal."""
    first, last = start // LINE, (start + size) // LINE + 1
    text = b"".join(b"%015d\n" % number for number in range(first, last))
    return text[start - first * LINE :][:size]


class RequestError(Exception):
    """A request that failed: `cause` is counted, the text is for people."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class IdleClosedError(Exception):
    """A reused connection was closed before any byte of the answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    status: int
    version: str
    pid: str
    length: int


class Tally:
    """The counts; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._begun: set[int] = set()
        self._forget()

    def _forget(self) -> None:
        self._ok: Counter[str] = Counter()
        self._failed: dict[str, Counter[str]] = defaultdict(Counter)
        self._idle_closed: Counter[str] = Counter()
        self._latency: dict[str, float] = defaultdict(float)
        self._buckets: dict[int, Counter[str]] = defaultdict(Counter)
        self._served: dict[str, Counter[str]] = defaultdict(Counter)
        self._samples: list[str] = []

    def answered(self, head: Head, *, began: float) -> None:
        """The head of an answer came to a request, or a connection for it, that was `began` so."""
        with self._lock:
            self._buckets[int(began / BUCKET)][head.version] += 1
            self._served[head.version][head.pid] += 1

    def ok(self, kind: str, latency: float) -> None:
        """A request has ended well."""
        with self._lock:
            self._ok[kind] += 1
            self._latency[kind] = max(self._latency[kind], latency)
            self._note_begun()

    def failed(self, kind: str, failure: RequestError) -> None:
        """A request has failed."""
        with self._lock:
            self._failed[kind][failure.cause] += 1
            if len(self._samples) < SAMPLES:
                self._samples.append(f"{time.monotonic():.3f} {kind} {failure.cause}: {failure}")
            self._note_begun()

    def idle_closed(self, kind: str) -> None:
        """A reused connection was closed; the request is made again."""
        with self._lock:
            self._idle_closed[kind] += 1

    def first(self) -> None:
        """A client whose requests take long has begun to get its answer."""
        with self._lock:
            self._note_begun()

    def _note_begun(self) -> None:
        if threading.get_ident() not in self._begun:
            self._begun.add(threading.get_ident())
            self._lock.notify_all()

    def wait_first(self, clients: int, *, limit: float) -> None:
        """Return when each of `clients` threads has got an answer or has failed, or after limit."""
        with self._lock:
            self._lock.wait_for(lambda: len(self._begun) >= clients, timeout=limit)

    def snapshot(self, *, clear: bool = False) -> dict[str, object]:
        """All counts as JSON; `clear` makes the next ones begin at zero."""
        with self._lock:
            try:
                return self._counts()
            finally:
                if clear:
                    self._forget()

    def _counts(self) -> dict[str, object]:
        kinds = {
            kind: {
                "requests": self._ok[kind] + sum(self._failed[kind].values()),
                "ok": self._ok[kind],
                "failed": dict(self._failed[kind]),
                "reused_idle_closed": self._idle_closed[kind],
                "max_latency": self._latency[kind],
            }
            for kind in sorted({*self._ok, *self._failed, *self._idle_closed})
        }
        return {
            "kinds": kinds,
            "timeline": [(at * BUCKET, dict(seen)) for at, seen in sorted(self._buckets.items())],
            "served": {version: dict(pids) for version, pids in self._served.items()},
            "samples": list(self._samples),
        }


class Connection:
    """One connection to the site; the caller closes it."""

    def __init__(self, plan: Plan, *, narrow: bool = False) -> None:
        unix = plan.address.startswith("/")
        self._socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._socket.settimeout(plan.timeout)
        self._plan = plan
        self._buffer = b""
        self._reused = False
        if narrow:
            # Else the kernel would take the whole file into its buffers at once: the server's grows
            # with the segment size, ours with its window.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            if not unix:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        try:
            self._socket.connect(plan.address if unix else (plan.address, plan.port))
        except OSError as exc:
            self.close()
            raise _failure(exc, "connecting", begun=False) from exc

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._socket.close()

    def get(self, path: str, *, keep: bool) -> Head:
        """Ask for `path`; the head of the answer. Raises RequestError or IdleClosedError."""
        reused, self._reused = self._reused, True
        wish = "keep-alive" if keep else "close"
        request = f"GET {path} HTTP/1.1\r\nHost: site.test\r\nConnection: {wish}\r\n\r\n"
        self._buffer = b""
        try:
            self._socket.sendall(request.encode())
            while b"\r\n\r\n" not in self._buffer:
                self._more()
        except (OSError, EOFError) as exc:
            if reused and not self._buffer and not isinstance(exc, TimeoutError):
                raise IdleClosedError from exc
            raise _failure(exc, "waiting for the answer", begun=bool(self._buffer)) from exc
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return _parse(head)

    def _more(self) -> None:
        part = self._socket.recv(_READ)
        if not part:
            raise EOFError
        self._buffer += part

    def read_body(self, length: int) -> bytes:
        """The body, whole. Raises RequestError."""
        try:
            while len(self._buffer) < length:
                self._more()
        except (OSError, EOFError) as exc:
            place = f"after {len(self._buffer)} of {length} bytes"
            raise _failure(exc, place, begun=True) from exc
        return self._buffer

    def read_slowly(self, length: int, *, seconds: float) -> None:
        """Read `length` bytes over `seconds` and compare each of them. Raises RequestError."""
        start, seen = time.monotonic(), 0
        while seen < length:
            try:
                while not self._buffer:
                    self._more()
            except (OSError, EOFError) as exc:
                raise _failure(exc, f"after {seen} of {length} bytes", begun=True) from exc
            part, self._buffer = self._buffer, b""
            if part != big_content(seen, len(part)):
                raise RequestError("body", f"wrong bytes between {seen} and {seen + len(part)}")
            seen += len(part)
            ahead = start + seconds * seen / length - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)


def _failure(exc: OSError | EOFError, place: str, *, begun: bool) -> RequestError:
    if isinstance(exc, TimeoutError):
        return RequestError("timeout", place)
    if isinstance(exc, OSError) and exc.errno in (errno.ECONNREFUSED, errno.ENOENT):
        return RequestError("refused", f"{place}: {exc}")
    closed = isinstance(exc, EOFError) or exc.errno in (errno.ECONNRESET, errno.EPIPE)
    if closed:
        return RequestError("truncated" if begun else "reset", f"{place}: {str(exc) or 'closed'}")
    return RequestError("other", f"{place}: {exc}")


def _parse(head: bytes) -> Head:
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    try:
        status, length = int(first.split(" ")[1]), int(headers.get("content-length", "0"))
    except (IndexError, ValueError) as exc:
        raise RequestError("answer", f"not HTTP: {first[:80]!r}") from exc
    return Head(status, headers.get("x-version", "?"), headers.get("x-pid", "?"), length)


class Client(threading.Thread):
    """One client: makes requests at its pace until told to stop or until the plan's time is over.

    A daemon thread, because the process ends at once when its orders end.
    """

    def __init__(
        self, kind: str, request: Callable[[], None], *, pace: float, plan: Plan, tally: Tally,
        stopping: threading.Event,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._kind, self._request, self._pace = kind, request, pace
        self._plan, self._tally, self._stopping = plan, tally, stopping

    def run(self) -> None:
        """Make requests, each counted once."""
        end = time.monotonic() + self._plan.seconds
        due = time.monotonic()
        while not self._stopping.is_set() and time.monotonic() < end:
            began = time.monotonic()
            try:
                self._request()
            except RequestError as failure:
                self._tally.failed(self._kind, failure)
            else:
                self._tally.ok(self._kind, time.monotonic() - began)
            # A client that was held up does not make up for it: that would be a burst.
            due = max(due + self._pace, time.monotonic() - self._pace)
            self._stopping.wait(max(0.0, due - time.monotonic()))


def _check(plan: Plan, tally: Tally, connection: Connection, *, keep: bool, began: float) -> None:
    head = connection.get(plan.path, keep=keep)
    body = connection.read_body(head.length)
    tally.answered(head, began=began)
    if head.status != 200:
        raise RequestError("status", f"status {head.status} from pid {head.pid}")
    if body != plan.body.encode():
        raise RequestError("body", f"wrong body {body[:80]!r} from pid {head.pid}")


def _new(plan: Plan, tally: Tally) -> None:
    began = time.monotonic()
    connection = Connection(plan)
    try:
        _check(plan, tally, connection, keep=False, began=began)
    finally:
        connection.close()


class _Reuser:
    """Asks again and again on one connection."""

    def __init__(self, kind: str, plan: Plan, tally: Tally) -> None:
        self._kind, self._plan, self._tally = kind, plan, tally
        self._connection: Connection | None = None

    def __call__(self) -> None:
        began = time.monotonic()
        try:
            if self._connection is not None:
                try:
                    return _check(self._plan, self._tally, self._connection, keep=True, began=began)
                except IdleClosedError:
                    self._tally.idle_closed(self._kind)
                    self._drop()
            self._connection = Connection(self._plan)
            return _check(self._plan, self._tally, self._connection, keep=True, began=began)
        except RequestError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _slow(plan: Plan, tally: Tally) -> None:
    began = time.monotonic()
    connection = Connection(plan, narrow=True)
    try:
        head = connection.get(plan.slow_path, keep=False)
        tally.answered(head, began=began)
        tally.first()
        if (head.status, head.length) != (200, plan.slow_size):
            raise RequestError("status", f"status {head.status} with {head.length} bytes")
        connection.read_slowly(head.length, seconds=plan.slow_seconds)
    finally:
        connection.close()


def run_clients(plan: Plan, tally: Tally, stopping: threading.Event) -> list[Client]:
    """Start all clients of `plan`; they count in `tally` and end after `stopping` is set."""
    clients: list[Client] = []

    def add(kind: str, number: int, pace: float, make: Callable[[], Callable[[], None]]) -> None:
        for _ in range(number):
            clients.append(
                Client(kind, make(), pace=pace, plan=plan, tally=tally, stopping=stopping)
            )

    add("new", plan.new, plan.new / plan.new_rate, lambda: lambda: _new(plan, tally))
    pace = plan.keepalive / plan.keepalive_rate
    add("keepalive", plan.keepalive, pace, lambda: _Reuser("keepalive", plan, tally))
    add("idle", plan.idle, plan.idle_pause, lambda: _Reuser("idle", plan, tally))
    add("slow", plan.slow, 0.0, lambda: lambda: _slow(plan, tally))
    for client in clients:
        client.start()
    return clients
