"""Reloads: who answers afterwards, what nginx says when it does not follow, and the way back."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import Site, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tests.e2e.harness.victims import Points
from tests.e2e.test_package_replacement import kill_everything
from tools.load import Load
from tools.nginx_cache import Build

GOOD = 'return 200 "healthy\\n";'
BAD = "return 500;"
QUICK = {"reload": {"guard": "200ms", "answer_within": "20s", "foreign_window": "200ms"}}
TOO_LONG = 25.0
"""Seconds; nginx's own words are to end the waiting long before RELOAD_LIMIT."""


def copied(nginx: Supervised) -> None:
    """Returns when a copy of what was read at the start is there; it is made beside the start."""
    record = nginx.site.folder / "state" / "configs" / "running.json"
    until("the copy", lambda: f'"pid": {nginx.masters()[0].pid}' in read(record))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def spoil(one: Site) -> str:
    """The health page fails with the configuration that is on disk from now on; the good text."""
    good = one.config.read_text()
    assert GOOD in good
    one.config.write_text(good.replace(GOOD, BAD))
    return good


def reloads(nginx: Supervised) -> list[tuple[str, str, str]]:
    return [
        (str(one["by"]), str(one["verdict"]), str(one["reason"]))
        for one in nginx.history()
        if one["operation"] == "reload"
    ]


def assert_end(answer: Answer, code: int, reason: str) -> None:
    assert (answer.code, answer.reason) == (code, reason), answer
    phases = answer.last["phases"]
    assert answer.last["elapsed_s"] == pytest.approx(sum(phases.values()), abs=1e-4)


def workers(nginx: Supervised) -> set[int]:
    return {one.pid for one in nginx.nginx() if one.is_accepting}


def test_a_healthy_reload_loses_nothing(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one, QUICK) as nginx:
        copied(nginx)
        before = workers(nginx)
        with Load(plan := one.plan(new=2, new_rate=60.0, slow=1, slow_seconds=1.0)) as load:
            plain = nginx.ctl("reload")
            guarded = nginx.ctl("reload", "--guard")
            report = load.stop()
        assert_end(plain, 0, "reloaded")
        assert_end(guarded, 0, "reloaded")
        for answer in (plain, guarded):
            assert answer.last["judged"] is True
            assert [each.get("phase") or each["event"] for each in answer.lines] == [
                "accepted", "preflight", "shifting", "soaking", "verdict",
            ]  # fmt: skip
        assert guarded.last["phases"]["soaking"] >= 0.2
        checks.assert_nothing_lost(report, plan, handovers=2)
        assert not before & workers(nginx)
        assert reloads(nginx) == [("operator", "committed", "reloaded")] * 2
        assert nginx.status()["last_verdict"] is None
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guard"])
def test_a_configuration_that_answers_500(oldest: Build, guard: bool) -> None:  # noqa: FBT001
    with site.make(oldest) as one, supervised.running(one, QUICK) as nginx:
        copied(nginx)
        good = spoil(one)
        bad = one.config.read_text()
        answer = nginx.ctl("reload", *(["--guard"] if guard else []))
        assert_end(answer, 4 if guard else 1, "reload_probes_failed")
        assert "500" in answer.last["detail"]
        assert answer.last["judged"] is True
        assert nginx.status()["state"] == "running"
        if guard:
            assert one.config.read_text() == good
            (kept,) = (one.folder / "state" / "configs" / "rejected").iterdir()
            assert str(kept) in answer.last["detail"]
            assert Path(f"{kept}{one.config}").read_text() == bad
            assert "rolling_back" in answer.last["phases"]
            until("the probe", lambda: nginx.look()["probes"][0]["state"] == "up")
        else:
            assert one.config.read_text() == bad
            one.config.write_text(good)
            assert_end(nginx.ctl("reload", "--guard"), 0, "reloaded")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guard"])
def test_nginx_keeps_its_old_configuration(newest: Build, guard: bool) -> None:  # noqa: FBT001
    """Its test does not see that an address is somebody else's; at HUP it gives up after 2.5 s."""
    with site.make(newest) as one, supervised.running(one, QUICK) as nginx:
        copied(nginx)
        before, good = workers(nginx), one.config.read_text()
        with socket.create_server(("127.0.0.1", one.spare_port)):
            text = good.replace("server_name", f"listen 127.0.0.1:{one.spare_port}; server_name")
            one.config.write_text(text)
            began = time.monotonic()
            answer = nginx.ctl("reload", *(["--guard"] if guard else []))
            assert time.monotonic() - began < TOO_LONG
            assert_end(answer, 4 if guard else 1, "reload_ignored")
            assert "[emerg] bind() to 127.0.0.1:" in answer.last["detail"]
            assert "failed (98: Address already in use)" in answer.last["detail"]
        assert one.config.read_text() == (good if guard else text)
        assert bool(before & workers(nginx)) is not guard
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_shared_zone_that_changes_its_key(oldest: Build) -> None:
    """Another fault that only the running master can find: said by it at once."""
    zone = "limit_req_zone {key} zone=z:1m rate=9000r/s;"
    options = site.Options(http=zone.format(key="$binary_remote_addr"), server="limit_req zone=z;")
    with site.make(oldest, options) as one, supervised.running(one, QUICK) as nginx:
        copied(nginx)
        text = one.config.read_text()
        one.config.write_text(text.replace("$binary_remote_addr", "$uri"))
        answer = nginx.ctl("reload")
        assert_end(answer, 1, "reload_ignored")
        assert "[emerg] limit_req" in answer.last["detail"]
        one.config.write_text(text)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def with_folder(one: Site) -> Path:
    """The site's servers have a part of their configuration in files of a folder."""
    folder = one.folder / "conf.d"
    folder.mkdir()
    text = one.config.read_text()
    one.config.write_text(text.replace("server_name", f"include {folder}/*.conf; server_name"))
    (folder / "one.conf").write_text("add_header X-One 1;\n")
    (folder / "two.conf").write_text("add_header X-Two 2;\n")
    return folder


def files_in(folder: Path) -> dict[str, tuple[str, int]]:
    return {one.name: (one.read_text(), one.stat().st_mode) for one in sorted(folder.iterdir())}


def change_them_all(one: Site, folder: Path) -> None:
    spoil(one)
    (folder / "one.conf").unlink()
    (folder / "two.conf").write_text("add_header X-Two changed;\n")
    (folder / "three.conf").write_text("add_header X-Three 3;\n")


def test_new_changed_and_deleted_files_are_taken_back(newest: Build) -> None:
    with site.make(newest) as one:
        folder = with_folder(one)
        (folder / "two.conf").chmod(0o640)
        with supervised.running(one, QUICK) as nginx:
            copied(nginx)
            before, main = files_in(folder), one.config.read_text()
            change_them_all(one, folder)
            changed = files_in(folder)
            answer = nginx.ctl("reload", "--guard")
            assert_end(answer, 4, "reload_probes_failed")
            assert (files_in(folder), one.config.read_text()) == (before, main)
            (kept,) = (one.folder / "state" / "configs" / "rejected").iterdir()
            aside = files_in(Path(f"{kept}{folder}"))
            assert {name: text for name, (text, _) in aside.items()} == {
                name: text for name, (text, _) in changed.items()
            }
            assert nginx.status()["config_matches_active"] is True
            checks.assert_settled(nginx, newest, sha256(newest.path))


def test_links_and_what_is_not_known_are_refused(oldest: Build) -> None:
    with site.make(oldest) as one:
        folder = with_folder(one)
        real = one.folder / "available.conf"
        (folder / "one.conf").rename(real)
        (folder / "one.conf").symlink_to(real)
        with supervised.running(one, QUICK) as nginx:
            copied(nginx)
            before = workers(nginx)
            spoil(one)
            answer = nginx.ctl("reload", "--guard")
            assert (answer.code, answer.reason) == (3, "configuration_symlinked"), answer
            assert str(folder / "one.conf") in answer.last["detail"]
            assert workers(nginx) == before
            assert reloads(nginx) == []
            checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- by somebody else ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["report", "restore"])
def test_a_reload_by_somebody_else_that_fails(oldest: Build, policy: str) -> None:
    settings = {"reload": {**QUICK["reload"], "on_foreign_failure": policy}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        copied(nginx)
        os.kill(nginx.masters()[0].pid, signal.SIGHUP)
        until("the first record", lambda: len(reloads(nginx)) == 1)
        good = spoil(one)
        os.kill(nginx.masters()[0].pid, signal.SIGHUP)
        until("the second record", lambda: len(reloads(nginx)) == 2)
        verdict = "rolled_back" if policy == "restore" else "failed"
        assert reloads(nginx) == [
            ("foreign", "committed", "reloaded"), ("foreign", verdict, "reload_probes_failed"),
        ]  # fmt: skip
        (told,) = [
            each for each in nginx.log() if each["event"] == "generation.foreign_reload_failed"
        ]
        assert told["level"] == "error"
        if policy == "restore":
            assert one.config.read_text() == good
        else:
            one.config.write_text(good)
            assert nginx.ctl("reload").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- the supervisor dies in the midst of it ----------------------------------------------------

POINTS = [
    ("SIGHUP.before", 1), ("guard.after", 2), ("rejected.after", 1), ("put.after", 1),
    ("put.after", 2), ("away.after", 1), ("SIGHUP.after", 2), ("history.after", 1),
    ("guard_closed.before", 1),
]  # fmt: skip


@pytest.mark.parametrize(("point", "number"), POINTS)
def test_it_is_killed_in_a_guarded_reload(oldest: Build, point: str, number: int) -> None:
    """Its successor ends what it finds, whichever step it had come to."""
    with site.make(oldest) as one:
        folder = with_folder(one)
        with supervised.on(one, QUICK) as nginx:
            points = Points(nginx)
            nginx.start()
            copied(nginx)
            before, main = files_in(folder), one.config.read_text()
            change_them_all(one, folder)
            points.arm(point, number)
            asked = nginx.begin("reload", "--guard")
            points.wait()
            nginx.die()
            points.disarm()
            nginx.end(asked)
            nginx.start()
            until("the verdict", lambda: len(reloads(nginx)) == 1)
            (told,) = reloads(nginx)
            assert told == ("operator", "rolled_back", "reload_probes_failed")
            until("the end", lambda: not (one.folder / "state/configs/guard.json").exists())
            assert (files_in(folder), one.config.read_text()) == (before, main)
            checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_everything_dies_while_the_new_configuration_is_watched(oldest: Build) -> None:
    """Nobody has proved it: nginx is started with the previous one."""
    settings = {"reload": {**QUICK["reload"], "guard": "60s"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        copied(nginx)
        good = one.config.read_text()
        one.config.write_text(f"# new\n{good}")
        before = workers(nginx)
        asked = nginx.begin("reload", "--guard")
        until("new workers", lambda: len(workers(nginx) - before) == one.options.workers)
        kill_everything(nginx)
        nginx.end(asked)
        nginx.start()
        until("the verdict", lambda: reloads(nginx))
        assert reloads(nginx) == [("operator", "rolled_back", "supervisor_died")]
        assert one.config.read_text() == good
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("what", ["master", "stop"])
def test_nginx_ends_while_the_new_configuration_is_watched(oldest: Build, what: str) -> None:
    settings = {"reload": {**QUICK["reload"], "guard": "60s"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        copied(nginx)
        good = one.config.read_text()
        one.config.write_text(f"# new\n{good}")
        before = workers(nginx)
        asked = nginx.begin("reload", "--guard")
        until("new workers", lambda: len(workers(nginx) - before) == one.options.workers)
        if what == "stop":
            assert nginx.ctl("stop").code == 0
        else:
            os.kill(nginx.masters()[0].pid, signal.SIGKILL)
        reason = "stopped" if what == "stop" else "reload_master_exited"
        assert_end(nginx.end(asked), 4, reason)
        assert one.config.read_text() == good
        if what == "stop":
            assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
