"""The unit is started while something else has nginx's ports."""

from __future__ import annotations

import pytest

from tests.booted import front, site
from tests.booted.box import Box
from tests.e2e.harness.bare import until

SQUATTER = """\
import http.server
import socketserver

socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("0.0.0.0", 80), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def said_by_systemctl_status(box: Box) -> str:
    return box.run("systemctl", "status", "--no-pager", "--full", site.UNIT, check=False).stdout


def test_who_holds_them_is_named(bookworm: Box) -> None:
    """With its unit, and what stops it; it is not harmed, and once it is gone the unit comes up."""
    box = bookworm
    site.configure(box)
    box.write("/root/squatter.py", SQUATTER)
    box.run("systemd-run", "--unit=squatter", "/usr/bin/python3", "/root/squatter.py")
    listens = "ss -Hltn sport = :80"
    until("it listens", lambda: bool(box.run("sh", "-c", listens).stdout))
    pid = box.show("squatter.service", "MainPID")["MainPID"]
    box.run("systemctl", "start", "--no-block", site.UNIT)
    named = (
        f"0.0.0.0:80 is held by process {pid} (python3 of squatter.service): stop that first "
        "(`systemctl stop squatter.service`)"
    )
    until("it says who", lambda: named in box.journal("-u", site.UNIT))
    until("status shows it", lambda: named in said_by_systemctl_status(box))
    assert box.show("squatter.service", "ActiveState", "MainPID") == {
        "ActiveState": "active", "MainPID": pid,
    }  # fmt: skip
    box.run("systemctl", "stop", "squatter.service")
    until("it is tried again", lambda: front.is_active(box, site.UNIT) == "active")


def test_an_nginx_with_another_configuration_is_named(bookworm: Box) -> None:
    """Somebody else's, started by hand: not adopted, not harmed, told by its arguments."""
    box = bookworm
    site.configure(box)
    text = box.path("/etc/nginx/nginx.conf").read_text()
    box.write("/srv/other.conf", text.replace("/run/nginx.pid", "/run/other.pid"))
    box.run("nginx", "-c", "/srv/other.conf")
    master = front.only_master(box)
    box.run("systemctl", "start", "--no-block", site.UNIT)
    named = f"0.0.0.0:80 and [::]:80 are held by process {master} (nginx"
    until("it says who", lambda: named in box.journal("-u", site.UNIT))
    assert "nginx: master process nginx -c /srv/other.conf" in box.journal("-u", site.UNIT)
    box.run("systemctl", "stop", site.UNIT)
    assert front.masters(box) == [master]


@pytest.mark.parametrize("by", ["nginx.service", "hand"])
def test_the_configured_nginx_is_adopted(bookworm: Box, by: str) -> None:
    """Nobody is stopped first, and nobody is refused."""
    box = bookworm
    site.configure(box)
    if by == "hand":
        box.run("nginx")
    else:
        box.run("systemctl", "start", by)
    master = front.only_master(box)
    with box.quick_load(rate=50.0) as load:
        site.start(box)
        load.stop()
    assert not load.total.failed
    assert front.masters(box) == [master]
    assert site.master_pid(box) == int(master)
