"""The log under the real journald: one filter tells one story, and no journal can be in the way."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from supervisor import wire
from supervisor.cli.connection import Connection
from supervisor.edges.journald import LATE
from tests.booted import site
from tests.booted.box import Box
from tests.booted.conftest import BootBox
from tests.booted.manager import wait_for
from tests.booted.roots import SUITES
from tools.nginx_builds import builds

OLD, NEW = builds()[-2:]
BINARY = "/usr/local/sbin/nginx"
SOCKET = "/run/nginx-supervisor/control.sock"
LIMIT = 60.0

Entry = dict[str, Any]
UPGRADE = ("preflight", "spawning", "canary", "shifting", "soaking")


def serve(box: Box, **more: str) -> None:
    box.run("cp", str(OLD.path), BINARY)
    site.configure(box, binary=BINARY, canary="0.2s", soak="0.2s", **more)
    site.start(box)


def entries(box: Box, *arguments: str) -> list[Entry]:
    """What `journalctl` finds, oldest first; what has been sent by now is among it."""
    box.run("journalctl", "--sync")
    told = box.run("journalctl", "--no-pager", "-o", "json", *arguments, check=False).stdout
    return [json.loads(line) for line in told.splitlines()]


def own(box: Box, *arguments: str) -> list[Entry]:
    return entries(box, "-u", site.UNIT, "SYSLOG_IDENTIFIER=nginx-supervisor", *arguments)


def ctl(box: Box, *arguments: str) -> dict[str, Any]:
    """The last line of `nginxctl --json`."""
    told = box.run("nginxctl", "--json", *arguments, check=False)
    assert told.stdout, told.stderr
    last = json.loads(told.stdout.splitlines()[-1])
    assert isinstance(last, dict)
    return last


def other(box: Box) -> str:
    """A binary that does not serve now."""
    binary = site.status(box)["binary_on_disk"]
    assert isinstance(binary, dict)
    return str((OLD if binary["version"] == NEW.version else NEW).path)


def history(box: Box, verdict: dict[str, Any]) -> dict[str, Any]:
    """What the history has of it."""
    told = box.run("nginxctl", "--json", "history").stdout.splitlines()
    (found,) = (one for one in map(json.loads, told) if one["upgrade_id"] == verdict["upgrade_id"])
    assert isinstance(found, dict)
    return found


def phase(box: Box) -> object:
    upgrade = site.status(box)["upgrade"]
    return upgrade["phase"] if isinstance(upgrade, dict) else None


def story(box: Box, verdict: dict[str, Any]) -> list[Entry]:
    """One upgrade's entries, which are about nothing else, in readable lines."""
    found = entries(box, f"UPGRADE_ID={verdict['upgrade_id']}")
    for one in found:
        assert one["_SYSTEMD_UNIT"] == site.UNIT
        assert one["_TRANSPORT"] == "journal"
        assert one["SYSLOG_IDENTIFIER"] == "nginx-supervisor"
        assert isinstance(one["MESSAGE"], str), one  # else it holds what journalctl hides
        assert "{" not in one["MESSAGE"]
    assert found, box.journal("-u", site.UNIT)
    return found


def phases(found: list[Entry]) -> list[str]:
    return [one["PHASE"] for one in found if one["EVENT"] == "upgrade.state_changed"]


def of(found: list[Entry], event: str) -> list[Entry]:
    return [one for one in found if one["EVENT"] == event]


@pytest.fixture(scope="module", params=SUITES)
def serving(request: pytest.FixtureRequest, boot_shared_box: BootBox) -> Box:
    box = boot_shared_box(request.param)
    serve(box)
    return box


def test_the_whole_story_of_a_committed_upgrade(serving: Box) -> None:
    binary = other(serving)
    told = ctl(serving, "upgrade", binary)
    assert told["verdict"] == "committed", told
    wait_for("the end of the drain", lambda: site.status(serving)["state"] == "running")
    found = story(serving, told)
    asked, verdict = found[0], of(found, "upgrade.verdict")[0]
    assert (asked["EVENT"], asked["CALLER_UID"]) == ("upgrade.requested", "0")
    assert asked["BINARY"] == binary
    # Every phase that the history knows, and the drain after it, to its end.
    record = history(serving, told)
    assert phases(found) == [*told["phases"], "draining"]
    assert json.loads(verdict["PHASES"]) == told["phases"] == record["phases"]
    for field in ("verdict", "reason", "detail", "from_version", "to_version"):
        assert verdict[field.upper()] == record[field]
    assert verdict["PRIORITY"] == "5"
    # What each window has seen, by whom.
    seen = of(found, "candidate.observed")
    assert [one["WINDOW"] for one in seen] == ["canary", "soak"]
    assert all("probe home was heard" in one["MESSAGE"] for one in seen)
    # The generation that serves from now on, and the one that has left.
    assert verdict["GENERATION"] == seen[0]["GENERATION"]
    assert len(of(found, "worker.exited")) == 2
    assert found[-1]["MESSAGE"].startswith("nginx: draining -> running")


def test_the_whole_story_of_a_rollback(serving: Box) -> None:
    asked = serving.popen("nginxctl", "--json", "upgrade", other(serving), "--canary", "5m")
    wait_for("the canary", lambda: phase(serving) == "canary")
    generations = site.status(serving)["generations"]
    assert isinstance(generations, list)
    (candidate,) = (one for one in generations if one["role"] == "candidate")
    serving.run("kill", "-KILL", str(candidate["master_pid"]))
    assert asked.wait(LIMIT) == 4
    told = site.status(serving)["last_verdict"]
    assert isinstance(told, dict)
    found = story(serving, told)
    (verdict,) = of(found, "upgrade.verdict")
    assert (told["verdict"], told["reason"]) == ("rolled_back", "candidate_exited")
    assert (verdict["VERDICT"], verdict["REASON"]) == ("rolled_back", "candidate_exited")
    assert phases(found) == [*told["phases"], "idle"]
    assert of(found, "rollback.step")
    assert "ROLLED BACK" in verdict["MESSAGE"]
    # Whoever is woken begins with the warnings, or with a word.
    loud = entries(serving, "-u", site.UNIT, "-p", "warning")
    assert verdict["MESSAGE"] in [one["MESSAGE"] for one in loud]
    assert all(int(one["PRIORITY"]) <= 4 for one in loud)
    grepped = entries(serving, "-u", site.UNIT, "--grep", "rolled back .candidate_exited")
    assert verdict["__CURSOR"] in [one["__CURSOR"] for one in grepped]
    found = entries(serving, "VERDICT=rolled_back")
    assert [one["UPGRADE_ID"] for one in found] == [told["upgrade_id"]]


def test_the_story_of_a_reload_and_of_a_refusal(serving: Box) -> None:
    reload = ctl(serving, "reload")
    found = story(serving, reload)
    assert found[0]["MESSAGE"] == f"reload {reload['upgrade_id']}: begun"
    assert of(found, "worker.exited")
    assert found[-1]["VERDICT"] == reload["verdict"] == "committed"
    refused = ctl(serving, "upgrade", "/bin/true")
    found = story(serving, refused)
    assert of(found, "upgrade.verdict")[0]["REASON"] == refused["reason"] == "binary_not_nginx"
    assert found[0]["EVENT"] == "upgrade.requested"


def test_the_catalog_explains_a_verdict(serving: Box) -> None:
    told = ctl(serving, "upgrade", "/bin/true")
    serving.run("journalctl", "--update-catalog")
    serving.run("journalctl", "--sync")
    shown = serving.run(
        "journalctl", "--no-pager", "-x", f"UPGRADE_ID={told['upgrade_id']}", "VERDICT=refused"
    ).stdout
    assert "refused before any signal was sent: binary_not_nginx" in shown
    assert "man:nginxctl(1)" in shown


def test_only_entries_with_fields_come_from_the_supervisor(serving: Box) -> None:
    """Nothing went by standard error, which the journal would hold without any field."""
    assert own(serving, "_TRANSPORT=journal")
    assert not entries(serving, "-u", site.UNIT, "_TRANSPORT=stdout")


# --- what nginx writes ------------------------------------------------------------------------


def test_lines_of_nginx_have_their_generation_and_no_power(bookworm: Box) -> None:
    serve(
        bookworm, main="error_log stderr notice;",
        server="location /files/ { root /nonexistent; }",
    )  # fmt: skip
    evil = "/files/%0aPRIORITY=0%0aMESSAGE=all+is+well%0a%1b[2J"
    bookworm.run("python3", "-c", f"import http.client as h; c=h.HTTPConnection('127.0.0.1'); "
                 f"c.request('GET', {evil!r}); c.getresponse()")  # fmt: skip
    told = ctl(bookworm, "upgrade", str(NEW.path))
    assert told["verdict"] == "committed"
    bookworm.run("systemctl", "stop", site.UNIT)  # which tells all that nginx has written
    written = own(bookworm, "EVENT=nginx.output")
    by_generation = {one["GENERATION"] for one in written if "GENERATION" in one}
    assert by_generation == {"g1", "g2"}
    (line,) = (one for one in written if "open()" in one["MESSAGE"])
    assert line["GENERATION"] == "g1"
    assert line["MESSAGE"].startswith("nginx g1: 20")
    tail = [one for one in written if one["MESSAGE"].startswith("nginx: PRIORITY=0")]
    assert [one["PRIORITY"] for one in tail] == ["6"]
    assert not entries(bookworm, "-u", site.UNIT, "PRIORITY=0")
    assert not [one for one in written if isinstance(one["MESSAGE"], list)]  # as bytes are


# --- a journal that is in the way -------------------------------------------------------------


def test_a_journal_that_does_not_read_holds_nobody_up(box: Box) -> None:
    """It is stopped over a whole upgrade, whose story is complete."""
    serve(box)
    box.run("systemctl", "kill", "-s", "STOP", "systemd-journald")
    told = ctl(box, "upgrade", str(NEW.path))
    assert (told["verdict"], told["reason"]) == ("committed", "healthy")
    box.run("systemctl", "kill", "-s", "CONT", "systemd-journald")
    wait_for(
        "the verdict", lambda: own(box, f"UPGRADE_ID={told['upgrade_id']}", "VERDICT=committed")
    )
    assert phases(story(box, told))[:6] == [*UPGRADE, "committing"]
    assert not own(box, "--grep", "lines are missing here|log.dropped")


def test_more_than_waits_is_told_by_another_way(bookworm: Box) -> None:
    """By the stream that standard error is, without fields, but each line."""
    serve(bookworm)
    many = LATE  # each is two lines: one that a request came, one that it is refused
    bookworm.run("systemctl", "kill", "-s", "STOP", "systemd-journald")
    with Connection(str(bookworm.path(SOCKET)), timeout=LIMIT) as asked:
        for _ in range(many):
            asked.send(wire.encode_call(f"{wire.INTERFACE}.Promote", {}))
            asked.receive()
    bookworm.run("systemctl", "kill", "-s", "CONT", "systemd-journald")

    def told() -> tuple[int, int]:
        lines = entries(bookworm, "-u", site.UNIT, "_TRANSPORT=stdout")
        refused = [one for one in lines if '"request.refused"' in one["MESSAGE"]]
        assert all(one["PRIORITY"] == "4" for one in refused)
        return len(own(bookworm, "EVENT=request.refused")), len(refused)

    wait_for("each line", lambda: sum(told()) == many)
    assert all(told())


def test_a_journal_that_restarts_or_is_gone(box: Box) -> None:
    """Its service comes back with the same socket; its socket unit with another one."""
    serve(box)
    box.run("systemctl", "restart", "systemd-journald")
    told = ctl(box, "upgrade", str(NEW.path))
    assert told["verdict"] == "committed"
    assert phases(story(box, told))[:5] == list(UPGRADE)
    sockets = ("systemd-journald.socket", "systemd-journald-dev-log.socket")
    box.run("systemctl", "stop", "systemd-journald.service", *sockets)
    told = ctl(box, "upgrade", str(OLD.path))
    assert told["verdict"] == "committed"
    box.run("systemctl", "start", *sockets, "systemd-journald.service")

    def back() -> list[Entry]:
        ctl(box, "reopen")
        return own(box, "EVENT=control.called", "METHOD=Reopen")

    wait_for("entries come again", back)
    assert site.main_pid(box) > 0
    assert site.status(box)["state"] == "running"


def test_a_full_disk_of_the_journal(bookworm: Box) -> None:
    serve(bookworm)
    bookworm.run("mount", "-t", "tmpfs", "-o", "size=1m", "full", "/run/log/journal")
    bookworm.run("systemctl", "restart", "systemd-journald")
    bookworm.run("sh", "-c", "cat /dev/zero >/run/log/journal/filler", check=False)
    told = ctl(bookworm, "upgrade", str(NEW.path))
    assert told["verdict"] == "committed"
    assert history(bookworm, told)["verdict"] == "committed"
    bookworm.run("umount", "-l", "/run/log/journal")
    bookworm.run("systemctl", "restart", "systemd-journald")
    told = ctl(bookworm, "upgrade", "/bin/true")
    assert of(story(bookworm, told), "upgrade.verdict")


def test_elsewhere_the_log_is_json_unless_the_journal_is_asked_for(trixie: Box) -> None:
    log = "/var/log/nginx-supervisor.log"
    folder = f"/etc/systemd/system/{site.UNIT}.d"
    trixie.write(f"{folder}/log.conf", f"[Service]\nStandardError=append:{log}\n")
    trixie.run("systemctl", "daemon-reload")
    serve(trixie)
    lines = [json.loads(line) for line in trixie.path(log).read_text().splitlines()]
    assert "supervisor.started" in [one["event"] for one in lines]
    assert not own(trixie)
    site.configure(trixie, binary=BINARY, settings='[log]\nformat = "journal"\n')
    trixie.run("systemctl", "kill", "--kill-whom=main", "-s", signal.SIGKILL.name, site.UNIT)
    wait_for("another supervisor", lambda: own(trixie, "EVENT=supervisor.started"))
    assert trixie.path(log).read_text().count("supervisor.started") == 1  # of the first one
