"""Bad input gets a clear error, and nothing is lost: what ran before runs on, untouched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import checks, settings, site, supervised, unfinished
from tests.e2e.harness.cradle import LIMIT
from tests.e2e.harness.site import Options, Site, put, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools.load import Load
from tools.nginx_builds import candidate
from tools.nginx_cache import Build


def assert_refused(answer: Answer, reason: str, *words: str) -> None:
    """Exit 3, the reason, and a message that names the thing."""
    assert answer.code == 3, answer
    assert answer.last["verdict"] == "refused", answer
    assert answer.reason == reason, answer
    for word in ("cannot ", *words):
        assert word in answer.last["detail"], answer


@contextmanager
def untouched(
    oldest: Build, options: Options | None = None, changes: dict[str, object] | None = None
) -> Iterator[Supervised]:
    """A served site; after the block the same master serves the same version from the same file."""
    with (
        site.make(oldest, options) as one,
        supervised.running(one, changes) as nginx,
        Load(one.plan(slow=0)) as load,
    ):
        master = nginx.masters()[0].pid
        yield nginx
        report = load.stop()
        assert report.failures == 0, report
        assert nginx.masters()[0].pid == master
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- the binary --------------------------------------------------------------------------------

MADE = {
    "empty": "binary_not_nginx",
    "not_nginx": "binary_not_nginx",
    "not_executable": "binary_not_executable",
    "truncated": "binary_truncated",
    "wrong_architecture": "binary_wrong_architecture",
    "wrapper": "binary_not_nginx",
}


@pytest.mark.parametrize("kind", MADE)
def test_a_file_that_is_no_good_nginx(oldest: Build, newest: Build, kind: str) -> None:
    with untouched(oldest) as nginx:
        path = candidate(newest, kind)
        assert_refused(nginx.ctl("upgrade", path), MADE[kind], str(path))


def make_missing(folder: Path) -> Path:
    return folder / "nowhere" / "nginx"


def make_folder(folder: Path) -> Path:
    path = folder / "a-folder"
    path.mkdir()
    return path


def make_loop(folder: Path) -> Path:
    path = folder / "loop"
    path.symlink_to(path)
    return path


def make_fifo(folder: Path) -> Path:
    path = folder / "fifo"
    os.mkfifo(path, 0o755)
    return path


MADE_PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (make_missing, "binary_missing"),
    "folder": (make_folder, "binary_not_nginx"),
    "loop": (make_loop, "binary_missing"),
    "fifo": (make_fifo, "binary_not_nginx"),
}


@pytest.mark.parametrize("what", MADE_PATHS)
def test_a_path_that_leads_to_no_file(oldest: Build, what: str) -> None:
    make, reason = MADE_PATHS[what]
    with untouched(oldest) as nginx:
        path = make(nginx.site.folder)
        assert_refused(nginx.ctl("upgrade", path), reason, str(path))


def test_a_relative_path(oldest: Build) -> None:
    with untouched(oldest) as nginx:
        assert_refused(nginx.ctl("upgrade", "sbin/nginx"), "relative_path", "sbin/nginx")


def test_a_binary_that_others_may_write(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        folder = one.folder / "open"
        folder.mkdir()
        folder.chmod(0o777)
        path = folder / "nginx"
        shutil.copy(newest.path, path)
        assert_refused(nginx.ctl("upgrade", path), "binary_not_trusted", str(folder))
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        answer = nginx.ctl("upgrade", path, "--trust")
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


@pytest.mark.needs("twin", "stub_status")
def test_a_build_that_lacks_a_module(oldest: Build, newest: Build) -> None:
    options = Options(server="location = /status { stub_status; }")
    with untouched(oldest, options) as nginx:
        answer = nginx.ctl("upgrade", candidate(newest, "without_stub_status"))
        assert_refused(answer, "module_missing", "stub_status")


@pytest.mark.needs("marker")
def test_a_dynamic_module_of_another_version(oldest: Build, newest: Build) -> None:
    with untouched(oldest, Options(module=True)) as nginx:
        answer = nginx.ctl("upgrade", newest.path)
        assert_refused(answer, "module_mismatch", "ngx_http_marker_module.so")


def test_a_configuration_that_the_new_binary_rejects(oldest: Build, newest: Build) -> None:
    with untouched(oldest) as nginx:
        text = nginx.site.config.read_text()
        nginx.site.config.write_text(text + "no_such_directive on;\n")
        assert_refused(nginx.ctl("upgrade", newest.path), "config_rejected", "no_such_directive")
        nginx.site.config.write_text(text)


# --- the moment --------------------------------------------------------------------------------


def test_an_upgrade_while_one_runs(oldest: Build, newest: Build) -> None:
    with untouched(oldest) as nginx:
        first = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        second = nginx.ctl("upgrade", newest.path)
        assert_refused(second, "upgrade_in_progress")
        reload = nginx.ctl("reload")
        assert reload.code == 3, reload
        assert reload.reason == "upgrade_held"
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(first).code == 4


def test_an_upgrade_while_old_connections_drain(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        unfinished.request(one.port),
    ):
        assert nginx.ctl("upgrade", newest.path).code == 0
        assert nginx.status()["state"] == "draining"
        for command in (("upgrade", oldest.path), ("rollback",)):
            answer = nginx.ctl(*command)
            assert_refused(answer, "previous_generation_draining", "drain --now")
        assert nginx.ctl("drain", "--now").code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_promote_and_rollback_of_nothing(oldest: Build) -> None:
    with untouched(oldest) as nginx:
        for command in ("promote", "rollback"):
            answer = nginx.ctl(command)
            assert answer.code == 3, answer


# --- the machine -------------------------------------------------------------------------------


def test_a_new_listener_on_a_port_that_someone_holds(oldest: Build, newest: Build) -> None:
    with untouched(oldest) as nginx, socket.socket() as foreign:
        one = nginx.site
        foreign.bind(("127.0.0.1", one.spare_port))
        foreign.listen()
        text = one.config.read_text()
        listen = f"listen 127.0.0.1:{one.spare_port};"
        one.config.write_text(text.replace("server {", f"server {{ {listen}", 1))
        answer = nginx.ctl("upgrade", newest.path)
        assert_refused(answer, "listen_address_busy", str(one.spare_port))
        one.config.write_text(text)


def test_a_first_start_on_a_port_that_someone_holds(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.on(one) as nginx, socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("127.0.0.1", one.port))
        foreign.listen()
        nginx.launch()
        assert nginx.cradle.wait(nginx.pid) == 1
        assert str(one.port) in nginx.log_text()
        assert nginx.cradle.living() == []


@pytest.mark.parametrize("lost", ["missing", "empty", "stale"])
def test_a_lost_pid_file_is_written_again(oldest: Build, newest: Build, lost: str) -> None:
    """USR2 would break nginx without it, and who the master is needs no file to be known."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        one.pid_path.unlink()
        if lost == "empty":
            one.pid_path.touch()
        elif lost == "stale":
            with subprocess.Popen(["true"]) as gone:
                gone.wait()
            one.pid_path.write_text(f"{gone.pid}\n")
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert "pid_file.repaired" in [line["event"] for line in nginx.log()]


@pytest.mark.parametrize("planted", ["another", "symlink"])
def test_a_wrong_pid_file(oldest: Build, newest: Build, planted: str) -> None:
    """Somebody wrote it: refused, and never followed."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        victim = one.folder / "victim"
        victim.write_text("precious")
        one.pid_path.unlink()
        if planted == "another":
            one.pid_path.write_text(f"{os.getpid()}\n")
        else:
            one.pid_path.symlink_to(victim)
        answer = nginx.ctl("upgrade", newest.path)
        assert victim.read_text() == "precious"
        reason = "pid_file_is_symlink" if planted == "symlink" else "pid_file_wrong"
        assert_refused(answer, reason, str(one.pid_path))
        assert len(nginx.masters()) == 1
        checks.assert_serves(nginx, oldest)


# --- who asks, and where -----------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from supervisor.cli import main
command = sys.argv[1:]
try:
    main([*command, "--socket", "/nowhere"])  # imports all that it needs, while it may
except SystemExit:
    pass
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main([*command, "--socket", os.environ["SOCKET"]]))
"""


@pytest.mark.parametrize("mode", ["0600", "0666"])
def test_a_user_without_rights(oldest: Build, newest: Build, mode: str) -> None:
    with untouched(oldest, changes={"control": {"mode": mode}}) as nginx:
        # Nobody may not write into this folder, where a measured process leaves its figures.
        env = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, "upgrade", "--json", str(newest.path)],
            env={**env, "SOCKET": str(nginx.socket)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 5, done
        assert done.stderr.splitlines()[-1].startswith("nginxctl: cannot "), done


def test_nobody_listens(tmp_path: Path) -> None:
    program = str(supervised.COMMANDS / "nginxctl")
    command = [program, "--socket", str(tmp_path / "none"), "status"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5
    assert str(tmp_path / "none") in done.stderr


def test_a_second_supervisor(oldest: Build) -> None:
    """Neither with the same files nor with a socket and a state of its own."""
    with untouched(oldest) as nginx:
        first, text = nginx.pid, nginx.toml.read_text()
        other = text.replace("control.sock", "other.sock").replace("/state", "/other")
        for configuration in (text, other):
            path = nginx.site.folder / "second.toml"
            path.write_text(configuration)
            done = run_to_its_end(path)
            assert done.returncode == 1, done
            assert "supervis" in done.stderr + done.stdout, done
            assert nginx.status()["supervisor_pid"] == first


def run_to_its_end(toml: Path) -> subprocess.CompletedProcess[str]:
    program = str(supervised.COMMANDS / "nginx-supervisor")
    return subprocess.run(
        [program, "run", "--config", str(toml)], capture_output=True, text=True, timeout=LIMIT
    )


# --- the supervisor's own configuration ----------------------------------------------------------

Change = dict[str, object]


def bad_settings(one: Site) -> dict[str, tuple[Change, str]]:
    """What is wrong, and a word that the message must have."""
    folder = str(one.folder)
    return {
        "unknown-key": ({"upgrade": {"cannary": "1s"}}, "canary"),
        "unknown-table": ({"upgrades": {"canary": "1s"}}, "upgrade"),
        "wrong-type": ({"upgrade": {"canary": [1]}}, "canary"),
        "negative": ({"upgrade": {"soak": "-1s"}}, "soak"),
        "no-unit": ({"upgrade": {"soak": "5 parsecs"}}, "soak"),
        "infinite": ({"upgrade": {"soak": 1e400}}, "soak"),
        "relative-binary": ({"nginx": {"binary": "sbin/nginx"}}, "binary"),
        "no-binary": ({"nginx": {"binary": None}}, "binary"),
        "long-socket": ({"control": {"socket": f"{folder}/{'x' * 110}"}}, "socket"),
        "socket-nowhere": ({"control": {"socket": f"{folder}/no/such/folder/c.sock"}}, "folder"),
        "bad-pattern": ({"probe": [settings.probe(one, expect_body="(")]}, "expect_body"),
        "bad-url": ({"probe": [settings.probe(one, url="gopher://x")]}, "url"),
        "one-port": ({"probe_listener": {"ports": "18931-18931"}}, "ports"),
    }


BAD_SETTINGS = (
    "unknown-key", "unknown-table", "wrong-type", "negative", "no-unit", "infinite",
    "relative-binary", "no-binary", "long-socket", "socket-nowhere", "bad-pattern", "bad-url",
    "one-port",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(oldest: Build, name: str) -> None:
    with site.make(oldest) as one:
        changes, word = bad_settings(one)[name]
        toml = one.folder / "bad.toml"
        settings.write(toml, settings.usual(one, changes))
        done = run_to_its_end(toml)
        assert done.returncode == 2, done
        assert "cannot " in done.stderr, done
        assert word in done.stderr, done
        assert "Traceback" not in done.stderr, done


def test_settings_that_others_may_write(oldest: Build) -> None:
    with site.make(oldest) as one:
        toml = one.folder / "open.toml"
        settings.write(toml, settings.usual(one, {}))
        toml.chmod(0o666)
        done = run_to_its_end(toml)
        assert done.returncode == 2, done
        assert "chmod" in done.stderr, done


def test_settings_that_are_not_there(tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path / "none.toml")
    assert done.returncode == 2, done
    assert "none.toml" in done.stderr


def test_a_binary_replaced_by_garbage_does_not_touch_what_runs(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        put(candidate(oldest, "truncated"), one.binary)
        assert_refused(nginx.ctl("upgrade"), "binary_truncated")
        checks.assert_serves(nginx, oldest)
        assert nginx.status()["binary_on_disk"]["matches_active"] is False
