"""Servers that answer a probe with malice: each look ends, in bounded time and memory, in words."""

from __future__ import annotations

import re
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from supervisor.core.observation import Outcome
from supervisor.edges.http_exchange import MOST_BODY, MOST_RECEIVED
from supervisor.edges.probe_finding import Finding
from tests import certificates
from tests.edges.probe_targets import CHUNKED, LIMIT, Handler, ask, read_request
from tests.edges.test_tls_probes import ask as ask_securely
from tests.edges.tls_targets import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PUSH,
    RST,
    SETTINGS,
    STATUS_200,
    WINDOW,
    Http2,
    Secure,
    frame,
    over_tls,
    server_context,
    trusting,
)

SHORT = 1.0  # seconds; a look that only its timeout can end
MEGABYTE = b"x" * 1024 * 1024
MOST_MEMORY = 64 * 1024  # KiB that a look may add to what the process ever had
IN_FLIGHT = 16 * 1024 * 1024  # bytes that the kernel's buffers may hold besides

Send = Callable[[bytes], Awaitable[None]]
Deed = Callable[[trio.abc.Stream], Awaitable[None]]


class Sent:
    """How much a server got rid of."""

    def __init__(self) -> None:
        self.bytes = 0

    async def for_ever(self, stream: trio.abc.Stream, part: bytes) -> None:
        while True:
            await stream.send_all(part)
            self.bytes += len(part)


SENT = Sent()


def after_request(*first: bytes, then: bytes = b"") -> Deed:
    """Reads the request, sends `first`, and `then` for ever; without, it keeps silent."""

    async def deed(stream: trio.abc.Stream) -> None:
        await read_request(stream)  # type: ignore[arg-type]
        for part in first:
            await stream.send_all(part)
        if then:
            await SENT.for_ever(stream, then)
        await trio.sleep_forever()

    return deed


def dripping(head: bytes, drop: bytes, pause: float) -> Deed:
    async def deed(stream: trio.abc.Stream) -> None:
        await read_request(stream)  # type: ignore[arg-type]
        await stream.send_all(head)
        while True:
            await stream.send_all(drop)
            await trio.sleep(pause)

    return deed


async def at_once(stream: trio.abc.Stream) -> None:
    await stream.aclose()


async def late(stream: trio.abc.Stream) -> None:
    await read_request(stream)  # type: ignore[arg-type]
    await trio.sleep(2 * SHORT)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


HEAD = b"HTTP/1.1 200 OK\r\n"
DEEDS: dict[str, tuple[Deed, str]] = {
    "closes at once": (at_once, "connection|handshake"),
    "never answers": (after_request(), "timed out after .*: waiting for the answer"),
    "answers too late": (late, "timed out after .*: waiting for the answer"),
    "streams for ever": (
        after_request(b"HTTP/1.0 200 OK\r\n\r\n", then=MEGABYTE), "body too large",
    ),
    "sends 1 GB": (
        after_request(HEAD + b"Content-Length: 1073741824\r\n\r\n", then=MEGABYTE),
        "body too large",
    ),
    "sends chunks for ever": (
        after_request(CHUNKED, then=b"10000\r\n" + b"x" * 65536 + b"\r\n"), "body too large",
    ),
    "sends tiny chunks for ever": (
        after_request(CHUNKED, then=b"1\r\nx\r\n" * 9000), "timed out|large",
    ),
    "a header without end": (after_request(HEAD + b"X: ", then=MEGABYTE), "no HTTP/1.1 answer"),
    "headers without end": (after_request(HEAD, then=b"X: y\r\n" * 9000), "no HTTP/1.1 answer"),
    "is never done beginning": (
        after_request(then=b"HTTP/1.1 100 Continue\r\n\r\n" * 3000),
        f"more than {MOST_RECEIVED} bytes came|timed out",
    ),
    "a trailer without end": (after_request(CHUNKED + b"0\r\nX: ", then=MEGABYTE), "no HTTP/1.1"),
    "zeros": (after_request(then=b"\0" * 65536), "no HTTP/1.1 answer"),
    "drips its header": (dripping(HEAD + b"X: ", b"y", 0.01), "timed out .*: waiting for"),
    "drips its body": (
        dripping(HEAD + b"Content-Length: 9999\r\n\r\n", b"y", 0.01),
        "timed out .*: reading the body of an answer with status 200",
    ),
}  # fmt: skip


async def bounded(look: Callable[[], Awaitable[Finding]]) -> Finding:
    """What `look` finds; it took no memory to speak of, and others had their turns meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SENT.bytes = turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0)
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        with trio.fail_after(LIMIT):
            found = await look()
        nursery.cancel_scope.cancel()
    assert turns > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
    assert SENT.bytes < MOST_RECEIVED + IN_FLIGHT
    return found


def timeout_for(said: str) -> float:
    """Where only time can end it, little of it; else enough for a busy machine."""
    return SHORT if "timed out" in said else LIMIT


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", DEEDS)
async def test_over_http1(tmp_path: Path, name: str, *, secure: bool) -> None:
    deed, said = DEEDS[name]
    timeout = timeout_for(said)

    async def look() -> Finding:
        if not secure:
            return await ask(deed, timeout=timeout)
        certificates.write(tmp_path)
        handler = over_tls(deed, server_context(tmp_path))
        return await ask_securely(handler, trusting(tmp_path), timeout=timeout)

    found = await bounded(look)
    assert found.outcome is Outcome.FAIL
    assert re.search(said, found.detail), found.detail
    assert len(found.detail) < 400


# --- instead of TLS ---


def raw(*parts: bytes, then: bytes = b"", close: bool = False) -> Handler:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        for part in parts:
            await stream.send_all(part)
        if then:
            await SENT.for_ever(stream, then)
        if not close:
            await trio.sleep_forever()

    return handle


NO_TLS: dict[str, tuple[Handler, str]] = {
    "plain http": (raw(b"HTTP/1.1 400 Bad\r\n\r\n"), "failed: what answers does not speak TLS"),
    "ssh": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "handshake failed: what answers does not speak TLS"),
    "silence": (raw(), "timed out after .*: TLS handshake"),
    "a close": (raw(close=True), "handshake failed: the connection was closed"),
    "an alert": (raw(b"\x15\x03\x03\0\2\x02\x28"), "handshake failed: .*alert handshake failure"),
    "noise": (raw(then=b"\x16\x03\x03\xff\xff" + b"x" * 65535), "handshake failed"),
    "endless hellos": (raw(then=b"\x16\x03\x03\0\4\2\0\0\xff"), "handshake failed|timed out"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TLS)
async def test_instead_of_a_handshake(tmp_path: Path, name: str) -> None:
    handler, said = NO_TLS[name]
    certificates.write(tmp_path)
    look = lambda: ask_securely(handler, trusting(tmp_path), timeout=timeout_for(said))  # noqa: E731
    found = await bounded(look)
    assert found.outcome is Outcome.FAIL
    assert re.search(said, found.detail), found.detail


# --- over HTTP/2 ---


def instead(*parts: bytes, then: bytes = b"", close: bool = False) -> Deed:
    """No greeting: `parts`, and `then` for ever."""

    async def deed(stream: trio.abc.Stream) -> None:
        await stream.receive_some(65536)
        for part in parts:
            await stream.send_all(part)
        if then:
            await SENT.for_ever(stream, then)
        if not close:
            await trio.sleep_forever()

    return deed


def after(*parts: bytes, then: bytes = b"", close: bool = False) -> Deed:
    """A greeting, the request, and then `parts`, and `then` for ever."""
    rest = instead(*parts, then=then, close=close)

    async def deed(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SSLStream)
        secure: Secure = stream
        await Http2(secure).serve()
        await rest(_Read(stream))  # type: ignore[arg-type]

    return deed


class _Read:
    """A stream of which the request was read."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.send_all = stream.send_all

    async def receive_some(self, _most: int) -> bytes:
        return b""


ANSWER = frame(HEADERS, END_HEADERS, 1, STATUS_200)
BOMB = b"\x40\x01a\x7f\x80\x1f" + b"b" * 4000 + b"\xbe" * 9000  # one header, named 9,000 times
HTTP2: dict[str, tuple[Deed, str]] = {
    "http1": (instead(b"HTTP/1.1 200 OK\r\n\r\n" * 99), "no HTTP/2 answer"),
    "noise": (instead(then=b"\xff" * 65536), "no HTTP/2 answer"),
    "nothing": (instead(), "timed out after .*: waiting for the answer"),
    "a close": (after(close=True), "closed without|connection broke"),
    "half an answer": (after(ANSWER, close=True), "closed in the middle|connection broke"),
    "a reset": (after(frame(RST, 0, 1, b"\0\0\0\7")), "reset the request: REFUSED_STREAM"),
    "an odd reset": (after(frame(RST, 0, 1, b"\0\0\xff\7")), "reset the request: error 65287"),
    "a farewell": (
        after(frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0b")),
        "ended the connection: ENHANCE_YOUR_CALM",
    ),
    "a push": (after(frame(PUSH, END_HEADERS, 1, b"\0\0\0\2" + STATUS_200)), "no HTTP/2 answer"),
    "no status": (after(frame(HEADERS, END_HEADERS, 1, b"")), "no HTTP/2 answer"),
    "two lengths": (after(frame(DATA, END_STREAM, 1, b"x")), "no HTTP/2 answer"),
    "a bomb": (after(frame(HEADERS, END_HEADERS, 1, BOMB)), "no HTTP/2 answer"),
    "headers without end": (
        after(frame(HEADERS, 0, 1, STATUS_200), then=frame(CONTINUATION, 0, 1, b"")),
        "no HTTP/2 answer|timed out",
    ),
    "large headers without end": (
        after(frame(HEADERS, 0, 1, STATUS_200), then=frame(CONTINUATION, 0, 1, b"x" * 16000)),
        "no HTTP/2 answer",
    ),
    "too large a frame": (after(frame(DATA, 0, 1, b"x" * 70000)), "no HTTP/2 answer"),
    "a body without end": (
        after(ANSWER, then=frame(DATA, 0, 1, b"x" * 16000)), "too large|no HTTP/2",
    ),
    "a body of nothing": (after(ANSWER, then=frame(DATA, 0, 1) * 999), "more than|timed out"),
    "pings for ever": (after(then=frame(PING, 0, 0, b"12345678") * 999), "more than|timed out"),
    "settings for ever": (after(then=frame(SETTINGS) * 999), "more than|timed out"),
    "windows for ever": (
        after(then=frame(WINDOW, 0, 0, b"\0\0\0\1") * 999), "more than|timed out|no HTTP/2",
    ),
    "a body after its end": (
        after(ANSWER, frame(DATA, END_STREAM, 3, b"x")), "no HTTP/2 answer|timed out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HTTP2)
async def test_over_http2(tmp_path: Path, name: str) -> None:
    deed, said = HTTP2[name]
    certificates.write(tmp_path)
    handler = over_tls(deed, server_context(tmp_path, alpn="h2"))
    tls = trusting(tmp_path, http2=True)
    found = await bounded(lambda: ask_securely(handler, tls, timeout=timeout_for(said)))
    assert found.outcome is Outcome.FAIL
    assert re.search(said, found.detail), found.detail
    assert len(found.detail) < 400


async def test_a_farewell_that_lets_the_request_end_is_no_failure(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    goodbye = frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\0")
    handler = over_tls(
        after(goodbye + ANSWER + frame(DATA, END_STREAM, 1, b"ok")),
        server_context(tmp_path, alpn="h2"),
    )
    found = await ask_securely(handler, trusting(tmp_path, http2=True))
    assert (found.outcome, found.detail) == (Outcome.PASS, "status 200")


# --- redirects ---


def redirecting(*targets: str) -> Handler:
    """The n-th request is sent to the n-th target, the last one for ever."""
    left = list(targets)

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        target = left.pop(0) if len(left) > 1 else left[0]
        head = f"HTTP/1.1 302 F\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        await stream.send_all(head.encode())

    return handle


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["/"], "status 302: a redirect loop: / -> /"),
        (["/a", "/"], "status 302: a redirect loop: / -> /a -> /"),
        (["/1", "/2", "/3", "/4"], "more than 3 redirects: / -> /1 -> /2 -> /3"),
        (["http://127.0.0.2/"], "a redirect to another host, which is not followed"),
        (["https://127.0.0.1/"], "a redirect away from http, which is not followed"),
        (["/" + "x" * 50_000, "/y" * 30_000], "more than|no HTTP/1.1|loop"),
    ],
)
async def test_redirects_end(targets: list[str], said: str) -> None:
    found = await bounded(lambda: ask(redirecting(*targets), follow_redirects=3))
    assert found.outcome is Outcome.FAIL
    assert re.search(said, found.detail), found.detail[:300]


async def test_what_comes_after_a_redirect_says_where() -> None:
    asked = []

    async def handle(stream: trio.SocketStream) -> None:
        asked.append((await read_request(stream)).split()[1])
        if len(asked) == 1:
            await stream.send_all(b"HTTP/1.1 302 F\r\nLocation: b\r\nContent-Length: 0\r\n\r\n")

    found = await ask(handle, follow_redirects=1)
    assert asked == [b"/", b"/b"]
    assert found.detail == "the connection was closed without an answer (after / -> /b)"
    assert MOST_BODY < MOST_RECEIVED
