"""A reboot with the unit enabled comes up serving the right binary."""

from __future__ import annotations

from tests.booted import deeds, site
from tests.booted.box import Binding, Box
from tests.booted.conftest import BootBox
from tools.nginx_builds import builds, candidate

BINARY = "/usr/local/sbin/nginx"


def serving(box: Box) -> str:
    """The version that serves after a reboot, once it does."""
    box.reboot()
    assert box.show(site.UNIT, "ActiveState") == {"ActiveState": "active"}
    seen = site.status(box)
    assert seen["state"] == "running"
    assert deeds.answers(box, 80)
    generations = seen["generations"]
    assert isinstance(generations, list)
    return str(generations[0]["version"])


def put(box: Box, source: str) -> None:
    """As a package does: written beside it, renamed over it."""
    box.run("cp", source, f"{BINARY}.new")
    box.run("mv", f"{BINARY}.new", BINARY)


def test_the_right_binary_after_a_reboot(boot_box: BootBox) -> None:
    older, newest = builds()[-2], builds()[-1]
    bad = candidate(newest, "status_500")
    folder = bad.parents[2]  # with what it loads
    bookworm = boot_box("bookworm", Binding(folder, str(folder)))
    put(bookworm, str(older.path))
    site.configure(bookworm, binary=BINARY)
    bookworm.run("systemctl", "enable", site.UNIT)
    site.start(bookworm)
    assert serving(bookworm) == older.version
    # After a rollback: the good one, not the one that was upgraded to.
    assert bookworm.run("nginxctl", "upgrade", str(bad), check=False).returncode == 4
    assert serving(bookworm) == older.version
    # A package has put one there that does not start.
    bookworm.write(f"{BINARY}.new", "#!/bin/sh\nexit 1\n", mode=0o755)
    bookworm.run("mv", f"{BINARY}.new", BINARY)
    assert serving(bookworm) == older.version
    # A good one, which nobody has judged yet.
    put(bookworm, str(newest.path))
    assert serving(bookworm) == newest.version
    # The one that was judged to be bad.
    put(bookworm, str(bad))
    assert serving(bookworm) == newest.version
