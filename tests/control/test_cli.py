"""nginxctl as a process against the real server: output, exit codes, and what goes to stderr."""

from __future__ import annotations

import argparse
import json
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

from supervisor.cli.arguments import COMMANDS, LONGEST, duration
from supervisor.cli.render import PHASES
from supervisor.core import commands
from supervisor.core import duration as core_duration
from supervisor.core.model import UPGRADING
from supervisor.edges.control_routes import ROUTES
from tests.control.fake_backend import STATUS, FakeBackend, log_event, progress, verdict

NGINXCTL = [sys.executable, "-c", "import sys; from supervisor.cli import main; sys.exit(main())"]
PATIENCE = 60.0


class Result:
    """How one run of nginxctl ended."""

    def __init__(self, ended: subprocess.CompletedProcess[bytes]) -> None:
        self.code = ended.returncode
        self.out = ended.stdout.decode()
        self.err = ended.stderr.decode()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


async def nginxctl(*words: str, env: dict[str, str] | None = None) -> Result:
    with trio.fail_after(PATIENCE):
        return Result(
            await trio.run_process(
                [*NGINXCTL, *words],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
                env={**os.environ, **(env or {})},
            )
        )


async def test_json_status_is_the_object_on_one_line(control: str) -> None:
    for words in (["--json", "status"], ["status", "--json"]):
        result = await nginxctl("--socket", control, *words)
        assert (result.code, result.err) == (0, "")
        assert result.lines == [STATUS]


async def test_the_socket_is_found_in_all_ways(control: str) -> None:
    for words in (
        ["--socket", control, "--json", "status"],
        [f"--socket={control}", "--json", "status"],
        ["--json", "status", "--socket", control],
    ):
        assert (await nginxctl(*words)).lines == [STATUS]
    by_environment = await nginxctl("--json", "status", env={"NGINXCTL_SOCKET": control})
    assert by_environment.lines == [STATUS]


async def test_status_for_people(control: str, backend: FakeBackend) -> None:
    backend.snapshot = {
        **STATUS,
        "state": "degraded",
        "reason": "no_workers",
        "detail": "cannot\x1b[2J see workers",
        "upgrade": {"id": "u7", "phase": "canary", "candidate": "g2"},
        "last_verdict": verdict("rolled_back", "probe_failed"),
    }
    result = await nginxctl("--socket", control, "status")
    assert result.code == 0
    assert "\x1b" not in result.out
    for text in (
        "state      degraded  (no_workers: cannot?[2J see workers)",
        "upgrade    u7  canary  g2",
        "active     g1  1.22.1  /usr/sbin/nginx  master 100",
        "2 accepting: 101 102",
        "1 draining: 103",
        "on disk    1.26.3  /usr/sbin/nginx  (not what runs)",
        "held       2 listeners  0.0.0.0:80  [::]:80",
        "probe      home  http  up  g1",
        "rolled_back  probe_failed  1.22.1 -> 1.26.3  0.300 s",
    ):
        assert text in result.out


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["upgrade"], commands.Upgrade()),
        (
            ["upgrade", "relative/nginx", "--canary", "250ms", "--soak", "5m", "--hold"],
            commands.Upgrade(binary="relative/nginx", canary=0.25, soak=300.0, hold=True),
        ),
        (
            ["upgrade", "/x", "--dry-run", "--if-changed", "--timeout", "60"],
            commands.Upgrade(binary="/x", dry_run=True, if_changed=True),
        ),
        (["promote"], commands.Promote()),
        (["rollback"], commands.Rollback()),
        (["rollback", "--to", "1.22.1"], commands.Rollback(to="1.22.1")),
        (["reload"], commands.Reload()),
        (["reopen"], commands.Reopen()),
        (["drain", "--now"], commands.Drain()),
        (["stop"], commands.Stop()),
        (["stop", "--now"], commands.Stop(now=True)),
        (["start"], commands.Start()),
        (["restart"], commands.Restart()),
    ],
)
async def test_commands_arrive_and_stream(
    control: str, backend: FakeBackend, words: list[str], command: commands.Command
) -> None:
    result = await nginxctl("--socket", control, "--json", *words)
    assert [given for given, _ in backend.submitted] == [command]
    assert (result.code, result.err, result.lines) == (0, "", backend.events)


async def test_trust_is_for_root(control: str, backend: FakeBackend) -> None:
    result = await nginxctl("--socket", control, "upgrade", "/x", "--trust")
    if os.geteuid() == 0:
        assert (result.code, backend.submitted[0][0]) == (
            0,
            commands.Upgrade(binary="/x", trust=True),
        )
    else:
        assert (result.code, backend.submitted) == (5, [])
        assert "`trust` is for root" in result.err


@pytest.mark.parametrize(
    ("words", "event", "code"),
    [
        (["upgrade"], verdict("committed"), 0),
        (["upgrade"], verdict("done", "unchanged"), 0),
        (["upgrade"], verdict("failed", "rollback_failed"), 1),
        (["upgrade"], verdict("refused", "upgrade_in_progress"), 3),
        (["upgrade"], verdict("rolled_back", "probe_failed"), 4),
        (["promote"], verdict("rolled_back", "candidate_exited"), 4),
        (["rollback"], verdict("rolled_back", "operator", operation="upgrade"), 0),
        (["rollback"], verdict("rolled_back", "probe_failed", operation="rollback"), 4),
        (["rollback"], verdict("committed", operation="rollback"), 0),
        (["rollback"], verdict("refused", "no_previous_version"), 3),
        (["reload"], verdict("failed", "reload_ignored"), 1),
        (["stop"], verdict("done", "stopped"), 0),
    ],
)
async def test_exit_codes_of_verdicts(
    control: str, backend: FakeBackend, words: list[str], event: dict[str, object], code: int
) -> None:
    backend.events = [*progress("preflight"), event]
    for form in ([], ["--json"]):
        result = await nginxctl("--socket", control, *form, *words)
        assert result.code == code
        if code:
            assert str(event["reason"]) in result.err
            assert "cannot say more; look at the log" in result.err


async def test_a_timeline_for_people(control: str, backend: FakeBackend) -> None:
    backend.events[-1] = verdict("committed", judged=False)
    result = await nginxctl("--socket", control, "upgrade")
    words = [line.split() for line in result.out.splitlines()]
    assert [line[1:3] for line in words] == [
        ["s", "accepted"],
        ["s", "preflight"],
        ["s", "canary"],
        ["s", "committed"],
    ]
    elapsed = [float(line[0]) for line in words]
    assert elapsed == sorted(elapsed)
    assert "1.22.1 -> 1.26.3" in result.out
    assert "no probe judged it" in result.out


async def test_a_refusal_says_what_to_do(control: str, backend: FakeBackend) -> None:
    detail = "cannot upgrade to 'nginx': relative; write /..."
    backend.events = [verdict("refused", "relative_path", detail=detail)]
    result = await nginxctl("--socket", control, "upgrade", "nginx")
    assert result.code == 3
    assert "upgrade refused: relative_path" in result.err
    assert "cannot upgrade to 'nginx': relative; write /..." in result.err
    assert "nothing was changed" in result.err


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
async def test_not_permitted(folder: Path, backend: FakeBackend, json_form: list[str]) -> None:
    from supervisor.edges.control import ControlSettings, serve_control

    settings = ControlSettings(socket=str(folder / "s"))
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            others = frozenset({os.geteuid() + 1})
            await serve_control(settings, backend, allowed_uids=others, task_status=task_status)

        path = await nursery.start(serve)
        for command in ("status", "upgrade"):
            result = await nginxctl("--socket", path, *json_form, command)
            assert (result.code, result.out) == (5, "")
            assert f"as uid {os.geteuid()}" in result.err
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "usage: nginxctl"),
        (["upgrad"], "did you mean 'upgrade'"),
        (["frobnicate"], "try `nginxctl --help`"),
        (["--frobnicate", "status"], "is no option"),
        (["--socket"], "needs a path"),
        (["status", "extra"], "unrecognized arguments"),
        (["upgrade", "--canary", "soon"], "'soon' is no duration"),
        (["upgrade", "--soak", "-1s"], "--soak"),
        (["upgrade", "--canary", "1e300"], "'1e300' is impossible: the longest is a year"),
        (["upgrade", "--soak", "8761h"], "'8761h' is impossible: the longest is a year"),
        (["upgrade", "--timeout", "1e12"], "'1e12' is impossible: the longest is a year"),
        (["upgrade", "--timeout", "0"], "not waiting; use --no-wait"),
        (["drain"], "--now"),
        (["history", "--limit", "0"], "is no count"),
    ],
)
async def test_usage_errors(folder: Path, words: list[str], text: str) -> None:
    result = await nginxctl(*words, env={"NGINXCTL_SOCKET": str(folder / "none")})
    assert (result.code, result.out) == (2, "")
    assert text in result.err


async def test_a_value_that_the_supervisor_refuses_is_a_usage_error(control: str) -> None:
    result = await nginxctl("--socket", control, "rollback", "--to", "")
    assert result.code == 2
    assert "InvalidParameter: to" in result.err


async def test_help() -> None:
    result = await nginxctl("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.out
        one = await nginxctl(name, "--help")
        assert one.code == 0
        assert f"usage: nginxctl {name}" in one.out
    version = await nginxctl("--version")
    assert version.out.startswith("nginxctl ")


async def test_history_versions_check_events(control: str, backend: FakeBackend) -> None:
    backend.past = [verdict("committed"), verdict("rolled_back", "probe_failed")]
    for words, objects in (
        (["history"], backend.past),
        (["history", "--limit", "1"], backend.past[1:]),
        (["versions"], list(backend.versions())),
        (["check"], [backend.checked]),
    ):
        assert (await nginxctl("--socket", control, "--json", *words)).lines == objects
    brief = (await nginxctl("--socket", control, "history")).out.splitlines()
    assert "probe_failed" in brief[1]
    assert len({line.index("1.22.1 -> 1.26.3") for line in brief}) == 1  # the columns are aligned
    detailed = (await nginxctl("--socket", control, "history", "--detail")).out.splitlines()
    assert detailed[::3] == brief
    assert detailed[1:3] == [
        "    cannot say more; look at the log",
        "    preflight 0.100 s, canary 0.200 s",
    ]
    assert (
        "1.22.1-abababab  0 modules  active"
        in (await nginxctl("--socket", control, "versions")).out
    )
    events = await nginxctl("--socket", control, "--json", "events")
    assert [line["event"] for line in events.lines] == ["daemon.ready"]
    assert events.lines[0]["generation"] == "g1"
    assert (
        "daemon.ready  generation=g1  pid=100"
        in (await nginxctl("--socket", control, "events")).out
    )


async def test_a_check_that_fails(control: str, backend: FakeBackend) -> None:
    finding = {"name": "nginx -t", "ok": False, "reason": "config_rejected", "detail": "line 3"}
    backend.checked = {"ok": False, "findings": [finding]}
    result = await nginxctl("--socket", control, "check")
    assert result.code == 1
    assert "FAILED  nginx -t  config_rejected  line 3" in result.out


async def test_empty_lists(control: str, backend: FakeBackend) -> None:
    backend.past = []
    for form in ([], ["--json"]):
        result = await nginxctl("--socket", control, *form, "history")
        assert (result.code, result.out, result.err) == (0, "", "")


async def test_events_that_follow_end_with_the_supervisor(
    control: str, backend: FakeBackend
) -> None:
    results = []
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            results.append(await nginxctl("--socket", control, "--json", "events", "--follow"))

        nursery.start_soon(follow)
        with trio.fail_after(PATIENCE):
            while not backend.listeners:
                await trio.sleep(0.01)
        backend.release(log_event("upgrade.accepted"))
    (result,) = results
    assert result.code == 0
    assert [line["event"] for line in result.lines] == ["daemon.ready", "upgrade.accepted"]


async def test_following_ends_with_the_reader(control: str, backend: FakeBackend) -> None:
    """`events --follow | head -1` would else follow for ever, unseen."""
    backend.log = [log_event("one"), log_event("two")]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [*NGINXCTL, "--socket", control, "events", "--follow"],
                check=False,
                stdout=writer,
                capture_stderr=True,
            )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


async def test_a_reader_that_went_away_does_not_change_the_end(
    control: str, backend: FakeBackend
) -> None:
    backend.events = [*progress("canary"), verdict("rolled_back", "probe_failed")]
    for words, code in ((["upgrade"], 4), (["--json", "status"], 0)):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            ended = await trio.run_process(
                [*NGINXCTL, "--socket", control, *words],
                check=False,
                stdout=writer,
                capture_stderr=True,
            )
        finally:
            os.close(writer)
        assert ended.returncode == code
        assert b"BrokenPipe" not in ended.stderr


# --- where the output goes -----------------------------------------------------------------


async def under_a_shell(control: str, words: str) -> Result:
    """nginxctl with the redirections in `words`."""
    script = f'exec "$@" {words}'
    with trio.fail_after(PATIENCE):
        return Result(
            await trio.run_process(
                ["sh", "-c", script, "sh", *NGINXCTL, "--socket", control],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
        )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            "upgrade >/dev/full",
            6,
            "No space left on device; the upgrade goes on: `nginxctl status`",
        ),
        ("--json upgrade >/dev/full", 6, "the upgrade goes on"),
        ("upgrade --no-wait >/dev/full", 6, "the upgrade goes on"),
        ("status >/dev/full", 1, "cannot write to standard output: No space left on device"),
        ("--json status >/dev/full", 1, "cannot write to standard output: No space left"),
        ("history >/dev/full", 1, "cannot write to standard output"),
        ("events >/dev/full", 1, "cannot write to standard output"),
        ("--help >/dev/full", 1, "cannot write to standard output"),
        ("status >&-", 2, "cannot write to standard output: it is closed"),
        ("--json status >&-", 2, "cannot write to standard output: it is closed"),
        ("upgrade >&-", 2, "cannot write to standard output: it is closed"),
        ("status 1</dev/null", 1, "cannot write to standard output: Bad file descriptor"),
    ],
)
async def test_an_output_that_takes_nothing(
    control: str, backend: FakeBackend, words: str, code: int, told: str
) -> None:
    result = await under_a_shell(control, words)
    assert (result.code, result.out) == (code, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1, "no traceback, and nothing from the interpreter's end"
    assert len(backend.submitted) == (code == 6)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
async def test_an_error_output_that_takes_nothing(
    control: str, backend: FakeBackend, redirection: str
) -> None:
    backend.events = [verdict("rolled_back", "probe_failed")]
    result = await under_a_shell(control, f"--json upgrade {redirection}")
    assert (result.code, result.err) == (4, "")
    assert result.lines == backend.events, "messages for people do not go where JSON is"
    missing = await under_a_shell(control, f"--json frobnicate {redirection}")
    assert (missing.code, missing.out, missing.err) == (2, "", "")


async def test_a_verdict_that_cannot_be_written_is_still_the_exit_code(
    control: str, backend: FakeBackend
) -> None:
    backend.events = [verdict("rolled_back", "probe_failed")]
    result = await under_a_shell(control, "--json upgrade >/dev/full")
    assert result.code == 4
    assert "cannot write to standard output" in result.err
    assert "upgrade rolled_back: probe_failed" in result.err


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


def test_the_phases_are_shown_in_the_order_of_the_machine() -> None:
    """And all of them are known: draining comes after the verdict."""
    assert set(PHASES) == {phase.value for phase in UPGRADING}
    stored = json.loads(json.dumps(dict.fromkeys(PHASES, 0.1), sort_keys=True))
    from supervisor.cli.render import history_in_detail

    *_, last = history_in_detail({"entries": [{"phases": stored}]})
    assert [part.split()[0] for part in last.split(",")] == list(PHASES)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("10s", 10.0), ("5m", 300.0), ("1.5", 1.5), ("0", 0.0), ("1h", 3600.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def test_the_longest_duration_is_what_the_supervisor_takes() -> None:
    assert LONGEST == core_duration.LONGEST
    assert duration("8760h") == LONGEST


@pytest.mark.parametrize("text", ["", "s", "h", "-1s", "inf", "nan", "1 s", "10sec"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no duration"):
        duration(text)


def test_every_method_has_a_command() -> None:
    assert {command.method for command in COMMANDS.values()} == {route.method for route in ROUTES}


async def test_a_supervisor_that_hangs_with_a_full_queue(folder: Path) -> None:
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as first:
        hanging.bind(path)
        hanging.listen(0)
        first.connect(path)
        for words in (["upgrade", "--timeout", "1"], ["--json", "status"]):
            result = await nginxctl("--socket", path, *words)
            assert (result.code, result.out) == (5, "")
            assert "it does not take connections" in result.err


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
