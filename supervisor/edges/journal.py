"""The journal of the running upgrade, and the history of verdicts.

The journal holds intents: a record is written before its act begins, so whoever starts after a
crash reads how far the predecessor may have come; docs/adr/0005 says which of them are fsynced, so
that they survive a power cut as well. One JSON object per line, with a number, a format
version and a checksum. Of a crash in the middle of a write remains at most an unfinished last line
(or zeros, as some file systems leave them): it is dropped, for the act that it announced has not
begun. Anything else that does not fit is damage: the file is set aside under a new name and the
caller is told.

The history uses the same lines and only ever grows at its end; it is renamed to `history.1.jsonl`
when it is large. A verdict counts once: a second append with the same `upgrade_id` changes nothing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from supervisor.edges.files import REAL_DISK, Disk, open_regular, parse_json, read_regular, storing
from supervisor.edges.files import closing as closing_fd

FORMAT = 1
LARGEST_JOURNAL = 16 * 2**20
HISTORY_ROTATES_AT = 4 * 2**20
_FILE_MODE = 0o600

Record = Mapping[str, object]


def utc_now() -> datetime:
    """The wall clock, for records that people read."""
    return datetime.now(UTC)


def encode_line(number: int, record: Record) -> bytes:
    """One line with its checksum. Raises TypeError or ValueError for what JSON cannot hold."""
    body = _canonical([FORMAT, number, record])
    return (
        _canonical({"crc": f"{zlib.crc32(body):08x}", "v": FORMAT, "n": number, "record": record})
        + b"\n"
    )


def decode_line(line: bytes) -> tuple[int, dict[str, object]] | str:
    """Number and record of one line, or what is wrong with it."""
    try:
        content = parse_json(line)
    except ValueError:
        return "not JSON"
    if not isinstance(content, dict):
        return "not a record"
    version, number, record = content.get("v"), content.get("n"), content.get("record")
    if isinstance(version, int) and version > FORMAT:
        return f"written by a newer supervisor (format {version}, this one knows {FORMAT})"
    if version != FORMAT or not isinstance(number, int) or not isinstance(record, dict):
        return "not a record"
    if content.get("crc") != f"{zlib.crc32(_canonical([FORMAT, number, record])):08x}":
        return "its checksum is wrong"
    return number, record


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class JournalContents:
    """What a journal held: `records` up to the first damage; `note` is for the log."""

    records: tuple[dict[str, object], ...] = ()
    damaged: bool = False
    note: str = ""


class Journal:
    """The journal in `directory`/journal.jsonl. One writer; its methods block.

    Writing raises Refusal `no_space` or `state_not_writable`, or OperationFailed `disk_error`; what
    was appended before stays readable.
    """

    def __init__(
        self,
        directory: Path,
        *,
        disk: Disk = REAL_DISK,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.path = directory / "journal.jsonl"
        self._disk = disk
        self._now = now
        self._fd: int | None = None
        self._size = 0  # of the whole lines; what is behind it is a torn write
        self._next = 0

    def append(self, record: Record, *, durable: bool = True) -> None:
        """`record` survives this process when this returns, and with `durable` a power cut."""
        with storing("write the journal", self.path):
            fd = self._fd if self._fd is not None else self._open()
            if os.fstat(fd).st_size != self._size:
                self._disk.truncate(fd, self._size)
            line = encode_line(self._next, record)
            self._disk.write(fd, line)
            if durable:
                self._disk.sync(fd)
            self._size += len(line)
            self._next += 1

    def read(self) -> JournalContents:
        """All records of an upgrade that had no verdict; none where there was none.

        Never fails on the content: a damaged journal is renamed and reported.
        """
        self.close()
        try:
            data = read_regular(self.path, limit=LARGEST_JOURNAL)
        except FileNotFoundError:
            return JournalContents()
        except OSError as exc:
            return self._set_aside((), f"cannot read it: {exc.strerror}")
        records: list[dict[str, object]] = []
        size = 0
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n") or not line.strip(b"\0\n"):
                break
            decoded = decode_line(line)
            if isinstance(decoded, str):
                return self._set_aside(records, f"line {len(records) + 1}: {decoded}")
            if decoded[0] != len(records):
                return self._set_aside(records, f"line {len(records) + 1}: a line is missing")
            records.append(decoded[1])
            size += len(line)
        self._size, self._next = size, len(records)
        torn = len(data) - size
        note = f"dropped an unfinished last line of {torn} bytes" if torn else ""
        return JournalContents(tuple(records), note=note)

    def reject(self, why: str) -> JournalContents:
        """Sets a journal aside whose records are whole and of no use to this supervisor."""
        self.close()
        return self._set_aside((), why)

    def close_upgrade(self) -> None:
        """Removes the journal; call it when the verdict is in the history."""
        self.close()
        with storing("remove the journal", self.path):
            self._disk.unlink(self.path)
            self._disk.sync_folder(self.path.parent)
        self._size = self._next = 0

    def close(self) -> None:
        """Closes the file; the journal stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        """Opens the file behind its last whole line: a killed predecessor may have left more."""
        self.read()
        self._fd = self._disk.open_append(self.path, mode=_FILE_MODE)
        self._disk.sync_folder(self.path.parent)
        return self._fd

    def _set_aside(self, records: list[dict[str, object]] | tuple[()], why: str) -> JournalContents:
        stamp = self._now().strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"journal.damaged-{stamp}")
        with storing("set the damaged journal aside", aside):
            self._disk.rename(self.path, aside)
            self._disk.sync_folder(aside.parent)
        self._size = self._next = 0
        note = f"the journal is damaged ({why}); it was set aside as {aside}"
        return JournalContents(tuple(records), damaged=True, note=note)


class History:
    """The verdicts in `directory`/history.jsonl, oldest first. One writer; the methods block.

    Reading skips lines that are damaged; writing raises as `Journal` does.
    """

    def __init__(
        self,
        directory: Path,
        *,
        disk: Disk = REAL_DISK,
        rotate_at: int = HISTORY_ROTATES_AT,
    ) -> None:
        self.path = directory / "history.jsonl"
        self._older = directory / "history.1.jsonl"
        self._disk = disk
        self._rotate_at = rotate_at
        self._known: set[object] | None = None
        self._synced = False  # all that is in the file, in this life

    def append(self, verdict: Record) -> bool:
        """`verdict` is on disk when this returns; False if its `upgrade_id` was there before.

        Of one that the disk does not take nothing stays behind, so that it can be tried again.
        """
        if self._known is None:
            self._known = {verdict.get("upgrade_id") for verdict in self.entries()}
        upgrade_id = verdict.get("upgrade_id")
        known = upgrade_id is not None and upgrade_id in self._known
        if known and self._synced:
            return False
        with storing("write the history", self.path):
            self._rotate_when_large()
            with closing_fd(self._disk.open_append(self.path, mode=_FILE_MODE)) as fd:
                # A predecessor that was killed may not have come to sync what it wrote.
                self._write(fd, b"" if known else encode_line(0, verdict))
            self._disk.sync_folder(self.path.parent)
        self._synced = True
        self._known.add(upgrade_id)
        return not known

    def _write(self, fd: int, line: bytes) -> None:
        """All of `line` is on disk behind what was there, or nothing of it is in the file."""
        size = os.fstat(fd).st_size
        # A predecessor may have been killed, or the disk full, in the middle of a line.
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        try:
            self._disk.write(fd, (b"\n" if torn else b"") + line)
            self._disk.sync(fd)
        except OSError:
            with suppress(OSError):
                self._disk.truncate(fd, size)
            raise

    def entries(self, limit: int | None = None) -> tuple[dict[str, object], ...]:
        """The last `limit` verdicts (None: all that are kept), oldest first.

        Costs what it returns, whatever is kept: the file is read from its end.
        """
        with closing(self._newest_first()) as verdicts:
            return tuple(islice(verdicts, limit))[::-1]

    def find(self, upgrade_id: str) -> dict[str, object] | None:
        """The verdict of this upgrade, if it is kept."""
        return self.last(lambda verdict: verdict.get("upgrade_id") == upgrade_id)

    def last(
        self, fits: Callable[[Record], bool] = lambda _verdict: True
    ) -> dict[str, object] | None:
        """The newest verdict that fits, if there is one."""
        with closing(self._newest_first()) as verdicts:
            return next(filter(fits, verdicts), None)

    def _rotate_when_large(self) -> None:
        try:
            size = self.path.lstat().st_size
        except FileNotFoundError:
            return
        if size >= self._rotate_at:
            self._disk.rename(self.path, self._older)

    def _newest_first(self) -> Generator[dict[str, object], None, None]:
        with ExitStack() as opened:
            # Both before either is read, the growing one first: a rotation meanwhile then shows
            # the same file twice, and never hides one.
            files: dict[tuple[int, int], int] = {}
            for path in (self.path, self._older):
                with suppress(OSError):
                    fd = open_regular(path)
                    opened.callback(os.close, fd)
                    found = os.fstat(fd)
                    files.setdefault((found.st_dev, found.st_ino), fd)
            for fd in files.values():
                for line in _lines_backwards(fd, limit=2 * self._rotate_at + 2**20):
                    decoded = decode_line(line)
                    if not isinstance(decoded, str):
                        yield decoded[1]


_CHUNK = 1 << 16


def _lines_backwards(fd: int, *, limit: int) -> Iterator[bytes]:
    """The lines of a file from its last one back, of its last `limit` bytes."""
    end = os.fstat(fd).st_size
    floor = max(0, end - limit)
    begun = b""  # of the line whose beginning has not been read yet
    while end > floor:
        start = max(floor, end - _CHUNK)
        begun, *lines = (os.pread(fd, end - start, start) + begun).split(b"\n")
        yield from reversed(lines)
        end = start
    yield begun
