"""`make demo` and `make run` do what they tell, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.supervised import COMMANDS
from tools.nginx_builds import builds
from tools.sample import BAD

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 120.0
"""Seconds that a tool may take on a busy machine: the demo needs 20 on an idle one."""


class Tool:
    """A program of tools/ that was started in a cradle, and what it has printed."""

    def __init__(self, name: str, cradle: Cradle, folder: Path) -> None:
        self.output = folder / "output"
        self._cradle = cradle
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        python = COMMANDS / "python"
        self.pid = cradle.run([python, "-m", f"tools.{name}"], env=env, output=self.output)

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def site_folder(self) -> Path:
        """The folder of the site, as the running supervisor was given it."""
        found: list[str] = []

        def seen() -> bool:
            titles = "\n".join(one.title for one in self._cradle.living())
            found[:] = re.findall(r"nginx-supervisor run --config (\S+)/supervisor\.toml", titles)
            return bool(found) or self._cradle.status(self.pid) is not None

        until("a supervisor", seen, LIMIT, poll=0.02)
        assert found, self.text()
        return Path(found[0])

    def assert_ends(self, status: int, site: Path) -> None:
        """It exits so, with no process and no folder left."""
        assert self._cradle.wait(self.pid, LIMIT) == status, self.text()
        left = [str(one) for one in self._cradle.living()]
        assert left == [], self.text()
        assert not site.exists()


def test_the_demo_tells_its_story(cradle: Cradle, tmp_path: Path) -> None:
    demo = Tool("demo", cradle, tmp_path)
    demo.assert_ends(0, demo.site_folder())
    story = re.findall(r"(COMMITTED|ROLLED BACK): (\w+)", demo.text())
    assert story == [
        ("COMMITTED", "healthy"),
        ("ROLLED BACK", "probe_failed"),
        ("ROLLED BACK", "candidate_exited"),
        ("ROLLED BACK", "worker_died"),
        ("ROLLED BACK", "start_timeout"),
    ]
    assert "All as told" in demo.text()


def test_the_sample_can_be_tried_as_its_hints_say(cradle: Cradle, tmp_path: Path) -> None:
    sample = Tool("sample", cradle, tmp_path)
    site = sample.site_folder()
    until("the hints", lambda: "Ctrl-C here ends it all." in sample.text())
    hints = sample.text()
    socket = re.search(r"^  export NGINXCTL_SOCKET=(\S+)$", hints, re.M)
    nginxctl = re.search(r"^  alias nginxctl=(\S+)$", hints, re.M)
    curl = re.search(r"^  curl -i (\S+)$", hints, re.M)
    assert socket is not None
    assert nginxctl is not None
    assert curl is not None
    offered = re.findall(r"^  nginxctl upgrade (?:--hold )?(/\S+)", hints, re.M)
    assert len(offered) == 2 + len(BAD)
    assert all(os.access(path, os.X_OK) for path in offered)

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [nginxctl[1], *arguments],
            env={**os.environ, "NGINXCTL_SOCKET": socket[1]},
            capture_output=True,
            text=True,
            timeout=20,
        )

    assert "  nginxctl status\n" in hints

    def is_running() -> bool:
        answer = ask("--json", "status")  # none is given before the socket is there
        return answer.returncode == 0 and json.loads(answer.stdout)["state"] == "running"

    until("nginx running", is_running, LIMIT, poll=0.1)
    assert builds()[0].version in ask("status").stdout
    with urllib.request.urlopen(curl[1], timeout=20) as answer:
        assert answer.read().decode() == f"{builds()[0]}\n"

    def who() -> tuple[int, int]:
        told = json.loads(ask("--json", "status").stdout)
        return told["supervisor_pid"], told["generations"][0]["master_pid"]

    pid_file = re.search(r"^  kill -9 \$\(cat (\S+)\)$", hints, re.M)
    assert pid_file is not None
    killed, master = who()
    assert int(Path(pid_file[1]).read_text()) == killed
    os.kill(killed, signal.SIGKILL)
    # Written in place: there is a moment in which it is empty.
    until("another supervisor", lambda: Path(pid_file[1]).read_text() not in ("", f"{killed}\n"))
    until("nginx running", is_running, LIMIT, poll=0.1)
    assert who() == (int(Path(pid_file[1]).read_text()), master)
    assert "nginx serves on" in sample.text()

    # A terminal sends it to the whole foreground group, the supervisor included.
    os.killpg(sample.pid, signal.SIGINT)
    sample.assert_ends(0, site)
