"""What a checker of manual pages says of ours; it is fetched as the boxes are."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.booted.roots import SUITES, only_one
from tools.debian_sources import fetch_deb, machine_mirrors
from tools.manpages import current_pages
from tools.nginx_cache import cache_folder


def mandoc() -> Path:
    """The program, from Debian's package."""
    folder = cache_folder() / "mandoc"
    with only_one(folder):
        program = folder / "usr/bin/mandoc"
        if not program.exists():
            package = fetch_deb("mandoc", suite=SUITES[0], mirrors=machine_mirrors(), into=folder)
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return program


def test_the_manual_is_sound(tmp_path: Path) -> None:
    checker = mandoc()
    for name, text in current_pages().items():
        page = tmp_path / name
        page.write_text(text)
        done = subprocess.run(
            [checker, "-Tlint", "-W", "warning", page], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It finds what is wrong.
    page.write_text(".TH X 8 2026-01-01\n.SH NAME\nx \\- y\n.NOPE\n")
    done = subprocess.run([checker, "-Tlint", page], capture_output=True, text=True, timeout=60)
    assert "NOPE" in done.stdout
