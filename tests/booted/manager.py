"""What a test wants to know of the service manager: what it was told, and that it has acted."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.booted import site
from tests.booted.box import Box
from tests.e2e.harness.bare import until

LIMIT = 60.0
_MESSAGE = re.compile(r"Got notification message from PID (\d+)(?:: (.*)| \((.*)\))$")


def drop_in(box: Box, text: str, *, unit: str = site.UNIT, name: str = "test") -> None:
    """Add to the unit's [Service]; in force at its next start."""
    put_drop_in(box, f"[Service]\n{text}\n", unit=unit, name=name)


def put_drop_in(box: Box, text: str, *, unit: str = site.UNIT, name: str = "test") -> None:
    """A whole drop-in of the unit's; in force at its next start."""
    box.write(f"/etc/systemd/system/{unit}.d/{name}.conf", text)
    box.run("systemctl", "daemon-reload")


def shipped_drop_in(box: Box, name: str) -> None:
    """Make one of the drop-ins active that come with the unit."""
    shipped = f"/usr/share/nginx-supervisor/systemd/nginx-supervisor.service.d/{name}"
    box.run("install", "-Dm644", "-t", f"/etc/systemd/system/{site.UNIT}.d", shipped)
    box.run("systemctl", "daemon-reload")


def write_all_down(box: Box) -> None:
    """Have systemd log each message that it gets, for `heard`."""
    box.run("systemctl", "log-level", "debug")


def heard(box: Box, *, unit: str = site.UNIT) -> list[str]:
    """What the unit's processes have said (sd_notify(3)), in order; fields joined by ", "."""
    box.run("journalctl", "--sync")
    said = box.run("journalctl", "-o", "cat", f"UNIT={unit}", "_PID=1").stdout.splitlines()
    found = (_MESSAGE.search(line) for line in said)
    return [one[2] or one[3] for one in found if one is not None]


def wait_for(what: str, look: Callable[[], object], *, limit: float = LIMIT) -> None:
    """Return when `look` is true: for what happens in a box, of which nobody tells outside."""
    until(what, lambda: bool(look()), limit, poll=0.02)


def wait_until_up_again(
    box: Box, before: int, *, unit: str = site.UNIT, limit: float = LIMIT
) -> int:
    """The unit's new main process, once it is ready; `before` is the old one."""

    def is_up() -> bool:
        shown = box.show(unit, "MainPID", "ActiveState", "SubState")
        other = shown["MainPID"] not in ("0", str(before))
        return other and (shown["ActiveState"], shown["SubState"]) == ("active", "running")

    wait_for(f"another supervisor than {before}", is_up, limit=limit)
    return site.main_pid(box, unit)


def wait_for_state(box: Box, state: str, *, unit: str = site.UNIT) -> None:
    """Return when the unit is in `state` (ActiveState)."""
    wait_for(f"{unit} is {state}", lambda: box.show(unit, "ActiveState")["ActiveState"] == state)


def wait_for_journal(box: Box, words: str) -> None:
    """Return when a line of the journal has `words`."""
    wait_for(f"{words!r} in the journal", lambda: words in box.journal())


def get(box: Box, *arguments: str) -> str:
    """What nginx answers to curl; empty where it does not."""
    return box.run("python3", "-c", _GET, *arguments, check=False).stdout


_GET = """
import socket, sys
place = sys.argv[1]
family = socket.AF_UNIX if place.startswith("/") else socket.AF_INET
with socket.socket(family) as client:
    client.settimeout(10)
    client.connect(place if place.startswith("/") else ("127.0.0.1", int(place)))
    client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    answer = b""
    while part := client.recv(65536):
        answer += part
sys.stdout.write(answer.partition(b"\\r\\n\\r\\n")[2].decode())
"""
