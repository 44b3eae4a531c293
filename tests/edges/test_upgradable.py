"""What shows of a master before USR2 is sent, and what then comes of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.edges import procfs
from supervisor.edges.pidfile import ProcessIdentity
from supervisor.edges.upgradable import objection
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import Cradle
from tests.edges.running_nginx import RunningNginx
from tools.nginx_builds import builds


@pytest.fixture
def cradle() -> Iterator[Cradle]:
    with Cradle() as made:
        yield made


@pytest.fixture
def nginx(tmp_path: Path) -> RunningNginx:
    """Not started yet: each test does that in its own way, and the cradle ends it."""
    return RunningNginx(tmp_path, builds()[0])


def begin(
    cradle: Cradle, nginx: RunningNginx, *argv: str | Path, cwd: str | Path = "/", path: str = ""
) -> None:
    """Run what starts nginx, in a session of its own; returns when its workers are up."""
    script = ["/bin/sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", cwd, *argv]
    environment = {"PATH": path or os.environ["PATH"]}
    cradle.run(script, env=environment, output=nginx.folder / "output")

    def up() -> bool:
        text = nginx.pid_path.read_text() if nginx.pid_path.exists() else ""
        stat = procfs.read_stat(int(text)) if text.strip() else None
        if stat is None:
            return False
        nginx.identity = ProcessIdentity(stat.pid, stat.start)
        return len(nginx.workers()) == 2

    until("workers", up)


def told(nginx: RunningNginx) -> tuple[str, str]:
    found = objection(nginx.identity.pid, nginx.binary)
    return ("", "") if found is None else (found.reason, found.detail)


def obeys_usr2(nginx: RunningNginx) -> bool:
    """What nginx really makes of the signal, by its own words."""
    os.kill(nginx.identity.pid, signal.SIGUSR2)
    log = nginx.folder / "logs" / "error.log"
    until("a word about it", lambda: "SIGUSR2) received" in log.read_text())
    return "SIGUSR2) received from" in log.read_text() and "ignoring" not in log.read_text()


def test_a_daemon(cradle: Cradle, nginx: RunningNginx) -> None:
    begin(cradle, nginx, nginx.binary, *nginx.arguments)
    assert told(nginx) == ("", "")
    os.kill(nginx.identity.pid, signal.SIGSTOP)
    until("it is stopped", lambda: "is stopped" in told(nginx)[1])
    os.kill(nginx.identity.pid, signal.SIGCONT)
    until("it runs", lambda: told(nginx) == ("", ""))


@pytest.mark.parametrize("how", ["setsid", "sh"])
def test_in_the_foreground_under_whoever_started_it(
    cradle: Cradle, nginx: RunningNginx, how: str
) -> None:
    """As a service manager runs it, in a session of its own, and as a script does."""
    nginx.configure(main="daemon off;")
    wrapper = [] if how == "setsid" else ["/bin/sh", "-c", '"$@" & wait', "sh"]
    begin(cradle, nginx, *wrapper, nginx.binary, *nginx.arguments)
    reason, detail = told(nginx)
    assert reason == "usr2_would_be_refused"
    parent = procfs.read_stat(nginx.identity.pid)
    assert parent is not None
    assert f"as long as its parent {parent.parent} (" in detail
    assert "nginxctl adopt --take-over" in detail
    assert not obeys_usr2(nginx)
    if how == "sh":
        os.kill(parent.parent, signal.SIGKILL)
        until("it has another parent", lambda: told(nginx) == ("", ""))


def test_a_name_that_was_found_in_path(cradle: Cradle, nginx: RunningNginx) -> None:
    shell = ("/bin/sh", "-c", 'nginx "$@"', "sh")
    begin(cradle, nginx, *shell, *nginx.arguments, path=str(nginx.binary.parent))
    reason, detail = told(nginx)
    assert reason == "executes_another_file"
    assert (
        f"`nginx`: USR2 would have it execute /nginx, which does not exist, and not {nginx.binary}"
        in detail
    )


@pytest.mark.parametrize("argv0", ["sbin/nginx", "link", "../{name}/sbin/nginx"])
def test_another_spelling_of_the_same_place(
    cradle: Cradle, nginx: RunningNginx, argv0: str
) -> None:
    (nginx.folder / "link").symlink_to("sbin/nginx")
    path = argv0.format(name=nginx.folder.name)
    begin(
        cradle, nginx, "/bin/sh", "-c", f'./{path} "$@"', "sh", *nginx.arguments, cwd=nginx.folder
    )
    assert told(nginx) == ("", "")


def test_a_link_that_is_replaced(cradle: Cradle, nginx: RunningNginx) -> None:
    """It was started by the file that a link leads to: a new target changes nothing for it."""
    nginx.binary.rename(nginx.folder / "nginx-1")
    nginx.binary.symlink_to(nginx.folder / "nginx-1")
    begin(cradle, nginx, nginx.folder / "nginx-1", *nginx.arguments)
    assert told(nginx)[0] == "executes_another_file"


def test_processes_that_are_no_masters() -> None:
    gone = objection(2**22 + 1, Path("/bin/true"))
    assert gone is not None
    assert "is gone" in gone.detail
    with subprocess.Popen(["sleep", "60"]) as other:
        found = objection(other.pid, Path("/bin/true"))
        assert found is not None
        assert "no handler" in found.detail
        other.kill()
