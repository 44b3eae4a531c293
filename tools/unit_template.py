"""Makes `nginx-supervisor@.service` out of the unit of one: `python -m tools.unit_template`.

Systemd knows no include, and two files that have to say the same would soon not.
"""

from __future__ import annotations

import re
from pathlib import Path

UNITS = Path(__file__).resolve().parent.parent / "systemd"
UNIT = UNITS / "nginx-supervisor.service"
TEMPLATE = UNITS / "nginx-supervisor@.service"
UNPRIVILEGED = UNITS / "nginx-supervisor-unprivileged@.service"

HEAD = """\
# For several instances, each with its own nginx: nginx-supervisor@NAME.service reads
# /etc/nginx-supervisor/NAME.toml, in which [control] socket and [probe_listener] have to be in
# /run/nginx-supervisor-NAME, and [state] directory is /var/lib/nginx-supervisor-NAME.
# Made from nginx-supervisor.service by `python -m tools.unit_template`: change that one.
"""

HEAD_OF_UNPRIVILEGED = """\
# Without root from the start: nginx-supervisor-unprivileged@USER.service runs as USER, and reads
# /etc/nginx-supervisor/USER.toml, in which [control] socket and [probe_listener] have to be in
# /run/nginx-supervisor-USER, and [state] directory is /var/lib/nginx-supervisor-USER.
# From "Least privilege" on it is written here; what is above that is made from
# nginx-supervisor.service by `python -m tools.unit_template`.
"""
PRIVILEGES = "# --- Least privilege"

_CONFIG = "/etc/nginx-supervisor/nginx-supervisor.toml"
_DIRECTORY = re.compile(r"^((?:Runtime|State)Directory=)nginx-supervisor$", re.MULTILINE)
_PATH = re.compile(r"(/run|/var/lib)/nginx-supervisor\b")


def template_of(unit: str) -> str:
    """The template's text; folders and configuration are the instance's own."""
    return HEAD + _instance(unit)


def unprivileged_of(unit: str, before: str) -> str:
    """The same for an instance that is a user, with the privileges that `before` has."""
    common = _instance(unit).partition(PRIVILEGES)[0]
    return HEAD_OF_UNPRIVILEGED + common + before[before.index(PRIVILEGES) :]


def _instance(unit: str) -> str:
    body = unit[unit.index("\n[Unit]") :]
    body = body.replace(_CONFIG, "/etc/nginx-supervisor/%i.toml")
    body = body.replace("nginx-supervisor\n", "nginx-supervisor (%i)\n", 1)
    body = _DIRECTORY.sub(r"\1nginx-supervisor-%i", body)
    return _PATH.sub(r"\1/nginx-supervisor-%i", body)


if __name__ == "__main__":
    TEMPLATE.write_text(template_of(UNIT.read_text()))
    UNPRIVILEGED.write_text(unprivileged_of(UNIT.read_text(), UNPRIVILEGED.read_text()))
