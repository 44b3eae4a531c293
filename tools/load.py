"""Steady load on one site from a process of its own, with every failure counted by kind and cause.

    with Load(Plan(port=8080)) as load:
        ...
        report = load.stop()

Four kinds of clients. `new` makes a connection for each request; `keepalive` reuses one; `idle`
reuses one after long pauses; `slow` downloads a big file through a narrow window and compares every
byte. A server may close an idle connection at the very moment in which the client reuses it: that
is counted apart (`reused_idle_closed`), only where not one byte of an answer came, and the request
is made again at once on a new connection, whose failure is a real one.

The process is told what to do (`report`, `lap`, `stop`) by lines on its stdin and answers by lines
of JSON on its stdout. It ends by itself when its plan's time is over or its stdin closes, so it
cannot outlive its parent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tools.load_client import Plan, Tally, run_clients

ANSWER_LIMIT = 30.0
"""Seconds within which the load process must answer, beside the time that a request may take."""


class LoadError(Exception):
    """The load process cannot be used: it died, or it does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindReport:
    """What the clients of one kind saw; `requests` equals `ok` plus all of `failed`."""

    requests: int = 0
    ok: int = 0
    reused_idle_closed: int = 0
    max_latency: float = 0.0
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """The number of failed requests of all causes."""
        return sum(self.failed.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Counts so far; times are of the monotonic clock, which all processes share."""

    kinds: Mapping[str, KindReport]
    timeline: tuple[tuple[float, Mapping[str, int]], ...]
    """For each 100 ms in which a request was begun that was answered: its start, and answers by
    version."""
    served: Mapping[str, Mapping[str, int]]
    """Answers by version and by the pid of the worker."""
    samples: tuple[str, ...]
    """The first failures in words."""

    @property
    def requests(self) -> int:
        """All requests that have ended."""
        return sum(kind.requests for kind in self.kinds.values())

    @property
    def failures(self) -> int:
        """All failed requests; a closed idle connection is none."""
        return sum(kind.failures for kind in self.kinds.values())

    @property
    def versions(self) -> Mapping[str, int]:
        """Answers by version."""
        return {version: sum(pids.values()) for version, pids in self.served.items()}

    def count(self, cause: str) -> int:
        """The requests of all kinds that failed for `cause`."""
        return sum(kind.failed.get(cause, 0) for kind in self.kinds.values())

    def answers_since(self, start: float) -> Counter[str]:
        """Answers by version to requests that were begun after `start`, in whole 100 ms buckets."""
        answers: Counter[str] = Counter()
        for at, seen in self.timeline:
            if at >= start:
                answers.update(seen)
        return answers

    def __str__(self) -> str:
        parts = [f"{self.requests} requests, {self.failures} failed"]
        for name, kind in self.kinds.items():
            part = f"{name}: {kind.ok} ok"
            if kind.failed:
                part += ", " + ", ".join(f"{n} {cause}" for cause, n in sorted(kind.failed.items()))
            if kind.reused_idle_closed:
                part += f", {kind.reused_idle_closed} idle closed (made again)"
            parts.append(f"{part}, slowest {kind.max_latency * 1000:.0f} ms")
        return "\n  ".join([*parts, *self.samples])


def _report(tally: Mapping[str, Any]) -> Report:
    return Report(
        kinds={name: KindReport(**kind) for name, kind in tally["kinds"].items()},
        timeline=tuple((at, seen) for at, seen in tally["timeline"]),
        served=tally["served"],
        samples=tuple(tally["samples"]),
    )


class Load:
    """The load process; leaving the block ends it, whatever state it is in.

    Entering returns after each client has got a first answer, or failed, so that the load is
    steady before anything is done to the server. Raises LoadError when the process dies.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Load:
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(
            [sys.executable, "-E", "-m", "tools.load", json.dumps(asdict(self._plan))],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The load process."""
        assert self._process is not None
        return self._process.pid

    def report(self) -> Report:
        """The counts so far; the load goes on."""
        self._tell("report")
        return _report(self._answer())

    def lap(self) -> Report:
        """What was counted since the last lap; the next report begins at zero."""
        self._tell("lap")
        return _report(self._answer())

    def stop(self) -> Report:
        """Let what is under way finish (slow downloads too), make no new request, and report."""
        self._tell("stop")
        request = self._plan.timeout + (self._plan.slow_seconds if self._plan.slow else 0.0)
        return _report(self._answer(ANSWER_LIMIT + request))

    def _tell(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise LoadError(f"cannot tell the load to {word}: it has ended") from exc

    def _answer(self, limit: float = ANSWER_LIMIT) -> Mapping[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        # A watchdog instead of select(): the pipe is buffered text.
        watchdog = threading.Timer(limit, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line:
            raise LoadError(f"cannot read the load's answer: it ended or took over {limit:g} s")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None


def main(arguments: list[str], *, orders: TextIO, answers: TextIO) -> int:
    """The load process: run the plan, answer `report` and `stop`, end when `orders` end."""
    plan = Plan(**json.loads(arguments[0]))
    tally = Tally()
    stopping = threading.Event()
    clients = run_clients(plan, tally, stopping)

    def answer(*, clear: bool = False) -> None:
        answers.write(json.dumps(tally.snapshot(clear=clear)) + "\n")
        answers.flush()

    tally.wait_first(len(clients), limit=ANSWER_LIMIT / 2)
    answer()
    for line in orders:
        if line.strip() == "stop":
            stopping.set()
            for client in clients:
                client.join()
        answer(clear=line.strip() == "lap")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], orders=sys.stdin, answers=sys.stdout))
