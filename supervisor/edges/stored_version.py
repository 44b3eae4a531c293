"""One stored version, and how it is described on disk (`meta.json` in its folder)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from supervisor.edges.files import Disk, parse_json, read_regular, write_atomically

BINARY_NAME = "nginx"
_META = "meta.json"
_LARGEST_META = 2**20
_FORMAT = 1


class Origin(Enum):
    """Where a version was taken from."""

    DISK = "disk"  # what stood at nginx.binary
    OFFERED = "offered"  # `upgrade BINARY`
    PROCESS = "process"  # a running master whose file was replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """One version in the store; `good` is None while nobody has judged it."""

    id: str
    sha256: str  # of the binary
    version: str | None
    modules: Mapping[str, str]  # the path that nginx loads -> sha256
    source: str
    origin: str
    stored_at: str  # UTC
    good: bool | None = None
    judged_at: str | None = None  # UTC
    folder: Path

    @property
    def binary(self) -> Path:
        """The stored copy of the binary."""
        return self.folder / BINARY_NAME

    def module(self, path: str) -> Path:
        """The stored copy of a module."""
        return self.folder / f"{self.modules[path]}.so"

    def files(self) -> Iterator[tuple[Path, str]]:
        """Each stored file with its hash."""
        yield self.binary, self.sha256
        for path, sha256 in self.modules.items():
            yield self.module(path), sha256


def id_of(sha256: str, modules: Mapping[str, str]) -> str:
    """The name of a version: a hash over its contents and where its modules belong."""
    content: Sequence[object] = [sha256, sorted(modules.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def save(disk: Disk, version: StoredVersion) -> None:
    """Describes `version` in its folder, atomically. Raises OSError."""
    content = {"v": _FORMAT, **asdict(version)}
    del content["folder"]
    write_atomically(disk, version.folder / _META, json.dumps(content, indent=1).encode() + b"\n")


def load(folder: Path) -> StoredVersion | None:
    """The version in `folder`; None where there is none that can be understood."""
    try:
        content = parse_json(read_regular(folder / _META, limit=_LARGEST_META))
        if not isinstance(content, dict) or content.pop("v") != _FORMAT:
            return None
        if content["id"] != folder.name:
            return None
        return StoredVersion(**content, folder=folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
