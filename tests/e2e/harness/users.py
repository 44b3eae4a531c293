"""Three users of a site, each asking one thing after the other: a process of its own.

    with Users(plan) as users:
        ...
        asked = users.stop()

The first asks the http port for a page, a cached page, a redirect and a page of a backend; the
second the second port, now on a new connection and now on one that it keeps; the third https, by
HTTP/1.1 and by HTTP/2 in turn, and it trusts one authority alone. What each request came to is kept
with its times, so that afterwards anyone can say who answered when. A request fails for a cause:
`refused`, `reset`, `timeout`, `truncated`, `certificate`, `tls`, `status`, `body`, `redirect`. A
kept connection that is closed before one byte of an answer came is no failure: that request is made
again.

The process ends when its stdin closes, so it cannot outlive its parent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

END_LIMIT = 60.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _DATA, _GOAWAY, _END_STREAM = 1, 0, 7, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPlan:
    """Where they ask, and what a good answer is. `pace` and `timeout` are in seconds."""

    http: tuple[str, int]
    second: tuple[str, int]
    https: tuple[str, int]
    name: str
    authority: str  # path of the certificate that they trust
    redirect: str  # where /old leads
    pace: float = 0.04
    timeout: float = 2.0  # after which a user gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one request came to; times are of the monotonic clock."""

    began: float
    ended: float
    what: str
    version: str  # who answered, "" where nobody is known
    cause: str  # "" for a good answer


class _FailedError(Exception):
    def __init__(self, cause: str, version: str = "") -> None:
        super().__init__(cause)
        self.cause, self.version = cause, version


# --- HTTP/1.1


def _exchange(connection: socket.socket, name: str, path: str) -> tuple[str, dict[str, str], bytes]:
    """Ask for `path`: the first line of the answer, its headers, and its whole body."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _more(connection, answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _more(connection, answer)
    return first, headers, body


def _more(connection: socket.socket, before: bytes) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise _FailedError("truncated" if before else "reset")
    return part


def _http1(connection: socket.socket, name: str, path: str, *, wanted: str = "") -> str:
    """Ask for `path`; the version in the answer. `wanted` is where it has to redirect to."""
    first, headers, body = _exchange(connection, name, path)
    version = headers.get("x-version", "")
    if first.split(" ")[1:2] != (["301"] if wanted else ["200"]):
        raise _FailedError("status", version)
    if wanted and headers.get("location") != wanted:
        raise _FailedError("redirect", version)
    if not wanted and body not in (b"ok\n", f"{version}\n".encode()):
        raise _FailedError("body", version)
    return version


# --- HTTP/2, just as much of it as one GET of /version needs


def _http2(connection: socket.socket, name: str) -> str:
    """Ask for /version over HTTP/2; the version that it says."""
    path, host = b"/version", name.encode()
    fields = b"\x82\x87" + b"\x44" + bytes([len(path)]) + path + b"\x41" + bytes([len(host)]) + host
    settings = b"\0\0\0\4\0\0\0\0\0"
    asking = len(fields).to_bytes(3, "big") + b"\1\5\0\0\0\1" + fields
    connection.sendall(PREFACE + settings + asking)
    body = b""
    for kind, flags, payload in _frames(connection):
        if kind == _GOAWAY:
            break
        # nginx may resize its table first; then an indexed ":status: 200" follows.
        if kind == _HEADERS and payload.lstrip(b"\x20")[:1] != b"\x88":
            raise _FailedError("status")
        if kind == _DATA:
            body += payload
        if kind in (_HEADERS, _DATA) and flags & _END_STREAM:
            return body.decode("latin-1").strip()
    raise _FailedError("reset")


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    buffer = b""
    while True:
        while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3], "big"):
            part = connection.recv(65536)
            if not part:
                return
            buffer += part
        size = int.from_bytes(buffer[:3], "big")
        yield buffer[3], buffer[4], buffer[9 : 9 + size]
        buffer = buffer[9 + size :]


# --- the users


class _Kept:
    """Asks again and again on one connection; it is made anew where the server has closed it."""

    def __init__(self, plan: UsersPlan, place: tuple[str, int]) -> None:
        self._plan, self._place = plan, tuple(place)
        self._connection: socket.socket | None = None

    def __call__(self) -> str:
        if self._connection is not None:
            with contextlib.suppress(_IdleClosedError):
                return self._ask(self._connection, reused=True)
        self._connection = socket.create_connection(self._place, self._plan.timeout)
        return self._ask(self._connection, reused=False)

    def _ask(self, connection: socket.socket, *, reused: bool) -> str:
        try:
            return _http1(connection, self._plan.name, "/")
        except (OSError, _FailedError) as exc:
            connection.close()
            self._connection = None
            cause = exc.cause if isinstance(exc, _FailedError) else _cause(exc)
            if reused and cause == "reset":
                raise _IdleClosedError from exc
            raise


class _IdleClosedError(Exception):
    """A kept connection was closed before any byte of the answer."""


class _Tls:
    """Makes connections that trust one authority, for one protocol each."""

    def __init__(self, plan: UsersPlan) -> None:
        self._plan = plan
        self._contexts = {"http/1.1": self._context("http/1.1"), "h2": self._context("h2")}

    def _context(self, protocol: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._plan.authority)
        context.set_alpn_protocols([protocol])
        return context

    def over(self, connection: socket.socket, protocol: str) -> ssl.SSLSocket:
        """The connection with TLS on it. Raises OSError or _FailedError."""
        made = self._contexts[protocol].wrap_socket(connection, server_hostname=self._plan.name)
        if made.selected_alpn_protocol() != protocol:
            made.close()
            raise _FailedError("tls")
        return made


def _requests(plan: UsersPlan) -> list[list[tuple[str, Callable[[], str]]]]:
    """What each user asks in turn: its name, and a function that asks and gives the version."""
    tls = _Tls(plan)

    def plain(place: tuple[str, int], path: str, wanted: str = "") -> Callable[[], str]:
        def ask() -> str:
            with socket.create_connection(tuple(place), plan.timeout) as connection:
                return _http1(connection, plan.name, path, wanted=wanted)

        return ask

    def secure(protocol: str) -> Callable[[], str]:
        def ask() -> str:
            with (
                socket.create_connection(tuple(plan.https), plan.timeout) as connection,
                tls.over(connection, protocol) as secured,
            ):
                if protocol == "h2":
                    return _http2(secured, plan.name)
                return _http1(secured, plan.name, "/version")

        return ask

    return [
        [
            ("http /", plain(plan.http, "/")),
            ("http /cached", plain(plan.http, "/cached")),
            ("http /old", plain(plan.http, "/old", plan.redirect)),
            ("http /unprobed", plain(plan.http, "/unprobed")),
        ],
        [("second /", plain(plan.second, "/")), ("kept /", _Kept(plan, plan.second))],
        [("https", secure("http/1.1")), ("h2", secure("h2"))],
    ]


def _cause(exc: OSError) -> str:
    match exc:
        case ssl.SSLCertVerificationError():
            return "certificate"
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError() | ssl.SSLEOFError():
            return "reset"
        case ssl.SSLError():
            return "tls"
    return "reset"


def _ask(what: str, ask: Callable[[], str]) -> Asked:
    began = time.monotonic()
    version, cause = "", ""
    try:
        version = ask()
    except _FailedError as failed:
        version, cause = failed.version, failed.cause
    except OSError as exc:
        cause = _cause(exc)
    return Asked(began=began, ended=time.monotonic(), what=what, version=version, cause=cause)


def _live(
    plan: UsersPlan, turns: list[tuple[str, Callable[[], str]]], asked: list[Asked],
    ready: threading.Event, stopping: threading.Event,
) -> None:  # fmt: skip
    for what, ask in itertools.cycle(turns):
        if stopping.is_set():
            return
        one = _ask(what, ask)
        asked.append(one)
        ready.set()
        stopping.wait(max(0.0, one.began + plan.pace - time.monotonic()))


def main(arguments: list[str], *, orders: TextIO, answers: TextIO) -> int:
    """Ask until told to stop; then what each request came to, as one line of JSON."""
    plan = UsersPlan(**json.loads(arguments[0]))
    stopping = threading.Event()
    asked: list[Asked] = []
    users = []
    for turns in _requests(plan):
        ready = threading.Event()
        arguments_of = (plan, turns, asked, ready, stopping)
        user = threading.Thread(target=_live, args=arguments_of, daemon=True)
        user.start()
        users.append((user, ready))
    for _, ready in users:
        ready.wait(plan.timeout * 2)
    answers.write("ready\n")
    answers.flush()
    for order in orders:
        if order.strip() == "stop":
            stopping.set()
            for user, _ in users:
                user.join()
        answers.write(json.dumps([asdict(one) for one in tuple(asked)]) + "\n")
        answers.flush()
    return 0


class Users:
    """The process of the users; entering waits until each has asked once, leaving ends it."""

    def __init__(self, plan: UsersPlan) -> None:
        self._plan = plan

    def __enter__(self) -> Users:
        root = Path(__file__).resolve().parents[3]
        command = [
            sys.executable, "-E", "-m", "tests.e2e.harness.users", json.dumps(asdict(self._plan)),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._line()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._end()

    def stop(self) -> list[Asked]:
        """Let what is under way end, and tell what every request came to, by its end."""
        return self._told("stop")

    def report(self) -> list[Asked]:
        """The same so far; they go on."""
        return self._told("report")

    def _told(self, order: str) -> list[Asked]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        told = [Asked(**one) for one in json.loads(self._line())]
        return sorted(told, key=lambda one: one.ended)

    def _line(self) -> str:
        assert self._process.stdout is not None
        watchdog = threading.Timer(END_LIMIT, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line:
            raise RuntimeError("the users' process has ended without an answer")
        return line

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], orders=sys.stdin, answers=sys.stdout))
