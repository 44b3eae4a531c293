"""The folder that an installation runs from: this program and every package that it needs.

One tree serves every Python from 3.11 up, whatever the distribution has in its own folders:
psutil comes as its wheel for the stable ABI, everything else is pure Python. Versions are those of
`tools/bundled.txt`, checked by hash.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED = REPOSITORY / "tools" / "bundled.txt"
CACHE = REPOSITORY / "build" / "trees"
SOURCES = ("LICENSE", "README.md", "pyproject.toml")
OWN_FILES = ("*.py", "*.varlink", "py.typed")
UNUSED = ("bin", "*/_tests", "*/_core/_tests", "*/_tools", "*/tests")
UNTRUE = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""What pip writes about its own installation; the files are a package manager's, or `make`'s."""
TRIES = 3


class TreeError(Exception):
    """The tree cannot be made; the text says why, and what to do."""


def private_tree(machine: str | None = None, *, version: str | None = None) -> Path:
    """A folder with the packages, made once for the same sources; it must not be changed.

    `machine` is as `uname -m` says it, this one by default. `version` is given to the program
    instead of its own (for tests of an update). Raises TreeError.
    """
    machine = machine or platform.machine()
    tree = CACHE / _key(machine, version)
    if tree.is_dir():
        return tree
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as folder:
        made = Path(folder) / "tree"
        _fill(made, own_wheel(Path(folder), version), machine)
        _tidy(made)
        _expect_for_every_python(made)
        try:
            made.rename(tree)
        except OSError:  # another run was faster, with the same result
            if not tree.is_dir():
                raise
    return tree


def own_sources() -> list[Path]:
    """The files that make this program's own wheel."""
    package = REPOSITORY / "supervisor"
    found = {path for pattern in OWN_FILES for path in package.rglob(pattern)}
    return sorted(found) + [REPOSITORY / name for name in SOURCES]


def _key(machine: str, version: str | None) -> str:
    digest = hashlib.sha256(f"{machine} {version}\n".encode())
    for path in (*own_sources(), BUNDLED, Path(__file__)):
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def own_wheel(folder: Path, version: str | None = None) -> Path:
    """This program's wheel, made in `folder`. Raises TreeError.

    Built from a copy: a build in place keeps files that are long deleted.
    """
    source, wheels = folder / "source", folder / "wheels"
    for path in own_sources():
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if version is not None:
        _set_version(source / "pyproject.toml", version)
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(source))
    return next(wheels.glob("*.whl"))


def own_version() -> str:
    """What `pyproject.toml` says."""
    return _version_line().split('"')[1]


def _version_line() -> str:
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    return next(line for line in lines if line.startswith("version = "))


def _set_version(file: Path, version: str) -> None:
    file.write_text(file.read_text().replace(_version_line(), f'version = "{version}"', 1))


def _fill(tree: Path, wheel: Path, machine: str) -> None:
    target = ["install", "--target", str(tree), "--no-compile", "--ignore-installed"]
    where = _platform(machine)
    pinned = ["--require-hashes", "-r", str(BUNDLED)]
    try:
        _pip(*target, "--no-deps", "--only-binary", ":all:", *where, *pinned)
    except TreeError as exc:
        # An index that lacks a version (a mirror of a part, a folder of wheels) can still serve.
        print(f"install: {exc}", file=sys.stderr)
        print(
            "install: taking what pyproject.toml allows instead: not the same as elsewhere",
            file=sys.stderr,
        )
        shutil.rmtree(tree, ignore_errors=True)
        _pip(*target, *([*where, "--only-binary", ":all:"] if where else []), str(wheel))
        return
    _pip(*target, "--no-deps", str(wheel))


def _platform(machine: str) -> list[str]:
    """pip's words for another machine than this one; none for this one, which pip knows best."""
    if machine == platform.machine():
        return []
    return [
        "--python-version", "3.11", "--implementation", "cp", "--abi", "abi3", "--abi", "none",
        "--platform", f"manylinux2014_{machine}",
    ]  # fmt: skip


def _pip(*arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "PYTHONPATH": "", "PIP_ROOT_USER_ACTION": "ignore"}
    for attempt in range(1, TRIES + 1):
        said = _run(pip, environment)
        if said is None:
            return
        if attempt == TRIES or "No matching distribution" in said:
            raise TreeError(f"pip {arguments[0]} failed: {said}")


def _run(command: Sequence[str], environment: dict[str, str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-1500:]


def _tidy(tree: Path) -> None:
    """Leave what the program runs from, and the licences."""
    for pattern in UNUSED:
        for folder in tree.glob(pattern):
            shutil.rmtree(folder)
    for name in UNTRUE:
        for file in tree.glob(f"*.dist-info/{name}"):
            file.unlink()
    for path in (tree, *tree.rglob("*")):
        is_folder = path.is_dir()
        path.chmod(0o755 if is_folder else 0o644)


def _expect_for_every_python(tree: Path) -> None:
    bound = [path.name for path in tree.rglob("*.so") if not path.name.endswith(".abi3.so")]
    if bound:
        raise TreeError(
            f"{', '.join(bound)} would serve one version of Python only: "
            "there is no wheel for the stable ABI for this machine"
        )
