"""What /proc says about the processes of a test. A zombie is dead: it is never listed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MASTER = "nginx: master process"
_WORKER = "nginx: worker process"
_LEAVING = "nginx: worker process is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One living process at one moment."""

    pid: int
    parent: int
    state: str
    title: str
    exe: str
    started: int  # in clock ticks since boot; with the pid it names the process for good

    @property
    def is_master(self) -> bool:
        """Whether it is titled as a master."""
        return self.title.startswith(_MASTER)

    @property
    def is_worker(self) -> bool:
        """Whether it is titled as a worker, leaving or not."""
        return self.title.startswith(_WORKER)

    @property
    def is_accepting(self) -> bool:
        """Whether it is a worker that is not leaving."""
        return self.is_worker and not self.title.startswith(_LEAVING)

    def __str__(self) -> str:
        return f"{self.pid} (of {self.parent}, {self.state}) {self.title} [{self.exe}]"


def look(pid: int) -> Seen | None:
    """The process, or None when it is gone or a zombie."""
    folder = Path(f"/proc/{pid}")
    try:
        _, _, rest = (folder / "stat").read_text(encoding="utf-8").rpartition(") ")
        title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    try:
        exe = os.readlink(folder / "exe")
    except OSError:
        exe = ""
    return Seen(
        pid=pid, parent=int(fields[1]), state=fields[0], title=title.strip(), exe=exe,
        started=int(fields[19]),
    )  # fmt: skip


def everything() -> dict[int, Seen]:
    """All living processes."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {seen.pid: seen for seen in map(look, pids) if seen is not None}


def descendants(root: int) -> list[Seen]:
    """All living descendants of `root` in the order of their start.

    /proc is not read in one instant: an orphan may be read with its old parent, and that parent
    after its end. So it is read until two readings agree.
    """
    found = _family(root)
    while True:
        again = _family(root)
        if set(again) == set(found):
            return sorted(again.values(), key=lambda one: (one.started, one.pid))
        found = again


def _family(root: int) -> dict[int, Seen]:
    by_pid = everything()
    found: dict[int, Seen] = {}
    family = {root}
    # Parents may have higher pids than their children: repeat until nothing is added.
    while True:
        more = {p: s for p, s in by_pid.items() if s.parent in family and p not in found}
        if not more:
            return found
        found |= more
        family |= set(more)


def children(pid: int) -> list[Seen]:
    """The living children of `pid`."""
    return [seen for seen in everything().values() if seen.parent == pid]
