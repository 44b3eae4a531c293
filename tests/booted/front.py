"""nginx.service as a front of the supervisor, as docs/migration.md has it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.booted import site
from tests.booted.box import Box
from tests.e2e.harness.bare import until

NGINX = "nginx.service"
SHARE = "/usr/share/nginx-supervisor/systemd"
DROP_IN = f"{SHARE}/nginx.service.d/zz-nginx-supervisor.conf"
OWNER_DROP_IN = f"{SHARE}/nginx-supervisor.service.d/nginx-service-front.conf"
HOOK = f"{SHARE}/init-functions.d/50-nginx-supervisor"
OVERRIDE = "/etc/systemd/system/nginx.service.d/override.conf"


def put_in_place(box: Box) -> None:
    """What the migration puts onto the machine; nothing is started or stopped by it."""
    box.run("install", "-D", "-m", "0644", "-t", "/etc/systemd/system/nginx.service.d", DROP_IN)
    owner = f"/etc/systemd/system/{site.UNIT}.d"
    box.run("install", "-D", "-m", "0644", "-t", owner, OWNER_DROP_IN)
    box.run("install", "-D", "-m", "0644", "-t", "/usr/lib/lsb/init-functions.d", HOOK)
    box.run("systemctl", "daemon-reload")


def started(box: Box, **configured: str) -> None:
    """A site that serves, by `systemctl start nginx` alone."""
    site.configure(box, **configured)
    put_in_place(box)
    site.start(box, NGINX)


def is_active(box: Box, unit: str = NGINX) -> str:
    """The word that `systemctl is-active` prints."""
    return box.run("systemctl", "is-active", unit, check=False).stdout.strip()


_FORKED_ONLY = 0x40  # PF_FORKNOEXEC
_STATS = "for pid in $(pgrep -f '^nginx: master'); do cat /proc/$pid/stat 2>/dev/null; done; true"


def masters(box: Box) -> list[str]:
    """The pids of all masters in the box; a worker in its first moment has their title as well."""
    seen = {}
    for line in box.run("sh", "-c", _STATS).stdout.splitlines():
        pid = line.split()[0]
        rest = line.rpartition(")")[2].split()
        seen[pid] = (rest[1], bool(int(rest[6]) & _FORKED_ONLY))
    return [pid for pid, (parent, is_fork) in seen.items() if not (is_fork and parent in seen)]


def only_master(box: Box) -> str:
    """The one master, once it has its title: whoever starts nginx may be back before."""
    until("one master", lambda: len(masters(box)) == 1)
    return masters(box)[0]


def cgroup_of(box: Box, pid: int) -> str:
    """The unified one of a process that the box calls `pid`."""
    lines = box.run("cat", f"/proc/{pid}/cgroup").stdout.splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def history(box: Box) -> list[Mapping[str, str]]:
    """Upgrades and reloads, the latest last."""
    lines = box.run("nginxctl", "--json", "history").stdout.splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda one: str(one["time"]))
