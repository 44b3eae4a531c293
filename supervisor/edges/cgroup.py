"""Which processes are in the supervisor's own cgroup: under systemd, those of its own unit.

What a dead supervisor has left runs there, whatever became of its files. Nothing else may be
concluded from it: in a container without systemd, or in a login session, that cgroup holds whatever
else was started there. Sources: cgroups(7), cgroup_namespaces(7), the kernel's cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_OUTSIDE = "/.."  # how a cgroup namespace shows a cgroup that is not below its root


def own_members(proc: Path = Path("/proc")) -> frozenset[int]:
    """The pids in the supervisor's cgroup and in those below it; itself as well.

    Of the root of the whole hierarchy only its own processes: below it is every unit there is.
    Empty where no hierarchy can be seen. Blocks; raises nothing.
    """
    folder = _own_folder(proc)
    if folder is None:
        return frozenset()
    return frozenset(_pids(folder, deep=not _is_root(folder)))


def bring_in(pids: Iterable[int], proc: Path = Path("/proc")) -> tuple[int, ...]:
    """Move processes of another cgroup into the supervisor's; the pids that were moved.

    A service manager ends what is left in a unit's cgroup once the unit's main process is gone. A
    process that may not be moved stays where it is; so do all where the supervisor is in no cgroup
    of its own. Blocks; raises nothing.
    """
    folder = _own_folder(proc)
    if folder is None or _is_root(folder):
        return ()
    inside = own_members(proc)
    moved = []
    for pid in pids:
        if pid in inside:
            continue
        try:
            (folder / "cgroup.procs").write_text(f"{pid}\n")
        except OSError:
            continue  # gone, or not permitted
        moved.append(pid)
    return tuple(moved)


def unit_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The systemd unit that process `pid` belongs to; empty where it is in none, or gone.

    A scope (a login session, a container) is a unit as well.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in sorted(lines, key=_rank):
        _, controllers, path = line.split(":", 2)
        units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
        if controllers in ("", "name=systemd") and units:
            return units[-1]
    return ""


def _own_folder(proc: Path) -> Path | None:
    try:
        lines = (proc / "self/cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in sorted(lines, key=_rank):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "name=systemd") or path.startswith(_OUTSIDE):
            continue
        for root, place, kind, options in map(_mount, mounts):
            wanted = kind == "cgroup2" if not controllers else controllers in options.split(",")
            if wanted and (path + "/").startswith(root.rstrip("/") + "/"):
                return Path(place, path[len(root.rstrip("/")) :].lstrip("/"))
    return None


def _rank(line: str) -> int:
    """The unified hierarchy first: systemd has its units there, on a hybrid host as well."""
    return 0 if line.startswith("0::") else 1


def _mount(line: str) -> tuple[str, str, str, str]:
    """Root, mount point, type and super options of a line of mountinfo (proc(5))."""
    fields = line.split(" ")
    rest = fields[fields.index("-") + 1 :]
    return fields[3], _plain(fields[4]), rest[0], rest[-1]


def _plain(path: str) -> str:
    r"""The path without its escapes: a blank is \040 there."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _is_root(folder: Path) -> bool:
    """Of the hierarchy, not of a namespace: only the former has no events, or a release agent."""
    if (folder / "release_agent").exists():
        return True
    is_v2 = (folder / "cgroup.controllers").exists()
    return is_v2 and not (folder / "cgroup.events").exists()


def _pids(folder: Path, *, deep: bool) -> Iterator[int]:
    places = [str(folder)]
    if deep:
        places = [place for place, _, _ in os.walk(folder)]
    for place in places:
        try:
            content = Path(place, "cgroup.procs").read_bytes()
        except OSError:
            continue  # it went away meanwhile, or is a threaded one
        yield from (int(one) for one in content.split())
