"""What nearly every test wants in its box: a site of Debian's nginx, and our configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.booted.box import Box

UNIT = "nginx-supervisor.service"
CONFIG = "/etc/nginx-supervisor/nginx-supervisor.toml"
SITE = "/etc/nginx/sites-enabled/default"

# Also for builds that were compiled with other folders than Debian's.
_NGINX_CONF = """\
user www-data;
worker_processes 2;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;
include /etc/nginx/modules-enabled/*.conf;
{main}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path /var/lib/nginx/body;
    proxy_temp_path /var/lib/nginx/proxy;
    fastcgi_temp_path /var/lib/nginx/fastcgi;
    include /etc/nginx/sites-enabled/*;
}}
"""

_SERVER = """\
server {{
    listen 80 default_server;
    listen [::]:80 default_server;
    include /run/nginx-supervisor/probe*.conf;
    {more}
    location / {{ default_type text/plain; return 200 "ok\\n"; }}
}}
"""

_SETTINGS = """\
[nginx]
binary = "{binary}"
config = "/etc/nginx/nginx.conf"
error_log = "/var/log/nginx/error.log"

[upgrade]
canary = "{canary}"
soak = "{soak}"
start_timeout = "{start_timeout}"

[[probe]]
name = "home"
type = "http"
url = "http://127.0.0.1/"
interval = "100ms"
{more}
"""


def configure(
    box: Box,
    *,
    binary: str = "/usr/sbin/nginx",
    canary: str = "0.5s",
    soak: str = "0.5s",
    start_timeout: str = "10s",
    main: str = "",
    server: str = "",
    settings: str = "",
) -> None:
    """An nginx.conf in Debian's folders with one server that answers "ok", judged by one probe.

    `main` is more text at its top, `server` in the server's block, `settings` more tables of ours.
    """
    box.write("/etc/nginx/nginx.conf", _NGINX_CONF.format(main=main))
    box.path(SITE).unlink(missing_ok=True)
    box.write(SITE, _SERVER.format(more=server))
    text = _SETTINGS.format(
        binary=binary, canary=canary, soak=soak, start_timeout=start_timeout, more=settings
    )
    box.write(CONFIG, text)


def start(box: Box, unit: str = UNIT) -> None:
    """Start our unit; returns when it is ready. Raises with the journal's words where it fails."""
    done = box.run("systemctl", "start", unit, check=False)
    assert done.returncode == 0, done.stderr + box.journal("-u", unit)


def status(box: Box) -> Mapping[str, object]:
    """What `nginxctl --json status` prints."""
    told = json.loads(box.run("nginxctl", "--json", "status").stdout)
    assert isinstance(told, dict)
    return told


def main_pid(box: Box, unit: str = UNIT) -> int:
    """The unit's main process, as the box numbers it; 0 where there is none."""
    return int(box.show(unit, "MainPID")["MainPID"])


def master_pid(box: Box) -> int:
    """The active generation's master, as the box numbers it."""
    generations = status(box)["generations"]
    assert isinstance(generations, list)
    return int(generations[0]["master_pid"])
