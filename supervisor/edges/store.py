"""The version store: what a rollback, or a crash start, puts back on disk.

A version is the binary *and* every dynamic module that the configuration loads: an old binary
beside newer modules dies at its next cold start. Each version has a folder `versions/ID` with its
files and `meta.json`; the id is a hash over the contents, so storing the same files again changes
nothing, and a file that no longer matches its hash is never used.

All methods block on the disk and belong in a thread; one at a time, in one supervisor.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges import placing
from supervisor.edges.files import (
    REAL_DISK,
    Disk,
    closing,
    open_regular,
    storing,
)
from supervisor.edges.journal import utc_now
from supervisor.edges.placed import PlacedFiles
from supervisor.edges.placing import Staged, copy_and_hash, sha256_of
from supervisor.edges.sources import mapped_file, open_exe, open_module, reading
from supervisor.edges.stored_version import (
    BINARY_NAME,
    Origin,
    StoredVersion,
    id_of,
    load,
    save,
)

__all__ = ["Origin", "StoredVersion", "VersionStore"]

_ID = re.compile(r"[0-9a-f]{16}")
_SHORTEST_PREFIX = 4
_OTHERS_KEPT = 2  # versions that are not good: to look into why, and the one being judged


class VersionStore:
    """The store in `directory`/versions, which keeps the last `keep` good versions."""

    def __init__(
        self,
        directory: Path,
        keep: int,
        *,
        disk: Disk = REAL_DISK,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.directory = directory / "versions"
        self._placed = PlacedFiles(directory)
        self._keep = max(1, keep)
        self._disk = disk
        self._now = now

    def take(
        self,
        source: Path,
        *,
        modules: Mapping[str, Path],
        origin: Origin = Origin.OFFERED,
        version: str | None = None,
    ) -> StoredVersion:
        """Stores `source` and `modules` (the path that nginx loads -> where it is now).

        Regular files only, and no symlink as last component, except for what stands at nginx.binary
        (Origin.DISK). A module that is missing is left out: nginx's own test will say so. Raises
        Refusal `binary_missing`, `binary_unreadable`, `no_space`, `state_not_writable`.
        """
        if origin is Origin.DISK:
            source = source.resolve()
        with reading(source):
            fd = open_regular(source)
        with closing(fd):
            return self._take(fd, source, modules, origin=origin, version=version)

    def take_from_process(
        self, pid: int, *, modules: Mapping[str, Path], version: str | None = None
    ) -> StoredVersion:
        """Stores what process `pid` runs, even if the file was replaced or deleted meanwhile.

        Modules are taken from the process's mappings where the files on disk are others by now.
        Raises as `take` does; `binary_unreadable` where the process may not be looked at.
        """
        fd, source = open_exe(pid)
        with closing(fd):
            mapped = {path: mapped_file(pid, where) for path, where in modules.items()}
            return self._take(fd, source, mapped, origin=Origin.PROCESS, version=version)

    def versions(self) -> tuple[StoredVersion, ...]:
        """All that can be read, in the order in which they were stored."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except OSError:  # missing, or no folder: writing to it says what is wrong
            return ()
        found = [load(self.directory / name) for name in names if _ID.fullmatch(name)]
        return tuple(sorted((each for each in found if each), key=lambda each: each.stored_at))

    def get(self, version_id: str) -> StoredVersion:
        """The version with that id. Raises Refusal `version_unknown`."""
        found = load(self.directory / version_id) if _ID.fullmatch(version_id) else None
        if found is None:
            known = ", ".join(f"{each.id} ({each.version})" for each in self.versions())
            raise Refusal(
                "version_unknown",
                f"cannot find a stored version {version_id}: the store has {known or 'none'}",
            )
        return found

    def find(self, version_or_id: str) -> StoredVersion:
        """The version with that id, start of an id, or nginx version.

        Raises Refusal `version_unknown`, or `version_ambiguous` naming the ids to choose from.
        """
        versions = self.versions()
        found = [each for each in versions if version_or_id in (each.id, each.version)]
        if not found and len(version_or_id) >= _SHORTEST_PREFIX:
            found = [each for each in versions if each.id.startswith(version_or_id)]
        if not found:
            return self.get(version_or_id)
        if len(found) > 1:
            ids = ", ".join(f"{each.id} (from {each.source})" for each in found)
            raise Refusal(
                "version_ambiguous",
                f"cannot tell which {version_or_id} is meant: {ids}; name one by its id",
            )
        return found[0]

    def verify(self, version_id: str) -> StoredVersion:
        """The version, its files read and unchanged. Raises Refusal `stored_version_damaged`."""
        version = self.get(version_id)
        for path, sha256 in version.files():
            try:
                intact = sha256_of(path) == sha256
            except OSError:
                intact = False
            if not intact:
                raise placing.damaged(path)
        return version

    def set_version(self, version_id: str, version: str) -> StoredVersion:
        """Keeps nginx's version number, known once the stored copy has been run."""
        return self._save(replace(self.get(version_id), version=version))

    def mark_good(self, version_id: str) -> StoredVersion:
        """It was judged and serves: the one that a crash start returns to."""
        return self._judge(version_id, good=True)

    def mark_bad(self, version_id: str) -> StoredVersion:
        """It was judged and must not be started again by itself."""
        return self._judge(version_id, good=False)

    def last_good(self) -> StoredVersion | None:
        """The version that was last marked good."""
        return self.previous_good(exclude="")

    def previous_good(self, exclude: str) -> StoredVersion | None:
        """The version that was last marked good, other than the one with the id `exclude`."""
        good = [each for each in self.versions() if each.good and each.id != exclude]
        return max(good, key=lambda each: each.judged_at or "", default=None)

    def stage(self, version_id: str, destination: Path) -> Staged:
        """A verified copy of the binary beside `destination`, to be tested before `commit`.

        Raises as `placing.stage` does.
        """
        version = self.get(version_id)
        return placing.stage(
            self._disk,
            version.binary,
            sha256=version.sha256,
            version_id=version.id,
            destination=destination,
            original=Path(version.source) if version.origin == Origin.DISK.value else None,
        )

    def commit(self, staged: Staged, *, durable: bool = True) -> None:
        """The destination is the staged file, atomically. Raises as `placing.commit` does."""
        placing.commit(self._disk, staged, durable=durable)

    def settle(self, staged: Staged) -> None:
        """A commit that was not durable is on disk. Raises as `placing.commit` does."""
        placing.settle(self._disk, staged)
        self._note(staged)

    def has_placed(self, path: Path) -> bool:
        """Whether what is at `path` now was put there by this store. Never raises."""
        return self._placed.is_ours(path)

    def _note(self, staged: Staged) -> None:
        if staged.placement is not placing.Placement.ALREADY_THERE:
            self._placed.note(staged.destination)

    def discard(self, staged: Staged) -> None:
        """Removes a staged copy that is not wanted any more; a committed one is left alone."""
        placing.discard(self._disk, staged)

    def remove_staged(self, destinations: Iterable[Path]) -> None:
        """Removes staged copies of a supervisor that was killed. Never raises."""
        for each in destinations:
            with suppress(OSError):
                placing.remove_leftovers(self._disk, each.resolve())

    def install(self, version_id: str, destination: Path) -> None:
        """The binary of the version stands at `destination`. Raises as `stage` and `commit` do."""
        self._commit_all([self.stage(version_id, destination)])

    def restore(self, version_id: str, destination: Path) -> tuple[Path, ...]:
        """Binary and modules are on disk as they were stored; returns what was replaced.

        All copies are made and verified before the first rename; modules go first, so that a cold
        start in between fails rather than runs a mixture. Raises as `stage` and `commit` do.
        """
        return self._put_back(self.get(version_id), destination)

    def restore_modules(self, version_id: str) -> tuple[Path, ...]:
        """As `restore`, without the binary."""
        return self._put_back(self.get(version_id), None)

    def complete(
        self, version_id: str, *, modules: Mapping[str, Path], version: str
    ) -> StoredVersion:
        """The version with that binary, those modules and that version number.

        A binary is stored before it can be asked which modules it loads; what was stored then is
        removed unless it was judged. Raises as `take` does.
        """
        part = self.get(version_id)
        with closing(open_regular(part.binary)) as fd:
            whole = self._take(
                fd, Path(part.source), modules, origin=Origin(part.origin), version=version
            )
        if part.id != whole.id and part.good is None:
            shutil.rmtree(part.folder, ignore_errors=True)
        return whole

    def prune(
        self,
        in_use: Collection[str],
        *,
        protect: Collection[str] = (),
        destination: Path | None = None,
    ) -> tuple[str, ...]:
        """Removes all but the last good versions and the newest few others; returns their ids.

        A file that was refused before it had said which version it is, is none of them.
        `in_use` are hashes of files that living processes map, `protect` ids: both are kept.
        """
        versions = self.versions()
        good = sorted((e for e in versions if e.good), key=lambda each: each.judged_at or "")
        others = [each for each in versions if not each.good and not _is_unknown(each)]
        kept = {each.id for each in good[-self._keep :] + others[-_OTHERS_KEPT:]} | set(protect)
        kept |= {each.id for each in versions if any(sha in in_use for _, sha in each.files())}
        removed = [each for each in versions if each.id not in kept]
        with storing("remove old versions", self.directory):
            for each in removed:
                shutil.rmtree(each.folder)
            for leftover in self.directory.glob(".taking-*"):
                shutil.rmtree(leftover)
        if destination is not None:
            placing.remove_unused(self._disk, destination, keep=frozenset(kept))
        return tuple(each.id for each in removed)

    def _put_back(self, version: StoredVersion, destination: Path | None) -> tuple[Path, ...]:
        staged: list[Staged] = []
        try:
            for path, sha256 in version.modules.items():
                staged.append(
                    placing.stage(
                        self._disk,
                        version.module(path),
                        sha256=sha256,
                        version_id=version.id,
                        destination=Path(path),
                    )
                )
            if destination is not None:
                staged.append(self.stage(version.id, destination))
        except BaseException:
            for each in staged:
                self.discard(each)
            raise
        self._commit_all(staged)
        replaced = (e for e in staged if e.placement is not placing.Placement.ALREADY_THERE)
        return tuple(each.destination for each in replaced)

    def _commit_all(self, staged: Sequence[Staged]) -> None:
        try:
            for each in staged:
                self.commit(each)
                self._note(each)
        finally:
            for each in staged:
                self.discard(each)  # nothing is left of a committed one

    def _take(
        self,
        fd: int,
        source: Path,
        modules: Mapping[str, Path],
        *,
        origin: Origin,
        version: str | None,
    ) -> StoredVersion:
        with storing("store a version", self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".taking-", dir=self.directory))
            try:
                sha256 = self._copy(fd, folder / BINARY_NAME)
                hashes = self._copy_modules(modules, folder)
                return self._settle(
                    StoredVersion(
                        id=id_of(sha256, hashes),
                        sha256=sha256,
                        version=version,
                        modules=hashes,
                        source=str(source),
                        origin=origin.value,
                        stored_at=self._stamp(),
                        folder=folder,
                    )
                )
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _settle(self, taken: StoredVersion) -> StoredVersion:
        """Gives a taken folder its name, unless the same version is there and unchanged."""
        present = load(self.directory / taken.id)
        if present is not None:
            try:
                self.verify(taken.id)
            except Refusal:
                taken = replace(taken, good=present.good, judged_at=present.judged_at)
            else:
                if taken.version is None or taken.version == present.version:
                    return present
                return self._save(replace(present, version=taken.version))
        self._save(taken)
        final = self.directory / taken.id
        shutil.rmtree(final, ignore_errors=True)
        self._disk.rename(taken.folder, final)
        self._disk.sync_folder(self.directory)
        return replace(taken, folder=final)

    def _copy_modules(self, modules: Mapping[str, Path], folder: Path) -> dict[str, str]:
        hashes = {}
        for number, (path, where) in enumerate(sorted(modules.items())):
            fd = open_module(where)
            if fd is None:
                continue
            with closing(fd):
                copy = folder / f"module-{number}"
                hashes[path] = self._copy(fd, copy)
                self._disk.rename(copy, folder / f"{hashes[path]}.so")
        return hashes

    def _copy(self, source_fd: int, target: Path) -> str:
        with closing(self._disk.create(target, mode=0o700)) as fd:
            sha256 = copy_and_hash(self._disk, source_fd, fd)
            self._disk.sync(fd)
        return sha256

    def _judge(self, version_id: str, *, good: bool) -> StoredVersion:
        return self._save(replace(self.get(version_id), good=good, judged_at=self._stamp()))

    def _stamp(self) -> str:
        """The time, and later than every other in the store: its order is that of the events.

        The wall clock may have been set back meanwhile, and "the last good one" must stay that.
        """
        now = self._now().isoformat(timespec="microseconds")
        times = [time for one in self.versions() for time in (one.stored_at, one.judged_at or "")]
        latest = max(times, default="")
        if now > latest:
            return now
        with suppress(ValueError, OverflowError):
            after = datetime.fromisoformat(latest) + timedelta(microseconds=1)
            return after.isoformat(timespec="microseconds")
        return now

    def _save(self, version: StoredVersion) -> StoredVersion:
        with storing("describe a stored version", version.folder):
            save(self._disk, version)
        return version


def _is_unknown(version: StoredVersion) -> bool:
    """Nobody knows what it is, nor has judged it."""
    return version.version is None and version.good is None
