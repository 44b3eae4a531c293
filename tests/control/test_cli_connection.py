"""nginxctl where the supervisor is gone, hangs, breaks off, or takes its time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.core.access import Role
from supervisor.edges.control import Gate
from tests.control.fake_backend import FakeBackend, progress
from tests.control.nginxctl import NGINXCTL, PATIENCE, Result, nginxctl


async def test_no_wait_ends_with_the_acceptance(control: str, backend: FakeBackend) -> None:
    backend.hold()
    result = await nginxctl("--socket", control, "--json", "upgrade", "--no-wait")
    assert (result.code, result.lines) == (0, backend.events[:1])


async def test_giving_up_leaves_the_operation(control: str, backend: FakeBackend) -> None:
    backend.hold()
    result = await nginxctl("--socket", control, "upgrade", "--timeout", "1s")
    assert result.code == 6
    assert "after 1 s; the upgrade goes on" in result.err
    assert "nginxctl status" in result.err
    with trio.fail_after(PATIENCE):
        await backend.listener_left.wait()
    assert len(backend.submitted) == 1


async def test_a_signal_leaves_the_operation(control: str, backend: FakeBackend) -> None:
    backend.hold()
    process = await trio.lowlevel.open_process(
        [*NGINXCTL, "--socket", control, "--json", "upgrade"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with trio.fail_after(PATIENCE):
        async with process.stdout, process.stderr:
            await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            err = await process.stderr.receive_some()
            assert await process.wait() == 6
    assert b"interrupted; the upgrade goes on" in err


async def test_a_lost_connection_is_no_failure(control: str, backend: FakeBackend) -> None:
    backend.events = progress("canary")  # the supervisor ends before the operation does
    result = await nginxctl("--socket", control, "rollback")
    assert result.code == 6
    assert "the supervisor ends before" in result.err
    assert "the next supervisor finishes it or rolls it back" in result.err
    assert "goes on" not in result.err


@asynccontextmanager
async def breaking_off(path: str, answer: bytes) -> AsyncIterator[None]:
    """A service that answers each call with `answer` and closes the connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

        async def break_off(stream: trio.SocketStream) -> None:
            async with stream:
                if await stream.receive_some():
                    await stream.send_all(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, break_off, [listener])
            yield
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["upgrade"], "the next supervisor finishes it or rolls it back"),
        (["reload"], "start the supervisor, then see `nginxctl status`"),
    ],
)
async def test_a_supervisor_that_died_is_told_from_one_that_goes_on(
    folder: Path, words: list[str], told: str
) -> None:
    async with breaking_off(str(folder / "a"), b""):
        lives = await nginxctl("--socket", str(folder / "a"), *words)
    dead = await died(str(folder / "b"), *words)
    assert (lives.code, dead.code) == (6, 6)
    assert f"the {words[0]} goes on: `nginxctl status` shows it" in lives.err
    assert "the supervisor is gone" in dead.err
    assert told in dead.err
    assert "goes on" not in dead.err


async def test_a_value_that_only_the_supervisor_refuses_is_a_usage_error(folder: Path) -> None:
    error = b'{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"to"}}\0'
    async with breaking_off(str(folder / "s"), error):
        result = await nginxctl("--socket", str(folder / "s"), "rollback", "--to", "1.22.1")
    assert result.code == 2
    assert "InvalidParameter: to" in result.err


async def died(path: str, *words: str) -> Result:
    """What nginxctl says when the supervisor dies in the middle of a call."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print(flush=True); s.accept()[0].recv(1)"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        return await nginxctl("--socket", path, *words)


@pytest.mark.parametrize(
    "answer",
    [b"", b'{"continues":true,"parameters":{"progress":{"event":"accepted"}}}\0', b"garbage\0"],
)
@pytest.mark.parametrize("words", [["upgrade"], ["--json", "status"], ["status"]])
async def test_a_service_that_breaks_off(folder: Path, answer: bytes, words: list[str]) -> None:
    path = str(folder / "s")
    async with breaking_off(path, answer):
        result = await nginxctl("--socket", path, *words)
    assert result.code == 6
    assert "Traceback" not in result.err


@pytest.mark.parametrize("words", [["status"], ["--json", "status"], ["upgrade"]])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "there is no such socket; start the supervisor"),
        ("stale", "nobody listens there; start the supervisor"),
        ("file", "that is no socket"),
        ("folder", "that is no socket; name the supervisor's with --socket"),
        ("too long", "name the supervisor's socket with --socket"),
    ],
)
async def test_a_supervisor_that_cannot_be_reached(
    folder: Path, kind: str, text: str, words: list[str]
) -> None:
    path = folder / ("x" * 200 if kind == "too long" else "s")
    if kind == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    result = await nginxctl("--socket", str(path), *words)
    assert (result.code, result.out) == (5, "")
    assert f"cannot reach the supervisor at {str(path)!r}" in result.err
    assert text in result.err


@pytest.mark.parametrize("json_form", [[], ["--json"]])
async def test_not_permitted(
    control: str, json_form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "role_now", lambda gate, peer: Role.NOBODY)
    for command, role in (("status", "viewer"), ("upgrade", "operator")):
        result = await nginxctl("--socket", control, *json_form, command)
        assert (result.code, result.out) == (5, "")
        assert f"as uid {os.geteuid()}: it takes the role {role}" in result.err
        assert f'add "user:{os.geteuid()}"' in result.err
        assert "SIGHUP" in result.err


async def test_a_timeout_before_anything_was_asked(control: str, backend: FakeBackend) -> None:
    result = await nginxctl("--socket", control, "upgrade", "--timeout", "0.000001ms")
    assert result.code == 5
    assert "before the supervisor was asked for anything" in result.err
    assert backend.submitted == []


async def test_a_timeout_of_a_year(control: str) -> None:
    """Longer than what poll(2) takes in one go."""
    result = await nginxctl("--socket", control, "upgrade", "--timeout", "8760h")
    assert (result.code, result.err) == (0, "")


def test_a_long_wait_is_made_of_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from supervisor.cli import connection
    from supervisor.wire import SUN_PATH_MAX

    monkeypatch.setattr(connection, "_LONGEST_WAIT", 0.01)
    address = f"\0nginxctl-{os.getpid()}"
    assert len(address) < SUN_PATH_MAX
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        with connection.Connection(address, timeout=PATIENCE) as one:
            accepted, _ = listening.accept()
            with accepted:
                timer = threading.Timer(0.1, accepted.sendall, [b"late\0"])
                timer.start()
                assert one.receive() == b"late"
                timer.join()


async def test_a_supervisor_that_hangs_with_a_full_queue(folder: Path) -> None:
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as first:
        hanging.bind(path)
        hanging.listen(0)
        first.connect(path)
        for words in (["upgrade", "--timeout", "1"], ["--json", "upgrade", "--timeout", "0.2"]):
            result = await nginxctl("--socket", path, *words)
            assert (result.code, result.out) == (5, "")
            assert "it does not take connections" in result.err


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_place_in_a_full_queue_is_waited_for(folder: Path, timeout: float | None) -> None:
    """Else whoever connects often enough keeps everybody out."""
    from supervisor.cli.connection import Connection

    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        timer = threading.Timer(0.1, lambda: busy.accept()[0].close())
        timer.start()
        with Connection(path, timeout=timeout) as waited:
            accepted, _ = busy.accept()
            with accepted:
                accepted.sendall(b"here\0")
                assert waited.receive() == b"here"
        timer.join()


async def test_a_call_too_large_for_the_supervisor(control: str, backend: FakeBackend) -> None:
    """Most of it is never taken; the reason is there all the same."""
    from supervisor.cli.connection import Connection
    from supervisor.wire import encode_call, parse_reply

    def call() -> str | None:
        with Connection(control, timeout=PATIENCE) as connection:
            connection.send(encode_call("a.b.C", {"x": "x" * 16_000_000}))
            return parse_reply(connection.receive()).error

    assert await trio.to_thread.run_sync(call) == "org.nginxsupervisor.Control.BadMessage"
    assert backend.submitted == []
