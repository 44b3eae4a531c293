"""What people read: it must not look like an outage where none is, nor like health where one is."""

from __future__ import annotations

import pytest

from supervisor.cli.render import Timeline, history, history_in_detail, log_event, status
from tests.control.fake_backend import STATUS, Fields, verdict

SHA = "ab" * 32
CANDIDATE: Fields = {
    "id": "g2", "role": "candidate", "version": "1.26.3", "binary": "/usr/sbin/nginx",
    "sha256": "cd" * 32, "master_pid": 200, "workers": [{"pid": 201, "state": "accepting"}],
}  # fmt: skip


def old(**more: object) -> Fields:
    return {
        "id": "g1", "role": "active", "version": "1.22.1", "binary": "/usr/sbin/nginx",
        "sha256": SHA, "master_pid": 100, "workers": [], **more,
    }  # fmt: skip


def lines(**more: object) -> list[str]:
    return list(status({**STATUS, **more}))


def on_disk(**more: object) -> str:
    disk: Fields = {"path": "/usr/sbin/nginx", "version": None, "sha256": None, **more}
    (line,) = [one for one in lines(binary_on_disk=disk) if one.startswith("on disk")]
    return line


# --- the file on disk ----------------------------------------------------------------------


def test_the_file_on_disk() -> None:
    assert on_disk().startswith("on disk    MISSING: /usr/sbin/nginx")
    script = on_disk(sha256="ef", matches_active=False)
    assert script.startswith("on disk    NOT NGINX: /usr/sbin/nginx")
    other = on_disk(sha256="ef", version="1.26.3", matches_active=False)
    assert other == (
        "on disk    1.26.3  /usr/sbin/nginx  "
        "(not what runs: `nginxctl upgrade` judges and takes it)"
    )
    same = on_disk(sha256=SHA, version="1.22.1", matches_active=True)
    assert same == "on disk    1.22.1  /usr/sbin/nginx"
    unnamed = on_disk(sha256=SHA, matches_active=True)
    assert unnamed == "on disk    /usr/sbin/nginx", "it serves, whatever it calls itself"


# --- an upgrade that waits ------------------------------------------------------------------


def test_a_doubt_is_told_once_with_what_to_do() -> None:
    doubt = "probe home was heard 2 of 3 times"
    upgrade = {"id": "u1", "phase": "canary", "candidate": "g2", "inconclusive": doubt}
    detail = f"the canary proved nothing: {doubt}"
    told = lines(state="upgrading", reason="canary", detail=detail, upgrade=upgrade)
    assert told[0] == "state      upgrading"
    assert sum(doubt in one for one in told) == 1
    at = told.index(f"           inconclusive: {doubt}")
    assert "nginxctl promote" in told[at + 1]
    assert "nginxctl rollback" in told[at + 1]
    left = lines(state="upgrading", reason="soaking", detail="the soak ends in 3.0 s",
                 upgrade={**upgrade, "phase": "soaking"})  # fmt: skip
    assert left[0] == "state      upgrading  (the soak ends in 3.0 s)"


# --- error logs -----------------------------------------------------------------------------


def test_the_last_severe_lines_and_unread_logs_are_shown() -> None:
    line = {
        "time": "2025-01-02T03:04:05.678+00:00", "generation": "g2", "pid": 7, "log": "syslog",
        "severity": "alert", "line": "a\x1b[31m line",
    }  # fmt: skip
    told = lines(
        error_logs={
            "followed": ["/a"], "unread": [{"path": "/b", "detail": "Permission denied"}],
            "syslog": None, "lines": [line] * 4 + [{**line, "generation": None}],
        }
    )  # fmt: skip
    at = told.index("log unread /b  Permission denied")
    assert told[at + 1 : at + 3] == [
        "log        2025-01-02 03:04:05.678 UTC  g2  7  syslog",
        "           [alert] a?[31m line",
    ]
    assert told[at + 5].endswith("of another process  7  syslog")
    assert sum(one.startswith("log  ") for one in told) == 3


# --- generations ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["soaking", "held", "committing"])
def test_an_old_generation_that_stands_by_is_no_outage(phase: str) -> None:
    upgrade = {"id": "u1", "phase": phase, "candidate": "g2"}
    told = lines(state="upgrading", upgrade=upgrade, generations=[old(), CANDIDATE])
    at = told.index("standby    g1  1.22.1  /usr/sbin/nginx  master 100")
    assert told[at + 1] == "           its workers have left, all new connections are g2's"
    assert not any("no workers" in line for line in told)
    draining = old(workers=[{"pid": 101, "state": "draining"}], master_pid=None)
    told = lines(state="upgrading", upgrade=upgrade, generations=[draining, CANDIDATE])
    at = told.index("standby    g1  1.22.1  /usr/sbin/nginx  no master")
    assert told[at + 1 : at + 4] == [
        "           1 draining: 101",
        "           its workers are leaving, all new connections are g2's",
        "           it is gone; a rollback would start it afresh",
    ]


def test_a_generation_without_workers_is_an_outage_else() -> None:
    told = lines(state="degraded", reason="no_workers", generations=[old()])
    assert "active     g1  1.22.1  /usr/sbin/nginx  master 100" in told
    assert "           no workers" in told


def test_orphans_serve_while_nginx_cannot_be_started() -> None:
    accepting = [{"pid": 101, "state": "accepting"}]
    orphans = old(role="retiring", master_pid=None, workers=accepting)
    told = lines(state="backoff", reason="config_rejected", generations=[orphans])
    at = told.index("retiring   g1  1.22.1  /usr/sbin/nginx  no master")
    assert told[at + 1] == "           1 accepting: 101"
    assert "these workers still serve: do not stop nginx" in told[at + 2]
    assert "correct the cause" in told[at + 2]
    assert not any("still serve" in line for line in lines(generations=[old(workers=accepting)]))


# --- verdicts ------------------------------------------------------------------------------


def spoken(event: Fields) -> str:
    """The line of `event` without the time before it."""
    return Timeline("upgrade").line(event).split(" s  ", 1)[1]


def test_where_a_rollback_has_come_to() -> None:
    told = spoken(verdict("rolled_back", "probe_failed"))
    assert told == "rolled_back   back to 1.22.1, not 1.26.3  probe_failed"
    assert spoken(verdict("committed")) == "committed     1.22.1 -> 1.26.3  healthy"
    rescue = verdict(
        "rolled_back", "candidate_exited_in_drain", operation="incident",
        from_version="1.26.3", to_version="1.22.1",
    )  # fmt: skip
    assert "back to 1.22.1, not 1.26.3" in lines(last_verdict=rescue)[-1]


def test_what_was_done_is_told() -> None:
    would = "would upgrade from 1.22.1 to 1.26.3; nothing was changed"
    told = spoken(verdict("done", "dry_run", detail=would))
    assert told == f"done          dry_run  {would}"


@pytest.mark.parametrize(
    ("reason", "told", "not_told"),
    [
        ("stopped", "nginx is stopped: `nginxctl start` starts it", "serves"),
        ("operator", "the previous generation serves, as an operator wanted", "--detail"),
        ("probe_failed", "nothing is urgent; for the cause see `nginxctl history --detail`", "?"),
    ],
)
def test_what_to_do_after_a_rollback(reason: str, told: str, not_told: str) -> None:
    text = "\n".join(Timeline("upgrade").explanation(verdict("rolled_back", reason)))
    assert told in text
    assert not_told not in text


def test_a_reload_that_no_probe_could_judge_says_where_to_look() -> None:
    told = Timeline("reload").line(verdict("committed", "reloaded", judged=False))
    assert told.endswith("(no probe passed before it: `nginxctl status` tells how they are now)")


def test_a_start_that_a_stop_came_before() -> None:
    text = "\n".join(Timeline("restart").explanation(verdict("failed", "stopping")))
    assert "`nginxctl start` starts it" in text
    assert "tries again" not in text


# --- the log -------------------------------------------------------------------------------


def test_a_line_of_the_log_is_plain() -> None:
    fields = {
        "detail": "", "reason": None, "time": "2025-01-02T03:04:05Z", "judged": True,
        "pids": [1, 2],
        "phases": {"canary": 1.0, "preflight": 0.02}, "table": {"a": 1}, "restarts": 0,
    }  # fmt: skip
    entry: Fields = {"time": "2025-01-02T03:04:05Z", "level": "info", "event": "x.y"}
    assert log_event({**entry, "fields": fields}) == (
        "2025-01-02 03:04:05 UTC  info  x.y  judged=yes  pids=1, 2  "
        "phases=preflight 0.020 s, canary 1.000 s  table=a 1  restarts=0"
    )


# --- the supervisor itself -----------------------------------------------------------------


def test_since_when_the_supervisor_runs_and_which_program_it_is() -> None:
    told: Fields = {
        "supervisor_version": "0.2.0", "supervisor_pid": 7,
        "supervisor_started": "2026-01-02T03:04:05.678+00:00",
    }  # fmt: skip
    (line,) = [one for one in lines(**told) if one.startswith("supervisor")]
    assert line == "supervisor 0.2.0  (pid 7) since 2026-01-02 03:04:05.678 UTC"
    (line,) = [
        one for one in lines(**told, supervisor_replaced="2026-01-03T00:00:00.000Z")
        if one.startswith("supervisor")
    ]  # fmt: skip
    assert line.endswith("UTC, replaced 2026-01-03 00:00:00.000 UTC")


# --- guards ----------------------------------------------------------------------------------

WARNING: Fields = {
    "event": "warning", "guard": "certificates", "severity": "warning",
    "detail": "/tls/site.pem was replaced; reload before the upgrade",
}  # fmt: skip


def test_a_warning_is_wrapped_where_a_terminal_ends() -> None:
    head = " " * len("    0.000 s  ")
    assert Timeline("upgrade").line(WARNING)[len(head) :] == (
        "warning       certificates: /tls/site.pem was replaced; reload before the upgrade"
    )
    first, *rest = Timeline("upgrade", 60).line(WARNING).split("\n")
    assert first[len(head) :] == "warning       certificates: /tls/site.pem was"
    assert rest == [
        f"{head}              replaced; reload before the",
        f"{head}              upgrade",
    ]
    # In a terminal of a few columns nothing is gained by that.
    assert "\n" not in Timeline("upgrade", 30).line(WARNING)


def test_the_history_names_warnings_and_counts_notes() -> None:
    note: Fields = {**WARNING, "guard": "shared_zones", "severity": "note"}
    entry: Fields = {**verdict("committed", "healthy"), "warnings": [note, WARNING, note]}
    *_, warning, notes = history_in_detail({"entries": [entry]})
    assert warning.startswith("    warning       certificates: /tls/site.pem was replaced")
    assert notes == "    2 notes of shared_zones (all of them: --json)"


def looked_at(observed: bool | None, answered: int, workers: int) -> dict[str, object]:  # noqa: FBT001
    return {
        "canary_observed": observed, "attribution": ["private_listener", "socket_owner"],
        "coverage": {"answered": answered, "workers": workers},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdict_word", "told", "said"),
    [
        ("committed", looked_at(True, 16, 16), ""),
        ("committed", looked_at(True, 3, 16), "(3 of 16 workers seen answering)"),
        ("committed", looked_at(True, 0, 16), ""),  # not traceable at all
        ("committed", looked_at(False, 0, 16), "(canary not observed)"),
        ("committed", {**looked_at(False, 0, 2), "judged": False}, ""),  # that is said instead
        ("committed", looked_at(None, 0, 0), ""),
        ("rolled_back", looked_at(True, 3, 16), ""),
    ],
)
def test_what_nobody_saw_is_said_of_a_commit(
    verdict_word: str, told: dict[str, object], said: str
) -> None:
    shown = Timeline("upgrade").line(verdict(verdict_word, **told))
    row = "\n".join(history({"entries": [verdict(verdict_word, **told)]}))
    for text in ("(canary not observed)", "workers seen answering)"):
        assert (text in shown) is (text in row) is (text in said)
    assert said in shown


def test_how_a_candidate_was_looked_at() -> None:
    entry = verdict("committed", **looked_at(True, 3, 16))
    shown = list(history_in_detail({"entries": [entry]}))
    assert shown[-1] == (
        "    canary observed; answers known by: private listener, socket owner; "
        "3 of 16 workers answered"
    )
    unseen = {**looked_at(False, 0, 2), "attribution": []}
    (*_, last) = history_in_detail({"entries": [verdict("committed", **unseen)]})
    assert last == "    canary not observed; answers known by: nothing; 0 of 2 workers answered"
    upgrade = {"id": "u1", "phase": "soaking", **looked_at(True, 2, 2)}
    shown = list(status({"state": "upgrading", "upgrade": upgrade}))
    assert any("2 of 2 workers answered" in line for line in shown)
