"""Which masters the supervisor knows, on disk, so that its successor can adopt them.

A pid alone names nobody: pids are used again. A record is therefore a pid with its start time in
clock ticks since boot (proc(5), field 22) and the boot that it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from supervisor.edges.files import (
    REAL_DISK,
    Disk,
    parse_json,
    read_regular,
    storing,
    write_atomically,
)

_FORMAT = 1
_LARGEST = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownMaster:
    """One master as the supervisor last saw it."""

    generation: int
    pid: int
    start_ticks: int
    boot_id: str
    sha256: str
    version: str
    version_id: str
    role: str  # active, candidate or retiring; or bystander, which nobody has told to leave
    session: int = 0  # every process that nginx made is in it
    pid_path: str = ""
    worker_processes: int = 1
    environment: tuple[str, ...] = ()  # its `env` directives, which no other process can tell


@dataclass(frozen=True, slots=True)
class RuntimeContents:
    """The masters on record; `note` says why there are none where a file could not be used."""

    masters: tuple[KnownMaster, ...] = ()
    note: str = ""


class RuntimeState:
    """The file `directory`/masters.json; replaced as a whole. The methods block."""

    def __init__(self, directory: Path, *, disk: Disk = REAL_DISK) -> None:
        self.path = directory / "masters.json"
        self._disk = disk

    def save(self, masters: Iterable[KnownMaster]) -> None:
        """`masters` are on record when this returns. Raises as the journal does."""
        content = {"v": _FORMAT, "masters": [asdict(master) for master in masters]}
        with storing("record the masters", self.path):
            write_atomically(self._disk, self.path, json.dumps(content).encode() + b"\n")

    def load(self) -> RuntimeContents:
        """What is on record; never fails on the content, since /proc has the truth anyway."""
        try:
            content = parse_json(read_regular(self.path, limit=_LARGEST))
        except FileNotFoundError:
            return RuntimeContents()
        except (OSError, ValueError) as exc:
            return RuntimeContents(note=f"cannot read {self.path}: {exc}")
        if not isinstance(content, dict) or content.get("v") != _FORMAT:
            return RuntimeContents(note=f"cannot use {self.path}: not of format {_FORMAT}")
        try:
            return RuntimeContents(tuple(_master(each) for each in content["masters"]))
        except (KeyError, TypeError) as exc:
            return RuntimeContents(note=f"cannot use {self.path}: {exc!r}")


def _master(values: object) -> KnownMaster:
    if not isinstance(values, dict):
        raise TypeError("a master is not an object")
    for each in fields(KnownMaster):
        wanted = {"int": int, "str": str}.get(str(each.type), list)
        if not isinstance(values[each.name], wanted):
            raise TypeError(f"{each.name} is {values[each.name]!r}")
    if not all(isinstance(one, str) for one in values["environment"]):
        raise TypeError("environment is not directives")
    known = {each.name: values[each.name] for each in fields(KnownMaster)}
    return KnownMaster(**{**known, "environment": tuple(values["environment"])})
