"""A client that waits for its turn: for locks, and for a supervisor that is busy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from supervisor.cli import turn

HOLDER = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
    "print(flush=True); sys.stdin.readline()"
)
LIVES_ON = f"{HOLDER}; f.close(); sys.stdin.read()"


@contextmanager
def locked(lock: Path, script: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The process that holds the lock, and what it releases it at: a line on its stdin."""
    lock.touch()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        yield holder, holder.stdin


def release(stdin: IO[str]) -> None:
    stdin.write("\n")
    stdin.flush()


def test_no_lock_is_no_wait(tmp_path: Path) -> None:
    (tmp_path / "free").touch()
    turn.wait_for_packages((str(tmp_path / "free"), str(tmp_path / "missing")))


def test_it_waits_for_the_end_of_whoever_holds_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waiter = (
        "import sys; from supervisor.cli import turn; print(flush=True);"
        "turn.wait_for_packages((sys.argv[1],)); print('free', flush=True)"
    )
    with (
        locked(lock, HOLDER) as (holder, stdin),
        subprocess.Popen(
            [sys.executable, "-c", waiter, str(lock)], stdout=subprocess.PIPE, text=True
        ) as waiting,
    ):
        assert waiting.stdout is not None
        waiting.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        ended = time.monotonic()
        release(stdin)
        assert waiting.stdout.readline() == "free\n"
        assert holder.wait(30) == 0
        assert time.monotonic() >= ended


def test_a_lock_is_free_once_it_is_released_by_a_process_that_lives_on(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, LIVES_ON) as (holder, stdin):
        # Released while it is waited for, or before: either way it has to return.
        threading.Timer(0.3, release, [stdin]).start()
        turn.wait_for_packages((str(lock),))
        assert holder.poll() is None
        stdin.close()


def test_when_it_may_ask() -> None:
    for state in ("upgrading", "draining", "starting"):
        assert not turn.is_free({"state": state})
    for state in ("running", "degraded", "stopped", "backoff"):
        assert turn.is_free({"state": state})


BINARY = {"kind": "binary", "path": "/n", "change": "replaced"}
LIBRARY = {"kind": "library", "path": "/l", "change": "replaced"}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (["bad", BINARY], ["old"], True),  # the package was put back, and that was all
        (["bad", BINARY, LIBRARY], ["old", LIBRARY], False),  # perhaps the library is good
        (["old", LIBRARY], ["old", LIBRARY], True),  # it is not
        (["bad", BINARY], ["third", BINARY], False),  # another package came meanwhile
        (["old", LIBRARY], ["old", LIBRARY, {**LIBRARY, "path": "/m"}], False),
    ],
)
def test_what_is_tried_again_after_a_rollback(
    before: list[object], after: list[object], *, same: bool
) -> None:
    assert turn.is_as(found(before), found(after)) is same


def test_without_an_answer_nothing_is_tried_again() -> None:
    assert turn.is_as({}, {"changed": None})


def found(told: list[object]) -> dict[str, object]:
    return {"binary_on_disk": {"sha256": told[0]}, "changed": told[1:]}
