"""What is done to the unit in a box, and what is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.booted import site
from tests.booted.box import Box
from tools.quick_load import Tally

LIMIT = 30.0
"""Seconds that anything which should happen at once may take on a busy machine."""
SITE = "/etc/nginx/sites-enabled/more"


def wait_for(what: str, holds: Callable[[], bool], *, limit: float = LIMIT) -> None:
    """Return once `holds()`; there is no event for most of what is seen from outside a box."""
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, f"not seen within {limit:g} s: {what}"
        time.sleep(0.02)


def wait_for_successor(
    box: Box, before: int, unit: str = site.UNIT, *, limit: float = LIMIT
) -> int:
    """The main process that has taken the place of `before`, once the unit is active with it."""

    def is_there() -> bool:
        seen = box.show(unit, "ActiveState", "MainPID")
        return seen["ActiveState"] == "active" and int(seen["MainPID"]) not in (0, before)

    wait_for("another supervisor", is_there, limit=limit)
    return site.main_pid(box, unit)


def stored(box: Box, unit: str = site.UNIT) -> int:
    """How many descriptors systemd keeps for the unit."""
    return int(box.show(unit, "NFileDescriptorStore")["NFileDescriptorStore"])


def wait_until_stored(box: Box, count: int) -> None:
    wait_for(f"{count} descriptors in the store", lambda: stored(box) == count)


def wait_until_told(box: Box, event: str) -> None:
    """Wait until the supervisor has logged this."""
    wait_for(event, lambda: '"MESSAGE"' in box.journal("-o", "json", f"EVENT={event}"))


def refused(box: Box, port: int) -> bool:
    """Whether a connection to the port is refused; False where it is taken, or waits."""
    text = (
        "import socket, sys\n"
        "one = socket.socket()\n"
        "sys.exit(one.connect_ex(('127.0.0.1', int(sys.argv[1]))) == 0)"
    )
    return box.run("python3", "-c", text, str(port), check=False).returncode == 0


def answers(box: Box, port: int) -> bool:
    """Whether a worker answers on the port."""
    text = (
        "import sys, urllib.request\n"
        "print(urllib.request.urlopen(f'http://127.0.0.1:{sys.argv[1]}/', timeout=30).status)"
    )
    return box.run("python3", "-c", text, str(port), check=False).stdout == "200\n"


def listen_on(box: Box, *ports: int) -> None:
    """Have the configuration listen on these as well; nginx is not told."""
    text = "".join(f"server {{ listen {port}; return 200; }}\n" for port in ports)
    box.write(SITE, text)


def nginx_processes(box: Box) -> list[int]:
    said = box.run("pgrep", "-x", "nginx", check=False).stdout
    return [int(one) for one in said.split()]


def kill_supervisor(box: Box) -> None:
    """SIGKILL to the main process; returns when another one has adopted nginx."""
    before = site.main_pid(box)
    box.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)
    wait_for_successor(box, before)


def kill_all(box: Box) -> None:
    """SIGKILL to the supervisor and all of nginx; returns when nginx serves again."""
    before = site.main_pid(box)
    box.run("systemctl", "kill", "-s", "KILL", site.UNIT)
    wait_for_successor(box, before)


def hang_supervisor(box: Box) -> None:
    """Stop the main process until the watchdog kills it; returns when another one is there."""
    before = site.main_pid(box)
    box.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", site.UNIT)
    wait_for_successor(box, before, limit=120.0)


def keep_nginx_on_restart(box: Box) -> None:
    """Put the drop-in in force that the installation brings along."""
    name = "nginx-supervisor.service.d/keep-nginx-on-restart.conf"
    text = box.path(f"/usr/share/nginx-supervisor/systemd/{name}").read_text()
    drop_in(box, text, "keep")


def drop_in(box: Box, text: str, name: str = "test") -> None:
    """Add lines to the unit."""
    box.write(f"/etc/systemd/system/{site.UNIT}.d/{name}.conf", text)
    box.run("systemctl", "daemon-reload")


def only_cut(tally: Tally) -> None:
    """Nobody was refused or left waiting; only whom a killed worker was serving was cut off."""
    others = {cause: count for cause, count in tally.failed.items() if count}
    cut = others.pop("reset", 0) + others.pop("cut", 0)
    assert not others, tally.failures
    assert tally.ok > 0
    assert cut <= tally.ok
