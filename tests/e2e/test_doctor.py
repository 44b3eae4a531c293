"""`nginxctl doctor` on real sites: what it sees, what it says to add, and that this then helps."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.e2e.harness import site, supervised
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Options
from tests.e2e.harness.supervised import COMMANDS, Supervised
from tests.e2e.test_evidence import elsewhere, owned, until_up
from tests.e2e.test_unprivileged import as_nobody
from tools.nginx_cache import Build

WAYS = ("private_listener", "response_header", "socket_owner")


def doctor(nginx: Supervised, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by name."""
    answer = nginx.ctl("doctor")
    assert answer.code == code, answer
    assert answer.last["ok"] is (code == 0)
    assert len(answer.lines) == 1
    return {one["name"]: one for one in answer.last["findings"]}


def levels(found: dict[str, dict[str, Any]]) -> list[str]:
    return [found[way]["level"] for way in WAYS]


def test_what_it_says_to_add_is_what_was_missing(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        settings = {"probe_listener": elsewhere(one), "upgrade": {"soak": "20s"}}
        with owned(one, **settings) as nginx:
            found = doctor(nginx)
            assert levels(found) == ["warn", "warn", "ok"]
            assert found["probe health"]["level"] == "note"
            assert found["upgradable"]["level"] == found["pid_file"]["level"] == "ok"
            listener = found["private_listener"]
            assert f"{one.config}:" in listener["advice"]
            assert "(site.test)" in listener["advice"]
            # The site sends a header with $pid already.
            assert found["response_header"]["lines"] == ['pid_header = "X-Pid"']
            one.configure(Options(server="\n".join(listener["lines"])))
            assert nginx.ctl("reload").code == 0
            found = doctor(nginx)
            assert levels(found) == ["ok", "note", "ok"]
            assert found["probe health"]["level"] == "ok"
            # In an upgrade nginx is not asked: between two masters that would do harm.
            asked = nginx.begin("upgrade", newest.path)
            nginx.until_phase("soaking")
            found = doctor(nginx)
            assert "busy" in found["configuration"]["seen"]
            assert "private_listener" not in found
            assert nginx.ctl("promote").code == 0
            done = nginx.end(asked)
            assert done.last["canary_observed"] is True


def test_a_site_with_a_header(newest: Build) -> None:
    with site.make(newest) as one, owned(one, probe=[probe(one, pid_header="X-Pid")]) as nginx:
        assert levels(doctor(nginx)) == ["ok", "ok", "ok"]
        told = subprocess.run(
            [COMMANDS / "nginxctl", "--socket", nginx.socket, "doctor"],
            capture_output=True, text=True, check=True, env={"COLUMNS": "80"},
        )  # fmt: skip
        lines = told.stdout.splitlines()
        assert "how a candidate would be judged" in lines
        # Only what cannot be broken is wider: the paths of this site.
        assert all(len(line) <= 80 or str(one.folder) in line for line in lines)


def test_problems(newest: Build) -> None:
    with site.make(newest) as one, supervised.running(one) as nginx:
        until_up(nginx)
        pid = one.pid_path.read_text()
        one.pid_path.write_text("1\n")
        found = doctor(nginx, code=1)
        assert found["pid_file"]["level"] == "problem"
        assert pid.strip() in found["pid_file"]["advice"]
        assert one.pid_path.read_text() == "1\n"  # it changes nothing
        one.pid_path.write_text(pid)
        one.configure(Options(server="no_such_directive;"))
        found = doctor(nginx, code=1)
        assert found["configuration"]["level"] == "problem"
        assert "no_such_directive" in found["configuration"]["seen"]
        one.configure(Options(main="worker_rlimit_nofile 100;"))
        assert nginx.ctl("reload").code == 0
        assert doctor(nginx)["files"]["level"] == "warn"
        nginx.ctl("stop")
        found = doctor(nginx, code=1)
        assert found["running"]["level"] == "problem"
        assert found["configuration"]["level"] == "ok"
        assert not one.pid_path.exists()  # what nginx's own test leaves is gone
        nginx.ctl("start")


def test_as_nobody_special(newest: Build) -> None:
    with as_nobody(newest) as nginx:
        until_up(nginx)
        assert levels(doctor(nginx)) == ["ok", "note", "ok"]
