"""Which masters the supervisor knows, on disk, so that its successor can adopt them.

A pid alone names nobody: pids are used again. A record is therefore a pid with its start time in
clock ticks since boot (proc(5), field 22) and the boot that it belongs to.

What each of them has read is in a file of its own: it may be large, and is not needed to adopt
anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from supervisor.core.config_read import ConfigRead, from_data, to_data
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
_LARGEST_CONFIGURATIONS = 64 * 2**20


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
        self.configurations = ConfigurationRecord(directory, disk=disk)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownConfiguration:
    """What one master has read, and the start times of the workers that ran it then.

    Workers that are all others mean that it was reloaded since, and that this is of no use.
    """

    pid: int
    start_ticks: int
    boot_id: str
    workers: tuple[int, ...]
    read: ConfigRead


class ConfigurationRecord:
    """The file `directory`/configurations.json; replaced as a whole. The methods block."""

    def __init__(self, directory: Path, *, disk: Disk = REAL_DISK) -> None:
        self.path = directory / "configurations.json"
        self._disk = disk
        self._written: tuple[KnownConfiguration, ...] | None = None

    def save(self, known: Iterable[KnownConfiguration]) -> None:
        """`known` is on record when this returns, and nothing else. Raises as the journal does."""
        wanted = tuple(known)
        if wanted == self._written:
            return
        content = {
            "v": _FORMAT,
            "configurations": [
                {
                    "pid": one.pid, "start_ticks": one.start_ticks, "boot_id": one.boot_id,
                    "workers": list(one.workers), "read": to_data(one.read),
                }
                for one in wanted
            ],
        }  # fmt: skip
        with storing("record what nginx has read", self.path):
            write_atomically(self._disk, self.path, json.dumps(content).encode() + b"\n")
        self._written = wanted

    def load(self) -> tuple[KnownConfiguration, ...]:
        """What is on record; nothing where that cannot be used: it is then not known."""
        try:
            content = parse_json(read_regular(self.path, limit=_LARGEST_CONFIGURATIONS))
            if not isinstance(content, dict) or content.get("v") != _FORMAT:
                return ()
            return tuple(_configuration(one) for one in content["configurations"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return ()


def _configuration(values: Mapping[str, Any]) -> KnownConfiguration:
    return KnownConfiguration(
        pid=int(values["pid"]),
        start_ticks=int(values["start_ticks"]),
        boot_id=str(values["boot_id"]),
        workers=tuple(int(one) for one in values["workers"]),
        read=from_data(values["read"]),
    )
