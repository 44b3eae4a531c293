"""What a person reads in the journal of each event."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisor.core import log_text
from supervisor.core.log_text import Event, message, message_id, printable, priority

CATALOG = Path(__file__).parents[2] / "systemd" / "nginx-supervisor.catalog"
ID = "20261124T174559-e511df"
VERDICT = {
    "event": "upgrade.verdict", "operation": "upgrade", "upgrade_id": ID, "detail": "it died",
    "from_version": "1.26.3", "to_version": "1.28.0", "elapsed_s": 1.5,
    "phases": {"preflight": 0.5, "canary": 1.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {
                "event": "upgrade.requested", "operation": "upgrade", "upgrade_id": ID,
                "caller_uid": 0, "caller_pid": 107, "binary": "/tmp/nginx", "hold": True,
            },
            f"upgrade {ID}: asked for by uid 0 (pid 107) (binary=/tmp/nginx, hold=True)",
        ),
        (
            {"event": "upgrade.requested", "operation": "rollback", "upgrade_id": ID},
            f"rollback {ID}: asked for",
        ),
        (
            {
                "event": "upgrade.state_changed", "from_state": "canary",
                "to_state": "rolling_back", "generation": "g3", "reason": "candidate_exited",
                "detail": "master 133 is gone",
            },
            "upgrade: canary -> rolling_back, g3: candidate_exited: master 133 is gone",
        ),
        (
            {"event": "supervisor.state_changed", "from_state": "starting", "to_state": "idle"},
            "nginx: starting -> running",
        ),
        (
            {
                "event": "supervisor.state_changed", "from_state": "backoff",
                "to_state": "degraded", "reason": "start_limit",
            },
            "nginx: backoff -> DEGRADED: start_limit",
        ),
        (
            VERDICT | {"verdict": "rolled_back", "reason": "probe_failed"},
            f"upgrade {ID} from 1.26.3 to 1.28.0: ROLLED BACK (probe_failed): it died; "
            "nginx 1.26.3 serves [1.50 s: preflight 0.50 s, canary 1.00 s]",
        ),
        (
            VERDICT | {"verdict": "committed", "reason": "healthy", "detail": "it serves"},
            f"upgrade {ID} from 1.26.3 to 1.28.0: committed (healthy): it serves "
            "[1.50 s: preflight 0.50 s, canary 1.00 s]",
        ),
        (
            VERDICT | {"verdict": "rolled_back", "reason": "x", "from_version": None, "phases": {}},
            f"upgrade {ID}: ROLLED BACK (x): it died",
        ),
        (
            {"event": "reload.begun", "upgrade_id": ID, "guarded": True},
            f"reload {ID}: begun, guarded",
        ),
        ({"event": "reload.begun", "upgrade_id": ID, "guarded": False}, f"reload {ID}: begun"),
        (
            {
                "event": "reload.verdict", "upgrade_id": ID, "by": "operator", "elapsed_s": 0.1,
                "verdict": "failed", "reason": "probe_failed", "detail": "home is down",
            },
            f"reload {ID}: FAILED (probe_failed): home is down [0.10 s]",
        ),
        (
            {
                "event": "reload.verdict", "upgrade_id": ID, "by": "foreign", "elapsed_s": None,
                "verdict": "committed", "reason": "reloaded", "detail": "2 workers",
            },
            f"reload by somebody else {ID}: committed (reloaded): 2 workers [None]",
        ),
        (
            {"event": "request.refused", "reason": "not_held", "detail": "cannot promote"},
            "request: refused: not_held: cannot promote",
        ),
        (
            {
                "event": "request.refused", "operation": "upgrade", "upgrade_id": ID,
                "reason": "upgrade_in_progress", "detail": "",
            },
            f"upgrade {ID}: refused: upgrade_in_progress",
        ),
        ({"event": "rollback.step", "step": "hup_old"}, "upgrade: rolling back: hup old"),
        (
            {"event": "store.restored", "version_id": "bf94", "files": ["/a", "/b"]},
            "files put back on disk: /a, /b (bf94)",
        ),
        ({"event": "store.restored"}, "files put back on disk: None (None)"),
        (
            {
                "event": "preflight.warning", "severity": "warning", "guard": "modules",
                "detail": "it lacks one",
            },
            "upgrade: warning (modules): it lacks one",
        ),
        (
            {
                "event": "candidate.observed", "window": "canary", "generation": "g2",
                "detail": "all well",
            },
            "upgrade: canary, g2: all well",
        ),
        (
            {
                "event": "worker.exited", "generation": "g1", "pid": 7,
                "detail": "exited with code 0", "draining": True,
            },
            "g1: worker 7 exited with code 0 after draining",
        ),
        (
            {
                "event": "cache.exited", "generation": "g1", "pid": 8,
                "detail": "ended by signal 9", "draining": False,
            },
            "g1: cache 8 ended by signal 9",
        ),
        (
            {"event": "probe.state_changed", "probe": "home", "to_state": "up", "detail": ""},
            "probe home: up",
        ),
        (
            {
                "event": "probe.state_changed", "probe": "home", "to_state": "down",
                "generation": "g2", "detail": "status 500",
            },
            "probe home: down, g2: status 500",
        ),
        (
            {"event": "control.called", "method": "Reload", "uid": 33, "pid": 9},
            "control: Reload by uid 33 (pid 9)",
        ),
        ({"event": "nginx.output", "line": "GET /"}, "nginx: GET /"),
        (
            {"event": "nginx.output", "line": "[emerg] x", "generation": "g2"},
            "nginx g2: [emerg] x",
        ),
        (
            {
                "event": "nginx.error_line", "generation": "g2", "severity": "alert", "pid": 5,
                "line": "worker died", "log": "/e.log",
            },
            "nginx g2 [alert] 5: worker died (/e.log)",
        ),
        (
            {"event": "listeners.held", "generation": "g1", "taken": ["a:80"], "dropped": ["b:80"]},
            "listeners, g1: now holds a:80; lets go of b:80",
        ),
        (
            {"event": "listeners.held", "generation": "g1", "taken": [], "dropped": ["b:80"]},
            "listeners, g1: lets go of b:80",
        ),
        (
            {"event": "supervisor.started", "version": "0.1", "config": "/c", "pid": 1},
            "nginx-supervisor 0.1 started with /c",
        ),
        ({"event": "supervisor.exiting", "code": 0}, "nginx-supervisor ends with exit status 0"),
        (
            {"event": "log.dropped", "count": 3},
            "log: 3 lines are missing here: nobody took them in time",
        ),
        (
            {
                "event": "pid_file.repaired", "level": "warning", "path": "/run/nginx.pid",
                "pids": [1, 2], "nothing": None, "upgrade_id": ID,
            },
            "pid_file.repaired (path=/run/nginx.pid, pids=1, 2)",
        ),
        ({"event": "some.thing", "detail": "why", "generation": "g4"}, "some.thing, g4: why"),
    ],
)  # fmt: skip
def test_the_line_for_people(event: Event, line: str) -> None:
    assert message(event) == line


def test_an_exception_follows_its_line() -> None:
    told = message({"event": "probe.bug", "exception": "Traceback:\n  here\x1b[2J\nValueError"})
    assert told == "probe.bug\nTraceback:\n  here\\x1b[2J\nValueError"


def test_what_others_wrote_stays_in_its_line_and_rules_no_terminal() -> None:
    line = "a\nMESSAGE=b\r\x1b[2Jc\x00\td\x9be\u2028f\u202eg"
    shown = message({"event": "nginx.output", "line": line})
    assert shown == "nginx: a MESSAGE=b \\x1b[2Jc\\x00\td\\x9be\\u2028f\\u202eg"
    assert printable("Grüße, 世界") == "Grüße, 世界"


@pytest.mark.parametrize(
    ("event", "number"),
    [
        ({"event": "x", "level": "debug"}, 7),
        ({"event": "x", "level": "info"}, 6),
        ({"event": "x"}, 6),
        ({"event": "x", "level": "warning"}, 4),
        ({"event": "x", "level": "error"}, 3),
        ({"event": "upgrade.verdict", "level": "info"}, 5),
        ({"event": "upgrade.verdict", "level": "warning"}, 4),
        ({"event": "nginx.error_line", "level": "info", "severity": "emerg"}, 3),
        ({"event": "nginx.error_line", "level": "info", "severity": "warn"}, 4),
        ({"event": "nginx.error_line", "level": "warning", "severity": "notice"}, 4),
        ({"event": "nginx.output", "level": "info", "severity": "emerg"}, 6),
    ],
)
def test_how_loud(event: Event, number: int) -> None:
    assert priority(event) == number


@pytest.mark.parametrize(
    ("event", "known_by"),
    [
        ({"event": "upgrade.verdict", "verdict": "committed"}, log_text.COMMITTED),
        ({"event": "upgrade.verdict", "verdict": "rolled_back"}, log_text.ROLLED_BACK),
        ({"event": "upgrade.verdict", "verdict": "refused"}, log_text.REFUSED),
        ({"event": "upgrade.verdict", "verdict": "failed"}, log_text.FAILED),
        ({"event": "upgrade.verdict", "verdict": "done"}, None),
        ({"event": "request.refused", "upgrade_id": ID}, log_text.REFUSED),
        ({"event": "request.refused"}, None),
        ({"event": "reload.verdict", "verdict": "rolled_back"}, log_text.RELOAD_TAKEN_BACK),
        ({"event": "reload.verdict", "verdict": "failed"}, log_text.RELOAD_FAILED),
        ({"event": "reload.verdict", "verdict": "committed"}, None),
        ({"event": "supervisor.state_changed", "to_state": "degraded"}, log_text.DEGRADED),
        ({"event": "supervisor.incident", "reason": "x"}, log_text.INCIDENT),
    ],
)
def test_the_catalog_knows_it_by(event: Event, known_by: str | None) -> None:
    assert message_id(event) == known_by


def test_the_catalog_explains_each() -> None:
    ids = {
        value for name, value in vars(log_text).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)
    }  # fmt: skip
    assert len(ids) == 8
    assert set(re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.M)) == ids
