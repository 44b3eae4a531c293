"""The last message of one master in the logs that many write to."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.edges.last_words import last_words

LINES = (
    "2026/01/02 03:04:05 [emerg] 41#41: open() failed\n"
    "2026/01/02 03:04:05 [emerg] 42#42: bind() to 0.0.0.0:80 failed\n"
    "2026/01/02 03:04:05 [notice] 42#42: exit\n"
    "2026/01/02 03:04:05 [emerg] 43#43: of another\n"
)


def test_the_last_one_of_that_process(tmp_path: Path) -> None:
    log, pipe = tmp_path / "log", tmp_path / "pipe"
    log.write_text("x" * 100_000 + "\n" + LINES)
    os.mkfifo(pipe)
    logs = [str(log), str(pipe), str(tmp_path / "none")]
    assert last_words(42, logs) == "[emerg] bind() to 0.0.0.0:80 failed"
    assert last_words(44, logs) == ""
