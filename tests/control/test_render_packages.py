"""What people read of packages, and of files that are others than those that run."""

from __future__ import annotations

from supervisor.cli.render import Timeline, history_in_detail, status
from tests.control.fake_backend import STATUS, Fields, verdict

LIBRARY = {"kind": "library", "path": "/lib/libssl.so.3", "change": "replaced"}
BINARY = {"kind": "binary", "path": "/usr/sbin/nginx", "change": "replaced"}


def package_line(*, placed_by: str | None = None, **more: object) -> str:
    package = {"manager": "dpkg", "name": "nginx", "version": "1.26.3-1", "state": "installed"}
    disk: Fields = {"path": "/usr/sbin/nginx", "sha256": "ab", "version": "1.22.1"}
    disk |= {"package": {**package, **more}, "placed_by": placed_by}
    told = status({**STATUS, "binary_on_disk": disk})
    (line,) = [one for one in told if one.startswith("package")]
    return line


def test_whose_the_file_on_disk_is() -> None:
    assert package_line(intact=True, placed_by="package") == "package    nginx  1.26.3-1  (dpkg)"
    assert package_line(state="half-configured").endswith("(dpkg: half-configured)")
    ours = package_line(intact=False, placed_by="supervisor")
    assert ours.endswith("(dpkg), but the supervisor has put another file there")
    assert package_line(intact=False).endswith("but somebody else has put another file there")


def test_no_package_is_no_line() -> None:
    assert not [one for one in status(STATUS) if one.startswith(("package", "changed"))]


def test_what_has_changed_stands_out() -> None:
    (line,) = [one for one in status({**STATUS, "changed": [LIBRARY]}) if one.startswith("changed")]
    assert line == (
        "changed    not as what runs: library  /lib/libssl.so.3  replaced: "
        "`nginxctl upgrade` judges and takes it"
    )


def test_a_verdict_names_the_libraries() -> None:
    told = verdict("committed", changed=[BINARY, LIBRARY])
    line = Timeline("upgrade").line(told)
    assert line.endswith("/lib/libssl.so.3  replaced")
    assert "/usr/sbin/nginx" not in line
    (detail,) = [one for one in history_in_detail({"entries": [told]}) if "not as" in one]
    assert BINARY["path"] in detail
