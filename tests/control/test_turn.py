"""A client that waits for its turn: for locks, and for a supervisor that is busy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from supervisor.cli import turn

HOLDER = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
    "print(flush=True); sys.stdin.readline()"
)


def test_no_lock_is_no_wait(tmp_path: Path) -> None:
    (tmp_path / "free").touch()
    turn.wait_for_packages((str(tmp_path / "free"), str(tmp_path / "missing")))


def test_it_waits_for_the_end_of_whoever_holds_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    waiter = (
        "import sys; from supervisor.cli import turn; print(flush=True);"
        "turn.wait_for_packages((sys.argv[1],)); print('free', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with subprocess.Popen(
            [sys.executable, "-c", waiter, str(lock)], stdout=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stdout is not None
            waiting.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            ended = time.monotonic()
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert waiting.stdout.readline() == "free\n"
            assert holder.wait(30) == 0
            assert time.monotonic() >= ended


def test_a_lock_is_free_once_it_is_released_by_a_process_that_lives_on(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    holder_of = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.readline(); f.close(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder_of, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        # Released while it is waited for, or before: either way it has to return.
        stdin = holder.stdin
        threading.Timer(0.3, lambda: (stdin.write("\n"), stdin.flush())).start()
        turn.wait_for_packages((str(lock),))
        assert holder.poll() is None
        holder.stdin.close()


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
