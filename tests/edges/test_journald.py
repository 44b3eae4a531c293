"""Events become entries of the journal, by its native protocol, and nothing there can stop us."""

from __future__ import annotations

import array
import fcntl
import itertools
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import structlog
from logging_journald import JournaldTransport  # type: ignore[import-untyped]

from supervisor.core.settings import LogFormat, LogLevel, LogSettings
from supervisor.edges import journald
from supervisor.edges.journald import STREAM, field_name, fields_of, is_journal
from supervisor.edges.logs import close_logs, configure_logs, flush_logs

JOURNAL = LogSettings(format=LogFormat.JOURNAL, level=LogLevel.DEBUG)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    close_logs()
    structlog.configure(**before)


class Listener:
    """What journald does with a datagram: its bytes, or those of the memfd that came along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)
        self.seals: int | None = None

    def entry(self) -> list[tuple[str, bytes]]:
        payload, control, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _level, kind, data in control:
            assert kind == socket.SCM_RIGHTS
            assert not payload
            (fd,) = array.array("i", data)
            try:
                self.seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                payload = os.pread(fd, os.fstat(fd).st_size, 0)
            finally:
                os.close(fd)
        return list(parse(payload))

    def fields(self) -> dict[str, str]:
        entry = self.entry()
        assert len(dict(entry)) == len(entry)
        return {name: value.decode() for name, value in entry}

    def waiting(self) -> int:
        """How many entries are there; they are taken."""
        count = 0
        self.socket.setblocking(False)
        try:
            while True:
                self.entry()
                count += 1
        except BlockingIOError:
            return count
        finally:
            self.socket.settimeout(10)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()


def parse(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """As journald reads it: NAME=value, or NAME, the length and as many bytes."""
    while payload:
        line, _, rest = payload.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        yield name.decode("ascii"), value
        payload = rest


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "socket")
    yield listener
    listener.socket.close()


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "stderr"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield path, fd
    os.close(fd)


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- fields ---------------------------------------------------------------------------------


def test_an_event_is_an_entry(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    log.warning(
        "upgrade.state_changed", upgrade_id="u1", generation="g2", from_state="canary",
        to_state="rolling_back", reason="probe_failed", detail="home: status 500",
        nothing=None, judged=True, elapsed_s=1.5, phases={"canary": 0.5}, pids=[1, 2],
    )  # fmt: skip
    assert journal.fields() == {
        "MESSAGE": "upgrade: canary -> rolling_back, g2: probe_failed: home: status 500",
        "PRIORITY": "4", "SYSLOG_IDENTIFIER": "nginx-supervisor", "SYSLOG_FACILITY": "3",
        "TIMESTAMP": ANY, "EVENT": "upgrade.state_changed", "PHASE": "rolling_back",
        "UPGRADE_ID": "u1",
        "GENERATION": "g2", "FROM_STATE": "canary", "TO_STATE": "rolling_back",
        "REASON": "probe_failed", "DETAIL": "home: status 500", "JUDGED": "true",
        "ELAPSED_S": "1.5", "PHASES": '{"canary": 0.5}', "PIDS": "[1, 2]",
    }  # fmt: skip
    assert not stderr[0].read_text()


def test_a_verdict_has_an_id_for_the_catalog(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    log.info("upgrade.verdict", verdict="committed", reason="healthy", detail="it serves")
    entry = journal.fields()
    assert (entry["VERDICT"], entry["PRIORITY"]) == ("committed", "5")
    assert len(entry["MESSAGE_ID"]) == 32


def test_levels_and_what_a_task_has_bound(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    with structlog.contextvars.bound_contextvars(caller_uid=33):
        log.debug("a.b")
    log.error("c.d")
    first, second = journal.fields(), journal.fields()
    assert (first["PRIORITY"], first["CALLER_UID"]) == ("7", "33")
    assert second["PRIORITY"] == "3"
    assert "CALLER_UID" not in second


HOSTILE = "GET /\nPRIORITY=0\n\nMESSAGE=all is well\nUPGRADE_ID\n\x01\x00\x00\x00\x00\x00\x00\x00x"


def test_no_value_begins_another_field(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    log.info("nginx.output", line=HOSTILE)
    entry = journal.entry()
    assert [name for name, _ in entry] == [
        "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY", "EVENT", "LINE", "TIMESTAMP",
    ]  # fmt: skip
    assert dict(entry)["LINE"].decode() == HOSTILE
    assert dict(entry)["PRIORITY"] == b"6"
    assert b"\n" not in dict(entry)["MESSAGE"]


def test_text_that_is_no_utf8_is_told_all_the_same() -> None:
    entry = dict(fields_of({"event": "x.y", "path": "/\udcff", "odd": {1}}))
    assert entry["PATH"] == rb"/\udcff"
    assert entry["ODD"] == b"{1}"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("upgrade_id", "UPGRADE_ID"),
        ("_PID", "PID"),
        ("__REALTIME_TIMESTAMP", "REALTIME_TIMESTAMP"),
        ("2fast", "FIELD_2FAST"),
        ("a b=\nc", "A_B__C"),
        ("größe", "GR_SSE"),
        ("message", "FIELD_MESSAGE"),
        ("priority", "FIELD_PRIORITY"),
        ("syslog_identifier", "FIELD_SYSLOG_IDENTIFIER"),
        ("object_pid", "FIELD_OBJECT_PID"),
        ("unit", "FIELD_UNIT"),
        ("___", "FIELD_"),
        ("x" * 99, "X" * 64),
    ],
)
def test_names_that_the_journal_takes(key: str, name: str) -> None:
    assert field_name(key) == name


def test_a_large_entry_goes_in_a_sealed_file(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    text = "z\n" * (20 << 20)  # more than any datagram may have, whatever the system's limits
    log.info("odd.text", text=text)
    assert journal.fields()["TEXT"] == text
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert journal.seals == wanted
    assert not stderr[0].read_text()


def test_an_exception_is_a_field_and_is_read(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    try:
        int("why")
    except ValueError:
        log.exception("operation.bug", operation="spawn")
    entry = journal.fields()
    assert entry["MESSAGE"].startswith("operation.bug (operation=spawn)\nTraceback")
    assert "ValueError: invalid literal" in entry["EXCEPTION"]
    assert entry["PRIORITY"] == "3"


# --- where it goes --------------------------------------------------------------------------


def test_it_is_chosen_where_standard_error_is_the_journal(
    journal: Listener, stderr: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = stderr
    found = os.fstat(fd)
    monkeypatch.setenv(STREAM, f"{found.st_dev}:{found.st_ino}")
    configure_logs(LogSettings(), fd=fd, journal=str(journal.path)).info("x.y")
    assert journal.fields()["EVENT"] == "x.y"
    assert not path.read_text()


@pytest.mark.parametrize("stream", ["", "0:0", "8:", ":", "x:y", "1", "1:2:3", "9" * 5000 + ":1"])
def test_it_is_not_chosen_where_it_is_another_file(
    journal: Listener, stderr: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv(STREAM, stream)
    configure_logs(LogSettings(), fd=stderr[1], journal=str(journal.path)).info("x.y")
    assert [line["event"] for line in told(stderr[0])] == ["x.y"]
    assert journal.waiting() == 0
    assert not is_journal(99999)


# --- a journal that is gone, slow or full ---------------------------------------------------


def test_without_a_journal_lines_go_to_standard_error(
    tmp_path: Path, stderr: tuple[Path, int]
) -> None:
    path = tmp_path / "socket"
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(path))
    log.info("before.it", pid=1)
    journal = Listener(path)
    log.info("while.there")
    assert journal.fields()["EVENT"] == "while.there"
    journal.close()
    log.info("gone.again")
    journal = Listener(path)  # another socket at the same path, as after a restart of its unit
    log.info("back.again")
    assert journal.fields()["EVENT"] == "back.again"
    os.unlink(path)
    journal.socket.close()
    before, gone = told(stderr[0])
    assert (before["event"], before["pid"]) == ("before.it", 1)
    assert before["not_in_journal"] == "No such file or directory"
    assert (gone["event"], gone["not_in_journal"]) == ("gone.again", "No such file or directory")


def test_nobody_behind_the_socket_is_no_trouble(
    journal: Listener, stderr: tuple[Path, int]
) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    journal.socket.close()  # the file stays
    log.info("x.y")
    assert [line["not_in_journal"] for line in told(stderr[0])] == ["Connection refused"]


def test_a_journal_that_naps_misses_nothing(journal: Listener, stderr: tuple[Path, int]) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    many = journald.LATE // 2
    for number in range(many):  # far more than a socket's queue holds
        log.info("x.y", number=number)
    numbers = [int(journal.fields()["NUMBER"]) for _ in range(many)]
    assert numbers == list(range(many))
    flush_logs(10)  # the thread has counted the last one as well
    log.info("after.all")
    assert journal.fields()["EVENT"] == "after.all"
    assert not stderr[0].read_text()


def test_a_journal_that_never_reads_holds_nobody_up(
    journal: Listener, stderr: tuple[Path, int]
) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    many = 3 * journald.LATE
    for number in range(many):  # would block for ever
        log.info("x.y", number=number)
    flush_logs(0.01)
    lines = told(stderr[0])
    assert lines
    assert {line["not_in_journal"] for line in lines} == {"Resource temporarily unavailable"}
    numbers = [int(journal.fields()["NUMBER"]) for _ in range(many - len(lines))]
    assert numbers == list(range(len(numbers)))  # each is told, the one way or the other
    assert [line["number"] for line in lines] == list(range(len(numbers), many))


def test_what_waits_for_a_journal_that_goes_away_is_told(
    journal: Listener, stderr: tuple[Path, int]
) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    many = 1000
    for number in range(many):
        log.info("x.y", number=number)
    journal.close()  # with what its queue holds
    flush_logs(10)
    log.info("after.all")
    lines = told(stderr[0])
    assert lines[-1]["event"] == "after.all"
    numbers = [line["number"] for line in lines[:-1]]
    assert numbers == list(range(numbers[0], many))


def test_what_cannot_be_sent_late_is_told_and_ends_nothing(
    journal: Listener, stderr: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    send, odd = JournaldTransport.send, []

    def fails_in_the_thread(self: JournaldTransport, fields: list[tuple[str, bytes]]) -> object:
        if threading.current_thread().name == "journal" and not odd:
            odd.append(fields)
            raise ValueError("odd")
        return send(self, fields)

    monkeypatch.setattr(JournaldTransport, "send", fails_in_the_thread)
    many = 600  # more than any queue takes (net.unix.max_dgram_qlen)
    for number in range(many):
        log.info("x.y", number=number)
    numbers = [int(journal.fields()["NUMBER"]) for _ in range(many - 1)]
    flush_logs(10)
    (line,) = told(stderr[0])
    assert line["not_in_journal"] == "ValueError"
    assert sorted([*numbers, line["number"]]) == list(range(many))


def test_what_nobody_takes_is_counted_and_told(journal: Listener) -> None:
    read, write = os.pipe()
    numbers = itertools.count()
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        log = configure_logs(JOURNAL, fd=write, journal=str(journal.path))
        for number in itertools.islice(numbers, 3 * journald.LATE):
            log.info("x.y", number=number)
        taken = confessed = 0
        while True:
            entry = journal.fields()
            if entry["EVENT"] == "log.dropped":
                confessed += int(entry["COUNT"])
                assert "lines are missing" in entry["MESSAGE"]
            elif confessed:
                break  # the first that got through again
            else:
                taken += 1
            log.info("x.y", number=next(numbers))
        lines = os.read(read, 1 << 20).count(b"\n")
    finally:
        os.close(read)
        os.close(write)
    assert confessed == int(entry["NUMBER"]) - taken - lines


def test_a_line_for_systemd_has_its_priority(
    tmp_path: Path, stderr: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = stderr
    found = os.fstat(fd)
    monkeypatch.setenv(STREAM, f"{found.st_dev}:{found.st_ino}")
    configure_logs(JOURNAL, fd=fd, journal=str(tmp_path / "none")).warning("x.y")
    line = path.read_text()
    assert line.startswith('<4>{"timestamp"')
    assert json.loads(line[3:])["event"] == "x.y"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_ends_nothing(
    journal: Listener, stderr: tuple[Path, int]
) -> None:
    log = configure_logs(JOURNAL, fd=stderr[1], journal=str(journal.path))
    log.info("odd.value", value=Unspeakable())
    log.info("after.all")
    assert told(stderr[0]) == [{"event": "odd.value", "unprintable": "RuntimeError"}]
    assert journal.fields()["EVENT"] == "after.all"
