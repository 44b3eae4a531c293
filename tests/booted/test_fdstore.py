"""systemd's descriptor store: the end of everything refuses nobody, and nothing stale is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.booted import deeds, site
from tests.booted.box import Box
from tests.booted.conftest import BootBox
from tests.booted.manager import drop_in, put_drop_in, wait_for

PORT = 8081
NO_RESTART = "[Service]\nRestartSec=1h\n"


def test_the_end_of_supervisor_and_nginx_refuses_nobody(box: Box) -> None:
    site.configure(box)
    site.start(box)
    deeds.wait_until_stored(box, 2)  # 0.0.0.0:80 and [::]:80
    before = site.master_pid(box)
    with box.quick_load(rate=200.0, timeout=30.0) as load:
        deeds.kill_all(box)
        tally = load.stop()
    deeds.only_cut(tally)
    assert site.master_pid(box) != before
    deeds.wait_until_told(box, "listeners.taken_back")
    assert deeds.stored(box) == 2
    box.run("systemctl", "stop", site.UNIT)
    assert deeds.stored(box) == 0
    assert deeds.refused(box, 80)


@pytest.fixture(scope="module")
def used(boot_shared_box: BootBox) -> Box:
    return boot_shared_box("bookworm")


@pytest.fixture
def serving(used: Box) -> Iterator[Box]:
    """Two ports, three listeners; nothing of the test before is left."""
    site.configure(used)
    deeds.listen_on(used, PORT)
    put_drop_in(used, "")
    used.run("systemctl", "reset-failed", site.UNIT, check=False)
    site.start(used)
    deeds.wait_until_stored(used, 3)
    yield used
    used.run("systemctl", "stop", site.UNIT)


def test_a_listener_that_a_reload_drops_leaves_the_store(serving: Box) -> None:
    for _ in range(3):
        deeds.listen_on(serving)
        serving.run("nginxctl", "reload")
        wait_for("nobody listens", lambda: deeds.refused(serving, PORT))
        assert deeds.stored(serving) == 2
        deeds.listen_on(serving, PORT)
        serving.run("nginxctl", "reload")
        assert deeds.answers(serving, PORT)
        deeds.wait_until_stored(serving, 3)
    for ports in ((), (PORT,)) * 3:  # one reload upon the other, nobody waits for the store
        deeds.listen_on(serving, *ports)
        serving.run("nginxctl", "reload")
    assert deeds.answers(serving, PORT)


def test_what_somebody_has_reloaded_meanwhile_is_compared(serving: Box) -> None:
    """The supervisor is dead, nginx lives, and another one's reload has dropped a listener."""
    put_drop_in(serving, NO_RESTART)
    before = site.master_pid(serving)
    serving.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)
    wait_for(
        "waits to be started", lambda: serving.show(site.UNIT, "SubState")["SubState"]
        == "auto-restart",
    )  # fmt: skip
    deeds.listen_on(serving)
    serving.run("nginx", "-s", "reload")
    assert deeds.stored(serving) == 3
    serving.run("systemctl", "restart", site.UNIT)  # `start` waits for that hour
    deeds.wait_until_told(serving, "listeners.taken_back")
    assert site.master_pid(serving) == before
    wait_for("nobody listens", lambda: deeds.refused(serving, PORT))
    assert deeds.stored(serving) == 2
    assert deeds.answers(serving, 80)


def test_what_the_configuration_does_not_want_any_more_is_in_nobodys_way(serving: Box) -> None:
    """127.0.0.1:PORT in the store would keep 0.0.0.0:PORT from being bound."""
    text = "server {{ listen {address}:{port}; return 200; }}\n"
    serving.run("nginxctl", "stop")
    serving.write(deeds.SITE, text.format(address="127.0.0.1", port=PORT))
    serving.run("nginxctl", "start")
    deeds.wait_until_stored(serving, 3)
    serving.write(deeds.SITE, text.format(address="0.0.0.0", port=PORT))
    deeds.kill_all(serving)
    assert deeds.answers(serving, PORT)
    assert "Address already in use" not in serving.path("/var/log/nginx/error.log").read_text()
    deeds.wait_until_stored(serving, 3)


def test_settings_that_hold_nothing_empty_it(serving: Box) -> None:
    site.configure(serving, settings="[restart]\nhold_listeners = false\n")
    serving.run("systemctl", "reload", site.UNIT)
    deeds.wait_until_stored(serving, 0)
    assert deeds.answers(serving, PORT)


def test_it_is_the_same_after_a_self_upgrade(serving: Box) -> None:
    serving.run("nginxctl", "self-upgrade")
    assert deeds.stored(serving) == 3
    deeds.listen_on(serving)
    serving.run("nginxctl", "reload")
    wait_for("nobody listens", lambda: deeds.refused(serving, PORT))
    assert deeds.stored(serving) == 2
    with serving.quick_load(rate=100.0, timeout=30.0) as load:
        deeds.kill_all(serving)
        tally = load.stop()
    deeds.only_cut(tally)


def test_nginxctl_stop_empties_it(serving: Box) -> None:
    serving.run("nginxctl", "stop")
    assert deeds.stored(serving) == 0
    assert deeds.refused(serving, 80)
    serving.run("nginxctl", "start")
    deeds.wait_until_stored(serving, 3)


def test_a_start_that_fails_keeps_nobody_waiting(serving: Box) -> None:
    """systemd tries again and again; clients are refused meanwhile, as nobody serves them."""
    serving.write(deeds.SITE, "this is no configuration;\n")
    serving.run("systemctl", "kill", "-s", "KILL", site.UNIT)
    wait_for("nobody listens", lambda: deeds.refused(serving, 80))
    assert deeds.stored(serving) == 0


def test_a_configuration_error_keeps_nobody_waiting(serving: Box) -> None:
    serving.write(site.CONFIG, "no = [configuration\n")
    drop_in(serving, "RestartPreventExitStatus=")  # it would empty the store
    serving.run("systemctl", "kill", "-s", "KILL", site.UNIT)
    wait_for("nobody listens", lambda: deeds.refused(serving, 80))
    assert deeds.stored(serving) == 0


def test_status_and_store_agree(serving: Box) -> None:
    held = site.status(serving)["held_listeners"]
    assert isinstance(held, dict)
    assert held["count"] == deeds.stored(serving)
    assert json.dumps(held["addresses"]) == '["0.0.0.0:80", "0.0.0.0:8081", "[::]:80"]'
