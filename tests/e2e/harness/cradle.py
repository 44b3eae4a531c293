"""Everything that one test starts, held together: known, awaited, and ended by pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.e2e.harness import processes
from tests.e2e.harness.processes import Seen

LIMIT = 60.0
"""Seconds that anything which should happen at once may take on a busy machine."""


class Cradle:
    """Starts processes whose orphans stay within reach; leaving the block kills all of them.

    `exited` and `wait` know about every descendant that was orphaned here, not only about what
    `run` started.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._statuses: dict[int, int] = {}
        self._replies: list[dict[str, object]] = []

    def __enter__(self) -> Cradle:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).with_name("cradle_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                if "exited" in told:
                    self._statuses[told["exited"]] = told["status"]
                else:
                    self._replies.append(told)
                self._changed.notify_all()

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str], output: Path) -> int:
        """Start `argv` in a session of its own, with both outputs appended to a file; its pid."""
        order = {"argv": [str(one) for one in argv], "env": dict(env), "output": str(output)}
        assert self._process.stdin is not None
        with self._changed:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            if not self._changed.wait_for(lambda: self._replies, LIMIT):
                raise TimeoutError(f"cannot start {argv[0]}: no answer")
            reply = self._replies.pop()
        if "failed" in reply:
            raise OSError(f"cannot start {argv[0]}: {reply['failed']}")
        pid = reply["started"]
        assert isinstance(pid, int)
        return pid

    def status(self, pid: int) -> int | None:
        """The exit status of `pid` (negative: the signal), None while it is not reaped here."""
        with self._changed:
            return self._statuses.get(pid)

    def wait(self, pid: int, limit: float = LIMIT) -> int:
        """The exit status of `pid`. Raises TimeoutError after `limit` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: pid in self._statuses, limit):
                raise TimeoutError(f"pid {pid} has not ended within {limit:g} s")
            return self._statuses[pid]

    def living(self) -> list[Seen]:
        """All living descendants, in the order of their start."""
        return processes.descendants(self._process.pid)

    @property
    def pid(self) -> int:
        """The cradle's own process."""
        return self._process.pid


def kill(pid: int, number: int) -> None:
    """Send a signal; nothing happens when the process has gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
