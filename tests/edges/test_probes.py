"""Probes of a server, over http and tcp: what they find, whose it is, that nothing stays behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from supervisor.core.observation import Attribution, Outcome
from supervisor.core.probe_settings import TcpAddress, TcpProbe, UnixAddress
from supervisor.edges.http_probe import MOST_BODY, check_http
from supervisor.edges.owner_finding import OwnerFinder
from supervisor.edges.probe_finding import Finding
from supervisor.edges.probes import _check_tcp
from tests.edges.probe_targets import (
    CHUNKED,
    LIMIT,
    OK,
    SELF,
    answering,
    ask,
    held_by,
    http,
    owned_by,
    read_request,
    serving,
)

# --- http ---


async def test_a_good_answer_passes() -> None:
    found = await ask(answering(OK), expect_body=re.compile("^ok$"))
    assert (found.outcome, found.detail) == (Outcome.PASS, "status 200")
    assert 0 < found.latency < LIMIT
    assert found.worker_pid is None


async def test_the_request_is_as_configured() -> None:
    requests = []

    async def handle(stream: trio.SocketStream) -> None:
        requests.append(await read_request(stream))
        await stream.send_all(OK)

    await ask(handle, target="/a?b=c", headers={"X-One": "1", "accept": "text/plain"})
    (request,) = requests
    first, *fields = request.decode().split("\r\n")
    assert first == "GET /a?b=c HTTP/1.1"
    assert fields[0] == "Host: example.org"
    assert sorted(fields[1:-2]) == [
        "User-Agent: nginx-supervisor", "X-One: 1", "accept: text/plain",
    ]  # fmt: skip


BAD_ANSWERS = {
    "status": (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "status 500, expected 200, 204"),
    "redirect": (b"HTTP/1.1 302 F\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "status 302"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", "match '^ok': 'bad'"),
    "not http": (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP/1.1 answer while waiting for the answer"),
    "nothing": (b"", "closed without an answer"),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", "no HTTP/1.1 answer"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "reading the body"),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "no HTTP/1.1 answer"),
    "bad length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no HTTP/1.1 answer"),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "no HTTP/1.1 answer",
    ),
    "switch": (b"HTTP/1.1 101 S\r\nConnection: upgrade\r\n\r\n", "no HTTP/1.1 answer"),
    "large body": (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * (MOST_BODY + 1), "body too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_bad_answers_are_failures_in_words(name: str) -> None:
    answer, said = BAD_ANSWERS[name]
    found = await ask(
        answering(answer), expect_status=frozenset({200, 204}), expect_body=re.compile("^ok")
    )
    assert found.outcome is Outcome.FAIL
    assert said in found.detail


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", OK),
        (b"HTTP/1.0 200 OK\r\n\r\nok",),
        (CHUNKED + b"1\r\no", b"\r\n1\r\nk\r\n0\r\n\r\n"),
        tuple(OK[at : at + 1] for at in range(len(OK))),
        (b"HTTP/1.0 200 OK\r\n\r\nok" + b"x" * (MOST_BODY - 2),),
    ],
)  # fmt: skip
async def test_unusual_answers_pass(pieces: tuple[bytes, ...]) -> None:
    found = await ask(answering(*pieces), expect_body=re.compile("^ok"))
    assert (found.outcome, found.detail) == (Outcome.PASS, "status 200")


async def test_a_slow_answer_fails_where_that_is_asked() -> None:
    found = await ask(answering(OK), max_latency=1e-9)
    assert found.outcome is Outcome.FAIL
    assert "slower than 1e-09 s" in found.detail


async def test_nobody_listens() -> None:
    async with serving(answering(OK)) as port:
        pass
    probe = http(port)
    found = await check_http(probe, probe.address, None, known=lambda _pid: False)
    assert found == Finding(outcome=Outcome.FAIL, detail="cannot connect: Connection refused")


async def test_a_name_that_does_not_exist() -> None:
    probe = http(80, address=TcpAddress("does-not-exist.invalid", 80))
    found = await check_http(probe, probe.address, None, known=lambda _pid: False)
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("cannot connect: ")


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((), "waiting for the answer"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",), "body of an answer with status 200"),
    ],
)
async def test_a_server_that_hangs_is_given_its_time(pieces: tuple[bytes, ...], said: str) -> None:
    found = await ask(answering(*pieces, close=False), timeout=1.5)
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("timed out after 1.5 s: ")
    assert said in found.detail
    assert 1.0 < found.latency < LIMIT


async def test_a_reset_connection_is_a_failure() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await read_request(stream)
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, zero seconds: close by RST
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)

    found = await ask(reset)
    assert found.outcome is Outcome.FAIL
    assert "the connection broke while waiting for the answer: Connection reset" in found.detail


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as bound:
        await bound.bind(str(path))
        bound.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answering(OK), [trio.SocketListener(bound)])
            probe = http(80, address=UnixAddress(str(path)))
            # An owner is not asked: there is no address by which to find the connection.
            found = await check_http(probe, probe.address, held_by(1), known=bool)
            nursery.cancel_scope.cancel()
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, None)
    gone = await check_http(probe, UnixAddress(str(path) + "x"), None, known=bool)
    assert gone.detail == "cannot connect: No such file or directory"


@pytest.mark.parametrize(
    ("value", "pid"), [(b"77", 77), (b"78", None), (b"-1", None), (b"7" * 11, None), (b"x", None)]
)
async def test_a_header_may_name_a_known_worker(value: bytes, pid: int | None) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Other: 1\r\nX-Pid: %s\r\nContent-Length: 0\r\n\r\n" % value
    async with serving(answering(answer)) as port:
        probe = http(port, pid_header="x-pid")
        found = await check_http(probe, probe.address, None, known=lambda one: one == 77)
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, pid)


@pytest.mark.parametrize("close", [True, False])
async def test_the_worker_is_found_by_its_socket(close: bool) -> None:  # noqa: FBT001
    async with serving(answering(OK, close=close)) as port:
        probe = http(port)
        owner = OwnerFinder(lambda: {SELF})
        found = await check_http(probe, probe.address, owner, known=lambda _pid: False)
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, SELF)
    assert found.worker_by is Attribution.SOCKET_OWNER


@pytest.mark.parametrize("known", [True, False])
async def test_the_header_of_a_known_worker_goes_before_the_search(known: bool) -> None:  # noqa: FBT001
    answer = b"HTTP/1.1 200 OK\r\nX-Pid: 77\r\nContent-Length: 0\r\n\r\n"
    dear: list[bool] = []

    async def owner(here: object, there: object, *, cheaply: bool = False) -> int | None:
        dear.append(not cheaply)
        return None if cheaply else 78

    async with serving(answering(answer, close=False)) as port:
        probe = http(port, pid_header="X-Pid")
        found = await check_http(probe, probe.address, owner, known=lambda _pid: known)
    expected = (77, Attribution.RESPONSE_HEADER) if known else (78, Attribution.SOCKET_OWNER)
    assert (found.worker_pid, found.worker_by) == expected
    assert any(dear) is not known


async def test_a_worker_that_is_found_late_is_found_after_the_answer() -> None:
    looks = 0

    def late() -> int | None:
        nonlocal looks
        looks += 1
        return SELF if looks > 4 else None

    async with serving(answering(OK, close=False)) as port:
        probe = http(port)
        found = await check_http(probe, probe.address, owned_by(late), known=lambda _pid: False)
    assert found.worker_pid == SELF


async def test_cancelling_closes_the_connection() -> None:
    gone = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        asked.set()
        assert await stream.receive_some(1) == b""
        gone.set()

    asked = trio.Event()
    async with serving(handle) as port, trio.open_nursery() as nursery:
        probe = http(port)

        async def run() -> None:
            await check_http(probe, probe.address, None, known=lambda _pid: False)

        nursery.start_soon(run)
        await asked.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(LIMIT):
            await gone.wait()


# --- tcp ---


async def test_tcp_passes_where_someone_listens() -> None:
    async with serving(answering()) as port:
        probe = TcpProbe(name="n", address=TcpAddress("127.0.0.1", port), timeout=LIMIT)
        found = await _check_tcp(probe, probe.address, held_by(5))
        assert (found.outcome, found.detail, found.worker_pid) == (Outcome.PASS, "connected", 5)
    found = await _check_tcp(probe, probe.address, None)
    assert (found.outcome, found.detail) == (Outcome.FAIL, "cannot connect: Connection refused")


async def test_the_search_for_a_worker_is_not_the_servers_time() -> None:
    async def slow(here: object, there: object, *, cheaply: bool = False) -> int | None:
        await trio.sleep(0.3)
        return SELF

    async with serving(answering(OK)) as port:
        probe = http(port, timeout=0.25)
        found = await check_http(probe, probe.address, slow, known=lambda _pid: False)
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, SELF)
