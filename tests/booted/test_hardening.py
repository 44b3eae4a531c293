"""The hardened unit: what is forbidden in it is forbidden, and what nginx needs works."""

from __future__ import annotations

import json
import os

import pytest

from tests.booted import hardened, site
from tests.booted.box import Box
from tests.booted.conftest import BootBox
from tests.booted.roots import SUITES
from tests.e2e.harness.bare import until
from tools.nginx_builds import builds

# What the sandbox answers, and what a service without one gets in the same box.
FORBIDDEN = {
    "NoNewPrivileges": ("1", "0"),
    "write /usr/lib": ("EROFS", "ok"),
    "write /usr/lib/nginx-supervisor": ("EROFS", "ok"),
    "write /etc": ("EROFS", "ok"),
    "write /root": ("EROFS", "ok"),
    "write /home": ("EROFS", "ok"),
    "names in /run/user": ([], ["0"]),
    "device": ("ENOENT", "ok"),
    "adjtimex": ("EPERM", "ok"),
    "make a cgroup": ("EROFS", "ok"),
    "names in /usr/lib/modules": ([], ["module.ko"]),
    "mode of /proc/kmsg": ("0000", "0400"),
    "mode of /proc/kallsyms": ("0000", "0444"),
    "set the host name": ("EPERM", "ok"),
    "hidepid": (True, False),
    "personality": ("EPERM", "ok"),
    "executable memory": ("forbidden", "ok"),
    "a user namespace": ("EPERM", "ok"),
    "a mount namespace": ("EPERM", "ok"),
    "realtime": ("EPERM", "ok"),
    "set user id": ("EPERM", "ok"),
    "AF_PACKET": ("EAFNOSUPPORT", "ok"),
    "io_uring_setup": ("EPERM", "EFAULT"),
    "userfaultfd": ("EPERM", "ok"),
    "keyctl": ("EPERM", "ENOKEY"),
    "ptrace": ("EPERM", "ESRCH"),
    "foreign architecture": ("SIGSYS", "ok"),
    "umask": ("0077", "0022"),
}
PERMITTED = (
    "write /usr/sbin", "write /usr/local/sbin", "write /usr/lib/nginx", "write /etc/nginx",
    "write /srv", "write /var/log/nginx", "read /root", "read /home", "AF_NETLINK", "pidfd_getfd",
    "io_setup", "affinity", "niceness",
)  # fmt: skip
TWICE = {"PrivateMounts", "ProtectClock", "RestrictRealtime"}
LIMITS = {"LimitNICE"}  # see test_limits_and_priorities
# chown, dac_override, fowner, kill, setgid, setuid, net_bind_service, sys_ptrace; capability.h.
CAPABILITIES = (0, 1, 3, 5, 6, 7, 10, 19)


GUARD = '[reload]\nguard = "0.5s"\n'


@pytest.fixture(scope="module", params=SUITES)
def hard(request: pytest.FixtureRequest, boot_shared_box: BootBox) -> Box:
    """A box whose site serves under the unit; each test leaves it so."""
    box = boot_shared_box(request.param)
    hardened.configure(box)
    hardened.try_inside(box)
    site.start(box)
    return box


def test_what_is_forbidden(hard: Box) -> None:
    inside, outside = hardened.tried(hard), hardened.tried_with(hard)
    assert outside is not None
    assert {name: (inside[name], outside[name]) for name in FORBIDDEN} == FORBIDDEN


def test_each_line_counts(bookworm: Box) -> None:
    """Without any one of them something is permitted that was not, or nothing works any more."""
    hardened.try_inside(bookworm)
    lines = hardened.privileges()
    all_of_them = hardened.tried_with(bookworm, *lines)
    assert all_of_them is not None
    idle = set()
    for key in dict.fromkeys(line.partition("=")[0] for line in lines):
        others = [line for line in lines if line.partition("=")[0] != key]
        found = hardened.tried_with(bookworm, *others) or {}
        names = set(all_of_them) - {"mounts", "uts"}
        if all(found.get(name) == all_of_them[name] for name in names):
            idle.add(key)
    assert idle == TWICE | LIMITS


def test_what_is_permitted(hard: Box) -> None:
    inside = hardened.tried(hard)
    assert {name: inside[name] for name in PERMITTED} == dict.fromkeys(PERMITTED, "ok")
    assert int(str(inside["CapabilityBoundingSet"]), 16) == sum(1 << bit for bit in CAPABILITIES)


def workers(box: Box) -> list[int]:
    """The workers that accept, as the box numbers them."""
    active = site.status(box)["generations"][0]  # type: ignore[index]
    return [one["pid"] for one in active["workers"]]


def limits(box: Box, pid: int) -> dict[str, str]:
    """The soft limits of a process."""
    lines = box.path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def niceness(box: Box, pid: int) -> int:
    return int(box.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


def test_what_nginx_asks_for(hard: Box) -> None:
    first, second = workers(hard)
    cpus = [hard.run("taskset", "-cp", str(pid)).stdout.split()[-1] for pid in (first, second)]
    assert cpus == ["0", "1"] if (os.cpu_count() or 1) > 1 else True
    assert limits(hard, first)["Max open files"] == "4096"
    assert niceness(hard, first) == 5
    assert site.status(hard)["held_listeners"]["available"]  # type: ignore[index]
    assert hardened.fetch(hard, "https://127.0.0.1/home/page") == "from a home\n"
    assert hardened.fetch(hard, "http://127.0.0.1/cached/") == "ok\n"
    assert any(path.is_file() for path in hard.path("/var/cache/nginx-kept").rglob("*"))
    hard.path("/var/log/nginx/site.log").rename(hard.path("/var/log/nginx/site.log.1"))
    hard.run("nginxctl", "reopen")
    hardened.fetch(hard, "https://127.0.0.1/home/page")
    assert "/home/page" in hard.path("/var/log/nginx/site.log").read_text()
    log = hard.path("/var/log/nginx/error.log").read_text()
    assert not [line for line in log.splitlines() if "[alert]" in line or "[emerg]" in line]


# --- a supervisor and an nginx in two mount namespaces -------------------------------------------


def namespaces(box: Box) -> tuple[str, str]:
    """The mount namespaces of the supervisor and of the master that serves."""
    return tuple(  # type: ignore[return-value]
        os.readlink(box.path(f"/proc/{pid}/ns/mnt"))
        for pid in (site.main_pid(box), site.master_pid(box))
    )


def kill_supervisor(box: Box) -> None:
    """Its successor has adopted nginx when this returns."""
    before = site.main_pid(box)
    box.run("kill", "-KILL", str(before))

    def adopted() -> bool:
        seen = box.show(hardened.UNIT, "MainPID", "ActiveState")
        return seen["ActiveState"] == "active" and seen["MainPID"] not in ("0", str(before))

    until("the next supervisor", adopted)


def verdict(box: Box, *command: str, check: bool = True) -> tuple[str, str]:
    """Verdict and reason of a command, once no generation drains."""
    until("one generation", lambda: site.status(box)["state"] == "running")
    said = box.run("nginxctl", "--json", *command, check=check).stdout.splitlines()
    last = json.loads(said[-1])
    return last["verdict"], last["reason"]


def is_held(box: Box) -> bool:
    upgrade = site.status(box)["upgrade"]
    return isinstance(upgrade, dict) and upgrade["phase"] == "held"


def test_an_adopted_nginx_is_upgraded_and_brought_back(box: Box) -> None:
    oldest, newest = builds()[-2], builds()[-1]
    binary = "/usr/sbin/nginx"
    box.run("install", str(oldest.path), binary)
    site.configure(box, binary=binary, settings=GUARD)
    site.start(box)
    supervisor, nginx = namespaces(box)
    assert supervisor == nginx
    with box.quick_load(rate=50.0) as load:
        kill_supervisor(box)
        again, adopted = namespaces(box)
        assert again not in (supervisor, adopted)
        assert adopted == nginx
        assert verdict(box, "upgrade", str(newest.path)) == ("committed", "healthy")
        assert site.status(box)["binary_on_disk"]["matches_active"]  # type: ignore[index]
        assert verdict(box, "rollback") == ("committed", "healthy")
        # A package manager, which is in no sandbox, puts a file there by rename.
        box.run("cp", str(newest.path), f"{binary}.new")
        box.run("mv", f"{binary}.new", binary)
        assert verdict(box, "upgrade") == ("committed", "healthy")
        assert namespaces(box)[1] == nginx  # by USR2 from master to master
        # And a candidate that is judged bad: the file that was there is put back.
        held = box.popen("nginxctl", "--json", "upgrade", "--hold", str(oldest.path))
        until("a held upgrade", lambda: is_held(box))
        assert box.run("nginxctl", "rollback").returncode == 0
        held.wait()
        assert site.status(box)["binary_on_disk"]["matches_active"]
        box.run("nginxctl", "self-upgrade")
        # The previous configuration is put back into /etc/nginx.
        text = box.path(site.SITE).read_text()
        box.write(site.SITE, text.replace('return 200 "ok', 'return 500 "bad'))
        assert verdict(box, "reload", "--guard", check=False)[0] == "rolled_back"
        assert box.path(site.SITE).read_text() == text
        # Only a new start brings nginx into the sandbox that the supervisor has now.
        box.run("nginxctl", "adopt", "--take-over")
        assert namespaces(box) == (again, again)
        load.stop()
    assert load.total.ok > 0
    # What the broken configuration has answered, and nothing else.
    assert set(load.total.failed) <= {"bad"}


# --- what has to be asked for --------------------------------------------------------------------


def test_machine_code_at_run_time(bookworm: Box) -> None:
    """Without the drop-in PCRE works without its JIT, and nginx says so; with it all is well."""
    hardened.configure(bookworm, main="pcre_jit on;\nerror_log /var/log/nginx/pcre.log info;")
    site.start(bookworm)
    log = bookworm.path("/var/log/nginx/pcre.log")
    assert "pcre2_jit_compile() failed" in log.read_text()
    assert "machine_code" in bookworm.run("nginxctl", "--json", "doctor", check=False).stdout
    hardened.use_drop_in(bookworm, "jit")
    bookworm.run("systemctl", "restart", hardened.UNIT)
    log.write_text("")
    bookworm.run("nginxctl", "reopen")
    bookworm.run("nginxctl", "reload")
    assert "pcre2_jit_compile() failed" not in log.read_text()
    assert "machine_code" not in bookworm.run("nginxctl", "--json", "doctor", check=False).stdout
    assert " rwxp " in bookworm.path(f"/proc/{site.master_pid(bookworm)}/maps").read_text()


def test_limits_and_priorities(bookworm: Box) -> None:
    """systemd raises the limits where it may; where not, the drop-in gives the capability."""
    hardened.configure(bookworm, main="worker_priority -5;")
    site.start(bookworm)
    raised = limits(bookworm, site.master_pid(bookworm))["Max nice priority"]
    first = workers(bookworm)[0]
    assert niceness(bookworm, first) == (-5 if raised == "40" else 0)
    assert raised in ("0", "40")
    hardened.use_drop_in(bookworm, "raise-limits")
    bookworm.run("systemctl", "restart", hardened.UNIT)
    assert niceness(bookworm, workers(bookworm)[0]) == -5


def test_a_new_name_of_the_host_is_seen(bookworm: Box) -> None:
    hardened.configure(bookworm)
    bookworm.path(site.SITE).write_text(
        bookworm.path(site.SITE).read_text().replace('"ok', '"$hostname ok')
    )
    site.start(bookworm)
    bookworm.run("hostname", "renamed")
    bookworm.run("nginxctl", "reload")
    assert hardened.fetch(bookworm, "http://127.0.0.1/") == "renamed ok\n"


def test_a_folder_that_is_exchanged_as_a_whole(bookworm: Box) -> None:
    """The folder that was there at the start is the writable one, until the next start."""
    hardened.configure(bookworm, settings=GUARD)
    site.start(bookworm)
    bookworm.run("cp", "-a", "/etc/nginx", "/etc/nginx.new")
    bookworm.run("mv", "/etc/nginx", "/etc/nginx.old")
    bookworm.run("mv", "/etc/nginx.new", "/etc/nginx")
    told = bookworm.run("nginxctl", "--json", "reload", "--guard", check=False).stdout
    assert json.loads(told.splitlines()[-1])["reason"] == "configuration_not_writable"
    kill_supervisor(bookworm)
    assert verdict(bookworm, "reload", "--guard")[0] == "committed"
