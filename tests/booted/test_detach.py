"""`nginxctl detach`, and a restart of the unit, leave nginx serving; `systemctl stop` stops it."""

from __future__ import annotations

import json

from tests.booted import deeds, site
from tests.booted.box import Box
from tests.booted.manager import drop_in, put_drop_in, wait_for
from tools.nginx_builds import builds

BINARY = "/usr/local/sbin/nginx"


def last_verdict(box: Box) -> dict[str, object]:
    told = json.loads(box.run("nginxctl", "--json", "history").stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


def test_a_detached_nginx_serves_on_and_is_adopted(box: Box) -> None:
    site.configure(box)
    deeds.listen_on(box, 8081)
    site.start(box)
    deeds.wait_until_stored(box, 3)
    master = site.master_pid(box)
    with box.quick_load(rate=100.0) as load:
        said = box.run("nginxctl", "detach").stdout
        assert f"(master {master})" in said
        wait_for(
            "the unit is down",
            lambda: box.show(site.UNIT, "ActiveState")["ActiveState"] == "inactive",
        )
        seen = box.show(site.UNIT, "SubState", "Result", "ExecMainStatus", "NRestarts")
        assert seen == {
            "SubState": "dead", "Result": "success", "ExecMainStatus": "3", "NRestarts": "0",
        }  # fmt: skip
        assert deeds.stored(box) == 0
        assert box.run("nginxctl", "status", check=False).returncode == 5
        # It is nobody's now: its own reload binds what it wants.
        deeds.listen_on(box)
        box.run("nginx", "-s", "reload")
        wait_for("nobody listens", lambda: deeds.refused(box, 8081))
        deeds.listen_on(box, 8081)
        box.run("nginx", "-s", "reload")
        wait_for("somebody answers", lambda: deeds.answers(box, 8081))
        site.start(box)
        tally = load.stop()
    assert not tally.failed, tally.failures
    assert tally.ok > 0
    assert site.master_pid(box) == master
    told = last_verdict(box)
    assert (told["operation"], told["verdict"], told["reason"]) == ("detach", "done", "detached")
    assert site.status(box)["last_verdict"] is None
    deeds.wait_until_stored(box, 3)


def test_a_restart_keeps_nginx_where_the_drop_in_says_so_and_a_stop_does_not(box: Box) -> None:
    site.configure(box)
    deeds.keep_nginx_on_restart(box)
    said = box.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{site.UNIT}")
    assert said.stdout + said.stderr == ""
    site.start(box)
    master, supervisor = site.master_pid(box), site.main_pid(box)
    with box.quick_load(rate=100.0) as load:
        for _ in range(2):
            box.run("systemctl", "restart", site.UNIT)
        tally = load.stop()
    assert not tally.failed, tally.failures
    assert tally.ok > 0
    assert site.master_pid(box) == master
    assert site.main_pid(box) != supervisor
    box.run("systemctl", "stop", site.UNIT)
    assert deeds.nginx_processes(box) == []
    assert deeds.refused(box, 80)


def test_without_the_drop_in_a_restart_stops_nginx(bookworm: Box) -> None:
    site.configure(bookworm)
    site.start(bookworm)
    before = site.master_pid(bookworm)
    bookworm.run("systemctl", "restart", site.UNIT)
    assert site.master_pid(bookworm) != before


def test_in_an_upgrade(bookworm: Box) -> None:
    """Detach is refused, a restart waits for the verdict, and for no person."""
    newest = builds()[-1]
    bookworm.run("cp", str(builds()[-2].path), BINARY)
    site.configure(bookworm, binary=BINARY)
    deeds.keep_nginx_on_restart(bookworm)
    site.start(bookworm)
    for hold, verdict, reason in (
        ("--hold", "rolled_back", "operator"), ("--soak=1s", "committed", "healthy"),
    ):  # fmt: skip
        before = site.main_pid(bookworm)
        bookworm.run("nginxctl", "upgrade", str(newest.path), hold, "--no-wait")
        refused = bookworm.run("nginxctl", "detach", check=False)
        assert refused.returncode == 3
        assert "upgrade_in_progress" in refused.stdout + refused.stderr
        with bookworm.quick_load(rate=100.0) as load:
            bookworm.run("systemctl", "restart", site.UNIT)
            tally = load.stop()
        assert not tally.failed, tally.failures
        assert site.main_pid(bookworm) != before
        told = last_verdict(bookworm)
        assert (told["verdict"], told["reason"]) == (verdict, reason)
    generations = site.status(bookworm)["generations"]
    assert isinstance(generations, list)
    assert generations[0]["version"] == newest.version


def test_not_where_systemd_would_end_nginx_with_it(bookworm: Box) -> None:
    site.configure(bookworm)
    site.start(bookworm)
    master = site.master_pid(bookworm)
    drop_in(bookworm, "KillMode=control-group")
    said = bookworm.run("nginxctl", "detach", check=False)
    assert said.returncode == 3
    assert "KillMode=control-group" in said.stdout + said.stderr
    assert site.master_pid(bookworm) == master
    # Told by the signal, it cannot refuse: the unit must not stay down with nginx killed.
    before = site.main_pid(bookworm)
    bookworm.run("systemctl", "kill", "--kill-who=main", "--signal=SIGRTMIN", site.UNIT)
    wait_for(
        "the unit is back",
        lambda: (
            site.main_pid(bookworm) not in (0, before)
            and bookworm.show(site.UNIT, "ActiveState")["ActiveState"] == "active"
        ),
    )
    assert bookworm.show(site.UNIT, "NRestarts")["NRestarts"] == "1"
    assert deeds.answers(bookworm, 80)
    put_drop_in(bookworm, "")
    bookworm.run("nginxctl", "detach")
    assert deeds.answers(bookworm, 80)
