"""nginx.service while the supervisor owns nginx: what people, tools and packages call works on."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.booted import front, packages, site
from tests.booted.box import Box
from tests.booted.front import NGINX
from tests.e2e.harness.bare import until
from tools.nginx_builds import builds
from tools.quick_load import QuickLoad

MANAGER_S_OWN = "/system.slice/nginx-supervisor.service"
BAD = "this is no directive"


def nobody_failed(load: QuickLoad) -> None:
    load.stop()
    assert not load.total.failed, load.total
    assert load.total.ok > 0


def test_a_migration_while_nginx_serves(box: Box) -> None:
    """The three steps of docs/migration.md, and the machine's next start."""
    site.configure(box)
    box.run("systemctl", "enable", "--now", NGINX)
    old = front.only_master(box)
    with box.quick_load(rate=100.0) as load:
        front.put_in_place(box)
        assert front.is_active(box) == "active"
        site.start(box)
        assert front.masters(box) == [old]  # adopted as it is
        assert front.cgroup_of(box, int(old)) == "/system.slice/nginx.service"
        box.run("nginxctl", "adopt", "--take-over")
        until("the workers of the old master have left", lambda: _state(box) == "running")
        nobody_failed(load)
    (new,) = front.masters(box)
    assert new != old
    assert front.cgroup_of(box, int(new)) == MANAGER_S_OWN
    # The end of what was its main process is no failure of nginx.service, and it stays active.
    assert box.show(NGINX, "ActiveState", "SubState", "Result") == {
        "ActiveState": "active", "SubState": "exited", "Result": "success",
    }  # fmt: skip
    box.run("systemctl", "reload", NGINX)
    box.reboot()
    # nginx.service alone is enabled, as Debian's package leaves it.
    assert front.is_active(box) == front.is_active(box, site.UNIT) == "active"
    (now,) = front.masters(box)
    assert front.cgroup_of(box, int(now)) == MANAGER_S_OWN


def _state(box: Box) -> object:
    return site.status(box)["state"]


def test_what_people_call(bookworm: Box) -> None:
    box = bookworm
    front.started(box)
    supervisor, (first,) = site.main_pid(box), front.masters(box)
    assert front.is_active(box) == "active"

    box.run("systemctl", "reload", NGINX)
    assert front.history(box)[-1]["operation"] == "reload"
    assert front.masters(box) == [first]

    box.run("systemctl", "restart", NGINX)
    (second,) = front.masters(box)
    assert second != first

    box.run("systemctl", "stop", NGINX)
    assert front.masters(box) == []
    assert (front.is_active(box), _state(box)) == ("inactive", "stopped")
    assert site.main_pid(box) == supervisor  # it was asked, and is there still
    assert box.run("systemctl", "reload", NGINX, check=False).returncode != 0
    box.run("systemctl", "try-restart", NGINX)
    assert front.masters(box) == []

    box.run("systemctl", "reload-or-restart", NGINX)
    assert (front.is_active(box), _state(box)) == ("active", "running")
    (third,) = front.masters(box)
    for command in ("start", "reload-or-restart", "reload"):
        box.run("systemctl", command, NGINX)
        assert front.masters(box) == [third]

    for _ in range(6):  # more often than systemd's start limit allows
        box.run("systemctl", "restart", NGINX)

    # The supervisor's own unit takes it along, in both directions.
    box.run("systemctl", "stop", site.UNIT)
    assert (front.is_active(box), front.masters(box)) == ("inactive", [])
    box.run("systemctl", "start", NGINX)
    assert front.is_active(box, site.UNIT) == "active"
    assert len(front.masters(box)) == 1


def test_a_broken_configuration_harms_nobody(bookworm: Box) -> None:
    """With the distribution's unit a restart with it is an outage."""
    box = bookworm
    front.started(box)
    (master,) = front.masters(box)
    box.write("/etc/nginx/sites-enabled/bad", BAD)
    with box.quick_load(rate=50.0) as load:
        for command in ("reload", "restart"):
            assert box.run("systemctl", command, NGINX, check=False).returncode != 0
        nobody_failed(load)
    assert "unexpected end of file" in box.journal("-u", NGINX)
    assert front.masters(box) == [master]
    assert (front.is_active(box), _state(box)) == ("failed", "running")
    # systemd stops no unit that failed before it starts it: the restart is still to be done.
    assert box.run("systemctl", "restart", NGINX, check=False).returncode != 0
    assert (front.is_active(box), front.masters(box)) == ("failed", [master])
    box.path("/etc/nginx/sites-enabled/bad").unlink()
    box.run("systemctl", "restart", NGINX)
    (restarted,) = front.masters(box)
    assert (front.is_active(box), restarted != master) == ("active", True)
    box.run("systemctl", "stop", NGINX)
    box.run("systemctl", "start", NGINX)
    assert "already_running" not in box.journal("-u", NGINX)


def test_a_reload_in_an_upgrade_waits_for_the_verdict(bookworm: Box) -> None:
    """As certbot's hook and ansible's handler call it, at whatever moment a certificate is new."""
    box = bookworm
    box.write(front.OVERRIDE, "[Service]\nTimeoutStartSec=1\n")
    front.started(box, canary="2s")
    with box.quick_load(rate=50.0) as load:
        upgrade = box.popen("nginxctl", "upgrade", stdout=subprocess.DEVNULL)
        until("the canary", lambda: _phase(box) == "canary")
        hooks = [
            box.popen("systemctl", "reload", NGINX), box.popen("invoke-rc.d", "nginx", "reload"),
        ]  # fmt: skip
        assert [hook.wait(60) for hook in hooks] == [0, 0]
        assert upgrade.wait(60) == 0
        nobody_failed(load)
    assert _done(box)[0] == ("upgrade", "committed")
    assert set(_done(box)[1:]) == {("reload", "committed")}
    assert len(front.masters(box)) == 1


def test_a_restart_in_an_upgrade_is_a_reload_after_it(bookworm: Box) -> None:
    """Also where a reload waits at that moment, which systemd then ends."""
    box = bookworm
    front.started(box, canary="60s")
    with box.quick_load(rate=50.0) as load:
        upgrade = box.popen("nginxctl", "upgrade", stdout=subprocess.DEVNULL)
        until("the canary", lambda: _phase(box) == "canary")
        hook = box.popen("systemctl", "reload", NGINX, stderr=subprocess.DEVNULL)
        until("it waits", lambda: box.show(NGINX, "SubState")["SubState"] == "reload")
        restart = box.popen("systemctl", "restart", NGINX)
        until("it has seen the upgrade", lambda: ("upgrade", "refused") in _done(box))
        box.run("nginxctl", "rollback")
        assert (upgrade.wait(60), restart.wait(60)) == (4, 0)
        hook.wait(60)
        nobody_failed(load)
    assert ("upgrade", "rolled_back") in _done(box)
    assert _done(box)[-1] == ("reload", "committed")
    assert (len(front.masters(box)), front.is_active(box)) == (1, "active")


def _done(box: Box) -> list[tuple[str, str]]:
    return [(one["operation"], one["verdict"]) for one in front.history(box)]


def test_a_stop_while_a_reload_waits_is_a_stop(bookworm: Box) -> None:
    """systemd ends the reload, and leaves out the unit's ExecStop= then."""
    box = bookworm
    front.started(box)
    held = box.popen("nginxctl", "upgrade", "--canary", "60s", stdout=subprocess.DEVNULL)
    until("the canary", lambda: _phase(box) == "canary")
    hook = box.popen("systemctl", "reload", NGINX, stderr=subprocess.DEVNULL)
    until("it waits", lambda: box.show(NGINX, "SubState")["SubState"] == "reload")
    box.run("systemctl", "stop", NGINX)
    assert (front.masters(box), _state(box)) == ([], "stopped")
    assert front.is_active(box) == "inactive"
    assert hook.wait(60) != 0
    assert held.wait(60) != 0


def _phase(box: Box) -> object:
    upgrade = site.status(box)["upgrade"]
    return upgrade["phase"] if isinstance(upgrade, dict) else None


def test_certbot_s_other_way_in_an_upgrade(bookworm: Box) -> None:
    """`nginx -s reload` signals whom the pid file names: the candidate reads what is new."""
    box = bookworm
    front.started(box, canary="1s")
    with box.quick_load(rate=50.0) as load:
        upgrade = box.popen("nginxctl", "--json", "upgrade", stdout=subprocess.PIPE)
        until("the canary", lambda: _phase(box) == "canary")
        box.run("nginx", "-s", "reload")
        told = json.loads(upgrade.communicate(timeout=60)[0].splitlines()[-1])
        nobody_failed(load)
    assert told["verdict"] == "committed"
    assert len(front.masters(box)) == 1


def test_what_ansible_s_module_calls(bookworm: Box) -> None:
    """`service: name=nginx state=started|reloaded|restarted enabled=yes`, call by call.

    It looks at what `show` and `is-enabled` say, then calls one command.
    """
    box = bookworm
    site.configure(box)
    front.put_in_place(box)
    box.run("systemctl", "enable", NGINX)
    for state, command in (("started", "start"), ("reloaded", "reload"), ("restarted", "restart")):
        before = front.masters(box)
        shown = box.show(NGINX, "LoadState", "ActiveState", "CanReload")
        assert shown["LoadState"] == "loaded"
        assert (shown["ActiveState"] in ("active", "activating")) is (state != "started")
        assert box.run("systemctl", "is-enabled", NGINX).stdout == "enabled\n"
        box.run("systemctl", command, NGINX)
        now = front.masters(box)
        assert len(now) == 1
        assert (now == before) is (state == "reloaded")
    # Once it is started, a second run of the playbook changes nothing.
    assert box.show(NGINX, "ActiveState")["ActiveState"] == "active"


def test_logrotate_reaches_both_generations(bookworm: Box) -> None:
    """Debian's own /etc/logrotate.d/nginx, while two masters run."""
    box = bookworm
    front.started(box)
    upgrade = box.popen("nginxctl", "upgrade", "--hold", stdout=subprocess.DEVNULL)
    until("it is held", lambda: _phase(box) == "held")
    assert len(front.masters(box)) == 2
    box.run("logrotate", "--force", "/etc/logrotate.d/nginx")
    assert box.path("/var/log/nginx/error.log.1").exists()

    def has_let_go() -> bool:
        pids = box.run("pgrep", "-f", "^nginx: (master|worker)").stdout.split()
        links = box.run("sh", "-c", f"ls -l {' '.join(f'/proc/{pid}/fd' for pid in pids)}").stdout
        return "error.log.1" not in links and links.count("error.log") >= len(pids)

    until("every process of both generations writes to the new file", has_let_go)
    box.run("nginxctl", "promote")
    assert upgrade.wait(60) == 0


@pytest.mark.parametrize("call", ["nginx-common", "nginx"])
def test_what_the_package_s_scripts_call_is_a_judged_upgrade(bookworm: Box, call: str) -> None:
    """With another binary on disk: no USR2 of the script's own, no stop and start."""
    box = bookworm
    front.started(box)
    newest = builds()[-1]
    with box.quick_load(rate=50.0) as load:
        box.run("cp", str(newest.path), "/usr/sbin/nginx.dpkg-new")
        box.run("mv", "/usr/sbin/nginx.dpkg-new", "/usr/sbin/nginx")
        if call == "nginx-common":
            box.run("deb-systemd-invoke", "restart", NGINX)
        assert box.run("invoke-rc.d", "--quiet", "nginx", "status").returncode == 0
        box.run("invoke-rc.d", "nginx", "upgrade")
        nobody_failed(load)
    done = [one for one in front.history(box) if one["operation"] == "upgrade"]
    assert [(one["verdict"], one["to_version"]) for one in done] == [("committed", newest.version)]
    assert front.is_active(box) == "active"


def test_a_bad_package_is_rolled_back_and_the_restart_fails(bookworm: Box) -> None:
    box = bookworm
    front.started(box)
    (master,) = front.masters(box)
    with box.quick_load(rate=50.0) as load:
        box.write("/usr/sbin/nginx.dpkg-new", "#!/bin/sh\nexit 1\n", mode=0o755)
        box.run("mv", "/usr/sbin/nginx.dpkg-new", "/usr/sbin/nginx")
        assert box.run("systemctl", "restart", NGINX, check=False).returncode != 0
        nobody_failed(load)
    assert front.masters(box) == [master]
    assert "nginx serves as before" in box.journal("-u", NGINX)


def test_nothing_starts_a_second_master(bookworm: Box) -> None:
    """Nor with `reuseport`, where nothing would keep a second one from binding."""
    box = bookworm
    front.started(box, server="listen 81 reuseport;")
    (master,) = front.masters(box)
    for command in (
        ["systemctl", "start", NGINX], ["service", "nginx", "start"],
        ["/etc/init.d/nginx", "start"], ["invoke-rc.d", "--force", "nginx", "start"],
    ):  # fmt: skip
        box.run(*command)
        assert front.masters(box) == [master], command


def test_the_death_of_the_supervisor_is_no_restart_of_nginx(box: Box) -> None:
    """Its unit's restart takes nginx.service along, which leaves nginx alone."""
    front.started(box)
    (master,), supervisor = front.masters(box), site.main_pid(box)
    with box.quick_load(rate=50.0) as load:
        box.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)
        until("the next one", lambda: site.main_pid(box) not in (0, supervisor))
        until("all are up", lambda: front.is_active(box) == "active")
        until("it answers", lambda: box.run("nginxctl", "status", check=False).returncode == 0)
        nobody_failed(load)
    assert front.masters(box) == [master]
    assert box.path("/run/nginx.pid").read_text() == f"{master}\n"


def test_a_failed_supervisor_leaves_nginx_to_its_files_and_comes_back(box: Box) -> None:
    """Its socket is there all the while, and nginx serves."""
    front.started(box)
    (master,), config = front.masters(box), box.path(site.CONFIG).read_text()
    with box.quick_load(rate=50.0) as load:
        box.write(site.CONFIG, BAD)
        box.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)
        until("it has failed", lambda: front.is_active(box, site.UNIT) == "failed")
        until("the front is at rest", lambda: front.is_active(box) == "inactive")
        assert box.path("/run/nginx-supervisor/control.sock").is_socket()

        log = box.path("/var/log/nginx/error.log")
        log.rename(log.with_suffix(".old"))
        box.run("invoke-rc.d", "nginx", "rotate")  # by the script's own signal
        until("nginx has reopened its log", log.exists)

        box.run("systemctl", "start", packages.SERVICE)
        assert box.show(packages.SERVICE, "ActiveState", "NRestarts") == {
            "ActiveState": "inactive", "NRestarts": "0",
        }  # fmt: skip

        box.write(site.CONFIG, config)
        site.start(box)
        until("the front is up again", lambda: front.is_active(box) == "active")
        nobody_failed(load)
    assert front.masters(box) == [master]
    said = box.run("systemd-analyze", "verify", "--man=no", site.UNIT, NGINX)
    assert said.stdout + said.stderr == ""


CLIENT = """\
import socket
client = socket.create_connection(("127.0.0.1", 80))
client.sendall(b"GET / HTTP/1.1\\r\\n")
print("there", flush=True)
client.recv(1)
"""


def test_a_stop_may_take_as_long_as_the_supervisor_gives_it(bookworm: Box) -> None:
    """Debian's TimeoutStopSec=5, or a shorter one, is for a unit that stops nginx itself."""
    box = bookworm
    box.write(front.OVERRIDE, "[Service]\nTimeoutStopSec=1\n")
    front.started(box, settings='[stop]\nquit_timeout = "3s"')
    client = box.popen("python3", "-c", CLIENT, stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    box.run("systemctl", "stop", NGINX)
    client.communicate(timeout=60)
    assert (front.masters(box), _state(box)) == ([], "stopped")
    assert box.show(NGINX, "ActiveState", "Result") == {
        "ActiveState": "inactive", "Result": "success",
    }  # fmt: skip


def test_a_binary_that_is_gone_is_for_the_supervisor_to_bring_back(trixie: Box) -> None:
    """Debian 13 has a condition for it, with which systemd would start nothing, and say nothing."""
    box = trixie
    front.started(box)
    box.run("systemctl", "stop", NGINX)
    box.path("/usr/sbin/nginx").unlink()
    box.run("systemctl", "start", NGINX)
    assert (front.is_active(box), _state(box)) == ("active", "running")


def test_what_other_drop_ins_say_is_for_a_unit_that_starts_nginx_itself(box: Box) -> None:
    """`Restart=always` would have systemd refuse the whole unit, with Type=oneshot."""
    box.write(
        front.OVERRIDE,
        "[Service]\nRestart=always\nRestartSec=1\nExecCondition=/bin/false\n"
        "ExecStartPre=/bin/false\nExecStartPost=/bin/false\nExecStopPost=/bin/false\n"
        "ExecReload=/bin/false\nExecStop=/bin/false\nPIDFile=/run/other.pid\nWatchdogSec=1\n"
        "RuntimeMaxSec=1\nKillMode=mixed\nLimitNOFILE=4096\n",
    )
    site.configure(box)
    front.put_in_place(box)
    said = box.run("systemd-analyze", "verify", "--man=no", NGINX)
    assert said.stdout + said.stderr == ""
    site.start(box, NGINX)
    box.run("systemctl", "reload", NGINX)
    box.run("systemctl", "stop", NGINX)
    assert box.show(NGINX, "Result")["Result"] == "success"
