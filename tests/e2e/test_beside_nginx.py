"""An nginx that was started by a script, beside other processes, and one that somebody stops."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.e2e.harness import checks, processes, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_cache import Build

SCRIPT = """\
"$@" -g 'daemon off;' &
( while :; do sleep 1; done ) &
echo $! > "$PID_OF_SUBSHELL"
wait
"""


def told(nginx: Supervised, event: str) -> list[dict[str, Any]]:
    return [line for line in nginx.log() if line["event"] == event]


def test_a_subshell_of_the_script_that_started_nginx_is_left_alone(oldest: Build) -> None:
    """It is in nginx's session and has not exec'd, as a worker; nothing of ours ever signals it."""
    with site.make(oldest) as one, supervised.on(one) as nginx:
        noted = one.folder / "subshell"
        argv = ["/bin/sh", "-c", SCRIPT, "sh", *one.argv]
        env = {**os.environ, "PID_OF_SUBSHELL": str(noted)}
        shell = nginx.cradle.run(argv, env=env, output=one.folder / "script.log")
        until("it serves", lambda: checks.answers(one.plan(), oldest.version), poll=0.05)
        subshell = int(noted.read_text())
        nginx.start()
        master = nginx.masters()[0].pid
        os.kill(master, signal.SIGKILL)
        until("another master", lambda: {seen.pid for seen in nginx.masters()} - {master})
        nginx.until_state("running")
        (generation,) = nginx.status()["generations"]
        assert subshell not in [worker["pid"] for worker in generation["workers"]]
        assert nginx.ctl("stop").code == 0
        assert nginx.nginx() == []
        assert processes.look(subshell) is not None
        assert nginx.stop() == 0
        for pid in (shell, subshell):
            os.kill(pid, signal.SIGKILL)
        until("all gone", lambda: not nginx.cradle.living())


def test_a_stopped_master_is_reported_and_serves_on(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        master = nginx.masters()[0].pid
        os.kill(master, signal.SIGSTOP)
        until("reported", lambda: told(nginx, "generation.master_stopped"), poll=0.05)
        checks.assert_serves(nginx, oldest)
        os.kill(master, signal.SIGCONT)
        until("it goes on", lambda: told(nginx, "generation.master_continued"), poll=0.05)
        assert len(told(nginx, "generation.master_stopped")) == 1
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
