"""The log tells what happened, and is never in the way."""

from __future__ import annotations

import fcntl
import json
import os
import pty
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from supervisor.core.settings import LogFormat, LogLevel, LogSettings
from supervisor.edges.logs import configure_logs

JSON = LogSettings(format=LogFormat.JSON)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield path, fd
    os.close(fd)


def test_json_lines_have_their_keys_in_order(file: tuple[Path, int]) -> None:
    path, fd = file
    configure_logs(JSON, fd=fd).info("upgrade.state_changed", generation="g2", elapsed_s=1.5)
    (line,) = lines_in(path)
    assert list(line) == ["timestamp", "level", "event", "generation", "elapsed_s"]
    assert line["level"] == "info"
    assert line["event"] == "upgrade.state_changed"
    told = datetime.fromisoformat(line["timestamp"])
    assert told.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)


def test_the_level_is_kept_and_can_be_changed(file: tuple[Path, int]) -> None:
    path, fd = file
    configure_logs(LogSettings(format=LogFormat.JSON, level=LogLevel.WARNING), fd=fd)
    early = structlog.get_logger()
    early.info("a.b")
    early.warning("c.d")
    configure_logs(LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG), fd=fd)
    structlog.get_logger().debug("e.f")
    assert [line["event"] for line in lines_in(path)] == ["c.d", "e.f"]


def test_extra_processors_see_each_event(file: tuple[Path, int]) -> None:
    _, fd = file
    seen = []

    def tap(_logger: object, level: str, event: Any) -> Any:
        seen.append((level, dict(event)))
        return event

    configure_logs(JSON, extra=(tap,), fd=fd).warning("x.y", pid=1)
    ((level, event),) = seen
    assert level == "warning"
    assert (event["event"], event["pid"], event["level"]) == ("x.y", 1, "warning")


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE])
def test_values_that_cannot_be_shown_end_nothing(file: tuple[Path, int], form: LogFormat) -> None:
    path, fd = file
    log = configure_logs(LogSettings(format=form), fd=fd)
    log.info("odd.value", value=Unspeakable())
    log.info("odd.text", value="\udcff\x1b[31m", path=Path("/x"))
    log.info("odd.key", **{"a b": {1, 2}})
    try:
        int("why")
    except ValueError:
        log.exception("it.failed")
    text = path.read_text()
    assert "RuntimeError" in text
    for word in ("odd.value", "odd.text", "odd.key", "it.failed", "ValueError: invalid literal"):
        assert word in text


def test_a_terminal_gets_the_console_form() -> None:
    ours, theirs = pty.openpty()
    try:
        configure_logs(LogSettings(), fd=theirs).info("x.y", pid=1)
        shown = os.read(ours, 4096).decode()
        assert "x.y" in shown
        assert not shown.startswith("{")
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_is_no_terminal_gets_json(pipe: tuple[int, int]) -> None:
    configure_logs(LogSettings(), fd=pipe[1]).info("x.y")
    assert json.loads(os.read(pipe[0], 4096))["event"] == "x.y"


def test_a_full_pipe_drops_lines_and_says_so(pipe: tuple[int, int]) -> None:
    read, write = pipe
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 65536)
    log = configure_logs(JSON, fd=write)
    for number in range(3000):  # far more than a pipe holds; would block for ever
        log.info("x.y", number=number, filler="z" * 100)
    before = drained(read)
    numbers = [json.loads(line)["number"] for line in before.splitlines()]
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < 3000
    log.info("after.all")
    confession, last = (json.loads(line) for line in drained(read).splitlines())
    assert (confession["event"], confession["count"]) == ("log.dropped", 3000 - len(numbers))
    assert last["event"] == "after.all"


def test_a_line_that_was_cut_is_ended_before_the_next(pipe: tuple[int, int]) -> None:
    read, write = pipe
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 8192)
    log = configure_logs(JSON, fd=write)
    log.info("too.long", filler="z" * 100_000)
    cut = drained(read)
    assert cut.startswith('{"timestamp"')
    assert not cut.endswith("\n")
    log.info("after.all")
    nothing, confession, last = drained(read).splitlines()
    assert nothing == ""
    assert json.loads(confession)["count"] == 1
    assert json.loads(last)["event"] == "after.all"


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE])
def test_a_reader_that_is_gone_ends_nothing(form: LogFormat) -> None:
    read, write = os.pipe()
    try:
        log = configure_logs(LogSettings(format=form), fd=write)
        os.close(read)
        log.info("x.y")
        log.info("x.y")
    finally:
        os.close(write)
    log.info("the descriptor is closed as well")


def drained(fd: int) -> str:
    os.set_blocking(fd, False)
    pieces = []
    try:
        while piece := os.read(fd, 65536):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces).decode()
