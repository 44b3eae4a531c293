"""Records survive; torn ends are dropped, damage is set aside; a verdict counts once."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.core.config_read import ConfigRead
from supervisor.core.errors import Refusal
from supervisor.edges import journal as journal_module
from supervisor.edges.files import RealDisk
from supervisor.edges.journal import History, Journal, JournalContents, decode_line, encode_line
from supervisor.edges.runtime_state import (
    ConfigurationRecord,
    KnownConfiguration,
    KnownMaster,
    RuntimeContents,
    RuntimeState,
)


def journal_at(tmp_path: Path, disk: RealDisk | None = None) -> Journal:
    return Journal(
        tmp_path, disk=disk or RealDisk(), now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    )


def written(tmp_path: Path, count: int = 3) -> bytes:
    journal = journal_at(tmp_path)
    for number in range(count):
        journal.append({"intent": "usr2", "number": number})
    journal.close()
    return journal.path.read_bytes()


def numbers(contents: JournalContents) -> list[object]:
    return [record["number"] for record in contents.records]


def test_what_was_appended_is_read_by_the_next(tmp_path: Path) -> None:
    written(tmp_path)
    contents = journal_at(tmp_path).read()
    assert numbers(contents) == [0, 1, 2]
    assert not contents.damaged
    assert contents.note == ""


def test_no_journal_is_no_upgrade(tmp_path: Path) -> None:
    assert journal_at(tmp_path).read() == JournalContents()


def test_every_torn_end_is_dropped_and_appending_goes_on(tmp_path: Path) -> None:
    whole = written(tmp_path)
    start_of_last = len(written_prefix(whole, 2))
    journal = journal_at(tmp_path)
    for end in range(start_of_last, len(whole)):
        journal.path.write_bytes(whole[:end])
        fresh = journal_at(tmp_path)
        contents = fresh.read()
        assert numbers(contents) == [0, 1]
        assert not contents.damaged
        assert bool(contents.note) == (end > start_of_last)
        fresh.append({"number": 9})
        assert numbers(fresh.read()) == [0, 1, 9]


def written_prefix(whole: bytes, lines: int) -> bytes:
    return b"".join(whole.splitlines(keepends=True)[:lines])


def test_zeros_at_the_end_are_a_torn_write(tmp_path: Path) -> None:
    written(tmp_path)
    journal = journal_at(tmp_path)
    with journal.path.open("ab") as file:
        file.write(bytes(100))
    journal.append({"number": 3})
    assert numbers(journal.read()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text.replace(b'"number":1', b'"number":7'), "checksum"),
        (lambda text: b"garbage\n" + text, "not JSON"),
        (lambda text: b"[]\n" + text, "not a record"),
        (lambda text: b"{}\n" + text, "not a record"),
        (lambda text: b"\xff\xfe\n" + text, "not JSON"),
        (lambda text: b"[" * 100_000 + b"\n" + text, "not JSON"),
        (lambda text: b'{"v":1,"n":0,"record":{"a":NaN},"crc":"0"}\n' + text, "not JSON"),
        (lambda text: text.replace(b'"v":1', b'"v":2'), "newer supervisor"),
        (lambda text: b"".join(text.splitlines(keepends=True)[1:]), "missing"),
    ],
)
def test_damage_is_set_aside_and_reported(tmp_path: Path, damage: object, why: str) -> None:
    whole = written(tmp_path)
    journal = journal_at(tmp_path)
    journal.path.write_bytes(damage(whole))  # type: ignore[operator]
    contents = journal.read()
    assert contents.damaged
    assert why in contents.note
    aside = tmp_path / "journal.damaged-20260102T030405Z"
    assert str(aside) in contents.note
    assert aside.read_bytes() == damage(whole)  # type: ignore[operator]
    assert not journal.path.exists()
    journal.append({"number": 5})
    assert numbers(journal.read()) == [5]


def test_records_before_the_damage_are_told(tmp_path: Path) -> None:
    whole = written(tmp_path)
    journal = journal_at(tmp_path)
    journal.path.write_bytes(whole.replace(b'"number":2', b'"number":7'))
    assert numbers(journal.read()) == [0, 1]


def test_a_planted_symlink_is_set_aside(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    journal = journal_at(tmp_path)
    journal.path.symlink_to(precious)
    assert journal.read().damaged
    journal.append({"number": 0})
    assert precious.read_text() == "keep"


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.binary(max_size=300))
def test_no_content_is_fatal(tmp_path: Path, content: bytes) -> None:
    journal = journal_at(tmp_path)
    journal.path.write_bytes(content)
    assert journal.read().records == ()


class Full(RealDisk):
    """A disk that is full after some bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: bytes) -> None:
        super().write(fd, data[: self.room])
        if len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.room -= len(data)


def test_a_full_disk_in_the_middle_of_a_record(tmp_path: Path) -> None:
    disk = Full(room=len(encode_line(0, {"number": 0})) + 20)
    journal = journal_at(tmp_path, disk)
    journal.append({"number": 0})
    with pytest.raises(Refusal) as caught:
        journal.append({"number": 1})
    assert caught.value.reason == "no_space"
    assert numbers(journal_at(tmp_path).read()) == [0]
    disk.room = 10_000
    journal.append({"number": 2})
    assert numbers(journal.read()) == [0, 2]


def test_the_journal_ends_with_the_upgrade(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append({"number": 0})
    journal.close_upgrade()
    journal.close_upgrade()
    assert list(tmp_path.iterdir()) == []
    journal.append({"number": 1})
    assert numbers(journal.read()) == [1]


def test_a_verdict_counts_once(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.last() is None
    assert history.append({"upgrade_id": "a", "verdict": "committed"})
    assert not history.append({"upgrade_id": "a", "verdict": "failed"})
    later = History(tmp_path)
    assert not later.append({"upgrade_id": "a", "verdict": "failed"})
    assert later.append({"event": "incident"})
    assert later.append({"event": "incident"})
    assert [entry.get("upgrade_id") for entry in later.entries(9)] == ["a", None, None]
    assert history.entries(1) == ({"event": "incident"},)
    assert history.last() == {"event": "incident"}


def test_a_torn_verdict_harms_no_other(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append({"upgrade_id": "a"})
    with history.path.open("ab") as file:
        file.write(encode_line(0, {"upgrade_id": "b"})[:20])
    later = History(tmp_path)
    later.append({"upgrade_id": "c"})
    assert [entry["upgrade_id"] for entry in later.entries(9)] == ["a", "c"]


def test_the_history_does_not_grow_without_limit(tmp_path: Path) -> None:
    history = History(tmp_path, rotate_at=1000)
    for number in range(100):
        history.append({"upgrade_id": f"u{number}"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.1.jsonl", "history.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    assert [entry["upgrade_id"] for entry in history.entries(2)] == ["u98", "u99"]
    everything = [entry["upgrade_id"] for entry in history.entries()]
    assert everything == [f"u{number}" for number in range(100 - len(everything), 100)]
    assert history.find("u98") == {"upgrade_id": "u98"}
    assert history.find("u1") is None


def test_the_last_that_fits(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(5):
        history.append({"upgrade_id": f"u{number}", "verdict": "refused" if number else "done"})
    assert history.last(lambda verdict: verdict["verdict"] == "done") == {
        "upgrade_id": "u0",
        "verdict": "done",
    }
    assert history.last(lambda verdict: verdict["verdict"] == "failed") is None


@pytest.mark.parametrize("length", [10, 1 << 16, (1 << 16) - 1, 200_000])
def test_lines_of_any_length_are_read_from_the_end(tmp_path: Path, length: int) -> None:
    """The file is read in pieces, whose borders fall anywhere in a line."""
    history = History(tmp_path)
    written = [{"upgrade_id": f"u{number}", "detail": "x" * length} for number in range(4)]
    for verdict in written:
        history.append(verdict)
    assert list(history.entries()) == written
    for limit in range(1, 5):
        assert list(history.entries(limit)) == written[-limit:]


def test_a_short_look_does_not_read_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MB of verdicts take half a second to read; `status` and `--limit` need a few of them."""
    history = History(tmp_path)
    line = encode_line(0, {"upgrade_id": "u", "detail": "x" * 300})
    history.path.write_bytes(line * 10_000)
    decoded: list[bytes] = []

    def counting(line: bytes) -> object:
        decoded.append(line)
        return decode_line(line)

    monkeypatch.setattr(journal_module, "decode_line", counting)
    assert len(history.entries(3)) == 3
    assert len(decoded) < 10
    assert len(history.entries()) == 10_000


def test_a_rotation_while_it_is_read_neither_hides_nor_doubles(tmp_path: Path) -> None:
    history = History(tmp_path, rotate_at=1)
    history.append({"upgrade_id": "a"})
    history.append({"upgrade_id": "b"})
    reading = history._newest_first()
    assert next(reading) == {"upgrade_id": "b"}
    history.append({"upgrade_id": "c"})
    assert list(reading) == [{"upgrade_id": "a"}]
    history.path.unlink()
    history.path.hardlink_to(tmp_path / "history.1.jsonl")  # as between the two openings
    assert [entry["upgrade_id"] for entry in history.entries()] == ["b"]


MASTER = KnownMaster(
    generation=3,
    pid=10,
    start_ticks=99,
    boot_id="b",
    sha256="s",
    version="1.22.1",
    version_id="i",
    role="active",
    session=10,
    environment=("A", "B=1"),
)


def test_masters_on_record(tmp_path: Path) -> None:
    state = RuntimeState(tmp_path)
    assert state.load() == RuntimeContents()
    state.save([MASTER])
    assert RuntimeState(tmp_path).load() == RuntimeContents((MASTER,))
    state.save([])
    assert state.load() == RuntimeContents()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"v": 2}',
        '{"v": 1}',
        '{"v": 1, "masters": [1]}',
        '{"v": 1, "masters": [{"generation": 1}]}',
        json.dumps({"v": 1, "masters": [{"generation": "3"}]}),
        json.dumps({"v": 1, "masters": [{**asdict(MASTER), "environment": "A"}]}),
        json.dumps({"v": 1, "masters": [{**asdict(MASTER), "environment": [1]}]}),
    ],
)
def test_an_unusable_record_is_a_note(tmp_path: Path, content: str) -> None:
    state = RuntimeState(tmp_path)
    state.path.write_text(content)
    contents = state.load()
    assert contents.masters == ()
    assert str(state.path) in contents.note


def test_configurations_on_record(tmp_path: Path) -> None:
    record = ConfigurationRecord(tmp_path)
    assert record.load() == ()
    known = KnownConfiguration(
        pid=1, start_ticks=2, boot_id="b", workers=(3, 4), read=ConfigRead(user=("www",))
    )
    record.save([known])
    assert ConfigurationRecord(tmp_path).load() == (known,)
    before = record.path.stat().st_ino
    record.save([known])
    assert record.path.stat().st_ino == before  # nothing new is not written
    record.save([])
    assert record.load() == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"v": 2}',
        '{"v": 1}',
        '{"v": 1, "configurations": 1}',
        '{"v": 1, "configurations": [1]}',
        '{"v": 1, "configurations": [{"pid": 1}]}',
        '{"v": 1, "configurations": [{"pid": 1, "start_ticks": 2, "boot_id": "b", "workers": [],'
        ' "read": []}]}',
    ],
)
def test_an_unusable_record_of_configurations_is_none(tmp_path: Path, content: str) -> None:
    record = ConfigurationRecord(tmp_path)
    record.path.write_text(content)
    assert record.load() == ()
