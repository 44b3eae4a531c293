"""What is done to the unit in a box, and what is waited for."""

from __future__ import annotations

from tests.booted import site
from tests.booted.box import Box
from tests.booted.manager import shipped_drop_in, wait_for, wait_until_up_again
from tools.quick_load import Tally

SITE = "/etc/nginx/sites-enabled/more"


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
    wait_until_up_again(box, before)


def kill_all(box: Box) -> None:
    """SIGKILL to the supervisor and all of nginx; returns when nginx serves again."""
    before = site.main_pid(box)
    box.run("systemctl", "kill", "-s", "KILL", site.UNIT)
    wait_until_up_again(box, before)


def hang_supervisor(box: Box) -> None:
    """Stop the main process until the watchdog kills it; returns when another one is there."""
    before = site.main_pid(box)
    box.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", site.UNIT)
    wait_until_up_again(box, before, limit=120.0)


def keep_nginx_on_restart(box: Box) -> None:
    """Put the drop-in in force that the installation brings along."""
    shipped_drop_in(box, "keep-nginx-on-restart.conf")


def only_cut(tally: Tally) -> None:
    """Nobody was refused or left waiting; only whom a killed worker was serving was cut off."""
    others = {cause: count for cause, count in tally.failed.items() if count}
    cut = others.pop("reset", 0) + others.pop("cut", 0)
    assert not others, tally.failures
    assert tally.ok > 0
    assert cut <= tally.ok
