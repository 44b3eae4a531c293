"""Copies of nginx's configuration files as the running master read them.

nginx itself keeps no text of its configuration, and by the time of a reload the files on disk are
the new ones. So a copy is made at each start and reload: every file that `nginx -T` lists, by its
content's hash, with its owner and mode. Files that the configuration only names (certificates,
keys, password files, content) are not listed by `-T` and not kept.

`configs/` in the state directory, 0700:

    blobs/SHA256          content
    snapshots/ID.json     which files there were
    running.json          what each living master has read
    guard.json            the guarded reload that is under way: intent before act
    rejected/ID/...       the files of a configuration that was taken back, for people
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.core.errors import Refusal
from supervisor.edges.files import (
    REAL_DISK,
    Disk,
    closing,
    parse_json,
    private_folder,
    read_regular,
    storing,
    write_atomically,
)

LARGEST_FILE = 16 * 2**20
LARGEST_SNAPSHOT = 64 * 2**20
MOST_FILES = 10_000
KEPT_REJECTED = 5
"""Configurations that were taken back; the oldest is removed with the next one."""

_FORMAT = 1
_LARGEST_RECORD = 16 * 2**20

Signature = tuple[int, ...]
"""Device, inode, size and modification time of a file, as `world.files_signature` gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file of a snapshot."""

    path: str
    sha256: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one configuration, the main one first."""

    files: tuple[KeptFile, ...]

    @property
    def id(self) -> str:
        """The same for the same files with the same content, owner and mode."""
        return hashlib.sha256(_canonical([asdict(one) for one in self.files])).hexdigest()[:16]

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each file's content by its path."""
        return {one.path: one.sha256 for one in self.files}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Which configuration a living master has read, and which one before that."""

    pid: int
    start_ticks: int
    boot_id: str
    snapshot: str
    before: str = ""

    @property
    def master(self) -> tuple[int, int, str]:
        """Which process that is."""
        return self.pid, self.start_ticks, self.boot_id


class ConfigStore:
    """The copies in `directory`/configs. The methods block; one at a time.

    Writing raises Refusal `no_space` or `state_not_writable`, or OperationFailed `disk_error`.
    """

    def __init__(self, directory: Path, *, disk: Disk = REAL_DISK) -> None:
        self.path = directory / "configs"
        self._disk = disk

    # --- snapshots --------------------------------------------------------------------------

    def keep(
        self,
        paths: Sequence[str],
        signature: Sequence[Signature] | None = None,
        *,
        also: Iterable[str] = (),
    ) -> Snapshot:
        """A copy of `paths`, on disk when this returns; of `also` those that there are.

        Raises Refusal `configuration_not_kept` where a file cannot be read, is too large, is not
        as `signature` says (somebody has changed it since nginx read it), or changes meanwhile.
        """
        if len(paths) > MOST_FILES:
            raise _not_kept(f"it has more than {MOST_FILES} files")
        self._make_folders()
        expected = dict(zip(paths, signature, strict=True)) if signature is not None else {}
        files, total = [], 0
        for path in dict.fromkeys((*paths, *also)):
            try:
                kept, size = self._keep(path, expected.get(path))
            except FileNotFoundError as exc:
                if path in paths:
                    raise _not_kept(f"{path} is gone") from exc
                continue
            except OSError as exc:
                raise _not_kept(f"cannot read {path}: {exc.strerror or exc}") from exc
            files.append(kept)
            total += size
            if total > LARGEST_SNAPSHOT:
                raise _not_kept(f"its files have more than {LARGEST_SNAPSHOT // 2**20} MiB")
        snapshot = Snapshot(tuple(files))
        place = self._snapshot(snapshot.id)
        if not place.exists():
            content = {"v": _FORMAT, "files": [asdict(one) for one in files]}
            with storing("keep a copy of the configuration", place):
                write_atomically(self._disk, place, json.dumps(content).encode() + b"\n")
        return snapshot

    def _keep(self, path: str, expected: Signature | None) -> tuple[KeptFile, int]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a link's target, too
        with closing(fd):
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _not_kept(f"{path} is no regular file")
            if found.st_size > LARGEST_FILE:
                raise _not_kept(f"{path} has more than {LARGEST_FILE // 2**20} MiB")
            data = _read(fd, LARGEST_FILE + 1)
            after = os.fstat(fd)
        now = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if (expected is not None and tuple(expected) != now) or (
            (after.st_size, after.st_mtime_ns) != now[2:] or len(data) != found.st_size
        ):
            raise _not_kept(f"{path} was changed since nginx read it")
        sha256 = hashlib.sha256(data).hexdigest()
        blob = self.blob(sha256)
        if not blob.exists():
            with storing("keep a copy of the configuration", blob):
                write_atomically(self._disk, blob, data)
        mode = stat.S_IMODE(found.st_mode)
        kept = KeptFile(path=path, sha256=sha256, mode=mode, uid=found.st_uid, gid=found.st_gid)
        return kept, len(data)

    def load(self, snapshot_id: str) -> Snapshot:
        """A snapshot that was kept, its content checked.

        Raises Refusal `configuration_not_kept` where it is not whole any more.
        """
        try:
            content = parse_json(read_regular(self._snapshot(snapshot_id), limit=_LARGEST_RECORD))
            snapshot = Snapshot(tuple(_kept_file(one) for one in _rows(content, "files")))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise _not_kept(f"the copy {snapshot_id} cannot be read: {exc}") from exc
        if snapshot.id != snapshot_id:
            raise _not_kept(f"the copy {snapshot_id} is damaged")
        for one in snapshot.files:
            self.content(one)
        return snapshot

    def content(self, kept: KeptFile) -> bytes:
        """The content of one file. Raises Refusal `configuration_not_kept` where it is damaged."""
        try:
            data = read_regular(self.blob(kept.sha256), limit=LARGEST_FILE + 1)
        except OSError as exc:
            raise _not_kept(f"the copy of {kept.path} is lost: {exc.strerror or exc}") from exc
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise _not_kept(f"the copy of {kept.path} is damaged")
        return data

    def blob(self, sha256: str) -> Path:
        """Where content is."""
        return self.path / "blobs" / sha256

    # --- who has read what --------------------------------------------------------------------

    def note_running(self, masters: Iterable[Running]) -> None:
        """What the living masters have read is on record; copies that nobody needs are removed.

        Of each master the copy before the last stays: its last reload may be taken back yet.
        """
        before = self.running()
        known = {one.master: one for one in before}
        rows = [_after(known.get(one.master), one) for one in masters]
        if tuple(rows) == before:
            return
        self._make_folders()
        place = self.path / "running.json"
        content = {"v": _FORMAT, "running": [asdict(one) for one in rows]}
        with storing("record which configuration runs", place):
            write_atomically(self._disk, place, json.dumps(content).encode() + b"\n")
        self._prune({one.snapshot for one in rows} | {one.before for one in rows})

    def running(self) -> tuple[Running, ...]:
        """What is on record; a file that cannot be used says nothing."""
        try:
            content = parse_json(read_regular(self.path / "running.json", limit=_LARGEST_RECORD))
            return tuple(Running(**one) for one in _rows(content, "running"))
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def _prune(self, wanted: set[str]) -> None:
        """Removes what no living master has read and no guarded reload needs. Never raises."""
        record = self.read_guard()
        if record is not None:
            wanted = wanted | {str(record.get("old")), str(record.get("new"))}
        blobs = set()
        with suppress(OSError):
            for path in (self.path / "snapshots").iterdir():
                if path.stem not in wanted:
                    self._disk.unlink(path)
                    continue
                try:
                    content = parse_json(read_regular(path, limit=_LARGEST_RECORD))
                    blobs |= {_kept_file(one).sha256 for one in _rows(content, "files")}
                except (OSError, ValueError, KeyError, TypeError):
                    continue
            for path in (self.path / "blobs").iterdir():
                if path.name not in blobs:
                    self._disk.unlink(path)

    # --- the guarded reload ---------------------------------------------------------------------

    def write_guard(self, record: Mapping[str, object]) -> None:
        """The record of the guarded reload, on disk when this returns."""
        self._make_folders()
        place = self.path / "guard.json"
        with storing("record the guarded reload", place):
            content = json.dumps({"v": _FORMAT, **record}).encode()
            write_atomically(self._disk, place, content + b"\n")

    def read_guard(self) -> dict[str, Any] | None:
        """The record that a predecessor has left; None where there is none that can be used."""
        try:
            content = parse_json(read_regular(self.path / "guard.json", limit=_LARGEST_RECORD))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or content.get("v") != _FORMAT:
            return None
        return content

    def clear_guard(self) -> None:
        """The guarded reload is over."""
        place = self.path / "guard.json"
        with storing("close the record of the guarded reload", place):
            if place.exists():
                self._disk.unlink(place)
                self._disk.sync_folder(self.path)

    def keep_rejected(self, name: str, files: Iterable[KeptFile]) -> Path:
        """Copies of `files` under rejected/`name`, for people to find; on disk when this returns.

        Done again it changes nothing.
        """
        self._make_folders()
        folder = self.path / "rejected" / name
        with storing("keep the rejected configuration", folder):
            for one in files:
                place = folder / one.path.lstrip("/")
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(self._disk, place, self.content(one))
            folder.mkdir(mode=0o700, exist_ok=True)
            self._disk.sync_folder(folder.parent)
        with suppress(OSError):
            old = sorted(folder.parent.iterdir(), key=lambda one: one.stat().st_mtime)
            for gone in old[:-KEPT_REJECTED]:
                shutil.rmtree(gone, ignore_errors=True)
        return folder

    # --- places -----------------------------------------------------------------------------------

    def _snapshot(self, snapshot_id: str) -> Path:
        return self.path / "snapshots" / f"{snapshot_id}.json"

    def _make_folders(self) -> None:
        private_folder(self.path, uid=os.getuid())
        with storing("make the folder", self.path):
            for name in ("blobs", "snapshots", "rejected"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)


def _after(known: Running | None, now: Running) -> Running:
    if known is None:
        return now
    before = known.before if known.snapshot == now.snapshot else known.snapshot
    return replace(now, before=before)


def _not_kept(why: str) -> Refusal:
    return Refusal("configuration_not_kept", f"cannot keep a copy of the configuration: {why}")


def _read(fd: int, most: int) -> bytes:
    pieces = []
    while most > 0 and (piece := os.read(fd, most)):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _rows(content: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or content.get("v") != _FORMAT:
        raise ValueError(f"not of format {_FORMAT}")
    rows = content[name]
    if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
        raise TypeError(f"{name} is no list of objects")
    return rows


def _kept_file(row: Mapping[str, Any]) -> KeptFile:
    sha256 = str(row["sha256"])
    if len(sha256) != 64 or not sha256.isalnum():  # it becomes the name of a file
        raise ValueError(f"{sha256!r} is no hash")
    return KeptFile(
        path=str(row["path"]), sha256=sha256, mode=int(row["mode"]), uid=int(row["uid"]),
        gid=int(row["gid"]),
    )  # fmt: skip


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
