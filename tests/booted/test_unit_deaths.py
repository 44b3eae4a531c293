"""Who dies under systemd, and that nginx serves on: each of the unit's options that see to it."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.booted import site
from tests.booted.box import Box
from tests.booted.manager import (
    drop_in,
    get,
    wait_for,
    wait_for_journal,
    wait_until_up_again,
)

CGROUP = "/sys/fs/cgroup/system.slice/nginx-supervisor.service"


def restarts(box: Box) -> int:
    return int(box.show(site.UNIT, "NRestarts")["NRestarts"])


def test_a_killed_supervisor_is_followed_by_one_that_adopts_nginx(trixie: Box) -> None:
    """KillMode=process, Restart=always."""
    site.configure(trixie)
    site.start(trixie)
    supervisor, master = site.main_pid(trixie), site.master_pid(trixie)
    with trixie.quick_load(rate=200.0) as load:
        for _ in range(3):
            trixie.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)
            supervisor = wait_until_up_again(trixie, supervisor)
            assert site.master_pid(trixie) == master
        load.stop()
    assert not load.total.failed
    assert load.total.ok > 0
    assert restarts(trixie) == 3


def test_a_stuck_supervisor_is_replaced_and_nginx_serves_on(bookworm: Box) -> None:
    """WatchdogSec=, WatchdogSignal=SIGABRT: its last words say where it was stuck."""
    site.configure(bookworm)
    drop_in(bookworm, "WatchdogSec=3s")
    site.start(bookworm)
    supervisor, master = site.main_pid(bookworm), site.master_pid(bookworm)
    with bookworm.quick_load(rate=200.0) as load:
        bookworm.run("kill", "-STOP", str(supervisor))
        wait_until_up_again(bookworm, supervisor)
        assert site.master_pid(bookworm) == master
        load.stop()
    assert not load.total.failed
    assert load.total.ok > 0
    assert "Failed with result 'watchdog'" in bookworm.journal("-u", site.UNIT)
    wait_for_journal(bookworm, "Fatal Python error: Aborted")


def test_a_supervisor_that_was_replaced_goes_on_giving_signs_of_life(bookworm: Box) -> None:
    """WATCHDOG_USEC, here without WATCHDOG_PID, goes along when the supervisor replaces itself."""
    site.configure(bookworm)
    command = "/usr/sbin/nginx-supervisor run --config /etc/nginx-supervisor/nginx-supervisor.toml"
    drop_in(
        bookworm,
        f"WatchdogSec=6s\nExecStart=\nExecStart=/usr/bin/env -u WATCHDOG_PID {command}",
    )
    site.start(bookworm)
    supervisor = site.main_pid(bookworm)
    bookworm.run("nginxctl", "self-upgrade")

    def signs() -> int:
        shown = bookworm.show(site.UNIT, "WatchdogTimestampMonotonic")
        return int(shown["WatchdogTimestampMonotonic"])

    for _ in range(3):  # as systemd sees it; a supervisor that knew of no watchdog would give none
        last = signs()
        wait_for("a sign of life", lambda last=last: signs() > last)  # type: ignore[misc]
    assert site.main_pid(bookworm) == supervisor


def test_a_supervisor_that_is_killed_for_its_memory_is_no_reason_to_stop(box: Box) -> None:
    """OOMPolicy=continue: with `stop` systemd would end whatever else the unit has.

    It looks at what systemd-oomd marks as soon as the main process has died. What a kernel without
    memory tells of a worker (memory.events) is not shown, as that controller is not everywhere; it
    is the same decision in systemd (service_notify_cgroup_oom_event).
    """
    site.configure(box)
    site.start(box)
    supervisor, master = site.main_pid(box), site.master_pid(box)
    os.setxattr(box.path(CGROUP), "user.oomd_ooms", b"1")
    box.run("kill", "-KILL", str(supervisor))
    wait_until_up_again(box, supervisor)
    wait_for_journal(box, "Failed with result 'signal'")  # and not 'oom-kill'
    assert site.master_pid(box) == master
    assert get(box, "80") == "ok\n"


@pytest.mark.parametrize("folder", ["/run/nginx-supervisor", "/tmp"])
def test_what_nginx_has_there_outlasts_the_supervisor(bookworm: Box, folder: str) -> None:
    """RuntimeDirectoryPreserve=yes, and no PrivateTmp=."""
    place = f"{folder}/nginx.sock"
    site.configure(bookworm, server=f"listen unix:{place};")
    site.start(bookworm)
    assert get(bookworm, place) == "ok\n"
    supervisor, master = site.main_pid(bookworm), site.master_pid(bookworm)
    bookworm.run("kill", "-KILL", str(supervisor))
    wait_until_up_again(bookworm, supervisor)
    assert site.master_pid(bookworm) == master
    assert get(bookworm, place) == "ok\n"
    # The supervisor means the same file as the nginx that it has adopted.
    mine, its = (
        os.stat(bookworm.path(f"/proc/{pid}/root{place}"))
        for pid in (site.main_pid(bookworm), master)
    )
    assert (mine.st_dev, mine.st_ino) == (its.st_dev, its.st_ino)


# Holds a process so that no SIGCONT wakes it, as systemd sends one along with its signals.
_HOLD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ATTACH = 16
if libc.ptrace(ATTACH, int(sys.argv[1]), 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "ptrace")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_supervisor_that_cannot_stop_in_time_leaves_nginx_to_the_next_one(
    bookworm: Box,
) -> None:
    site.configure(bookworm)
    drop_in(bookworm, "TimeoutStopSec=1s")
    site.start(bookworm)
    supervisor, master = site.main_pid(bookworm), site.master_pid(bookworm)
    with bookworm.popen(
        "python3", "-c", _HOLD, str(supervisor), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "held\n"
        bookworm.run("systemctl", "stop", site.UNIT)
        tracer.kill()
    shown = bookworm.show(site.UNIT, "ActiveState", "Result")
    assert shown == {"ActiveState": "failed", "Result": "timeout"}
    assert get(bookworm, "80") == "ok\n"
    site.start(bookworm)
    assert site.master_pid(bookworm) == master


def test_the_doctor_names_what_would_take_nginx_along(bookworm: Box) -> None:
    site.configure(bookworm)
    site.start(bookworm)
    harmless = bookworm.run("nginxctl", "doctor", check=False).stdout
    drop_in(bookworm, "KillMode=mixed\nOOMPolicy=stop\nRuntimeDirectoryPreserve=no\nPrivateTmp=yes")
    told = bookworm.run("nginxctl", "doctor", check=False).stdout
    for advice in (
        "KillMode=process", "OOMPolicy=continue", "RuntimeDirectoryPreserve=yes", "PrivateTmp=no",
    ):  # fmt: skip
        assert advice in told
        assert advice not in harmless
