"""The main job under systemd: the unit owns nginx and upgrades its binary under live traffic."""

from __future__ import annotations

import json

from tests.booted import site
from tests.booted.box import Box
from tools.nginx_builds import builds


def test_an_upgrade_and_a_rollback_refuse_nobody(box: Box) -> None:
    newest = builds()[-1]
    binary = "/usr/local/sbin/nginx"
    box.run("cp", str(builds()[-2].path), binary)
    site.configure(box, binary=binary)
    site.start(box)
    supervisor = site.main_pid(box)
    with box.quick_load(rate=100.0) as load:
        told = box.run("nginxctl", "--json", "upgrade", str(newest.path)).stdout.splitlines()
        verdict = json.loads(told[-1])
        assert (verdict["verdict"], verdict["to_version"]) == ("committed", newest.version)
        told = box.run("nginxctl", "--json", "rollback").stdout.splitlines()
        assert json.loads(told[-1])["verdict"] == "committed"
        load.stop()
    assert not load.total.failed
    assert load.total.ok > 0
    assert site.main_pid(box) == supervisor  # never another main process
    assert site.status(box)["state"] in ("running", "draining")
