"""What a disk holds after a power cut, from the record of everything that was done to it.

A file's content is on the disk once the file was fsynced, a name once its folder was (fsync(2)). A
cut may take all that was not: then every file has the content of its last fsync, every folder the
names of its own. Or it takes the contents and leaves the names, as some file systems do: a file
that was never synced is then empty.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Content = dict[str, bytes]
"""Every file by its path below the root; folders that hold nothing are left out."""


@dataclass(slots=True)
class _File:
    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(slots=True)
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the record; see `disk_shim.c`."""

    what: str
    path: str
    more: str
    data: bytes

    def __str__(self) -> str:
        size = f" {len(self.data)} bytes" if self.data else ""
        return f"{self.what} {self.path} {self.more}{size}"


def changes(record: Path, root: Path) -> list[Change]:
    """The record of what was done below `root`, in its order, with paths below it."""
    found = []
    for line in record.read_text(encoding="ascii").splitlines():
        what, path, more, data = line.split(" ")
        shown = more.removeprefix(f"{root}/") if what == "rename" else more
        found.append(Change(what, path.removeprefix(f"{root}/"), shown, bytes.fromhex(data)))
    return found


class Disk:
    """Replays changes; what is there at first is on the disk for good."""

    def __init__(self, at_first: Content, folders: Iterable[str]) -> None:
        self._root = _Folder()
        for name in folders:
            self._root.now[name] = self._root.synced[name] = _Folder()
        for path, content in at_first.items():
            folder, name = self._place(path, make=True)
            folder.now[name] = folder.synced[name] = _File(bytearray(content), content)

    def apply(self, change: Change) -> None:
        """Do what was done; what concerns a file that has lost its name changes nothing."""
        try:
            self._apply(change)
        except KeyError:
            assert change.path.endswith("(deleted)"), change

    def _apply(self, change: Change) -> None:
        if change.what == "sync":
            one = self._find(change.path)
            if isinstance(one, _Folder):
                one.synced = dict(one.now)
            else:
                one.synced = bytes(one.now)
            return
        folder, name = self._place(change.path)
        match change.what:
            case "create":
                folder.now[name] = _File()
            case "mkdir":
                folder.now[name] = _Folder()
            case "unlink":
                del folder.now[name]
            case "rename":
                moved = folder.now.pop(name)
                target, new = self._place(change.more)
                target.now[new] = moved
            case "write" | "truncate":
                file = folder.now[name]
                assert isinstance(file, _File)
                if change.what == "truncate":
                    del file.now[int(change.more) :]
                else:
                    start = int(change.more)
                    file.now[start : start + len(change.data)] = change.data
            case _:
                raise AssertionError(change)

    def after_a_cut(self) -> Iterator[tuple[str, Content]]:
        """What may be there, and how: everything that was not synced is lost, or contents only."""
        yield (
            "all that was not synced is lost",
            dict(_contents(self._root, "", names_survive=False)),
        )
        yield "names survive", dict(_contents(self._root, "", names_survive=True))

    def _find(self, path: str) -> _File | _Folder:
        one: _File | _Folder = self._root
        for part in Path(path).parts:
            assert isinstance(one, _Folder)
            one = one.now[part]
        return one

    def _place(self, path: str, *, make: bool = False) -> tuple[_Folder, str]:
        folder = self._root
        *parents, name = Path(path).parts
        for part in parents:
            if make and part not in folder.now:
                folder.now[part] = folder.synced[part] = _Folder()
            inner = folder.now[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name


def _contents(folder: _Folder, at: str, *, names_survive: bool) -> Iterator[tuple[str, bytes]]:
    for name, one in (folder.now if names_survive else folder.synced).items():
        if isinstance(one, _Folder):
            yield from _contents(one, f"{at}{name}/", names_survive=names_survive)
        else:
            yield f"{at}{name}", one.synced


def read(root: Path, *folders: str) -> Content:
    """What these folders of `root` hold now."""
    paths = (path for name in folders for path in (root / name).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def write(root: Path, content: Content, *folders: str) -> None:
    """These folders of `root` hold `content` and nothing else."""
    for name in folders:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(mode=0o700 if name == "state" else 0o755)
    for path, data in content.items():
        file = root / path
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755 if "nginx" in file.name or path.startswith("state/versions") else 0o600)
