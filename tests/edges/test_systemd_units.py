"""Asking systemd about units; where it is the service manager, tests/booted does so."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import trio

from supervisor.core.unit_file import UnitSeen
from supervisor.edges import asking, cgroup, systemd_units

SYSTEMCTL = """\
#!/bin/sh
case "$*" in
    "--no-pager show some.service") echo LoadState=loaded; echo Nice=5 ;;
    "--no-pager cat some.service") echo "# /x.service" ;;
    "--no-pager show slow.service") exec sleep 60 ;;
    *) echo LoadState=not-found; exit 1 ;;
esac
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    monkeypatch.setattr(asking, "ENVIRONMENT", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})


@pytest.mark.usefixtures("systemctl")
def test_a_unit_that_is_loaded_and_one_that_is_not() -> None:
    seen = trio.run(systemd_units.unit_seen, "some.service")
    assert seen == UnitSeen(
        name="some.service",
        properties={"LoadState": "loaded", "Nice": "5"},
        text="# /x.service\n",
    )
    assert trio.run(systemd_units.unit_seen, "other.service") is None


@pytest.mark.usefixtures("systemctl")
def test_a_manager_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LIMIT", 0.05)
    assert trio.run(systemd_units.unit_seen, "slow.service") is None


def test_systemd_without_its_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(asking, "ENVIRONMENT", {"PATH": str(tmp_path)})
    assert trio.run(systemd_units.unit_seen, "some.service") is None


def test_a_scope_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda _pid: "session-1.scope")
    assert systemd_units.own_unit(1) == ""
    monkeypatch.setattr(cgroup, "unit_of", lambda _pid: "a.service")
    assert systemd_units.own_unit(1) == "a.service"


def test_limits_in_the_words_of_a_unit_file() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = systemd_units.limits_of(os.getpid())
    assert told["LimitNOFILE"] == (str(hard) if soft == hard else f"{soft}:{hard}")
    assert systemd_units.limits_of(2**22 + 1) == {}


def test_whether_systemd_manages_the_machine() -> None:
    assert systemd_units.is_booted() is Path("/run/systemd/system").is_dir()
