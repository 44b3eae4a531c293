"""Whose a file is, read from what dpkg and rpm say; the boxes in tests/booted ask dpkg itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.edges import asking, packages
from supervisor.edges.packages import Package


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that answer in the place of the machine's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(asking, "ENVIRONMENT", {"PATH": f"{folder}:/usr/bin:/bin"})
    monkeypatch.setattr(packages, "DPKG_STATUS", tmp_path / "status")
    monkeypatch.setattr(packages, "DPKG_LOCK", tmp_path / "lock")
    monkeypatch.setattr(packages, "RPM_DATABASES", (tmp_path / "rpm",))
    return folder


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


async def test_nobody_knows_a_file_of_no_package(tmp_path: Path, scripted: Path) -> None:
    assert await packages.owner_of(tmp_path) is None
    assert await packages.unfinished([str(tmp_path)]) == ()
    assert packages.signature() == ()


async def test_dpkg_tells_owner_version_and_whether_it_is_intact(
    tmp_path: Path, scripted: Path
) -> None:
    (tmp_path / "status").touch()
    binary = tmp_path / "nginx"
    binary.write_bytes(b"x")
    md5 = subprocess.run(
        ["md5sum", str(binary)], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    script(
        scripted,
        "dpkg-query",
        f"""case $1 in
    --search) echo "nginx, other: {binary}"; exit 1 ;;
    --show) printf 'nginx\\t1.2-3\\tinstalled\\n' ;;
    --control-show) echo "{md5}  {str(binary)[1:]}"; echo "0  usr/share/doc/nginx/copyright" ;;
esac
""",
    )
    found = await packages.owner_of(binary)
    assert found == Package(
        manager="dpkg", name="nginx", version="1.2-3", state="installed", intact=True
    )
    assert found.to_data()["intact"] is True
    binary.write_bytes(b"y")
    found = await packages.owner_of(binary)
    assert found is not None
    assert found.intact is False
    binary.unlink()
    found = await packages.owner_of(binary)
    assert found is not None
    assert found.intact is False
    assert len(packages.signature()) == 2


async def test_a_diverted_file_is_nobodys(tmp_path: Path, scripted: Path) -> None:
    (tmp_path / "status").touch()
    text = """case $1 in --search)
    echo "local diversion from: /usr/sbin/nginx"
    echo "local diversion to: /usr/sbin/nginx.distrib"
    echo "nginx: /usr/sbin/nginx"
esac
"""
    script(scripted, "dpkg-query", text)
    assert await packages.owner_of(Path("/usr/sbin/nginx")) is None
    script(scripted, "dpkg-query", text.replace("local diversion", "diversion by nginx-extras"))
    assert await packages.owner_of(Path("/usr/sbin/nginx")) is None


async def test_a_package_that_dpkg_has_not_finished_with(tmp_path: Path, scripted: Path) -> None:
    (tmp_path / "status").touch()
    (tmp_path / "lock").touch()
    script(
        scripted,
        "dpkg-query",
        """case $1 in
    --search) echo "nginx: /usr/sbin/nginx"; echo "libc6:amd64: /lib/x/libc.so.6" ;;
    --show) printf 'nginx\\t9\\thalf-configured\\nlibc6:amd64\\t1\\tinstalled\\n' ;;
esac
""",
    )
    asked = ["/usr/sbin/nginx", "/usr/lib/x/libc.so.6", "/srv/of/nobody"]
    (found,) = await packages.unfinished(asked)
    assert (found.name, found.state) == ("nginx", "half-configured")
    assert await packages.unfinished([]) == ()
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert await packages.unfinished(asked) == ()  # whoever asks now is one of its scripts
        process.kill()


async def test_rpm_tells_the_same(tmp_path: Path, scripted: Path) -> None:
    (tmp_path / "rpm").mkdir()
    for differs, intact in (("", True), ("S.5....T.    /usr/sbin/nginx", False)):
        script(
            scripted,
            "rpm",
            f"""case $1 in
    --query) printf 'nginx\\t1.26.3-1.el9\\n' ;;
    --verify) echo '{differs}'; exit 1 ;;
esac
""",
        )
        assert await packages.owner_of(Path("/usr/sbin/nginx")) == Package(
            manager="rpm", name="nginx", version="1.26.3-1.el9", state="installed", intact=intact
        )
    script(scripted, "rpm", "echo 'file /x is not owned by any package'; exit 1\n")
    assert await packages.owner_of(Path("/usr/sbin/nginx")) is None
    (scripted / "rpm").write_text("no program")
    assert await packages.owner_of(Path("/usr/sbin/nginx")) is None
