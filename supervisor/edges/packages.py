"""Whose a file is: what dpkg or rpm know of it; asked of their own programs, changed nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from supervisor.edges.asking import ask

DPKG_STATUS = Path("/var/lib/dpkg/status")
DPKG_LOCK = Path("/var/lib/dpkg/lock")
RPM_DATABASES = (Path("/usr/lib/sysimage/rpm"), Path("/var/lib/rpm"))
_INSTALLED = "installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that has a file, as its manager tells it."""

    manager: str  # dpkg, rpm
    name: str
    version: str
    state: str  # installed; of dpkg also unpacked, half-configured ...
    intact: bool | None = None  # the file is as the package brought it; None: not known

    def to_data(self) -> dict[str, object]:
        """As status tells it."""
        return {
            "manager": self.manager, "name": self.name, "version": self.version,
            "state": self.state, "intact": self.intact,
        }  # fmt: skip


def signature() -> tuple[int, ...]:
    """Is another one once a package manager has done anything. Never raises."""
    found: list[int] = []
    for path in (DPKG_STATUS, *RPM_DATABASES):
        with suppress(OSError):
            stat = path.stat()
            found += [stat.st_ino, stat.st_mtime_ns]
    return tuple(found)


async def owner_of(path: Path) -> Package | None:
    """The package that has the file at `path`, and whether it is as that brought it.

    None where there is none, where it was diverted away, or where nobody can be asked.
    """
    if _has_dpkg():
        return await _dpkg_owner(path)
    if _has_rpm():
        return await _rpm_owner(path)
    return None


async def unfinished(paths: Iterable[str]) -> tuple[Package, ...]:
    """The packages with any of these files that dpkg has not finished with.

    It was ended half-way: such a file may go with others that are not there yet. None while it is
    at work, since whoever asks then is one of its scripts, or has not waited for it. rpm has no
    such state.
    """
    if not _has_dpkg() or _is_locked(DPKG_LOCK):
        return ()
    owners = await _dpkg_owners(paths)
    found = await _dpkg_packages(sorted(set(owners.values())))
    return tuple(one for one in found if one.state != _INSTALLED)


def _is_locked(path: Path) -> bool:
    """Whether another process holds a lock (fcntl(2)) on the file; it is not taken."""
    try:
        with open(path, "rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def _has_dpkg() -> bool:
    return DPKG_STATUS.exists() and shutil.which("dpkg-query") is not None


def _has_rpm() -> bool:
    return shutil.which("rpm") is not None and any(path.exists() for path in RPM_DATABASES)


# --- dpkg -------------------------------------------------------------------------------------


async def _dpkg_owner(path: Path) -> Package | None:
    name = (await _dpkg_owners([str(path)])).get(str(path))
    found = await _dpkg_packages([] if name is None else [name])
    if name is None or not found:
        return None
    sums = await ask(["dpkg-query", "--control-show", name, "md5sums"])
    told = dict(line.split("  ", 1)[::-1] for line in sums.splitlines() if "  " in line)
    expected = next((told[one[1:]] for one in _spellings(str(path)) if one[1:] in told), None)
    intact = None if expected is None else expected == await trio.to_thread.run_sync(_md5, path)
    one = found[0]
    return Package(
        manager=one.manager, name=one.name, version=one.version, state=one.state, intact=intact
    )


async def _dpkg_owners(paths: Iterable[str]) -> dict[str, str]:
    """The package of each path that has one."""
    spelled = {spelling: path for path in paths for spelling in _spellings(path)}
    if not spelled:
        return {}
    said = await ask(["dpkg-query", "--search", "--", *spelled])
    owners: dict[str, str] = {}
    diverted: dict[str, str] = {}
    for line in said.splitlines():
        names, _, path = line.rpartition(": ")
        if " diversion from" in f" {line}" or line.startswith("diversion by "):
            if path in spelled and names.endswith(" from"):
                by = names.removeprefix("diversion by ").removesuffix(" from")
                diverted[spelled[path]] = "" if by == "local diversion" else by
        elif path in spelled:
            owners[spelled[path]] = names.split(", ")[0]
    return {
        path: name
        for path, name in owners.items()
        if diverted.get(path, name) == name  # who diverts keeps the path for its own file
    }


def _spellings(path: str) -> tuple[str, ...]:
    """Packages name their files as before /bin, /lib and /sbin became links into /usr, too."""
    if path.startswith(("/usr/lib", "/usr/sbin/", "/usr/bin/")):
        return path, path.removeprefix("/usr")
    return (path,)


async def _dpkg_packages(names: Sequence[str]) -> list[Package]:
    if not names:
        return []
    form = "${binary:Package}\t${Version}\t${db:Status-Status}\n"
    said = await ask(["dpkg-query", "--show", f"--showformat={form}", "--", *names])
    rows = (line.split("\t") for line in said.splitlines())
    return [
        Package(manager="dpkg", name=row[0], version=row[1], state=row[2])
        for row in rows
        if len(row) == 3
    ]


def _md5(path: Path) -> str | None:
    """What dpkg compares with; no secret hangs on it."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return None


# --- rpm --------------------------------------------------------------------------------------


async def _rpm_owner(path: Path) -> Package | None:
    said = await ask(
        ["rpm", "--query", "--file", "--queryformat=%{NAME}\\t%{VERSION}-%{RELEASE}\\n", str(path)]
    )
    name, tab, version = said.partition("\n")[0].partition("\t")
    if not tab:
        return None
    # One line for each file that differs: nine signs, a letter, its path (rpm(8)).
    differs = await ask(["rpm", "--verify", "--nodeps", "--noscripts", name])
    intact = not any(
        line.endswith(f" {path}") and ("5" in line[:9] or line.startswith("missing"))
        for line in differs.splitlines()
    )
    return Package(manager="rpm", name=name, version=version, state=_INSTALLED, intact=intact)
