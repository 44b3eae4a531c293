"""The .deb's life on a real system: installed, taken over to, updated, interrupted, removed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.booted import package_life as life
from tests.booted.box import Binding, Box, CommandError
from tests.booted.conftest import BootBox
from tests.booted.roots import SUITES
from tests.booted.site import CONFIG, UNIT, configure, main_pid, master_pid, start, status
from tools.private_tree import own_version

PLACES = ("/etc", "/usr", "/var", "/run", "/root")
MOVES_ANYWAY = ("/var/lib/dpkg", "/var/log", "/run/systemd", "/run/log", "/run/udev", "/var/cache")
OLD, NEXT, BROKEN = "/debs/old", "/debs/next", "/debs/broken"


def boot(boot_box: BootBox, suite: str) -> Box:
    """A box with nginx.service serving, and with the packages to install."""
    box = boot_box(
        suite,
        Binding(life.packages(), OLD),
        Binding(life.next_packages(), NEXT),
        Binding(life.broken_packages(), BROKEN),
        with_project=False,
    )
    configure(box)
    settings = box.path(CONFIG).read_text()
    box.path(CONFIG).unlink()
    box.path(CONFIG).parent.rmdir()
    box.write("/root/settings.toml", settings)
    box.run("systemctl", "enable", "--now", "nginx")
    return box


def install(box: Box) -> None:
    life.dpkg(box, "-i", life.deb_in(OLD, box))
    box.write(CONFIG, box.path("/root/settings.toml").read_text())


@pytest.fixture(params=SUITES)
def either(request: pytest.FixtureRequest, boot_box: BootBox) -> Box:
    return boot(boot_box, request.param)


@pytest.fixture
def plain(boot_box: BootBox) -> Box:
    """nginx.service serves, the package is not there yet."""
    return boot(boot_box, "bookworm")


@pytest.fixture
def migrated(boot_box: BootBox) -> Box:
    """The package is installed and has nginx."""
    box = boot(boot_box, "bookworm")
    install(box)
    box.run("nginx-supervisor-migrate")
    return box


def files(box: Box) -> set[str]:
    """Every path of the system, but for what other programs write by themselves."""
    said = box.run("find", *PLACES, "-xdev").stdout.splitlines()
    return {path for path in said if not path.startswith(MOVES_ANYWAY)}


def active(box: Box, unit: str) -> str:
    return box.run("systemctl", "is-active", unit, check=False).stdout.strip()


def enabled(box: Box, unit: str) -> str:
    return box.run("systemctl", "is-enabled", unit, check=False).stdout.strip()


def nginx_master(box: Box) -> int:
    return int(box.path("/run/nginx.pid").read_text())


def children(box: Box, pid: int) -> set[str]:
    return set(box.run("pgrep", "-P", str(pid), "-f", "worker process$").stdout.split())


def test_it_installs_starts_nothing_and_leaves_no_trace(either: Box) -> None:
    before, master = files(either), nginx_master(either)
    said = life.dpkg(either, "-i", life.deb_in(OLD, either))
    assert "warning" not in said.lower()
    assert active(either, "nginx") == "active"
    assert nginx_master(either) == master
    assert active(either, UNIT) == "inactive"
    assert enabled(either, UNIT) == "disabled"
    assert either.run("nginxctl", "--version").stdout.split()[-1] == own_version()
    assert either.run("nginx-supervisor", "check", "--config", CONFIG).returncode == 0
    # Its byte code is there, so that each start is quick for everybody.
    assert list(either.path("/usr/lib/nginx-supervisor/supervisor/cli/__pycache__").glob("*.pyc"))
    # On demand: it runs once, keeps its records, is enabled, and is purged all the same.
    either.run("systemctl", "stop", "nginx")
    either.run("systemctl", "enable", "--now", UNIT)
    assert status(either)["state"] == "running"
    either.run("systemctl", "stop", UNIT)
    either.write("/etc/nginx-supervisor/second.toml", "")
    either.run("systemctl", "start", "nginx")
    life.dpkg(either, "-P", "nginx-supervisor")
    assert files(either) == before
    assert either.show(UNIT, "LoadState") == {"LoadState": "not-found"}
    assert active(either, "nginx") == "active"


@contextmanager
def slow_client(box: Box) -> Iterator[subprocess.Popen[str]]:
    """A client that has asked for half a request; `finish` has to get an answer to all of it."""
    program = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', 80))\n"
        "s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n')\n"
        "print('asked', flush=True)\n"
        "sys.stdin.readline()\n"
        "s.sendall(b'\\r\\n')\n"
        "print(s.makefile('rb').readline().decode(), flush=True)\n"
    )
    with box.popen(
        "python3", "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "asked\n"
        yield client
        client.kill()


def finish(client: subprocess.Popen[str]) -> str:
    said, _ = client.communicate("go\n", timeout=60)
    return said.strip()


def test_nginx_is_taken_over_from_its_unit_and_given_back(either: Box) -> None:
    install(either)
    before = nginx_master(either)
    with slow_client(either) as client:
        taken = life.take_over_from_nginx_unit(either)
        assert (taken.failed, taken.causes) == (0, "")
        assert taken.sent > 0
        assert finish(client) == "HTTP/1.1 200 OK"
    assert (active(either, "nginx"), active(either, UNIT)) == ("active", "active")
    assert (enabled(either, "nginx"), enabled(either, UNIT)) == ("enabled", "enabled")
    assert master_pid(either) == nginx_master(either) != before
    assert UNIT in either.path(f"/proc/{nginx_master(either)}/cgroup").read_text()
    # Doing it again does nothing; a boot comes up with the supervisor.
    assert "already" in either.run("nginx-supervisor-migrate").stdout
    assert not list(either.path("/run/systemd/system").glob("nginx.service.d/*"))
    # nginx.service is a front of the supervisor.
    before = nginx_master(either)
    workers = children(either, before)
    either.run("systemctl", "reload", "nginx")
    assert nginx_master(either) == before
    assert not workers & children(either, before)
    either.reboot()
    assert status(either)["state"] == "running"
    assert (active(either, "nginx"), main_pid(either, "nginx")) == ("active", 0)

    master = nginx_master(either)
    given = life.give_back_to_nginx_unit(either)
    assert (given.failed, given.causes) == (0, "")
    assert nginx_master(either) == master == main_pid(either, "nginx")
    assert (active(either, "nginx"), active(either, UNIT)) == ("active", "inactive")
    assert (enabled(either, "nginx"), enabled(either, UNIT)) == ("enabled", "disabled")
    # It is nginx.service's as if it had started it: reload and stop work.
    assert not either.path("/etc/systemd/system/nginx.service.d").exists()
    assert not list(either.path("/usr/lib/lsb/init-functions.d").glob("*nginx*"))
    either.run("systemctl", "reload", "nginx")
    assert nginx_master(either) == master
    either.run("systemctl", "stop", "nginx")
    assert either.run("pgrep", "nginx", check=False).stdout == ""


def test_what_cannot_be_taken_over_stays_as_it_is(plain: Box) -> None:
    install(plain)
    master = nginx_master(plain)

    def refused(because: str) -> None:
        done = plain.run("nginx-supervisor-migrate", check=False)
        assert done.returncode == 3, done.stdout + done.stderr
        assert because in done.stderr
        assert main_pid(plain, "nginx") == master
        assert active(plain, UNIT) == "inactive"

    # Another unit would be stopped with nginx.service.
    plain.write(
        "/etc/systemd/system/needs.service",
        "[Unit]\nBindsTo=nginx.service\n[Service]\nExecStart=/bin/sleep infinity\n",
    )
    plain.run("systemctl", "daemon-reload")
    plain.run("systemctl", "start", "needs")
    refused("needs.service would be stopped together with nginx.service")
    assert active(plain, "needs") == "active"
    plain.run("systemctl", "stop", "needs")
    plain.path("/etc/systemd/system/needs.service").unlink()
    plain.run("systemctl", "daemon-reload")
    # The configuration on disk is broken.
    plain.write("/etc/nginx/modules-enabled/broken.conf", "no_such_directive;\n")
    refused("no_such_directive")
    plain.path("/etc/nginx/modules-enabled/broken.conf").unlink()
    # Our configuration is broken.
    settings = plain.path(CONFIG).read_text()
    plain.write(CONFIG, "soke = 1\n")
    done = plain.run("nginx-supervisor-migrate", check=False)
    assert (done.returncode, main_pid(plain, "nginx")) == (2, master)
    # Another drop-in, read after that of the migration, would have systemd end nginx.
    plain.write(CONFIG, settings)
    later = "/etc/systemd/system/nginx.service.d/zzz.conf"
    plain.write(later, "[Service]\nKillMode=mixed\n")
    done = plain.run("nginx-supervisor-migrate", check=False)
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert main_pid(plain, "nginx") == master
    plain.path(later).unlink()
    # The configuration is of another nginx: known only once the supervisor looks.
    other = plain.path("/etc/nginx/nginx.conf").read_text().replace("/run/nginx.pid", "/run/2.pid")
    plain.write("/etc/nginx/other.conf", other)
    plain.write(CONFIG, settings.replace("/etc/nginx/nginx.conf", "/etc/nginx/other.conf"))
    with life.under_load(plain) as outcome:
        done = plain.run("nginx-supervisor-migrate", check=False)
        clients = outcome(done.stderr)
    assert done.returncode == 1, done.stdout
    assert "nginx.service has nginx again, as before" in done.stderr
    assert (clients.failed, clients.causes) == (0, "")
    assert main_pid(plain, "nginx") == nginx_master(plain) == master
    assert (active(plain, "nginx"), active(plain, UNIT)) == ("active", "inactive")
    assert enabled(plain, UNIT) == "disabled"
    plain.run("systemctl", "stop", "nginx")
    assert plain.run("pgrep", "nginx", check=False).stdout == ""


def test_an_update_replaces_the_supervisor_under_load(migrated: Box) -> None:
    pid, master = main_pid(migrated), nginx_master(migrated)
    assert life.supervisor_version(migrated) == own_version()
    outcome = life.update_by_package(migrated, life.deb_in(NEXT, migrated))
    assert (outcome.failed, outcome.causes) == (0, "")
    assert outcome.sent > 0
    assert "runs the new version" in outcome.said
    assert (main_pid(migrated), nginx_master(migrated)) == (pid, master)
    assert life.supervisor_version(migrated) == life.NEXT
    assert status(migrated)["state"] == "running"
    # The same package once more is a reinstallation, and no harm either.
    life.dpkg(migrated, "-i", life.deb_in(NEXT, migrated))
    assert (main_pid(migrated), nginx_master(migrated)) == (pid, master)


def test_an_update_in_the_midst_of_an_upgrade(migrated: Box) -> None:
    upgrade = ("nginxctl", "--json", "upgrade", "/usr/sbin/nginx", "--hold")
    with migrated.popen(*upgrade, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        for line in waiting.stdout:
            if '"held"' in line:
                break
        outcome = life.update_by_package(migrated, life.deb_in(NEXT, migrated))
        assert (outcome.failed, outcome.causes) == (0, "")
        assert life.supervisor_version(migrated) == life.NEXT
        assert status(migrated)["state"] == "upgrading"
        migrated.run("nginxctl", "promote")
        verdict = json.loads(waiting.stdout.read().splitlines()[-1])
    assert (verdict["event"], verdict["verdict"]) == ("verdict", "committed")


def test_an_update_that_does_not_start_changes_nothing(migrated: Box) -> None:
    pid, master = main_pid(migrated), nginx_master(migrated)
    outcome = life.update_by_package(migrated, life.deb_in(BROKEN, migrated))
    assert (outcome.failed, outcome.causes) == (0, "")
    assert "self_check_failed" in outcome.said
    assert "made badly" in outcome.said
    assert (main_pid(migrated), nginx_master(migrated)) == (pid, master)
    shown = migrated.run("dpkg-query", "-W", "-f", "${Status}", "nginx-supervisor").stdout
    assert shown == "install ok installed"
    assert life.supervisor_version(migrated) == own_version()
    life.dpkg(migrated, "-i", life.deb_in(NEXT, migrated))
    assert life.supervisor_version(migrated) == life.NEXT
    assert (main_pid(migrated), nginx_master(migrated)) == (pid, master)


def test_dpkg_is_killed_half_way_and_started_again(migrated: Box) -> None:
    master = nginx_master(migrated)
    deb = life.deb_in(NEXT, migrated)
    # Between the two halves: new files, and nobody was told.
    life.dpkg(migrated, "--unpack", deb)
    assert life.supervisor_version(migrated) == own_version()
    # In the middle of the first half, wherever that is.
    with migrated.popen("dpkg", "-i", deb, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("Unpacking"):
                break
        running.kill()
    pid = migrated.run("pgrep", "-x", "dpkg", check=False).stdout.split()
    for one in pid:
        migrated.run("kill", "-KILL", one, check=False)
    with life.under_load(migrated) as outcome:
        life.dpkg(migrated, "--configure", "-a", check=False)
        clients = outcome(life.dpkg(migrated, "-i", deb))
    assert (clients.failed, clients.causes) == (0, "")
    assert life.supervisor_version(migrated) == life.NEXT
    assert nginx_master(migrated) == master
    assert life.dpkg(migrated, "--audit") == ""
    left = migrated.run(
        "find", "/usr", "/etc", "-name", "*.dpkg-*", "-newer", "/root/settings.toml"
    )
    assert left.stdout == ""


def test_a_removal_gives_nginx_back(migrated: Box) -> None:
    master = nginx_master(migrated)
    with life.under_load(migrated) as outcome:
        clients = outcome(life.dpkg(migrated, "-r", "nginx-supervisor"))
    assert (clients.failed, clients.causes) == (0, "")
    assert "nginx.service starts nginx from now on" in clients.said
    assert main_pid(migrated, "nginx") == nginx_master(migrated) == master
    assert migrated.path(CONFIG).exists()
    assert not migrated.path("/usr/lib/nginx-supervisor").exists()
    # What was configured is there again when the package is.
    settings = migrated.path(CONFIG).read_text()
    life.dpkg(migrated, "-i", life.deb_in(OLD, migrated))
    assert migrated.path(CONFIG).read_text() == settings
    migrated.run("nginx-supervisor-migrate")
    assert status(migrated)["state"] == "running"


def test_a_removal_without_an_nginx_unit_leaves_nginx_serving(migrated: Box) -> None:
    """Also where the supervisor hangs, and answers nobody."""
    master = nginx_master(migrated)
    migrated.run("systemctl", "mask", "nginx")
    migrated.run("kill", "-STOP", str(main_pid(migrated)))
    with life.under_load(migrated) as outcome:
        clients = outcome(life.dpkg(migrated, "-P", "nginx-supervisor"))
    assert (clients.failed, clients.causes) == (0, "")
    assert "serves on without nginx-supervisor.service" in clients.said
    assert nginx_master(migrated) == master
    assert migrated.path(f"/proc/{master}").exists()
    assert not migrated.path("/var/lib/nginx-supervisor").exists()
    assert not migrated.path("/run/nginx-supervisor").exists()


def test_what_the_supervisor_has_otherwise_is_settled(plain: Box) -> None:
    """nginx is adopted, or started, by a `systemctl start` of the supervisor."""
    install(plain)
    master = nginx_master(plain)
    start(plain)
    assert master_pid(plain) == master == main_pid(plain, "nginx")

    def settled() -> None:
        with life.under_load(plain) as outcome:
            clients = outcome(plain.run("nginx-supervisor-migrate").stdout)
        assert (clients.failed, clients.causes) == (0, "")
        assert "starts nginx from now on" in clients.said
        assert (enabled(plain, UNIT), active(plain, "nginx")) == ("enabled", "active")
        assert plain.path(FRONT).is_symlink()
        assert main_pid(plain, "nginx") == 0
        assert UNIT in plain.path(f"/proc/{master_pid(plain)}/cgroup").read_text()
        assert "already" in plain.run("nginx-supervisor-migrate").stdout

    settled()
    # Nobody had it before: the supervisor has started it.
    plain.run("nginx-supervisor-migrate", "--back")
    plain.run("systemctl", "disable", "--now", "nginx")
    done = plain.run("nginx-supervisor-migrate", check=False)
    assert done.returncode == 3
    assert f"systemctl enable --now {UNIT}, and then this once more" in done.stderr
    start(plain)
    master = master_pid(plain)
    # Where the front cannot be, nothing is enabled.
    place = plain.path(FRONT).parent
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way")
    done = plain.run("nginx-supervisor-migrate", check=False)
    assert (done.returncode, enabled(plain, UNIT)) == (1, "disabled")
    assert "cannot be made a front of it" in done.stderr
    place.unlink()
    settled()
    assert master_pid(plain) == master


FRONT = "/etc/systemd/system/nginx.service.d/zz-nginx-supervisor.conf"
HOOK = "/usr/lib/lsb/init-functions.d/50-nginx-supervisor"


def refused_removal(box: Box) -> str:
    with pytest.raises(CommandError) as refused:
        life.dpkg(box, "-r", "nginx-supervisor")
    return str(refused.value)


def test_a_removal_that_is_refused_changes_nothing(migrated: Box) -> None:
    master = nginx_master(migrated)

    def started_by(command: str) -> None:
        """From now on, and nginx is adopted."""
        migrated.run("nginxctl", "detach")
        migrated.write(
            f"/etc/systemd/system/{UNIT}.d/mine.conf",
            f"[Service]\nNotifyAccess=all\nExecStart=\nExecStart={command}\n",
        )
        migrated.run("systemctl", "daemon-reload")
        start(migrated)
        assert master_pid(migrated) == master

    with life.under_load(migrated) as outcome:
        # Its main process is no supervisor: who knows what a stop would end.
        started_by(f"/bin/sh -c 'nginx-supervisor run --config {CONFIG}; exit $?'")
        assert "cannot tell what" in refused_removal(migrated)
        assert status(migrated)["state"] == "running"
        # Written as others write it.
        started_by(f"/usr/sbin/nginx-supervisor run --config={CONFIG}")
        migrated.run("sh", "-c", "cp /usr/sbin/nginx /root/nginx; echo >>/root/nginx")
        upgrade = ("nginxctl", "--json", "upgrade", "/root/nginx", "--hold")
        with migrated.popen(*upgrade, stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None
            for line in waiting.stdout:
                if '"held"' in line:
                    break
            said = refused_removal(migrated)
            assert "cannot leave nginx alone: it does not detach: upgrade_" in said
            assert "{" not in said
            assert migrated.path(FRONT).is_symlink()
            assert migrated.path(HOOK).is_symlink()
            migrated.run("nginxctl", "rollback")
            waiting.stdout.read()
        migrated.run("systemctl", "reload", "nginx")
        said = life.dpkg(migrated, "-r", "nginx-supervisor")
        clients = outcome(said)
    assert (clients.failed, clients.causes) == (0, "")
    assert "nginx.service starts nginx from now on" in said
    assert not migrated.path(FRONT).is_symlink()
    assert main_pid(migrated, "nginx") == nginx_master(migrated) == master


@pytest.mark.parametrize("words", [("-P",), ("-r", "-P")])
def test_a_removal_without_the_supervisor_leaves_no_front(
    migrated: Box, words: tuple[str, ...]
) -> None:
    master = nginx_master(migrated)
    migrated.run("nginxctl", "detach")
    if len(words) > 1:  # it failed
        migrated.write(CONFIG, "soke = 1\n")
        assert migrated.run("systemctl", "start", UNIT, check=False).returncode != 0
    with life.under_load(migrated) as outcome:
        life.dpkg(migrated, words[0], "nginx-supervisor")
        assert not migrated.path(FRONT).is_symlink()
        assert not migrated.path(HOOK).is_symlink()
        assert migrated.run("systemctl", "list-units", "--failed", "--no-legend").stdout == ""
        migrated.run("systemctl", "disable", "nginx")
        migrated.run("systemctl", "enable", "nginx")
        for word in words[1:]:
            life.dpkg(migrated, word, "nginx-supervisor")
        clients = outcome()
    assert (clients.failed, clients.causes) == (0, "")
    assert nginx_master(migrated) == master
    migrated.run("kill", "-0", str(master))
    assert not migrated.path("/etc/systemd/system/nginx.service.d").exists()


def test_a_configuration_that_was_there_first_is_kept(plain: Box) -> None:
    """As apt is told to by whoever configures machines with a program."""
    plain.write(CONFIG, "# mine\n")
    life.dpkg(plain, "--force-confdef", "--force-confold", "-i", life.deb_in(OLD, plain))
    assert plain.path(CONFIG).read_text() == "# mine\n"
    life.dpkg(plain, "--force-confdef", "--force-confold", "-i", life.deb_in(NEXT, plain))
    assert plain.path(CONFIG).read_text() == "# mine\n"


def test_the_files_may_change_under_a_running_supervisor(migrated: Box) -> None:
    """It has everything in memory that it ever needs: between two files of two versions, and
    where dpkg was killed, there is nothing that it could load."""
    # Another file, with the same program in it.
    migrated.run("sh", "-c", "cp /usr/sbin/nginx /root/nginx; echo >>/root/nginx")
    migrated.run("mv", "/usr/lib/nginx-supervisor", "/root/client")
    ctl = (
        "python3", "-IS", "-c",
        "import sys; sys.path.insert(0, '/root/client'); from supervisor.cli import main; "
        "sys.exit(main())", "--json",
    )  # fmt: skip

    def nginxctl(*words: str, code: int = 0) -> str:
        done = migrated.run(*ctl, *words, check=False)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    with life.under_load(migrated) as outcome:
        nginxctl("reload", "--guard")
        nginxctl("upgrade", "/root/nginx")
        nginxctl("rollback")
        migrated.run("systemctl", "reload", UNIT)
        for word in ("status", "check", "history", "versions", "events", "reopen"):
            nginxctl(word)
        migrated.run(*ctl, "doctor", check=False)
        assert "self_check_failed" in nginxctl("self-upgrade", code=3)
        clients = outcome()
    assert (clients.failed, clients.causes) == (0, "")
    for line in migrated.journal("-u", UNIT).splitlines():
        assert "ModuleNotFoundError" not in line or "supervisor.not_replaced" in line
        assert "Traceback" not in line or "supervisor.not_replaced" in line
    migrated.run("mv", "/root/client", "/usr/lib/nginx-supervisor")
    migrated.run("nginxctl", "self-upgrade")
