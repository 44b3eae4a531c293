"""The root file systems of the boxes: minimal Debians, made once and kept in the user's cache.

`python -m tests.booted.roots` makes those that are missing; `make test` does that first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.debian_sources import FetchError, fetch_deb, machine_mirrors
from tools.nginx_cache import cache_folder

SUITES = ("bookworm", "trixie")
PACKAGES = (
    "adduser", "dbus", "init-system-helpers", "iproute2", "libpcre2-8-0", "libssl3", "logrotate",
    "nginx", "openssl", "procps", "python3", "systemd", "systemd-sysv", "zlib1g",
)  # fmt: skip
LIMIT_SECONDS = 900
_KEPT_SECONDS = 2 * 24 * 3600

# Nothing starts that a test has not started or enabled itself.
_QUIET = """
set -eu
rm -f "$1"/etc/systemd/system/*.wants/*
ln -sf /dev/null "$1/etc/systemd/system/console-getty.service"
ln -sf /dev/null "$1/etc/systemd/system/getty.target"
ln -sf /usr/lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"
"""


class BoxError(Exception):
    """A box or what it needs cannot be had; the message says why."""


def roots_folder() -> Path:
    """Where the root file systems are kept."""
    return cache_folder() / "boxes"


def root_of(suite: str) -> Path:
    """The root file system of `suite`, made now where it is missing. Raises BoxError."""
    recipe = hashlib.sha256(repr((PACKAGES, _QUIET)).encode()).hexdigest()[:12]
    root = roots_folder() / f"{suite}-{recipe}"
    if not root.is_dir():
        with only_one(roots_folder()):
            if not root.is_dir():
                _make(suite, root)
    return root


def _make(suite: str, root: Path) -> None:
    print(f"boxes: making a {suite} root", file=sys.stderr, flush=True)
    mirrors = machine_mirrors().archive
    if os.geteuid() != 0 or not mirrors:
        raise BoxError(f"cannot make a {suite} root: it takes root, and Debian's apt sources")
    for old in roots_folder().glob(f"{suite}-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="making-", dir=roots_folder()) as name:
        folder = Path(name)
        quiet = folder / "quiet.sh"
        quiet.write_text(_QUIET)
        command = [
            # In namespaces of its own, so that its mounts and children end with it.
            "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
            _mmdebstrap(folder), "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"', f"--customize-hook=sh {quiet} \"$1\"",
            suite, str(folder / "root"), f"deb {mirrors[0].uri} {suite} main",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": name},
            timeout=LIMIT_SECONDS,
        )
        if done.returncode != 0:
            raise BoxError(f"cannot make a {suite} root:\n{done.stdout[-4000:]}")
        (folder / "root").rename(root)


def _mmdebstrap(folder: Path) -> str:
    """The program, from Debian's package where it is not installed: one script for perl."""
    installed = shutil.which("mmdebstrap")
    if installed is not None:
        return installed
    try:
        # The oldest of the suites: it runs with the perl of the newer ones as well.
        package = fetch_deb("mmdebstrap", suite=SUITES[0], mirrors=machine_mirrors(), into=folder)
    except FetchError as exc:
        raise BoxError(f"cannot fetch mmdebstrap: {exc}") from exc
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "tool")], check=True)
    return str(folder / "tool/usr/bin/mmdebstrap")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One process at a time makes something in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the project, installed ---------------------------------------------------------------------

_SOURCES = ("Makefile", "pyproject.toml", "supervisor", "systemd", "conf", "docs", "tools")


def project_layer(roots: dict[str, Path]) -> Path:
    """What `make install PREFIX=/usr` puts into a root, byte-compiled for the Python of each.

    Made once for each state of the sources; those that nobody has used for two days are removed.
    """
    layers = cache_folder() / "box-layers"
    layer = layers / _state_of_sources()
    with only_one(layers):
        if not layer.is_dir():
            _prune(layers)
            with tempfile.TemporaryDirectory(prefix="making-", dir=layers) as name:
                made = Path(name) / "layer"
                made.mkdir(mode=0o755)
                _install(made)
                for root in roots.values():
                    _compile(made, root)
                made.rename(layer)
        os.utime(layer)
    return layer


def _install(layer: Path) -> None:
    done = subprocess.run(
        ["make", "install", f"DESTDIR={layer}", "PREFIX=/usr"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    if done.returncode != 0:
        raise BoxError(f"make install failed:\n{done.stdout[-4000:]}")


def _compile(layer: Path, root: Path) -> None:
    """Else every start of the supervisor in a box would take a second or two longer."""
    script = (
        'mount --bind "$1" "$2/mnt" && exec chroot "$2" python3 -m compileall -q'
        " -s /mnt -p / /mnt/usr/lib/nginx-supervisor"
    )
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(layer), str(root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _state_of_sources() -> str:
    seen = hashlib.sha256()
    for name in _SOURCES:
        top = Path(name)
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                seen.update(f"{path} {path.stat().st_mode:o} ".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def _prune(layers: Path) -> None:
    for one in layers.iterdir():
        if one.is_dir() and time.time() - one.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(one)


def main() -> int:
    """Make what is missing; exits 1 with a message where that cannot be done."""
    if os.environ.get("SYSTEMD_TESTS") == "skip":
        return 0
    try:
        for suite in SUITES:
            root_of(suite)
    except BoxError as exc:
        print(f"boxes: {exc}\nboxes: SYSTEMD_TESTS=skip leaves them out", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
