"""nginxctl as a process against the real server: arguments, output and exit codes."""

from __future__ import annotations

import argparse
import json
import os
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
from tests.control.nginxctl import PATIENCE, nginxctl


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
        "rolled_back  back to 1.22.1, not 1.26.3  probe_failed  0.300 s",
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
        (["reload", "--guard"], commands.Reload(guard=True)),
        (["reopen"], commands.Reopen()),
        (["drain", "--now"], commands.Drain()),
        (["stop"], commands.Stop()),
        (["stop", "--now"], commands.Stop(now=True)),
        (["start"], commands.Start()),
        (["restart"], commands.Restart()),
        (["adopt"], commands.Adopt()),
        (["adopt", "--take-over"], commands.Adopt(take_over=True)),
        (["self-upgrade"], commands.SelfUpgrade()),
        (["self-upgrade", "--now"], commands.SelfUpgrade(now=True)),
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
        (["reload", "--guard"], verdict("rolled_back", "reload_probes_failed"), 4),
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
        (["upgrade", ""], "argument BINARY: it is empty"),
        (["rollback", "--to", ""], "argument --to: it is empty"),
        (["upgrade", "--dry-run", "--no-wait"], "--dry-run with --no-wait"),
        (["upgrade", "--hold", "/x", "--dry-run"], "--dry-run with --hold"),
        (["drain"], "--now"),
        (["history", "--limit", "0"], "is no count"),
    ],
)
async def test_usage_errors(folder: Path, words: list[str], text: str) -> None:
    result = await nginxctl(*words, env={"NGINXCTL_SOCKET": str(folder / "none")})
    assert (result.code, result.out) == (2, "")
    assert text in result.err


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
        (["doctor"], [backend.diagnosis]),
    ):
        assert (await nginxctl("--socket", control, "--json", *words)).lines == objects
    brief = (await nginxctl("--socket", control, "history")).out.splitlines()
    assert "probe_failed" in brief[1]
    assert "1.22.1 -> 1.26.3" in brief[0]
    assert "rolled_back  back to 1.22.1, not 1.26.3" in brief[1]
    assert brief[0].index("healthy") == brief[1].index("probe_failed")  # the columns are aligned
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


async def test_a_doctor_that_finds_something(control: str, backend: FakeBackend) -> None:
    finding = {
        "topic": "evidence", "name": "private_listener", "level": "warn", "seen": "a " * 60,
        "advice": "in the server block:", "lines": ["include /run/probe*.conf;"],
    }  # fmt: skip
    backend.diagnosis = {"ok": True, "findings": [finding]}
    result = await nginxctl("--socket", control, "doctor")
    lines = result.out.splitlines()
    assert (result.code, max(map(len, lines)) <= 80) == (0, True)
    assert lines[0] == "how a candidate would be judged"
    assert lines[1].startswith("  warn     private listener   a a")
    assert lines[-4:] == [
        " " * 30 + "-> in the server block:", " " * 35 + "include /run/probe*.conf;", "",
        "1 warning, 0 ok",
    ]  # fmt: skip
    long = {**finding, "level": "problem", "name": "probe with_a_very_long_name", "lines": []}
    well = {**finding, "level": "ok", "topic": "host", "advice": None, "lines": []}
    backend.diagnosis = {"ok": False, "findings": [long, well, {**well, "level": "note"}]}
    result = await nginxctl("--socket", control, "doctor")
    lines = result.out.splitlines()
    assert result.code == 1
    assert lines[1] == "  problem  probe with a very long name"
    assert lines[2] == " " * 30 + "a " * 24 + "a"
    assert "the supervisor and its host" in lines
    assert lines[-1] == "1 problem, 1 note, 1 ok"


async def test_advice_is_no_finding_that_went_well(control: str, backend: FakeBackend) -> None:
    advice = {"name": "advice", "ok": True, "reason": "soak_short", "detail": "3 s"}
    backend.checked = {"ok": True, "findings": [{"name": "nginx -t", "ok": True}, advice]}
    result = await nginxctl("--socket", control, "check")
    assert result.code == 0
    assert result.out.splitlines() == ["ok      nginx -t", "note    advice  soak_short  3 s"]


async def test_empty_lists(control: str, backend: FakeBackend) -> None:
    backend.past = []
    for words, out in (
        (["history"], "no upgrade yet\n"),
        (["history", "--detail"], "no upgrade yet\n"),
        (["history", "--json"], ""),
    ):
        result = await nginxctl("--socket", control, *words)
        assert (result.code, result.out, result.err) == (0, out, "")


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
    called = {command.method for command in COMMANDS.values()} | {"Health"}  # by flags of `check`
    assert called == {route.method for route in ROUTES}


async def test_health_for_the_probes_of_an_orchestrator(control: str, backend: FakeBackend) -> None:
    for flags in (["--live"], ["--ready"], ["--probes"], ["--live", "--ready", "--probes"]):
        result = await nginxctl("--socket", control, "check", *flags)
        assert (result.code, result.out, result.err) == (0, "", "")
    backend.healthy |= {"probes_down": ["home", "shop"]}
    assert (await nginxctl("--socket", control, "check", "--ready")).code == 0
    result = await nginxctl("--socket", control, "check", "--probes")
    assert (result.code, result.err) == (1, "nginxctl: probes that fail: home, shop\n")
    backend.healthy |= {"ready": False, "state": "degraded", "detail": "nobody accepts"}
    assert (await nginxctl("--socket", control, "check", "--live")).code == 0
    for words in (["check", "--ready"], ["check", "--ready", "--socket", control]):  # by argparse
        result = await nginxctl("--socket", control, *words)
        assert result.code == 1
        assert result.err == (
            "nginxctl: no worker accepts connections (degraded): nobody accepts\n"
        )
    result = await nginxctl("--socket", control, "--json", "check", "--ready")
    assert result.code == 1
    assert result.lines == [{**backend.healthy, "ok": False}]
    result = await nginxctl("--socket", control + "x", "check", "--live")
    assert result.code == 5
    assert "there is no such socket" in result.err
