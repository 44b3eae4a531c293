"""Probes against real servers: what they find, whose it is, and that nothing stays behind."""

from __future__ import annotations

import math
import os
import pwd
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.core.observation import DETAIL_BYTES, Observation, Outcome
from supervisor.core.probe_settings import (
    ExecProbe,
    HttpProbe,
    ProbeSettings,
    TcpAddress,
    TcpProbe,
    UnixAddress,
)
from supervisor.core.settings import ProbeListenerSettings
from supervisor.edges.exec_probe import Identity, check_exec
from supervisor.edges.http_probe import MOST_BODY, check_http
from supervisor.edges.probe_finding import Finding
from supervisor.edges.probe_listener import ProbeListener
from supervisor.edges.probes import Aim, Prober, _check_tcp

Handler = Callable[[trio.SocketStream], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMIT = 30.0  # seconds; only a hang ever takes as long
SELF = os.getpid()
WORKER = (pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on a port of its own, each connection handed to `handler`."""

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, guarded, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some(4096)
        if not part:
            return data
        data += part
    return data


def answering(*pieces: bytes, close: bool = True) -> Handler:
    """Reads a request and answers with `pieces`; keeps the connection open unless `close`."""

    async def handle(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            for piece in pieces:
                await stream.send_all(piece)
            if close:
                return

    return handle


def http(port: int, **changes: object) -> HttpProbe:
    probe = HttpProbe(
        name="home", url=f"http://127.0.0.1:{port}/", address=TcpAddress("127.0.0.1", port),
        target="/", host="example.org", timeout=LIMIT,
    )  # fmt: skip
    return replace(probe, **changes)  # type: ignore[arg-type]


async def ask(handler: Handler, **changes: object) -> Finding:
    async with serving(handler) as port:
        probe = http(port, **changes)
        return await check_http(probe, probe.address, None, known=lambda _pid: False)


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
    found = await ask(answering(*pieces, close=False), timeout=0.2)
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("timed out after 0.2 s: ")
    assert said in found.detail
    assert 0.1 < found.latency < LIMIT


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
            found = await check_http(probe, probe.address, lambda _h, _t: 1, known=bool)
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
    listener = ProbeListener(ProbeListenerSettings())
    async with serving(answering(OK, close=close)) as port:
        probe = http(port)
        found = await check_http(
            probe,
            probe.address,
            lambda here, there: listener.connection_owner(here, there, {SELF}),
            known=lambda _pid: False,
        )
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, SELF)


async def test_a_worker_that_is_found_late_is_found_after_the_answer() -> None:
    looks = 0

    def late(_here: object, _there: object) -> int | None:
        nonlocal looks
        looks += 1
        return SELF if looks > 4 else None

    async with serving(answering(OK, close=False)) as port:
        probe = http(port)
        found = await check_http(probe, probe.address, late, known=lambda _pid: False)
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
        found = await _check_tcp(probe, probe.address, lambda _h, _t: 5)
        assert (found.outcome, found.detail, found.worker_pid) == (Outcome.PASS, "connected", 5)
    found = await _check_tcp(probe, probe.address, None)
    assert (found.outcome, found.detail) == (Outcome.FAIL, "cannot connect: Connection refused")


# --- exec ---


def script(text: str, **changes: object) -> ExecProbe:
    probe = ExecProbe(name="check", command=("/bin/sh", "-c", text), timeout=LIMIT)
    return replace(probe, **changes)  # type: ignore[arg-type]


async def execute(probe: ExecProbe, **environment: str) -> Finding:
    return await check_exec(probe, Identity(*WORKER), environment)


async def test_exit_codes_decide() -> None:
    good = await execute(script("echo fine; exit 0"))
    assert (good.outcome, good.detail) == (Outcome.PASS, "exit code 0: fine")
    quiet = await execute(script("exit 3"))
    assert (quiet.outcome, quiet.detail) == (Outcome.FAIL, "exit code 3")
    killed = await execute(script("echo why >&2; kill -9 $$"))
    assert (killed.outcome, killed.detail) == (Outcome.FAIL, "ended by signal 9: why")


async def test_a_command_gets_little() -> None:
    text = "env | sort; ls /proc/self/fd | sort -n | tr '\\n' ' '; pwd; umask"
    found = await execute(script(text), PROBE_ADDRESS="127.0.0.1:18931")
    lines = found.detail.removeprefix("exit code 0: ").splitlines()
    names = {line.partition("=")[0] for line in lines[:-2]} - {"PWD", "_", "SHLVL", "OLDPWD"}
    assert names == {"LANG", "PATH", "PROBE_ADDRESS", "PROBE_NAME"}
    assert lines[-2] == "0 1 2 3 /"  # 3 is ls reading the folder
    assert lines[-1] == "0022"


async def test_a_command_runs_as_the_worker() -> None:
    found = await execute(script("id -u; id -g; id -G; cat /proc/self/stat"))
    uid, gid, groups, stat = found.detail.removeprefix("exit code 0: ").splitlines()
    if os.geteuid() == 0:
        assert (int(uid), int(gid), groups) == (*WORKER, gid)
    else:
        assert int(uid) == os.geteuid()
    session = int(stat.rpartition(")")[2].split()[3])
    assert session != os.getsid(0)


async def test_a_command_runs_as_the_user_that_is_named() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    found = await execute(script("id -un", user=name))
    assert found.detail == f"exit code 0: {name}"
    unknown = await execute(script("true", user="no-such-user"))
    assert unknown.detail == "cannot run as no-such-user: no such user"
    assert unknown.outcome is Outcome.FAIL


async def test_never_as_root_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = await check_exec(script("true"), None, {})
    assert (found.outcome, found.detail) == (
        Outcome.FAIL, "cannot run: nginx's worker user is not known; set user",
    )  # fmt: skip


async def test_an_unprivileged_supervisor_runs_it_as_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    found = await check_exec(script("id -u"), Identity(*WORKER), {})
    assert found.detail == f"exit code 0: {real}"


async def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    missing = await execute(
        ExecProbe(name="n", command=(str(tmp_path / "none"),), user=own, timeout=LIMIT)
    )
    assert missing.outcome is Outcome.FAIL
    assert missing.detail == f"cannot run {tmp_path}/none: No such file or directory"
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    wrong = await check_exec(
        ExecProbe(name="n", command=(str(tmp_path / "text"),), user=own, timeout=LIMIT),
        None,
        {},
    )
    assert wrong.outcome is Outcome.FAIL
    assert "cannot run" in wrong.detail


async def test_long_output_is_cut_and_never_holds_the_command_up() -> None:
    found = await execute(script("head -c 1000000 /dev/zero | tr '\\0' x; exit 1"))
    assert found.detail == "exit code 1: " + "x" * DETAIL_BYTES


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until_gone(pid: int) -> None:
    with trio.fail_after(LIMIT):
        while alive(pid):
            await trio.sleep(0.01)


async def test_a_command_that_takes_too_long_is_killed_with_its_group() -> None:
    found = await execute(script("sleep 1000 & echo $! $$; wait", timeout=1.0))
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("timed out after 1 s: the command still ran: ")
    for pid in found.detail.rpartition(": ")[2].split():
        await until_gone(int(pid))


async def test_what_a_command_leaves_in_its_group_is_ended() -> None:
    found = await execute(script("sleep 1000 & echo $!"))
    assert found.outcome is Outcome.PASS
    await until_gone(int(found.detail.rpartition(" ")[2]))


async def test_a_descendant_that_keeps_the_pipe_holds_nothing_up() -> None:
    found = await execute(script("setsid sleep 1000 & echo $!"))
    pid = int(found.detail.rpartition(" ")[2])
    try:
        assert found.outcome is Outcome.PASS
    finally:
        if alive(pid):
            os.kill(pid, 9)


async def test_cancelling_ends_the_command(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    own = pwd.getpwuid(os.geteuid()).pw_name
    command = script(f"echo $$ > {told}; exec sleep 1000", user=own)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute, command)
        with trio.fail_after(LIMIT):
            while not (told.exists() and told.read_text().endswith("\n")):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{told.read_text().strip()}").exists()


# --- the prober ---


class Reports:
    """What the prober told, and a way to wait for more."""

    def __init__(self) -> None:
        self.all: list[Observation] = []
        self._more = trio.Event()

    def __call__(self, seen: Observation) -> None:
        self.all.append(seen)
        self._more.set()

    async def next(self, count: int = 1) -> list[Observation]:
        """`count` observations that come from now on."""
        have = len(self.all)
        with trio.fail_after(LIMIT):
            while len(self.all) < have + count:
                self._more = trio.Event()
                await self._more.wait()
        return self.all[have : have + count]


@asynccontextmanager
async def probing(*probes: ProbeSettings) -> AsyncIterator[tuple[Prober, Reports]]:
    reports = Reports()
    prober = Prober(probes, report=reports, worker_identity=lambda: WORKER)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run)
        yield prober, reports
        nursery.cancel_scope.cancel()


async def test_probes_run_again_and_again_for_the_generation_that_is_aimed_at() -> None:
    async with serving(answering(OK)) as port:
        second = replace(http(port), name="second", interval=0.01)
        async with probing(http(port, interval=0.01), second) as (prober, reports):
            prober.aim(Aim(generation=1))
            seen = await reports.next(6)
            assert {one.probe for one in seen} == {"home", "second"}
            assert {(one.outcome, one.generation) for one in seen} == {(Outcome.PASS, 1)}


async def test_a_new_aim_starts_a_fresh_round_at_once() -> None:
    async with (
        serving(answering(OK)) as port,
        probing(http(port, interval=3600.0)) as (prober, reports),
    ):
        for generation in (1, 2, 3):
            prober.aim(Aim(generation=generation))
            (seen,) = await reports.next()
            assert seen.generation == generation


async def test_a_new_aim_breaks_off_the_probes_that_run() -> None:
    asked = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        await read_request(stream)
        asked.set()
        await trio.sleep_forever()

    async with (
        serving(hang) as silent,
        serving(answering(OK)) as port,
        probing(http(silent)) as (prober, reports),
    ):
        prober.aim(Aim(generation=1))
        await asked.wait()
        prober.aim(Aim(generation=2, address=("127.0.0.1", port)))
        (seen,) = await reports.next()
        assert (seen.generation, seen.outcome) == (2, Outcome.PASS)
        assert len(reports.all) == 1


async def test_a_pause_reports_nothing() -> None:
    asked = trio.Event()
    left = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        await read_request(stream)
        asked.set()
        assert await stream.receive_some(1) == b""
        left.set()

    async with serving(hang) as port, probing(http(port)) as (prober, reports):
        prober.cover(frozenset({1}))  # nobody is aimed at: nothing happens
        prober.aim(Aim(generation=1))
        await asked.wait()
        prober.pause()
        with trio.fail_after(LIMIT):
            await left.wait()
        assert reports.all == []


async def test_a_probe_never_runs_beside_itself() -> None:
    running = most = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal running, most
        await read_request(stream)
        running += 1
        most = max(most, running)
        await trio.sleep(0.02)
        running -= 1
        await stream.send_all(OK)

    async with serving(handle) as port, probing(http(port, interval=0.001)) as (prober, reports):
        prober.aim(Aim(generation=1))
        await reports.next(5)
    assert most == 1


async def test_an_answer_over_a_shared_listener_proves_nothing() -> None:
    private = [True]
    async with serving(answering(OK)) as port:
        probe = http(1, interval=0.01)
        async with probing(probe) as (prober, reports):
            prober.aim(
                Aim(
                    generation=2, address=("127.0.0.1", port), exclusive=lambda: private[0],
                    owner=lambda _here, _there: SELF,
                )
            )  # fmt: skip
            (seen,) = await reports.next()
            assert (seen.outcome, seen.generation) == (Outcome.PASS, 2)
            assert seen.worker_pid == SELF
            private[0] = False
            seen = (await reports.next(2))[1]
            assert (seen.outcome, seen.generation, seen.worker_pid) == (
                Outcome.INCONCLUSIVE, None, None,
            )  # fmt: skip
            assert seen.detail == "probe_listener_shared (status 200)"


async def test_failures_over_a_private_listener_are_the_candidates() -> None:
    async with (
        serving(answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")) as port,
        probing(http(1)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, address=("127.0.0.1", port), exclusive=lambda: True))
        (seen,) = await reports.next()

    assert (seen.outcome, seen.generation) == (Outcome.FAIL, 2)


@pytest.mark.parametrize(
    ("owner", "expected"),
    [(SELF, (Outcome.PASS, 2, SELF)), (None, (Outcome.INCONCLUSIVE, None, None))],
    ids=["traced", "not traced"],
)
async def test_on_a_public_address_only_a_traced_answer_counts(
    owner: int | None, expected: tuple[Outcome, int | None, int | None]
) -> None:
    async with serving(answering(OK)) as port, probing(http(port)) as (prober, reports):
        prober.aim(Aim(generation=2, owner=lambda _here, _there: owner, sole=False))
        (seen,) = await reports.next()
    assert (seen.outcome, seen.generation, seen.worker_pid) == expected


@pytest.mark.parametrize("by", ["cover", "workers"])
async def test_a_named_worker_has_to_be_the_candidates(by: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Pid: 77\r\nContent-Length: 0\r\n\r\n"
    async with (
        serving(answering(answer)) as port,
        probing(http(port, pid_header="X-Pid")) as (prober, reports),
    ):
        for pid, outcome in ((77, Outcome.PASS), (78, Outcome.INCONCLUSIVE)):
            if by == "cover":
                prober.aim(Aim(generation=2, sole=False, cover=frozenset({pid})))
            else:
                prober.aim(Aim(generation=2, sole=False, workers=lambda pid=pid: {pid}))
            (seen,) = await reports.next()
            assert seen.outcome is outcome


async def test_every_worker_is_asked_for_at_once() -> None:
    workers = frozenset(range(100, 116))
    turn = iter(range(10**6))

    def owner(_here: object, _there: object) -> int:
        return 100 + (next(turn) * 7) % 16

    async with serving(answering(OK)) as port:
        probe = http(port, interval=3600.0)
        async with probing(probe) as (prober, reports):
            prober.aim(Aim(generation=2, owner=owner, cover=workers))
            seen = await reports.next(16)
            assert {one.worker_pid for one in seen} == workers
            # A new worker is asked for with the next round, without a new aim.
            prober.cover(workers | {200})
            with trio.move_on_after(0.2):
                await reports.next()
            assert len(reports.all) == 16


async def test_asking_for_a_worker_that_never_answers_ends() -> None:
    async with serving(answering(OK)) as port:
        for probes in ((http(port, interval=3600.0),), (tcp_probe(port), tcp_probe(port, "b"))):
            async with probing(*probes) as (prober, reports):
                prober.aim(Aim(generation=2, owner=lambda _h, _t: 1, cover=frozenset({1, 2, 3, 4})))
                limit = math.ceil(16 * math.log(4)) + 16
                await reports.next(limit + len(probes))
                with trio.move_on_after(0.2):
                    await reports.next()
                assert len(reports.all) == limit + len(probes)


def tcp_probe(port: int, name: str = "a") -> TcpProbe:
    return TcpProbe(
        name=name, address=TcpAddress("127.0.0.1", port), interval=3600.0, timeout=LIMIT
    )


async def test_a_failure_is_not_asked_for_again_at_once() -> None:
    async with (
        serving(answering(b"x")) as port,
        probing(http(port, interval=3600.0), tcp_probe(port)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, owner=lambda _h, _t: 1, cover=frozenset({1, 2})))
        seen = await reports.next(2)
        with trio.move_on_after(0.2):
            await reports.next()
        assert len(reports.all) == 2
        assert {one.outcome for one in seen} == {Outcome.PASS, Outcome.FAIL}


async def test_commands_learn_the_private_address_and_count_only_then() -> None:
    asking = replace(script('echo "$PROBE_ADDRESS"'), name="asking", uses_probe_address=True)
    other = replace(script("true"), name="other")
    async with probing(asking, other) as (prober, reports):
        prober.aim(Aim(generation=1))
        before = {one.probe: one for one in await reports.next(2)}
        assert before["asking"].detail == "exit code 0"
        assert {one.generation for one in before.values()} == {1}
        prober.aim(Aim(generation=2, address=("127.0.0.1", 18931), exclusive=lambda: True))
        within = {one.probe: one for one in await reports.next(2)}
        assert within["asking"].detail == "exit code 0: 127.0.0.1:18931"
        assert within["asking"].generation == 2
        assert within["other"].outcome is Outcome.INCONCLUSIVE
        assert within["other"].generation is None


async def test_details_are_short_and_printable() -> None:
    async with probing(script("printf '\\033[31m%0600d' 1")) as (prober, reports):
        prober.aim(Aim(generation=1))
        (seen,) = await reports.next()
    assert len(seen.detail.encode()) <= DETAIL_BYTES
    assert seen.detail.isprintable()


async def test_no_descriptor_is_left() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with (
        serving(answering(OK)) as port,
        probing(
            http(port, interval=0.01), replace(script("true"), interval=0.01), tcp_probe(port)
        ) as (prober, reports),
    ):
        prober.aim(Aim(generation=1))
        await reports.next(10)
        prober.pause()
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = descriptors()
        for generation in range(20):
            prober.aim(Aim(generation=generation))
            await reports.next(3)
        prober.pause()
        deadline = time.monotonic() + LIMIT
        while descriptors() > before and time.monotonic() < deadline:
            await trio.sleep(0.01)
        assert descriptors() <= before
