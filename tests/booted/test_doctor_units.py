"""`nginxctl doctor` where systemd manages the machine: what a migration would lose."""

from __future__ import annotations

import json
from typing import Any

from tests.booted import front, site
from tests.booted.box import Box

CHANGES = {
    "LimitNOFILE": "4096", "LimitCORE": "1M", "LimitMEMLOCK": "4M", "Nice": "-5",
    "CPUAffinity": "0", "OOMScoreAdjust": "-900", "MemoryMax": "2G", "TasksMax": "500",
    "UMask": "0027",
}  # fmt: skip


def units(box: Box) -> dict[str, dict[str, Any]]:
    """Its findings about units."""
    done = box.run("nginxctl", "--json", "doctor", check=False)
    found = json.loads(done.stdout)["findings"]
    return {one["name"]: one for one in found if one["topic"] == "unit"}


def test_each_difference_and_that_its_line_ends_it(box: Box) -> None:
    """The lines that it says to add are added as they are; then there is nothing left to say."""
    text = "".join(f"{key}={value}\n" for key, value in CHANGES.items())
    box.write(front.OVERRIDE, f"[Service]\nEnvironment=A=1 B=2\n{text}")
    front.started(box)
    found = units(box)
    assert found["front"]["level"] == "ok"
    assert set(CHANGES) | {"Environment", "front"} == set(found)
    for key, value in CHANGES.items():
        assert found[key]["lines"] == [f"{key}={value}"]
        assert f"{value} in nginx.service (by {front.OVERRIDE}), " in found[key]["seen"]
    assert found["Environment"]["lines"] == ['environment = { A = "1", B = "2" }']

    lines = "".join(f"{found[key]['lines'][0]}\n" for key in CHANGES)
    box.write(f"/etc/systemd/system/{site.UNIT}.d/override.conf", f"[Service]\n{lines}")
    settings = box.path(site.CONFIG).read_text()
    line = found["Environment"]["lines"][0]
    box.write(site.CONFIG, settings.replace("[nginx]\n", f"[nginx]\n{line}\n"))
    box.run("systemctl", "daemon-reload")
    waiting = units(box)
    assert set(waiting) == {"front", "Environment", "LimitNOFILE", "LimitCORE", "LimitMEMLOCK"}
    assert "for the nginx that runs" in waiting["LimitNOFILE"]["seen"]
    box.run("systemctl", "restart", site.UNIT)
    assert {name: one["level"] for name, one in units(box).items()} == {
        "front": "ok", "units": "ok",
    }  # fmt: skip


def test_without_a_front_it_says_how_to_make_one(bookworm: Box) -> None:
    box = bookworm
    site.configure(box)
    site.start(box)
    found = units(box)
    assert found["front"]["level"] == "warn"
    for line in found["front"]["lines"]:
        box.run("sh", "-c", line)
    assert units(box)["front"]["level"] == "ok"
