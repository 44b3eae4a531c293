"""What `systemd-analyze` says of the units: how exposed, and that each open item has its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.booted.box import Box

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardening.md"
ROW = re.compile(r"^\| `(?P<item>[^`]+=[^`]*)` \| (?P<units>both|root|unprivileged) \| \S", re.M)
LIMITS = {
    "nginx-supervisor.service": ("root", 33),
    "nginx-supervisor@web.service": ("root", 33),
    "nginx-supervisor-unprivileged@www-data.service": ("unprivileged", 20),
}


def explained(kind: str) -> set[str]:
    """The items that docs/hardening.md gives a reason for."""
    rows = [match.groupdict() for match in ROW.finditer(PAGE.read_text())]
    return {row["item"].replace("\\|", "|") for row in rows if row["units"] in ("both", kind)}


def test_exposure_and_its_reasons(box: Box) -> None:
    for unit, (kind, most) in LIMITS.items():
        box.run("systemd-analyze", "security", "--no-pager", f"--threshold={most}", unit)
        told = box.run("systemd-analyze", "security", "--no-pager", "--json=short", unit).stdout
        items = {
            one["name"]: one["set"] for one in json.loads(told) if one["exposure"] not in (None, "")
        }
        assert items
        assert set(items) == explained(kind), unit


@pytest.mark.parametrize("drop_in", ["jit.conf"])
def test_a_drop_in_costs_no_more_than_allowed(bookworm: Box, drop_in: str) -> None:
    text = bookworm.path(f"/usr/share/nginx-supervisor/systemd/drop-ins/{drop_in}").read_text()
    bookworm.write(f"/etc/systemd/system/nginx-supervisor.service.d/{drop_in}", text)
    bookworm.run("systemctl", "daemon-reload")
    bookworm.run(
        "systemd-analyze", "security", "--no-pager", "--threshold=33", "nginx-supervisor.service"
    )
