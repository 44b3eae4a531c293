"""Which shared libraries a process still has mapped although the disk has others by now.

A package manager replaces a library by rename; a running nginx keeps the old one until it is
executed again. That shows in /proc/PID/maps, as needrestart finds it: the mapped file's name is
"(deleted)", or leads to another inode. The latter alone proves nothing, since overlayfs may number
a file in the mapping otherwise than stat(2) does; and a package that was installed once more
changes nothing. So where the mapped file can still be read (/proc/PID/map_files, which takes
CAP_CHECKPOINT_RESTORE) its content decides.

Where names never get another content (/nix/store) there is nothing to find: a newer library there
is a newer binary.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.edges.placing import sha256_of

_LIBRARY = re.compile(r"\.so(\.|$)")
_DELETED = " (deleted)"
_NO_PACKAGES = ("/memfd:", "/dev/", "/run/", "/tmp/", "/var/tmp/")  # noqa: S108 - read
"""Where no library is installed, but programs put what they make while they run (needrestart
leaves such out as well)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A file that a process executes from, as its mappings name it."""

    pid: int
    path: str  # in the process's own root
    addresses: str  # of one range, the name of the link in map_files
    device: tuple[int, int]
    inode: int
    unlinked: bool  # the name leads elsewhere by now, or nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """A file that runs, and is not the one that a new start would find."""

    kind: str  # binary, module, library
    path: str
    change: str  # replaced, deleted, added

    def to_data(self) -> dict[str, str]:
        """As it is told, and recorded."""
        return {"kind": self.kind, "path": self.path, "change": self.change}


def mapped_libraries(pid: int) -> Iterator[Mapped]:
    """The shared libraries of `pid`, each once; none where it is gone or may not be looked at."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    yield from libraries_in(pid, lines)


def libraries_in(pid: int, lines: Iterable[str]) -> Iterator[Mapped]:
    """As `mapped_libraries`, of these lines of /proc/PID/maps (proc(5))."""
    seen: set[str] = set()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or "x" not in fields[1] or not fields[5].startswith("/"):
            continue
        name = fields[5]
        unlinked = name.endswith(_DELETED)
        path = name.removesuffix(_DELETED)
        if path.startswith(_NO_PACKAGES):
            continue
        if name in seen or not _LIBRARY.search(os.path.basename(path)):
            continue
        seen.add(name)
        major, minor = (int(part, 16) for part in fields[3].split(":"))
        yield Mapped(
            pid=pid, path=path, addresses=fields[0], device=(major, minor), inode=int(fields[4]),
            unlinked=unlinked,
        )  # fmt: skip


def outdated_libraries(pids: Iterable[int], *, but: Iterable[str] = ()) -> tuple[Outdated, ...]:
    """The libraries of these processes that are others on disk by now, or gone, in their order.

    One that is gone counts only where its directory has another version of it, as after an update
    of libz.so.1.2.13 to libz.so.1.3.1: programs unlink what they have loaded from a file of their
    own making, and no new start would change anything about that.

    `but` are paths that others look after: the dynamic modules. Blocks: reads whole files where
    names alone do not tell.
    """
    found: dict[str, Outdated] = {}
    known = {os.path.realpath(path) for path in but} | set(but)
    for pid in pids:
        for one in mapped_libraries(pid):
            if one.path in known or one.path in found:
                continue
            change = _change(one)
            if change is not None:
                found[one.path] = Outdated(kind="library", path=one.path, change=change)
    return tuple(found[path] for path in sorted(found))


def _change(one: Mapped) -> str | None:
    on_disk = Path(f"/proc/{one.pid}/root{one.path}")  # as the process itself would find it
    try:
        now = on_disk.stat()
    except OSError:
        return "deleted" if one.unlinked and _has_successor(on_disk) else None
    if not one.unlinked and one.inode == now.st_ino:
        return None
    elsewhere = one.device != (os.major(now.st_dev), os.minor(now.st_dev))
    same = _is_same(one, on_disk)
    if same is None:  # not to be read: the numbers have to tell, where they can
        same = elsewhere and not one.unlinked
    return None if same else "replaced"


def _has_successor(path: Path) -> bool:
    stem, _, _ = path.name.partition(".so")
    try:
        return any(name.startswith(f"{stem}.so") for name in os.listdir(path.parent))
    except OSError:
        return False


def _is_same(one: Mapped, on_disk: Path) -> bool | None:
    """Whether both have one content; None where that may not be looked at."""
    try:
        with open(f"/proc/{one.pid}/map_files/{_link_name(one.addresses)}", "rb") as mapped:
            running = hashlib.file_digest(mapped, "sha256").hexdigest()
        return running == sha256_of(on_disk)
    except OSError:
        return None


def _link_name(addresses: str) -> str:
    """Without the leading zeros that maps has."""
    start, end = (int(address, 16) for address in addresses.split("-"))
    return f"{start:x}-{end:x}"
