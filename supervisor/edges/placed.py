"""Which file the supervisor itself has put where nginx looks for it, as long as it stands there.

So that a drift between what a package brought and what is on disk has an author. A hint for people:
it is not synced, and one that is lost only leaves the author unknown.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from supervisor.edges.files import parse_json, read_regular

_LARGEST = 2**16


class PlacedFiles:
    """The record in `folder`; blocks on the disk, and never raises."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "placed.json"

    def note(self, path: Path) -> None:
        """What is at `path` now was put there by us."""
        with suppress(OSError):
            records = self._read()
            records[str(path)] = _identity(path)
            beside = self._path.with_name(".placed.json.new")
            beside.write_text(json.dumps(records))
            beside.replace(self._path)

    def is_ours(self, path: Path) -> bool:
        """Whether what is at `path` now is what we have put there."""
        try:
            return self._read().get(str(path)) == _identity(path)
        except OSError:
            return False

    def _read(self) -> dict[str, object]:
        try:
            found = parse_json(read_regular(self._path, limit=_LARGEST))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _identity(path: Path) -> list[int]:
    """Of the name itself, which may be a link; no device: a reboot may number it anew."""
    found = os.lstat(path)
    return [found.st_ino, found.st_size, found.st_mtime_ns]
