"""What is read of an error log: what comes from now on, and nothing without end."""

from __future__ import annotations

import os
import select
from pathlib import Path

from supervisor.edges import master_log
from supervisor.edges.master_log import MasterLog

LINE = "2026/01/02 03:04:05 [emerg] 7#7: {}\n"


def texts(log: MasterLog) -> list[str]:
    return [one.text for one in log.read()]


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_what_comes_from_now_on(tmp_path: Path) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    write(one, LINE.format("before"))
    log = MasterLog()
    log.follow([str(one), str(two), str(one), "syslog:server=x", str(tmp_path)])
    assert log.readable
    assert len(log.unreadable) == 2
    assert texts(log) == []
    write(one, LINE.format("first") + LINE.format("second")[:20])
    write(two, LINE.format("of another log"))  # which was not there
    assert texts(log) == ["first", "of another log"]
    write(one, LINE.format("second")[20:])
    assert texts(log) == ["second"]
    os.truncate(one, 0)
    assert texts(log) == []
    write(one, LINE.format("after"))
    assert texts(log) == ["after"]
    log.close()
    assert texts(log) == []


def test_it_tells_when_there_may_be_something_new(tmp_path: Path) -> None:
    """Nobody looks in vain: what is written, and a log that appears, make it readable once."""
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    one.touch()
    log = MasterLog()
    log.follow([str(one), str(two)])
    assert not news(log)
    for path, text in ((one, "first"), (two, "of a new log"), (two, "and more")):
        write(path, LINE.format(text))
        assert news(log)
        assert texts(log) == [text]
        while news(log):  # of what was read already
            assert texts(log) == []
    log.close()


def news(log: MasterLog) -> bool:
    return bool(select.select([log.fd], [], [], 0)[0])


def test_a_log_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    log = MasterLog()
    log.follow([str(tmp_path / "missing" / "error.log")])
    assert not log.readable
    assert "No such file" in log.unreadable[0]
    log.close()


def test_lines_that_a_client_made_up(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.touch()
    log = MasterLog()
    log.follow([str(path)])
    head = '2026/01/02 03:04:05 [error] 9#9: *1 open() "/x\n'
    tail = '" failed (2: No such file or directory), request: "GET /%0a HTTP/1.1"\n'
    write(path, head)
    assert texts(log) == []
    write(path, LINE.format("made up") + tail)
    assert texts(log) == []
    log.close()


def test_a_flood_is_read_from_its_end(tmp_path: Path, monkeypatch: object) -> None:
    path = tmp_path / "error.log"
    path.touch()
    log = MasterLog()
    log.follow([str(path)])
    write(path, "x" * (2 * master_log.READ_AT_ONCE) + "\n" + LINE.format("last"))
    assert texts(log) == ["last"]
    log.close()


def test_what_is_no_log(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    log = MasterLog()
    log.follow([str(fifo), "memory:32m"])
    assert not log.readable
    assert log.unreadable == [f"{fifo}: not a regular file", "it goes to memory:32m"]
