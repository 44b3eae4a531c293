"""dpkg replaces nginx's files: the supervisor judges them as any other upgrade."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.booted import packages, site
from tests.booted.box import Box
from tests.booted.conftest import BootBox
from tests.booted.packages import CANDIDATES, NEWEST, NGINX, nginx_deb
from tests.booted.roots import root_of
from tools.nginx_builds import builds, candidate


def test_systemd_finds_no_fault_in_the_units(box: Box) -> None:
    for unit in (packages.PATH_UNIT, packages.SERVICE):
        done = box.run("systemd-analyze", "verify", "--man=no", unit)
        assert (done.stdout, done.stderr) == ("", ""), unit


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_package_is_taken_without_a_lost_request(
    boot_box: BootBox, tmp_path: Path, suite: str
) -> None:
    box = boot_box(suite)
    site.configure(box)
    packages.start(box)
    supervisor, old = site.main_pid(box), site.status(box)["generations"][0]["version"]
    deb = nginx_deb(tmp_path, f"{NEWEST.version}-1", NEWEST.path, suite=suite)
    came = packages.upgrade_under_load(box, deb)
    assert (came.verdict["verdict"], came.verdict["to_version"]) == ("committed", NEWEST.version)
    assert came.verdict["from_version"] == old
    assert came.verdict["changed"] == [{"kind": "binary", "path": NGINX, "change": "replaced"}]
    assert came.failed == {}
    assert came.sent > 0
    assert "Not attempting to start NGINX" in came.said  # the package's own script
    packages.until(box, "the end of the drain", lambda: site.status(box)["state"] == "running")
    status = site.status(box)
    assert site.main_pid(box) == supervisor
    assert len(packages.history(box)) == 1
    assert status["changed"] == []
    disk = status["binary_on_disk"]
    assert disk["placed_by"] == "package"
    assert disk["package"] == {
        "manager": "dpkg", "name": "nginx", "version": f"{NEWEST.version}-1",
        "state": "installed", "intact": True,
    }  # fmt: skip
    assert f"package    nginx  {NEWEST.version}-1  (dpkg)" in box.run("nginxctl", "status").stdout


def test_a_bad_package_is_rolled_back_and_the_drift_is_told(
    boot_box: BootBox, tmp_path: Path
) -> None:
    box = boot_box("bookworm", CANDIDATES)
    site.configure(box)
    packages.start(box)
    before = site.status(box)
    deb = nginx_deb(tmp_path, f"{NEWEST.version}-1", candidate(NEWEST, "workers_fatal"))
    came = packages.upgrade_under_load(box, deb)
    assert came.verdict["verdict"] == "rolled_back"
    assert came.failed == {}
    assert len(packages.history(box)) == 1  # what the rollback puts on disk is no other change
    assert box.show(packages.SERVICE, "ActiveState", "ExecMainStatus") == {
        "ActiveState": "failed", "ExecMainStatus": "4",
    }  # fmt: skip
    status = site.status(box)
    disk = status["binary_on_disk"]
    assert disk["sha256"] == before["binary_on_disk"]["sha256"]
    assert (disk["placed_by"], disk["matches_active"]) == ("supervisor", True)
    assert disk["package"]["version"] == f"{NEWEST.version}-1"
    assert disk["package"]["intact"] is False
    assert status["changed"] == []
    assert "but the supervisor has put another file there" in box.run("nginxctl", "status").stdout
    assert "5" in next(
        line for line in box.run("dpkg", "--verify", "nginx", check=False).stdout.splitlines()
        if line.endswith(NGINX)
    )[:9]  # fmt: skip
    # The next package is taken as if nothing had been.
    came = packages.upgrade_under_load(box, nginx_deb(tmp_path, f"{NEWEST.version}-2", NEWEST.path))
    assert came.verdict["verdict"] == "committed"
    assert site.status(box)["binary_on_disk"]["placed_by"] == "package"


def test_a_library_is_taken_and_a_stranger_is_nothing(bookworm: Box, tmp_path: Path) -> None:
    site.configure(bookworm)
    packages.start(bookworm)
    master, root = site.master_pid(bookworm), root_of("bookworm")
    packages.install_and_look(bookworm, packages.pack(root, "logrotate", "9:1", into=tmp_path))
    assert (packages.history(bookworm), site.master_pid(bookworm)) == ([], master)

    path = "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2"
    changed = tmp_path / "libpcre2"
    changed.write_bytes((root / path.lstrip("/")).read_bytes() + b"\0")
    deb = packages.pack(root, "libpcre2-8-0", "10.42-1+again", into=tmp_path, files={path: changed})
    came = packages.upgrade_under_load(bookworm, deb)
    assert came.verdict["verdict"] == "committed"
    assert came.verdict["from_version"] == came.verdict["to_version"]
    assert came.verdict["changed"] == [{"kind": "library", "path": path, "change": "replaced"}]
    assert came.failed == {}
    assert site.master_pid(bookworm) != master
    packages.until(bookworm, "rest", lambda: site.status(bookworm)["state"] == "running")
    assert site.status(bookworm)["changed"] == []
    assert len(packages.history(bookworm)) == 1


@pytest.mark.parametrize(
    ("kind", "meanwhile", "word"),
    [("good", "canary", "committed"), ("hang", "spawning", "rolled_back")],
)
def test_a_second_package_in_the_middle_of_an_upgrade_is_not_lost(
    boot_box: BootBox, tmp_path: Path, kind: str, meanwhile: str, word: str
) -> None:
    box = boot_box("bookworm", CANDIDATES)
    site.configure(box, canary="5s", soak="0s", start_timeout="5s")
    packages.start(box)
    packages.install(box, nginx_deb(tmp_path, "9-1", candidate(builds()[-2], kind)))
    packages.until(
        box, meanwhile, lambda: (site.status(box)["upgrade"] or {}).get("phase") == meanwhile
    )
    packages.install(box, nginx_deb(tmp_path, "9-2", NEWEST.path))
    assert site.status(box)["state"] == "upgrading"
    verdicts = packages.until_settled(box, 2)
    assert [one["verdict"] for one in verdicts] == [word, "committed"], verdicts
    packages.until(box, "rest", lambda: site.status(box)["state"] == "running")
    assert site.status(box)["generations"][0]["version"] == NEWEST.version
    disk = site.status(box)["binary_on_disk"]
    assert disk["package"]["version"] == "9-2"
    assert disk["package"]["intact"] is True


def test_dpkg_is_killed_half_way(bookworm: Box, tmp_path: Path) -> None:
    site.configure(bookworm)
    packages.start(bookworm)
    master = site.master_pid(bookworm)
    # In the midst of the configuration: the binary is in place by then.
    killer = "#!/bin/sh\n[ -e /root/finish ] || kill -KILL $PPID\n"
    deb = nginx_deb(tmp_path, f"{NEWEST.version}-1", NEWEST.path, scripts={"postinst": killer})
    assert packages.install(bookworm, deb, check=False).returncode != 0
    (refused,) = packages.until_settled(bookworm, 1)
    assert (refused["verdict"], refused["reason"]) == ("refused", "package_not_configured")
    assert "nginx" in str(refused["detail"])
    assert site.master_pid(bookworm) == master
    assert site.status(bookworm)["binary_on_disk"]["package"]["state"] == "half-configured"
    bookworm.write("/root/finish", "")
    bookworm.run("dpkg", "--configure", "-a")
    packages.until(bookworm, "a verdict", lambda: len(packages.history(bookworm)) > 1)
    verdict = packages.history(bookworm)[-1]
    assert (verdict["verdict"], verdict["to_version"]) == ("committed", NEWEST.version)


def test_the_packages_own_scripts_leave_it_to_the_bridge(box: Box, tmp_path: Path) -> None:
    """With nginx.service as a front: they find it active, and have it upgraded and restarted."""
    site.configure(box)
    share = "/usr/share/nginx-supervisor/systemd"
    box.run("mkdir", "-p", "/etc/systemd/system/nginx.service.d")
    front = f"{share}/nginx.service.d/zz-nginx-supervisor.conf"
    box.run("cp", front, "/etc/systemd/system/nginx.service.d/")
    box.run("cp", f"{share}/init-functions.d/50-nginx-supervisor", "/usr/lib/lsb/init-functions.d/")
    box.run("systemctl", "daemon-reload")
    packages.start(box)
    box.run("systemctl", "enable", "--now", "nginx.service")
    supervisor, root = site.main_pid(box), root_of(_suite(box))
    common = packages.pack(root, "nginx-common", f"{_common(root)}+again", into=tmp_path)
    deb = nginx_deb(tmp_path, f"{_common(root)}+again", NEWEST.path, suite=_suite(box))
    came = packages.upgrade_under_load(box, common, deb)
    assert came.verdict["verdict"] == "committed"
    assert came.failed == {}
    assert "once dpkg has finished" in came.said
    packages.until(box, "rest", lambda: site.status(box)["state"] == "running")
    assert len(packages.history(box)) == 1
    assert site.main_pid(box) == supervisor
    assert site.status(box)["restarts"] == 0
    assert box.show("nginx.service", "ActiveState")["ActiveState"] == "active"
    # What is left without the bridge: dpkg waits for the verdict of the same machine.
    box.run("systemctl", "disable", "--now", packages.PATH_UNIT)
    again = nginx_deb(tmp_path, f"{_common(root)}+again", builds()[-2].path, suite=_suite(box))
    with box.quick_load(rate=100.0) as load:
        packages.install(box, again)
        load.stop()
    assert not load.total.failed
    verdict = packages.history(box)[-1]
    assert (verdict["verdict"], verdict["to_version"]) == ("committed", builds()[-2].version)


def _suite(box: Box) -> str:
    release = box.path("/etc/os-release").read_text()
    return "trixie" if "VERSION_CODENAME=trixie" in release else "bookworm"


def _common(root: Path) -> str:
    status = (root / "var/lib/dpkg/status").read_text()
    found = re.search(r"^Package: nginx-common\n(?:.+\n)*?Version: (.*)$", status, re.M)
    assert found is not None
    return found[1]


def test_a_read_only_store_of_links_is_flipped_and_never_written_through(
    boot_box: BootBox, tmp_path: Path
) -> None:
    """As on NixOS and ostree: nginx.binary is a link into folders that nobody can write to."""
    box = boot_box("bookworm", CANDIDATES)
    binary, first = "/usr/local/sbin/nginx", builds()[-2]
    box.run("ln", "-s", str(first.path), binary)
    site.configure(box, binary=binary)
    site.start(box)

    def flip(target: Path) -> str:
        box.run("ln", "-sfn", str(target), f"{binary}.new")
        box.run("mv", "-T", f"{binary}.new", binary)
        done = box.run("nginxctl", "--json", "upgrade", "--if-changed", check=False)
        packages.until(box, "rest", lambda: site.status(box)["state"] == "running")
        return str(json.loads(done.stdout.splitlines()[-1])["verdict"])

    assert flip(candidate(NEWEST, "workers_fatal")) == "rolled_back"
    assert box.run("readlink", binary).stdout.strip() == str(first.path)
    assert flip(NEWEST.path) == "committed"
    assert box.run("readlink", binary).stdout.strip() == str(NEWEST.path)
    # A file that is given is copied to beside the link's target, unless it has stood there before.
    box.run("cp", str(first.path), "/root/nginx")
    box.run("nginxctl", "upgrade", "/root/nginx")
    packages.until(box, "rest", lambda: site.status(box)["state"] == "running")
    assert box.run("readlink", binary).stdout.strip() == str(first.path)
    box.run("cp", str(candidate(NEWEST, "good")), "/root/nginx")
    master = site.master_pid(box)
    done = box.run("nginxctl", "--json", "upgrade", "/root/nginx", check=False)
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, verdict["reason"]) == (3, "binary_directory_read_only")
    assert site.master_pid(box) == master


def test_a_read_only_usr_takes_nothing_and_is_told(boot_box: BootBox) -> None:
    box = boot_box("bookworm")
    first = builds()[-2]
    site.configure(box, binary=str(first.path))  # bound read-only into the box
    site.start(box)
    master = site.master_pid(box)
    box.run("cp", str(NEWEST.path), "/root/nginx")
    done = box.run("nginxctl", "--json", "upgrade", "/root/nginx", check=False)
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, verdict["reason"]) == (3, "binary_directory_read_only")
    assert str(first.path.parent) in verdict["detail"]
    assert site.master_pid(box) == master
    assert site.status(box)["state"] == "running"


def test_a_diverted_package_is_left_alone(bookworm: Box, tmp_path: Path) -> None:
    """As docs/packages.md has it, in that order."""
    site.configure(bookworm)
    packages.start(bookworm)
    bookworm.run("cp", str(NEWEST.path), "/root/nginx-of-my-own")
    divert = ("dpkg-divert", "--local", "--rename")
    bookworm.run(*divert, "--divert", f"{NGINX}.distrib", "--add", NGINX)
    bookworm.run("nginxctl", "upgrade", "/root/nginx-of-my-own")
    packages.until(bookworm, "rest", lambda: site.status(bookworm)["state"] == "running")
    assert site.status(bookworm)["binary_on_disk"]["package"] is None
    assert site.status(bookworm)["binary_on_disk"]["placed_by"] == "supervisor"
    packages.until_settled(bookworm, 1)
    packages.install_and_look(bookworm, nginx_deb(tmp_path, "9-1", builds()[-2].path))
    assert len(packages.history(bookworm)) == 1
    assert site.status(bookworm)["generations"][0]["version"] == NEWEST.version
