"""nginx-supervisor-unprivileged@USER.service: no process of it is root's, at any time."""

from __future__ import annotations

import json
import os

from tests.booted import hardened, site
from tests.booted.box import Box
from tests.e2e.harness.bare import until
from tools.nginx_builds import builds

USER = "web"
UNIT = f"nginx-supervisor-unprivileged@{USER}.service"
STATE = f"/var/lib/nginx-supervisor-{USER}"
RUN = f"/run/nginx-supervisor-{USER}"
LOGS = f"/var/log/nginx-supervisor-{USER}"
CACHE = f"/var/cache/nginx-supervisor-{USER}"
SOCKET = f"{RUN}/control.sock"
FORBIDDEN = {
    "NoNewPrivileges": "1", "CapabilityBoundingSet": "0000000000000000", "write /usr/lib": "EROFS",
    "write /etc": "EROFS", "write /usr/sbin": "EROFS", "write /etc/nginx": "EROFS",
    "write /srv": "EROFS", "write /var/log/nginx": "EROFS", "device": "ENOENT",
    "adjtimex": "EPERM", "make a cgroup": "EROFS", "hidepid": True, "personality": "EPERM",
    "executable memory": "forbidden", "a user namespace": "EPERM", "realtime": "EPERM",
    "AF_PACKET": "EAFNOSUPPORT", "io_uring_setup": "EPERM", "keyctl": "EPERM", "ptrace": "EPERM",
    "pidfd_getfd": "EPERM", "umask": "0077", "AF_NETLINK": "ok", "affinity": "ok",
}  # fmt: skip

_NGINX = """\
worker_processes 2;
worker_cpu_affinity auto;
worker_rlimit_nofile 4096;
pid {run}/nginx.pid;
error_log {logs}/error.log notice;
events {{ worker_connections 512; }}
http {{
    access_log {logs}/access.log;
    client_body_temp_path {cache}/body;
    proxy_temp_path {cache}/proxy;
    fastcgi_temp_path {cache}/fastcgi;
    server {{
        listen {port};
        include {run}/probe*.conf;
        location / {{ return 200 "ok\\n"; }}
    }}
}}
"""
_SETTINGS = """\
[nginx]
binary = "{state}/sbin/nginx"
config = "/etc/nginx/web.conf"
error_log = "{logs}/error.log"
[control]
socket = "{socket}"
[state]
directory = "{state}"
[probe_listener]
include_file = "{run}/probe.conf"
[upgrade]
canary = "0.5s"
soak = "0.5s"
[[probe]]
name = "home"
type = "http"
url = "http://127.0.0.1:{port}/"
interval = "100ms"
"""


def configure(box: Box, *, port: int = 8080) -> None:
    """A user, its nginx and its folders, as docs/hardening.md says; starts nothing."""
    box.run("useradd", "--system", "--no-create-home", USER)
    places = {"run": RUN, "logs": LOGS, "cache": CACHE, "state": STATE, "socket": SOCKET}
    box.write("/etc/nginx/web.conf", _NGINX.format(port=port, **places))
    box.write(f"/etc/nginx-supervisor/{USER}.toml", _SETTINGS.format(port=port, **places))
    box.run("install", "-d", "-o", USER, "-m", "0700", STATE)
    box.run("install", "-d", "-o", USER, "-m", "0755", f"{STATE}/sbin")
    box.run("install", "-o", USER, str(builds()[-2].path), f"{STATE}/sbin/nginx")
    box.run("install", "-D", str(builds()[-1].path), "/srv/nginx-new")


def ctl(box: Box, *command: str) -> tuple[str, str]:
    """Verdict and reason of one of nginxctl's commands by the user itself."""
    until("one generation", lambda: status(box)["state"] == "running")
    said = box.run(
        "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
        "nginxctl", "--socket", SOCKET, "--json", *command, check=False,
    ).stdout.splitlines()  # fmt: skip
    last = json.loads(said[-1])
    return last["verdict"], last["reason"]


def status(box: Box) -> dict[str, object]:
    told = json.loads(box.run("nginxctl", "--socket", SOCKET, "--json", "status").stdout)
    assert isinstance(told, dict)
    return told


def processes(box: Box) -> dict[str, set[str]]:
    """Of the unit: the user of each, by all four kinds of uid, and its capabilities."""
    cgroup = box.show(UNIT, "ControlGroup")["ControlGroup"]
    pids = box.run("cat", f"/sys/fs/cgroup{cgroup}/cgroup.procs").stdout.split()
    assert len(pids) >= 4  # the supervisor, a master and two workers
    texts = [box.path(f"/proc/{pid}/status").read_text().splitlines() for pid in pids]
    fields = [dict(line.split(":\t", 1) for line in one if ":\t" in line) for one in texts]
    return {
        "uids": {uid for one in fields for uid in one["Uid"].split()},
        "capabilities": {one[name] for one in fields for name in ("CapEff", "CapPrm")},
    }


BIND = f"{1 << 10:016x}"  # CAP_NET_BIND_SERVICE


def test_a_low_port_by_an_ambient_capability(bookworm: Box) -> None:
    configure(bookworm, port=80)
    assert bookworm.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert "bind() to 0.0.0.0:80 failed (13: Permission denied)" in bookworm.journal("-u", UNIT)
    hardened.use_drop_in(bookworm, "low-ports", unit=UNIT)
    bookworm.run("systemctl", "reset-failed", UNIT)
    site.start(bookworm, UNIT)
    assert processes(bookworm)["capabilities"] == {BIND}
    assert ctl(bookworm, "upgrade", "/srv/nginx-new") == ("committed", "healthy")
    assert status(bookworm)["held_listeners"]["available"]  # type: ignore[index]
    assert processes(bookworm)["capabilities"] == {BIND}
    assert hardened.fetch(bookworm, "http://127.0.0.1/") == "ok\n"


def main_pid(box: Box) -> int:
    return int(box.show(UNIT, "MainPID")["MainPID"])


def test_upgrade_rollback_and_adoption_without_root(box: Box) -> None:
    configure(box)
    hardened.try_inside(box, unit=UNIT, result=f"{STATE}/inside.json")
    site.start(box, UNIT)
    inside = hardened.tried(box, f"{STATE}/inside.json")
    assert {name: inside[name] for name in FORBIDDEN} == FORBIDDEN
    uid = box.run("id", "-u", USER).stdout.strip()
    assert processes(box) == {"uids": {uid}, "capabilities": {"0" * 16}}
    assert status(box)["held_listeners"]["available"]  # type: ignore[index]
    with box.quick_load(8080, rate=50.0) as load:
        assert ctl(box, "upgrade", "/srv/nginx-new") == ("committed", "healthy")
        supervisor = main_pid(box)
        box.run("kill", "-KILL", str(supervisor))
        until("the next supervisor", lambda: main_pid(box) not in (0, supervisor))
        until("it serves", lambda: box.show(UNIT, "ActiveState")["ActiveState"] == "active")
        assert status(box)["held_listeners"]["available"]  # type: ignore[index]
        assert ctl(box, "rollback") == ("committed", "healthy")
        assert ctl(box, "upgrade", "/srv/nginx-new") == ("committed", "healthy")
        assert processes(box) == {"uids": {uid}, "capabilities": {"0" * 16}}
        load.stop()
    assert not load.total.failed
    assert load.total.ok > 0
    box.run("systemctl", "stop", UNIT)
    owners = {os.lstat(path).st_uid for path in box.path(STATE).rglob("*")}
    assert owners <= {0, int(uid)}
