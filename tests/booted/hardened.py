"""A site that uses much of what nginx asks a kernel for, under the hardened unit."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.booted import site
from tests.booted.box import Box
from tests.booted.manager import drop_in, put_drop_in
from tools import unit_template

UNIT = site.UNIT
DROP_INS = "/usr/share/nginx-supervisor/systemd/drop-ins"
RESULT = "/var/tmp/inside.json"

MAIN = """\
worker_rlimit_nofile 4096;
worker_cpu_affinity auto;
worker_priority 5;
pcre_jit on;
"""
SERVER = """\
    listen 443 ssl;
    ssl_certificate /etc/nginx/tls/site.crt;
    ssl_certificate_key /etc/nginx/tls/site.key;
    access_log /var/log/nginx/site.log;
    location /cached/ { proxy_pass http://127.0.0.1:80/; proxy_cache kept; proxy_cache_valid 1m; }
    location /home/ { alias /home/alice/; }
    location ~ ^/(a|b)+c$ { return 204; }
"""
HTTP = """\
proxy_cache_path /var/cache/nginx-kept keys_zone=kept:1m;
scgi_temp_path /var/lib/nginx/scgi;
uwsgi_temp_path /var/lib/nginx/uwsgi;
aio threads;
"""


def configure(box: Box, *, main: str = MAIN, settings: str = "") -> None:
    """Certificates, contents and settings; starts nothing."""
    box.path("/etc/nginx/tls").mkdir(exist_ok=True)
    box.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-subj", "/CN=localhost", "-days", "3650",
        "-keyout", "/etc/nginx/tls/site.key", "-out", "/etc/nginx/tls/site.crt",
    )  # fmt: skip
    box.write("/home/alice/page", "from a home\n")
    box.write("/etc/nginx/sites-enabled/http.conf", HTTP)
    site.configure(box, main=main, server=SERVER, settings=settings)


def use_drop_in(box: Box, name: str, *, unit: str = UNIT) -> None:
    """One of those that are installed; it counts from the next start on."""
    put_drop_in(box, box.path(f"{DROP_INS}/{name}.conf").read_text(), unit=unit, name=name)


_FETCH = """
import ssl, sys, urllib.request
unchecked = ssl._create_unverified_context()
print(urllib.request.urlopen(sys.argv[1], context=unchecked, timeout=10).read().decode(), end="")
"""


def fetch(box: Box, url: str) -> str:
    """What a client in the box is answered; a certificate is not checked."""
    return box.run("python3", "-Ic", _FETCH, url).stdout


def try_inside(box: Box, *, unit: str = UNIT, result: str = RESULT) -> None:
    """From its next start on the unit leaves in `result` what its sandbox permits."""
    box.write("/usr/local/lib/inside.py", Path(__file__).with_name("inside.py").read_text())
    box.write("/root/readable", "yes")
    box.write("/home/readable", "yes")
    box.write("/usr/lib/modules/module.ko", "")
    box.path("/usr/lib/nginx").mkdir(exist_ok=True)
    box.write("/run/user/0/bus", "")
    box.run("mknod", "-m", "0666", "/dev/extra", "c", "1", "3")
    other = box.run(
        "sh", "-c", "systemd-run -q --uid=nobody --unit=other sleep infinity; "
        "systemctl show -P MainPID other"
    ).stdout.strip()  # fmt: skip
    command = f"/usr/bin/python3 -I /usr/local/lib/inside.py {other}"
    drop_in(box, f"ExecStartPost=/bin/sh -c '{command} >{result}'", unit=unit, name="try")
    box.write("/usr/local/lib/other", other)


def tried(box: Box, result: str = RESULT) -> dict[str, object]:
    """What `try_inside` has left."""
    found = json.loads(box.path(result).read_text())
    assert isinstance(found, dict)
    return found


def privileges() -> list[str]:
    """The settings of the unit that are about them, as `systemd-run -p` takes them."""
    lines = unit_template.UNIT.read_text().partition(unit_template.PRIVILEGES)[2].splitlines()
    lines = lines[: lines.index("[Install]")]
    return [line for line in lines if re.match(r"[A-Z]\w+=", line)]


def tried_with(box: Box, *settings: str) -> dict[str, object] | None:
    """The same by a service with only these; without any: what the box itself permits.

    None where it was killed.
    """
    other = box.path("/usr/local/lib/other").read_text()
    said = box.run(
        "systemd-run", "-q", "--wait", "--pipe", *(f"-p{one}" for one in settings),
        "/usr/bin/python3", "-I", "/usr/local/lib/inside.py", other, check=False,
    ).stdout  # fmt: skip
    if not said:
        return None
    found = json.loads(said)
    assert isinstance(found, dict)
    return found
