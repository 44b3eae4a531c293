"""What the supervisor adds to nginx's own time in an upgrade and in a rollback.

    python -m bench.upgrade_overhead [--rounds N] [--json FILE]

In each round, a script that knows the pids and a supervisor do the same to two equal sites, by
turns, so that a change of the machine's mood hits both. Canary and soak are 0 and there are no
probes. What is compared:

upgrade   from the end of the preflight to the end of the old master. The script begins with USR2;
          the supervisor's preflight (copying, hashing, testing, and the journal's record of what
          follows) is left out and shown beside it; installing the binary and all checks are in.
rollback  from the decision, when only the new generation accepts, to the end of the new master.
          The script has decided already; the supervisor's begins with the call on its socket.

Every even upgrade goes back to the older version, so that both directions are in the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import baseline_script as script
from supervisor import wire
from supervisor.cli.connection import Connection
from tests.e2e.harness import site, supervised
from tests.e2e.harness.bare import Bare
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.site import Site
from tests.e2e.harness.supervised import Supervised
from tools.nginx_builds import builds
from tools.nginx_cache import Build

ROUNDS = 20
TIMEOUT = 60.0
AIM = 1.5
"""For an upgrade. A rollback takes nginx so little that a millisecond more is a ratio."""
SETTINGS: dict[str, object] = {
    "upgrade": {"canary": "0s", "soak": "0s"},
    "probe": None,
    "log": {"format": "json", "level": "info"},
}


class BenchError(Exception):
    """Something did not go as it has to; the numbers would mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one upgrade and one rollback, and of the upgrade's parts."""

    upgrade: float
    rollback: float
    parts: Mapping[str, float]  # the supervisor's phases, or the script's steps


class ExitTime:
    """When a process exits, noted by a thread of its own while the caller does other things."""

    def __init__(self, pid: int) -> None:
        self._exit = script.Exit(pid)
        self._at: list[float] = []
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()

    def _note(self) -> None:
        self._exit.wait()
        self._at.append(time.monotonic())

    def get(self) -> float:
        """The time of the exit, in time.monotonic()'s seconds; waits for it."""
        self._thread.join()
        if not self._at:
            raise BenchError("a master that was told to leave did not")
        return self._at[0]


class Scripted:
    """nginx driven by the script."""

    def __init__(self, stack: ExitStack, build: Build) -> None:
        self._site = stack.enter_context(site.make(build))
        cradle = stack.enter_context(Cradle())
        self._master = Bare(self._site, cradle).start()
        self._workers = self._site.options.workers

    def round(self, current: Build, target: Build) -> Times:
        """One rollback from `target`, then an upgrade to it."""
        self._site.install(target)
        new, _ = script.spawn(self._master, self._workers)
        script.shift(self._master)
        rollback = script.roll_back(self._master, new, self._workers)
        self._site.install(current)
        self._site.install(target)
        self._master, steps = script.upgrade(self._master, self._workers)
        return Times(upgrade=steps.total, rollback=rollback, parts=asdict(steps))


class Owned:
    """nginx owned by a supervisor."""

    def __init__(self, stack: ExitStack, build: Build) -> None:
        self._site: Site = stack.enter_context(site.make(build))
        self._supervised: Supervised = stack.enter_context(supervised.on(self._site, SETTINGS))
        self._supervised.start()

    def round(self, current: Build, target: Build) -> Times:
        """One rollback from `target`, then an upgrade to it."""
        del current
        rollback = self._rolled_back(target)
        upgrade, phases = self._upgraded(target)
        return Times(upgrade=upgrade, rollback=rollback, parts=phases)

    def _upgraded(self, target: Build) -> tuple[float, dict[str, float]]:
        old = ExitTime(self._supervised.masters()[0].pid)
        with self._connection() as connection:
            self._call(connection, "Upgrade", binary=str(target.path))
            while _next(connection).get("phase") != "preflight":
                pass
            began = time.monotonic()
            verdict = _last(connection)
        gone = old.get()
        if verdict["verdict"] != "committed":
            raise BenchError(f"cannot measure an upgrade that ended so: {verdict}")
        phases = verdict["phases"]
        assert isinstance(phases, dict)
        self._supervised.until_state("running")
        return gone - began - float(phases["preflight"]), phases

    def _rolled_back(self, target: Build) -> float:
        with self._connection() as upgrading, self._connection() as deciding:
            self._call(upgrading, "Upgrade", binary=str(target.path), hold=True)
            while _next(upgrading).get("phase") != "held":
                pass
            new = ExitTime(self._supervised.masters()[-1].pid)
            asked = time.monotonic()
            self._call(deciding, "Rollback")
            verdict = _last(upgrading)
        gone = new.get()
        if verdict["verdict"] != "rolled_back":
            raise BenchError(f"cannot measure a rollback that ended so: {verdict}")
        return gone - asked

    def _connection(self) -> Connection:
        return Connection(str(self._supervised.socket), timeout=TIMEOUT)

    @staticmethod
    def _call(connection: Connection, method: str, **parameters: object) -> None:
        name = f"{wire.INTERFACE}.{method}"
        connection.send(wire.encode_call(name, parameters, more=True))


def _next(connection: Connection) -> dict[str, object]:
    reply = wire.parse_reply(connection.receive())
    if reply.error is not None:
        raise BenchError(f"cannot measure: the supervisor says {reply.error} {reply.parameters}")
    progress = reply.parameters["progress"]
    assert isinstance(progress, dict)
    if progress.get("event") == "verdict" and reply.continues:
        raise BenchError("a verdict has to be the last reply")
    return progress


def _last(connection: Connection) -> dict[str, object]:
    while True:
        progress = _next(connection)
        if progress.get("event") == "verdict":
            return progress


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, list[Times]]:
    """The times of both, `rounds` times by turns; one round before that does not count."""
    low, high = builds()[0], builds()[-1]
    results: dict[str, list[Times]] = {"script": [], "supervisor": []}
    with ExitStack() as stack:
        sides: list[tuple[str, Scripted | Owned]] = [
            ("script", Scripted(stack, low)),
            ("supervisor", Owned(stack, low)),
        ]
        current, target = low, high
        for number in range(rounds + 1):
            for name, side in sides:
                times = side.round(current, target)
                if number:
                    results[name].append(times)
            current, target = target, current
            say(f"\r{number} of {rounds} rounds")
    say("\r" + " " * 30 + "\r")
    return results


def summary(results: dict[str, list[Times]]) -> dict[str, object]:
    """Medians in milliseconds, and the ratios."""

    def median(name: str, field: str) -> float:
        seconds: list[float] = [getattr(one, field) for one in results[name]]
        return round(1000 * statistics.median(seconds), 2)

    def table(field: str) -> dict[str, float]:
        alone, owned = median("script", field), median("supervisor", field)
        return {
            "script_ms": alone,
            "supervisor_ms": owned,
            "ratio": round(owned / alone, 2),
            "added_ms": round(owned - alone, 2),
        }

    def parts(name: str) -> dict[str, float]:
        return {
            part: round(1000 * statistics.median(one.parts[part] for one in results[name]), 2)
            for part in results[name][0].parts
        }

    return {
        "versions": [str(builds()[0]), str(builds()[-1])],
        "rounds": len(results["script"]),
        "cpus": os.cpu_count(),
        "upgrade": table("upgrade"),
        "rollback": table("rollback"),
        "phases_ms": parts("supervisor"),
        "steps_ms": parts("script"),
        "aim": AIM,
    }


def human(found: dict[str, object]) -> str:
    """The summary for people."""
    versions = found["versions"]
    assert isinstance(versions, list)
    lines = [f"between nginx {versions[0]} and {versions[1]}, medians of {found['rounds']} rounds"]
    for name in ("upgrade", "rollback"):
        row = found[name]
        assert isinstance(row, dict)
        lines.append(
            f"  {name:9} script {row['script_ms']:6.1f} ms   supervisor"
            f" {row['supervisor_ms']:6.1f} ms   ratio {row['ratio']:.2f}"
        )
    for name in ("steps", "phases"):
        parts = found[f"{name}_ms"]
        assert isinstance(parts, dict)
        lines.append(f"  {name:9} " + "   ".join(f"{part} {ms:.1f}" for part, ms in parts.items()))
    lines.append("  preflight comes before the first signal and is in neither of the two")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and tell; 1 where the upgrade's ratio is above the aim."""
    parser = argparse.ArgumentParser(description="What the supervisor adds to nginx's own time.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(text)

    found = summary(measure(given.rounds, say))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(human(found) + "\n")
    upgrade = found["upgrade"]
    assert isinstance(upgrade, dict)
    return 0 if upgrade["ratio"] <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
