"""The image's entry point as PID 1 of a container, with an engine's usual restrictions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.container.image import Image
from tests.container.runtime import PIDFD_GETFD, PIDFD_OPEN, Container, How
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import cache_folder

ASK = "import urllib.request as u; print(u.urlopen('http://127.0.0.1/{}').status)"
ORPHANS = """
import os
for number in range(300):
    if os.fork() == 0:
        if number % 2:
            os.setsid()
        if os.fork() == 0:
            os._exit(3)
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def upgrades(tmp_path: Path) -> dict[Path, str]:
    """A volume with two builds of nginx, one of which goes wrong."""
    folder = tmp_path / "upgrades"
    folder.mkdir(mode=0o755)
    newest = builds()[-1]
    shutil.copy(newest.path, folder / "nginx")
    shutil.copy(candidate(newest, "workers_crash"), folder / "bad")
    made = cache_folder() / "candidates"  # their libraries are found by this path
    return {folder: "/upgrades", made: str(made)}


def _verdict(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    verdict: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return verdict


def test_the_image_as_it_is(image: Image) -> None:
    """Nothing is added to it: it serves, its logs are where an engine looks, it stops."""
    assert image.size < 350e6
    with Container(image) as one:
        one.until_healthy()
        for number in range(3):
            one.exec("python3", "-c", ASK.format(f"?line={number}"), check=True)
        one.until("access lines", lambda: sum("GET /?line" in x for x in one.stdout.lines) == 3)
        assert all(line.startswith("127.0.0.1 - ") for line in one.stdout.lines)
        assert all("timestamp" in json.loads(line) for line in one.stderr.lines)
        assert not one.path("/usr/lib/systemd/systemd").exists()
        held = one.status()["held_listeners"]
        assert (held["available"], held["count"]) == (False, 0)
        assert "seccomp" in held["detail"]
        said = one.exec("nginxctl", "status").stdout
        assert "held       unavailable: cannot duplicate" in said
        assert one.exec("nginxctl", "check", "--live").returncode == 0
        one.send(signal.Signals[image.stop_signal])
        assert one.wait() == 0
    assert one.log("supervisor.exiting")


def test_upgrade_rollback_and_crash_where_no_socket_can_be_duplicated(
    site: Image, upgrades: dict[Path, str]
) -> None:
    with Container(site, How(volumes=upgrades)) as one:
        one.until_healthy()
        with one.load(processes=1, at_once=4, rate=400) as load:
            done = one.exec("nginxctl", "--json", "upgrade", "/upgrades/nginx")
            assert done.returncode == 0, done
            assert _verdict(done)["verdict"] == "committed"
            done = one.exec("nginxctl", "--json", "upgrade", "/upgrades/bad")
            assert done.returncode == 4, done
            assert _verdict(done)["reason"] == "worker_died"
            one.until("settled", lambda: one.status()["state"] == "running")
            tally = load.stop()
        assert tally.ok > 100
        # What a worker of the bad build had accepted when it died is all that may be lost.
        assert not {"refused", "timeout"} & tally.failed.keys(), tally.failed
        status = one.status()
        assert status["generations"][0]["version"] == builds()[-1].version
        master = status["generations"][0]["master_pid"]
        one.exec("sh", "-c", f"kill -9 {master}", check=True)
        one.until("started again", lambda: one.status()["restarts"] == 1)
        one.until("orphans gone", lambda: one.status()["state"] == "running")
        assert one.log("start.orphans_leave_first")
        one.until("reaped", lambda: one.zombies() == 0)
        one.until_healthy()
        one.exec("python3", "-c", ASK.format(""), check=True)
        assert one.exec("nginxctl", "stop").returncode == 0
        assert one.exec(*site.healthcheck).returncode == 1
        assert one.exec("nginxctl", "check", "--live").returncode == 0
        assert one.exec("nginxctl", "start").returncode == 0
        one.until_healthy()
        one.send(signal.SIGQUIT)
        assert one.wait() == 0


def test_everything_is_possible_with_the_capability(site: Image) -> None:
    """CAP_SYS_PTRACE, with which Docker's profile permits pidfd_getfd: a crash refuses nobody."""
    with Container(site, How(capabilities=None, forbidden=())) as one:
        one.until_healthy()
        one.until("held", lambda: one.status()["held_listeners"]["count"] == 1)
        with one.load(processes=1, at_once=2, rate=200) as load:
            pid = one.status()["generations"][0]["master_pid"]
            one.exec("sh", "-c", f"kill -9 {pid}", check=True)
            one.until("started again", lambda: one.status()["restarts"] == 1)
            one.until("running", lambda: one.status()["state"] == "running")
            tally = load.stop()
        assert not tally.failed.keys() & {"refused", "timeout"}, tally.failed


def test_hundreds_of_orphans_are_reaped_and_no_exit_status_is_stolen(site: Image) -> None:
    with Container(site) as one:
        one.until_healthy()
        one.exec("python3", "-IS", "-c", ORPHANS, check=True)
        assert one.exec("nginxctl", "check").returncode == 0  # nginx -t, a child of ours
        one.until("all reaped", lambda: one.zombies() == 0)
        assert one.exec("nginxctl", "--json", "upgrade", "--dry-run").returncode == 0
        assert one.status()["restarts"] == 0


def _blocks(one: Container, number: signal.Signals) -> bool:
    """The program runs, as whose name its script's shows, and the signal would wait."""
    if not Path(f"/proc/{one.init_pid}/comm").read_text().startswith("nginx-super"):
        return False
    text = Path(f"/proc/{one.init_pid}/status").read_text()
    mask = int(text.split("SigBlk:")[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_before_any_handler_is_set(site: Image, number: signal.Signals) -> None:
    """`env` of the entry point blocks them in the first millisecond; without it, the program."""
    entrypoint = ("nginx-supervisor",) if number is signal.SIGINT else None
    with Container(site, How(entrypoint=entrypoint)) as one:
        one.until("blocked", lambda: _blocks(one, number))
        one.send(number)
        assert one.wait() == 0
    assert not one.log("operation.bug")


def test_told_to_end_in_the_midst_of_an_upgrade(site: Image, upgrades: dict[Path, str]) -> None:
    with Container(site, How(volumes=upgrades)) as one:
        one.until_healthy()
        asked = one.exec("nginxctl", "upgrade", "/upgrades/nginx", "--soak", "60s", "--no-wait")
        assert asked.returncode == 0, asked
        one.until("soaking", lambda: (one.status()["upgrade"] or {}).get("phase") == "soaking")
        one.send(signal.SIGTERM)
        assert one.wait() == 0
    (verdict,) = one.log("upgrade.verdict")
    assert (verdict["verdict"], verdict["reason"]) == ("rolled_back", "stopped")


def test_exit_codes(site: Image) -> None:
    with Container(site, How(command=("run", "--config", "/nowhere"))) as one:
        assert one.wait() == 2
    with Container(site, How(forbidden=(PIDFD_GETFD, PIDFD_OPEN))) as one:
        assert one.wait() == 1
    assert "pidfd_open" in one.stderr.lines[-1]
    assert "seccomp" in one.stderr.lines[-1]
