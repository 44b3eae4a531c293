"""The unit: what systemd is told, and what it does about a start, a reload and a stop."""

from __future__ import annotations

import errno
import json
import subprocess

import pytest

from tests.booted import site
from tests.booted.box import Binding, Box
from tests.booted.conftest import BootBox
from tests.booted.manager import (
    drop_in,
    get,
    heard,
    shipped_drop_in,
    wait_for,
    wait_for_journal,
    wait_for_state,
    wait_until_up_again,
    write_all_down,
)
from tools.nginx_builds import builds
from tools.nginx_cache import cache_folder
from tools.nginx_candidates import candidate

BINARY = "/usr/local/sbin/nginx"
UNITS = (
    site.UNIT, "nginx-supervisor@one.service", "nginx-supervisor-unprivileged@www-data.service",
)  # fmt: skip


def copy_binary(box: Box) -> None:
    """The binary is a file of the box, so that an upgrade can put another in its place."""
    box.run("install", str(builds()[-2].path), BINARY)


def test_systemd_finds_no_fault_in_the_units(box: Box) -> None:
    """There is no `man` in a box to look for the pages with."""
    for unit in UNITS:
        done = box.run("systemd-analyze", "verify", "--man=no", unit)
        assert (done.stdout, done.stderr) == ("", ""), unit


@pytest.mark.parametrize("name", ["notify-reload.conf", "restart-steps.conf"])
def test_systemd_finds_no_fault_in_the_drop_ins_for_newer_ones(trixie: Box, name: str) -> None:
    shipped_drop_in(trixie, name)
    done = trixie.run("systemd-analyze", "verify", "--man=no", site.UNIT)
    assert (done.stdout, done.stderr) == ("", "")


def test_status_follows_an_upgrade_and_a_rollback(box: Box) -> None:
    copy_binary(box)
    old, new = builds()[-2].version, builds()[-1].version
    site.configure(box, binary=BINARY)
    write_all_down(box)
    site.start(box)
    supervisor = site.main_pid(box)
    box.run("nginxctl", "upgrade", "--hold", "--no-wait", str(builds()[-1].path))
    both = f"g1 nginx {old} -> g2 nginx {new}"
    held = f"upgrading: {both} (held)"
    wait_for("held", lambda: box.show(site.UNIT, "StatusText")["StatusText"].startswith(held))
    assert held in box.run("systemctl", "status", site.UNIT).stdout
    box.run("nginxctl", "rollback", check=False)
    box.run("nginxctl", "upgrade", str(builds()[-1].path))
    told = [one.removeprefix("STATUS=") for one in heard(box) if one.startswith("STATUS=")]
    phases = ("spawning", "canary", "shifting", "soaking", "held")
    assert told[0] == "starting: (starting)"
    assert told[1] == f"upgrading: g1 nginx {old} (preflight)"
    assert told[2:7] == [f"upgrading: {both} ({phase})" for phase in phases]
    back = f"upgrading: g1 nginx {old} <- g2 nginx {new} (rolling_back); operator"
    assert told[7:9] == [back, f"running: g1 nginx {old} (idle)"]
    both = f"g1 nginx {old} -> g3 nginx {new}"
    phases = ("spawning", "canary", "shifting", "soaking", "committing")
    assert told[10:15] == [f"upgrading: {both} ({phase})" for phase in phases]
    drains = f"g3 nginx {new}, connections of g1 nginx {old} finish"
    assert told[15] == f"draining: {drains} (draining)"
    # The same process all the time, and no other has been named as the main one.
    assert site.main_pid(box) == supervisor
    assert not any("MAINPID" in one for one in heard(box))


def test_ready_is_said_when_nginx_serves(bookworm: Box) -> None:
    site.configure(bookworm)
    write_all_down(bookworm)
    site.start(bookworm)
    assert get(bookworm, "80") == "ok\n"
    said = heard(bookworm)
    assert any("WATCHDOG=1" in one for one in said)  # WatchdogSec=
    ready = [one for one in said if "READY=1" in one]
    assert len(ready) == 1
    assert ready[0].startswith("READY=1, STATUS=running: g1 nginx 1.22.1 (idle)")


def test_a_start_that_takes_longer_than_the_time_out(boot_box: BootBox) -> None:
    """EXTEND_TIMEOUT_USEC: how long nginx may take is for our own configuration to say."""
    slow = candidate(builds()[-1], "slow_start", delay_ms=4000, always=1)
    library = cache_folder() / "candidates" / "lib"
    bookworm = boot_box("bookworm", Binding(library, str(library)))
    bookworm.path(BINARY).parent.mkdir(parents=True, exist_ok=True)
    bookworm.path(BINARY).write_bytes(slow.read_bytes())
    bookworm.path(BINARY).chmod(0o755)
    site.configure(bookworm, binary=BINARY)
    drop_in(bookworm, "TimeoutStartSec=2s")
    site.start(bookworm)
    assert get(bookworm, "80") == "ok\n"
    assert bookworm.show(site.UNIT, "NRestarts") == {"NRestarts": "0"}


def test_a_start_that_fails_says_what_is_wrong(bookworm: Box) -> None:
    site.configure(bookworm, server="no_such_directive 1;")
    drop_in(bookworm, "Restart=no")
    assert bookworm.run("systemctl", "start", site.UNIT, check=False).returncode == 1
    shown = bookworm.show(site.UNIT, "StatusText", "StatusErrno", "Result", "ExecMainStatus")
    assert "no_such_directive" in shown.pop("StatusText")
    assert int(shown.pop("StatusErrno")) == errno.ECANCELED
    assert shown == {"Result": "exit-code", "ExecMainStatus": "1"}


def test_an_address_that_is_somebody_elses_is_named(bookworm: Box) -> None:
    site.configure(bookworm)
    drop_in(bookworm, "Restart=no")
    holder = bookworm.popen(
        "python3", "-c",
        "import socket, sys, time; s = socket.socket(); s.bind(('0.0.0.0', 80)); s.listen();"
        "print('bound', flush=True); time.sleep(600)",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "bound\n"
    assert bookworm.run("systemctl", "start", site.UNIT, check=False).returncode == 1
    shown = bookworm.show(site.UNIT, "StatusText", "StatusErrno")
    assert int(shown["StatusErrno"]) == errno.EADDRINUSE
    assert "0.0.0.0:80" in shown["StatusText"]
    with holder:
        holder.kill()


def test_a_wrong_configuration_is_not_tried_again(bookworm: Box) -> None:
    """RestartPreventExitStatus=2."""
    site.configure(bookworm, settings="[nonsense]\n")
    assert bookworm.run("systemctl", "start", site.UNIT, check=False).returncode == 1
    wait_for_state(bookworm, "failed")
    shown = bookworm.show(site.UNIT, "NRestarts", "ExecMainStatus", "StatusErrno", "StatusText")
    assert "nonsense" in shown.pop("StatusText")
    assert shown == {"NRestarts": "0", "ExecMainStatus": "2", "StatusErrno": str(errno.EINVAL)}


def test_a_supervisor_that_somebody_else_ends_comes_back(bookworm: Box) -> None:
    """As whatever frees memory does, which sends SIGTERM before SIGKILL: nginx is needed still."""
    site.configure(bookworm)
    site.start(bookworm)
    before = site.main_pid(bookworm)
    bookworm.run("kill", "-TERM", str(before))
    wait_until_up_again(bookworm, before)
    assert get(bookworm, "80") == "ok\n"


def test_a_reload_is_told_with_its_outcome(box: Box) -> None:
    site.configure(box)
    good = box.path(site.CONFIG).read_text()
    write_all_down(box)
    site.start(box)
    box.write(site.CONFIG, good + "\n[nonsense]\n")
    box.run("systemctl", "reload", site.UNIT)
    rejected = "the configuration on disk is rejected: "
    wait_for_journal(box, "settings.rejected")
    wait_for("its word", lambda: rejected in box.show(site.UNIT, "StatusText")["StatusText"])
    assert box.show(site.UNIT, "StatusErrno") == {"StatusErrno": str(errno.EINVAL)}
    assert get(box, "80") == "ok\n"
    box.write(site.CONFIG, good.replace("100ms", "200ms"))
    box.run("systemctl", "reload", site.UNIT)
    wait_for_journal(box, "settings.changed")
    wait_for("all well", lambda: box.show(site.UNIT, "StatusErrno")["StatusErrno"] == "0")
    assert rejected not in box.show(site.UNIT, "StatusText")["StatusText"]
    around = [one for one in heard(box) if "RELOADING=1" in one or "READY=1" in one][1:]
    assert [one.partition(",")[0] for one in around] == ["RELOADING=1", "READY=1"] * 2
    assert all("MONOTONIC_USEC=" in one for one in around[::2])


def test_a_reload_that_is_waited_for(trixie: Box) -> None:
    """Type=notify-reload: when `systemctl reload` returns, it is done."""
    shipped_drop_in(trixie, "notify-reload.conf")
    site.configure(trixie)
    site.start(trixie)
    text = trixie.path(site.CONFIG).read_text()
    for wrong in (True, False) * 3:
        trixie.write(site.CONFIG, text + "[nonsense]\n" * wrong)
        trixie.run("systemctl", "reload", site.UNIT)
        shown = trixie.show(site.UNIT, "StatusErrno", "ActiveState")
        expected = errno.EINVAL if wrong else 0
        assert shown == {"StatusErrno": str(expected), "ActiveState": "active"}
    # What replaces the supervisor is a reload for systemd as well.
    trixie.run("nginxctl", "self-upgrade")
    wait_for_state(trixie, "active")


SLOW = """
root /var/www/html;
location /slow { limit_rate 64k; }
"""


def test_a_stop_lets_clients_finish_however_short_the_time_out(bookworm: Box) -> None:
    """SIGTERM to the supervisor alone, and EXTEND_TIMEOUT_USEC while it waits for nginx."""
    site.configure(bookworm, server=SLOW)
    bookworm.write("/var/www/html/slow", "x" * 400_000)
    drop_in(bookworm, "TimeoutStopSec=2s")
    write_all_down(bookworm)
    site.start(bookworm)
    client = bookworm.popen("python3", "-c", _DOWNLOAD, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"
    bookworm.run("systemctl", "stop", site.UNIT)
    with client:
        assert client.stdout.read() == "400000\n"
    shown = bookworm.show(site.UNIT, "Result", "ActiveState", "ControlGroup")
    assert (shown["Result"], shown["ActiveState"]) == ("success", "inactive")
    assert get(bookworm, "80") == ""
    said = [one for one in heard(bookworm) if "STOPPING=1" in one]
    assert said == ["STOPPING=1, STATUS=draining: g1 nginx 1.22.1 (stopping)"]


_DOWNLOAD = """
import socket
client = socket.create_connection(("127.0.0.1", 80))
client.sendall(b"GET /slow HTTP/1.0\\r\\n\\r\\n")
answer = client.recv(1000)
print("begun", flush=True)
while part := client.recv(65536):
    answer += part
print(len(answer.partition(b"\\r\\n\\r\\n")[2]), flush=True)
"""


def test_instances_are_apart(trixie: Box) -> None:
    for name, port in (("one", 8001), ("two", 8002)):
        trixie.write(
            f"/etc/nginx-{name}.conf",
            f"pid /run/nginx-{name}.pid;\nerror_log /var/log/nginx/{name}.log;\nevents {{}}\n"
            f"http {{ access_log off; server {{ listen {port};"
            f' location / {{ return 200 "{name}\\n"; }} }} }}\n',
        )
        trixie.write(
            f"/etc/nginx-supervisor/{name}.toml",
            f'[nginx]\nbinary = "/usr/sbin/nginx"\nconfig = "/etc/nginx-{name}.conf"\n'
            f'[control]\nsocket = "/run/nginx-supervisor-{name}/control.sock"\n'
            f'[state]\ndirectory = "/var/lib/nginx-supervisor-{name}"\n'
            f'[probe_listener]\ninclude_file = "/run/nginx-supervisor-{name}/probe.conf"\n',
        )
        site.start(trixie, f"nginx-supervisor@{name}.service")
    one, two = "nginx-supervisor@one.service", "nginx-supervisor@two.service"
    before = site.main_pid(trixie, one)
    trixie.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", one)
    wait_until_up_again(trixie, before, unit=one)
    assert (get(trixie, "8001"), get(trixie, "8002")) == ("one\n", "two\n")
    trixie.run("systemctl", "stop", two)
    assert (get(trixie, "8001"), get(trixie, "8002")) == ("one\n", "")
    socket = "/run/nginx-supervisor-one/control.sock"
    told = json.loads(trixie.run("nginxctl", "--socket", socket, "--json", "status").stdout)
    assert told["state"] == "running"


@pytest.mark.parametrize("suite", ["bookworm"])
def test_a_unit_of_another_type_is_named(boot_box: BootBox, suite: str) -> None:
    box = boot_box(suite)
    site.configure(box)
    # With a descriptor store systemd listens whatever the type is.
    drop_in(box, "Type=simple\nNotifyAccess=none\nWatchdogSec=0\nFileDescriptorStoreMax=0")
    box.run("systemctl", "start", site.UNIT)
    wait_for_journal(box, "service_manager.not_listening")
    wait_for("nginx serves", lambda: get(box, "80") == "ok\n")
    box.run("systemctl", "stop", site.UNIT)
    assert get(box, "80") == ""


@pytest.mark.parametrize(
    ("directory", "named", "status"),
    [
        ("/run", "/run/nginx.pid", 1),
        ("/run/nginx-supervisor", "/run/nginx-supervisor/control.sock", 2),
    ],
)
def test_a_run_directory_that_is_read_only(
    bookworm: Box, directory: str, named: str, status: int
) -> None:
    site.configure(bookworm)
    drop_in(bookworm, f"Restart=no\nReadOnlyPaths={directory}")
    assert bookworm.run("systemctl", "start", site.UNIT, check=False).returncode == 1
    shown = bookworm.show(site.UNIT, "StatusText", "StatusErrno", "ExecMainStatus")
    assert named in shown["StatusText"]
    assert int(shown["StatusErrno"]) == errno.EROFS
    assert shown["ExecMainStatus"] == str(status)
    assert get(bookworm, "80") == ""
