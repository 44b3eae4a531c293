"""Every command of nginxctl and every signal to the supervisor, in the states where they differ."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import write
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import COMMANDS, Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

LONG = ("--canary", "60s")
STUCK = {"new": 0, "keepalive": 0, "idle": 0, "slow_seconds": 60}
"""A load that only keeps a generation from leaving."""


@contextmanager
def supervising(build: Build, **settings: Any) -> Iterator[Supervised]:
    with site.make(build) as one, supervised.running(one, settings) as nginx:
        yield nginx


def spoken(nginx: Supervised, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run nginxctl as a person does, without --json."""
    command = [COMMANDS / "nginxctl", "--socket", nginx.socket, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def master(nginx: Supervised) -> int:
    (one,) = nginx.masters()
    return one.pid


def committed(nginx: Supervised, binary: Path) -> dict[str, Any]:
    """Upgrade, and return when the old generation is gone; the verdict."""
    answer = nginx.ctl("upgrade", binary)
    assert answer.code == 0, answer
    nginx.until_state("running")
    return answer.last


def verdict_of(nginx: Supervised, upgrade_id: str) -> dict[str, Any]:
    """The one verdict of this upgrade in the history; returns once it is there."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [one for one in nginx.history() if one["upgrade_id"] == upgrade_id]
        return bool(found)

    until(f"a verdict of {upgrade_id}", there, poll=0.05)
    (verdict,) = found
    return verdict


def tree(folder: Path) -> dict[str, str]:
    """Every file below with its hash, and every folder."""
    return {
        str(each.relative_to(folder)): sha256(each) if each.is_file() else ""
        for each in sorted(folder.rglob("*"))
    }


# --- how an upgrade is asked for -------------------------------------------------------------


def test_no_wait_returns_at_acceptance(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        answer = nginx.ctl("upgrade", newest.path, "--no-wait", "--hold")
        assert answer.code == 0, answer
        assert answer.last["event"] == "accepted"
        assert nginx.status()["upgrade"]["id"] == answer.last["upgrade_id"]
        nginx.until_phase("held")
        assert nginx.ctl("promote").code == 0
        verdict = verdict_of(nginx, answer.last["upgrade_id"])
        assert verdict["verdict"] == "committed"
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_timeout_ends_the_waiting_and_not_the_upgrade(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        answer = nginx.ctl("upgrade", newest.path, "--timeout", "300ms", "--hold")
        assert answer.code == 6, answer
        assert "goes on" in answer.errors
        assert "nginxctl status" in answer.errors
        nginx.until_phase("held")
        assert nginx.ctl("promote").code == 0
        (verdict,) = nginx.history()
        assert verdict["verdict"] == "committed"
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_dry_run_changes_nothing(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        pid, before, versions = master(nginx), tree(nginx.site.folder / "sbin"), active(nginx)
        include = nginx.site.include.read_bytes() if nginx.site.include.exists() else None
        answer = nginx.ctl("upgrade", newest.path, "--dry-run")
        assert answer.code == 0, answer
        assert answer.reason == "dry_run"
        assert answer.last["to_version"] == newest.version
        assert nginx.history() == []
        assert master(nginx) == pid
        assert tree(nginx.site.folder / "sbin") == before
        assert active(nginx) == versions
        after = nginx.site.include.read_bytes() if nginx.site.include.exists() else None
        assert after == include
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("upgrade", candidate(newest, "not_nginx"), "--dry-run").code == 3
        committed(nginx, newest.path)


def active(nginx: Supervised) -> list[str]:
    """The ids of the stored versions that run."""
    answer = nginx.ctl("versions")
    assert answer.code == 0, answer
    return [one["id"] for one in answer.lines if one["active"]]


def test_if_changed_upgrades_only_to_something_else(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        pid = master(nginx)
        for same in (("upgrade", "--if-changed"), ("upgrade", oldest.path, "--if-changed")):
            answer = nginx.ctl(*same)
            assert answer.code == 0, answer
            assert answer.reason == "unchanged"
        assert nginx.history() == []
        assert master(nginx) == pid
        put(newest.path, nginx.site.binary)
        answer = nginx.ctl("upgrade", "--if-changed")
        assert answer.code == 0, answer
        assert answer.last["verdict"] == "committed"
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert master(nginx) != pid


def test_an_upgrade_to_the_same_binary_is_legal(oldest: Build) -> None:
    with supervising(oldest) as nginx:
        pid = master(nginx)
        answer = nginx.ctl("upgrade")
        assert answer.code == 0, answer
        assert answer.last["verdict"] == "committed"
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert master(nginx) != pid


def test_two_upgrades_at_once(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        first = nginx.ctl("upgrade", newest.path, "--no-wait", *LONG)
        second = nginx.ctl("upgrade", newest.path)
        assert second.code == 3, second
        assert second.reason == "upgrade_in_progress"
        assert first.last["upgrade_id"] in second.last["detail"]
        assert second.last["upgrade_id"] not in ("", first.last["upgrade_id"])
        recorded = verdict_of(nginx, second.last["upgrade_id"])
        assert recorded["verdict"] == "refused"
        assert nginx.ctl("rollback").code == 0
        assert verdict_of(nginx, first.last["upgrade_id"])["verdict"] == "rolled_back"
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_client_that_is_killed_cancels_nothing(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_begun("canary")
        client.kill()
        client.communicate()
        nginx.until_phase("held")
        assert nginx.ctl("promote").code == 0
        (verdict,) = nginx.history()
        assert verdict["verdict"] == "committed"
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- the drain -------------------------------------------------------------------------------


def test_a_stuck_drain_refuses_until_it_is_ended(oldest: Build, newest: Build) -> None:
    with (
        supervising(oldest) as nginx,
        Load(nginx.site.plan(**STUCK)) as load,
        unfinished.request(nginx.site.port),
    ):
        assert nginx.ctl("upgrade", newest.path).code == 0
        assert nginx.status()["state"] == "draining"
        for command in (("upgrade", oldest.path), ("rollback",)):
            refused = nginx.ctl(*command)
            assert refused.code == 3, refused
            assert refused.reason == "previous_generation_draining"
            assert "nginxctl drain --now" in refused.last["detail"]
            assert re.search(r"in \d+ s at the latest", refused.last["detail"]), refused
        drained = nginx.ctl("drain", "--now")
        assert drained.code == 0, drained
        assert nginx.status()["state"] == "running"
        until("truncated", lambda: load.report().count("truncated") == 1, poll=0.05)
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("drain", "--now").reason == "nothing_draining"
        assert nginx.ctl("upgrade", oldest.path).code == 0


# --- reload ----------------------------------------------------------------------------------


def more_workers(nginx: Supervised) -> None:
    """Write a configuration whose effect can be seen."""
    nginx.site.configure(Options(workers=3))


@pytest.mark.parametrize("kind", ["good", "status_500"])
def test_a_reload_waits_for_the_verdict(oldest: Build, newest: Build, kind: str) -> None:
    binary = candidate(newest, kind)
    settings = {"upgrade": {"canary": "1s"}}
    # A bad candidate is found at once; a listener that fails later leaves time to ask.
    if kind == "status_500":
        binary = candidate(newest, kind, delay_ms=900)
    with supervising(oldest, **settings) as nginx:
        upgrade = nginx.begin("upgrade", binary)
        nginx.until_begun("canary")
        before = {one.pid for one in nginx.nginx()}
        reload = nginx.begin("reload")
        verdict = nginx.end(upgrade)
        assert verdict.code == (0 if kind == "good" else 4), verdict
        done = nginx.end(reload)
        assert done.code == 0, done
        good = kind == "good"
        build, sha = (newest, sha256(binary)) if good else (oldest, sha256(oldest.path))
        checks.assert_settled(nginx, build, sha)
        kept = {one.pid for one in nginx.nginx() if one.is_worker} & before
        assert not kept, "workers that have not read the configuration again"


def test_a_reload_while_held_is_refused_at_once(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        answer = nginx.ctl("reload")
        assert answer.code == 3, answer
        assert answer.reason == "upgrade_held"
        assert "nginxctl promote" in answer.last["detail"]
        promoted = nginx.ctl("promote")
        assert promoted.code == 0, promoted
        assert nginx.end(upgrade).code == 0
        nginx.until_state("running")
        more_workers(nginx)
        assert nginx.ctl("reload").code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- the operator decides --------------------------------------------------------------------


def test_promote_ends_the_soak(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        assert nginx.ctl("promote").reason == "not_held"
        upgrade = nginx.begin("upgrade", newest.path, *LONG)
        nginx.until_phase("canary")
        assert nginx.ctl("promote").reason == "not_held"
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(upgrade).code == 4
        upgrade = nginx.begin("upgrade", newest.path, "--soak", "60s")
        nginx.until_phase("soaking")
        promoted = nginx.ctl("promote")
        assert promoted.code == 0, promoted
        assert nginx.end(upgrade).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_rollback_while_held(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        back = nginx.ctl("rollback")
        assert back.code == 0, back
        answer = nginx.end(upgrade)
        assert answer.code == 4, answer
        assert answer.reason == "operator"
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        # An operator's rollback condemns nothing.
        committed(nginx, newest.path)


def test_a_stop_while_held_ends_the_candidate_first(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        old = master(nginx)
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        new = nginx.masters()[-1].pid
        assert nginx.ctl("stop").code == 0
        answer = nginx.end(upgrade)
        assert answer.code == 4, answer
        assert nginx.status()["state"] == "stopped"
        assert nginx.nginx() == []
        assert not nginx.site.pid_path.exists()
        assert sha256(nginx.site.binary) == sha256(oldest.path)
        (verdict,) = nginx.history()
        assert (verdict["verdict"], verdict["reason"]) == ("rolled_back", "stopped")
        ends = re.findall(r"(\d+)#\d+: exit$", nginx.site.log_text(), re.MULTILINE)
        assert [int(pid) for pid in ends if int(pid) in (old, new)] == [new, old]
        assert nginx.ctl("upgrade", newest.path).reason == "not_running"
        assert nginx.ctl("stop").code == 0
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("start").reason == "already_running"


def test_restart(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        committed(nginx, newest.path)
        pid = master(nginx)
        upgrade = nginx.begin("upgrade", oldest.path, *LONG)
        nginx.until_phase("canary")
        assert nginx.ctl("restart").reason == "upgrade_in_progress"
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(upgrade).code == 4
        answer = nginx.ctl("restart")
        assert answer.code == 0, answer
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert master(nginx) != pid


def test_rollback_to_a_version_and_to_before_an_upgrade(oldest: Build, newest: Build) -> None:
    other = candidate(newest, "good")  # the same version, another file
    with supervising(oldest) as nginx:
        committed(nginx, newest.path)
        last = committed(nginx, other)
        answer = nginx.ctl("rollback", "--to", oldest.version)
        assert answer.code == 0, answer
        assert answer.last["verdict"] == "committed"
        assert answer.last["operation"] == "rollback"
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        # Before `last` the newest version ran, but not the file that it brought.
        answer = nginx.ctl("rollback", "--to", last["upgrade_id"])
        assert answer.code == 0, answer
        checks.assert_settled(nginx, newest, sha256(newest.path))
        unknown = nginx.ctl("rollback", "--to", "9.9.9")
        assert unknown.code == 3, unknown
        assert "9.9.9" in unknown.last["detail"]


def test_a_plain_rollback_goes_to_the_version_before(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        none = nginx.ctl("rollback")
        assert (none.code, none.reason) == (3, "no_previous_version"), none
        committed(nginx, newest.path)
        answer = nginx.ctl("rollback")
        assert answer.code == 0, answer
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        # A second one does not go back and forth blindly: it says what it did.
        again = nginx.ctl("rollback")
        assert again.code == 0, again
        assert again.last["to_version"] == newest.version


# --- looking ---------------------------------------------------------------------------------


def test_what_the_looking_commands_print(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        verdict = committed(nginx, newest.path)
        bad = nginx.ctl("upgrade", candidate(newest, "status_500")).last
        told = nginx.history()
        assert [one["upgrade_id"] for one in told] == [verdict["upgrade_id"], bad["upgrade_id"]]
        # What was told is what was recorded, to the last key.
        assert told == [verdict, bad]
        assert [one["upgrade_id"] for one in nginx.ctl("history", "--limit", "1").lines] == [
            bad["upgrade_id"]
        ]
        human = spoken(nginx, "history").stdout.splitlines()
        assert len(human) == 2
        assert verdict["upgrade_id"] in human[0]
        assert "committed" in human[0]
        assert f"{oldest.version} -> {newest.version}" in human[0]
        assert f"back to {newest.version}, not {newest.version}" in human[1]
        assert "probe_failed" in human[1]
        assert_versions(nginx, oldest, newest)
        assert_check(nginx)
        assert_events(nginx, verdict["upgrade_id"])
        state = spoken(nginx, "status").stdout
        assert state.startswith("state      running")
        assert str(master(nginx)) in state


def assert_versions(nginx: Supervised, oldest: Build, newest: Build) -> None:
    stored = nginx.ctl("versions").lines
    by_sha = {one["sha256"]: one for one in stored}
    new, old = by_sha[sha256(newest.path)], by_sha[sha256(oldest.path)]
    assert (new["active"], new["on_disk"], new["good"]) == (True, True, True)
    assert (old["active"], old["on_disk"], old["good"]) == (False, False, True)
    assert [one["good"] for one in stored].count(False) == 1
    lines = spoken(nginx, "versions").stdout.splitlines()
    assert len(lines) == len(stored)
    assert sum("active" in line for line in lines) == 1


def assert_check(nginx: Supervised) -> None:
    answer = nginx.ctl("check")
    assert answer.code == 0, answer
    assert answer.last["ok"] is True
    text, toml = nginx.site.config.read_text(), nginx.toml.read_text()
    nginx.site.config.write_text("broken")
    nginx.toml.write_text(toml.replace("[nginx]", "[nginx]\nprefx = 1"))
    bad = nginx.ctl("check")
    assert bad.code == 1, bad
    assert [one["ok"] for one in bad.last["findings"]] == [False, False]
    human = spoken(nginx, "check")
    assert human.returncode == 1
    assert human.stdout.count("FAILED") == 2
    assert "prefx" in human.stdout
    nginx.site.config.write_text(text)
    nginx.toml.write_text(toml)


def assert_events(nginx: Supervised, upgrade_id: str) -> None:
    changes = [one for one in nginx.ctl("events").lines if one["event"] == "upgrade.state_changed"]
    ours = [one["to_state"] for one in changes if one["upgrade_id"] == upgrade_id]
    assert ours[:6] == ["preflight", "spawning", "canary", "shifting", "soaking", "committing"]
    assert "upgrade.verdict" in spoken(nginx, "events").stdout


def test_events_can_be_followed(oldest: Build) -> None:
    with supervising(oldest) as nginx:
        following = nginx.begin("events", "--follow")
        assert following.stdout is not None
        with following:
            try:
                assert json.loads(following.stdout.readline())["event"]
                assert nginx.ctl("promote").code == 3
                for line in following.stdout:
                    if json.loads(line)["event"] == "request.refused":
                        break
                following.send_signal(signal.SIGINT)
                following.communicate(timeout=60)
                assert following.returncode == 0
            finally:
                following.kill()  # else a failure would wait for it for ever


# --- signals to the supervisor ---------------------------------------------------------------


def hang_up(nginx: Supervised, event: str) -> dict[str, Any]:
    """SIGHUP; returns the log's word on it."""
    before = len(nginx.log())
    os.kill(nginx.pid, signal.SIGHUP)
    found: list[dict[str, Any]] = []

    def heard() -> bool:
        found[:] = [one for one in nginx.log()[before:] if one["event"].startswith("settings.")]
        return bool(found)

    until("a word on the settings", heard, poll=0.02)
    assert found[0]["event"] == event, found
    return found[0]


def test_sighup_reads_the_settings_again(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        nginx.settings["upgrade"]["soak"] = "60s"
        write(nginx.toml, nginx.settings)
        hang_up(nginx, "settings.changed")
        upgrade = nginx.begin("upgrade", newest.path)
        nginx.until_phase("soaking")
        # The upgrade that runs keeps its soak; the next one gets the new one.
        nginx.settings["upgrade"]["soak"] = "0s"
        write(nginx.toml, nginx.settings)
        hang_up(nginx, "settings.changed")
        assert nginx.in_phase("soaking")
        assert nginx.ctl("promote").code == 0
        assert nginx.end(upgrade).code == 0
        nginx.until_state("running")
        answer = nginx.ctl("upgrade", oldest.path)
        assert answer.code == 0, answer
        assert answer.last["phases"]["soaking"] < 30


def test_sighup_takes_all_of_a_file_or_nothing(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        good = nginx.toml.read_text()
        nginx.toml.write_text(good.replace('soak = "300ms"', 'soak = "60s"') + "\n[upgrad]\n")
        assert "upgrad" in hang_up(nginx, "settings.rejected")["detail"]
        moved = good.replace('soak = "300ms"', 'soak = "60s"').replace(
            str(nginx.site.folder / "state"), str(nginx.site.folder / "elsewhere")
        )
        nginx.toml.write_text(moved)
        assert "[state]" in hang_up(nginx, "settings.rejected")["detail"]
        nginx.toml.unlink()
        hang_up(nginx, "settings.rejected")
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        assert answer.last["phases"]["soaking"] < 30
        assert not (nginx.site.folder / "elsewhere").exists()
        nginx.toml.write_text(good)


def test_sighup_changes_the_probes(oldest: Build) -> None:
    with supervising(oldest) as nginx:
        nginx.settings["probe"] = [{**nginx.settings["probe"][0], "name": "another"}]
        write(nginx.toml, nginx.settings)
        hang_up(nginx, "settings.changed")

        def up() -> bool:
            (one,) = nginx.status()["probes"]
            return bool((one["name"], one["state"]) == ("another", "up"))

        until("another probe", up, poll=0.05)


def test_sigusr1_reopens_the_logs_of_both_generations(oldest: Build, newest: Build) -> None:
    with supervising(oldest) as nginx:
        upgrade = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        log = nginx.site.error_log
        log.rename(log.with_suffix(".1"))
        os.kill(nginx.pid, signal.SIGUSR1)
        for one in nginx.masters():
            until(f"{one.pid} has it open", lambda pid=one.pid: opened(pid, log))  # type: ignore[misc]
        assert nginx.ctl("promote").code == 0
        assert nginx.end(upgrade).code == 0


def opened(pid: int, path: Path) -> bool:
    """Whether the process has the file open under this name."""
    names = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(each.readlink())
        except FileNotFoundError:
            continue
    return path in names
