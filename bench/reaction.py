"""How soon the old generation accepts again after a candidate goes wrong, beside nginx alone.

    python -m bench.reaction [--rounds N] [--json FILE]

In each round the same is done to two equal sites by turns, so that a change of the machine's mood
hits both: one is nginx alone, driven by bare signals, the other is owned by a supervisor. In both
only the new generation accepts, and the old master stands by without workers; then

master   the new master is killed. nginx alone starts its old workers by itself.
worker   a worker of the new generation is killed. Nobody but a supervisor does anything then;
         beside it stands nginx alone with HUP sent to the old master at that very moment.

The time ends with the first worker of the old master that accepts (/proc, looked at every 0.5 ms).
The aim for both is a median of less than 25 ms above nginx alone.

answer   only under a supervisor: the candidate begins to answer 500 in its soak. The time begins
         with the first such answer that a client on the public port gets, who asks all the time. It
         may take (fall - 1) x interval + timeout, and what a dead worker takes besides.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import baseline_script as script
from tests.e2e.harness import site, supervised
from tests.e2e.harness.bare import Bare
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Site
from tests.e2e.harness.supervised import Supervised
from tools.load_client import Connection, Plan, RequestError
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import Build

ROUNDS = 20
AIM = 0.025
"""Seconds above nginx alone, for the medians of `master` and `worker`."""
INTERVAL, TIMEOUT, FALL = 0.1, 0.5, 3
BOUND = (FALL - 1) * INTERVAL + TIMEOUT
DELAY_MS = 1500
"""From the start of a candidate until it answers badly: it soaks by then."""
SOAK = ("--canary", "0s", "--soak", "60s")
ROLLED_BACK = 4


class BenchError(Exception):
    """Something did not go as it has to; the numbers would mean nothing."""


def accepts(old: int) -> float:
    """When the old master has a worker that accepts again."""
    script.poll("the old generation accepts", lambda: script.accepting(old) > 0)
    return time.monotonic()


def kill_worker(new: int) -> None:
    """SIGKILL to one worker of this master."""
    os.kill(next(pid for pid in script.children(new)), signal.SIGKILL)


class Alone:
    """nginx driven by bare signals."""

    def __init__(self, stack: ExitStack, old: Build, new: Build) -> None:
        self._site = stack.enter_context(site.make(old))
        self._cradle = stack.enter_context(Cradle())
        self._nginx = Bare(self._site, self._cradle)
        self._old, self._new = old, new
        self._master = self._nginx.start()

    def _shifted(self) -> int:
        """Only the new generation accepts; its master."""
        self._site.install(self._new)
        new, _ = script.spawn(self._master, self._site.options.workers)
        script.shift(self._master)
        return new

    def _tidy(self, workers: Sequence[int]) -> None:
        """The old generation alone, with its full set of workers."""
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        script.poll("all workers", lambda: self._nginx.serves(self._master))
        self._site.install(self._old)

    def master(self) -> float:
        """Seconds after the end of the new master."""
        new = self._shifted()
        orphans = script.children(new)
        began = time.monotonic()
        os.kill(new, signal.SIGKILL)
        seconds = accepts(self._master) - began
        self._tidy(orphans)
        return seconds

    def worker(self) -> float:
        """Seconds after HUP to the old master."""
        new = self._shifted()
        began = time.monotonic()
        kill_worker(new)
        os.kill(self._master, signal.SIGHUP)
        seconds = accepts(self._master) - began
        self._nginx.quit(new)
        self._tidy([])
        return seconds


class Owned:
    """nginx owned by a supervisor."""

    def __init__(self, stack: ExitStack, old: Build, new: Build) -> None:
        self._site: Site = stack.enter_context(site.make(old))
        seen = probe(
            self._site,
            interval=f"{INTERVAL * 1000:g}ms",
            timeout=f"{TIMEOUT * 1000:g}ms",
            fall=FALL,
        )
        settings = {"probe": [seen], "log": {"format": "json", "level": "info"}}
        self._nginx: Supervised = stack.enter_context(supervised.on(self._site, settings))
        self._nginx.start()
        self._new = new
        self._old_master = self._nginx.masters()[0].pid

    def _upgraded(self, binary: Path, strike: Callable[[int], float], reason: str) -> float:
        """Begin an upgrade, and in its soak do what is measured; it has to end for `reason`."""
        asked = self._nginx.begin("upgrade", binary, *SOAK)
        self._nginx.until_phase("soaking")
        script.poll("the shift", lambda: not script.any_worker(self._old_master))
        new = self._nginx.masters()[-1].pid
        seconds = strike(new)
        answer = self._nginx.end(asked)
        if (answer.code, answer.reason) != (ROLLED_BACK, reason):
            raise BenchError(f"cannot measure an upgrade that ended so: {answer}")
        self._nginx.until_state("running")
        return seconds

    def master(self) -> float:
        """Seconds after the end of the candidate's master."""

        def strike(new: int) -> float:
            began = time.monotonic()
            os.kill(new, signal.SIGKILL)
            return accepts(self._old_master) - began

        return self._upgraded(self._new.path, strike, "candidate_exited")

    def worker(self) -> float:
        """Seconds after the end of a worker of the candidate."""

        def strike(new: int) -> float:
            began = time.monotonic()
            kill_worker(new)
            return accepts(self._old_master) - began

        return self._upgraded(self._new.path, strike, "worker_died")

    def answer(self) -> float:
        """Seconds after the first bad answer that a client got."""
        bad = candidate(self._new, "status_500", delay_ms=DELAY_MS)

        def strike(_new: int) -> float:
            plan, end = self._site.plan(), time.monotonic() + script.LIMIT
            while status(plan) != 500:
                if time.monotonic() > end:
                    raise TimeoutError(f"not within {script.LIMIT:g} s: a bad answer")
            first = time.monotonic()
            return accepts(self._old_master) - first

        return self._upgraded(bad, strike, "probe_failed")


def status(plan: Plan) -> int:
    """What a client on a new connection gets; 0 where it gets nothing."""
    connection = Connection(plan)
    try:
        return connection.get("/", keep=False).status
    except RequestError:
        return 0
    finally:
        connection.close()


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Seconds of each event for each side, by turns; one round before that does not count."""
    old, new = builds()[0], builds()[-1]
    times: dict[str, dict[str, list[float]]] = {
        "master": {"alone": [], "owned": []},
        "worker": {"alone": [], "owned": []},
        "answer": {"owned": []},
    }
    with ExitStack() as stack:
        alone, owned = Alone(stack, old, new), Owned(stack, old, new)
        for number in range(rounds + 1):
            seen = {
                "master": {"alone": alone.master(), "owned": owned.master()},
                "worker": {"alone": alone.worker(), "owned": owned.worker()},
                # It takes long, and is not compared with anything.
                "answer": {"owned": owned.answer()} if number % 2 else {},
            }
            for event, sides in seen.items():
                for side, seconds in sides.items():
                    if number:
                        times[event][side].append(seconds)
            say(f"\r{number} of {rounds} rounds")
    say("\r" + " " * 30 + "\r")
    return times


def summary(times: dict[str, dict[str, list[float]]]) -> dict[str, object]:
    """Medians and the longest in milliseconds, and what the supervisor adds."""
    found: dict[str, object] = {
        "versions": [str(builds()[0]), str(builds()[-1])],
        "cpus": os.cpu_count(),
        "aim_added_ms": 1000 * AIM,
        "answer_bound_ms": 1000 * BOUND,
    }
    for event, sides in times.items():
        row: dict[str, float] = {}
        for side, seconds in sides.items():
            row[f"{side}_ms"] = round(1000 * statistics.median(seconds), 2)
            row[f"{side}_longest_ms"] = round(1000 * max(seconds), 2)
            row["rounds"] = len(seconds)
        if "alone_ms" in row:
            row["added_ms"] = round(row["owned_ms"] - row["alone_ms"], 2)
            row["ratio"] = round(row["owned_ms"] / row["alone_ms"], 2)
        found[event] = row
    return found


def human(found: dict[str, object]) -> str:
    """The summary for people."""
    versions = found["versions"]
    assert isinstance(versions, list)
    lines = [
        f"nginx {versions[0]}, candidate {versions[1]}; until the old generation accepts again"
    ]
    told = {"master": "candidate's master killed", "worker": "a worker of it killed"}
    for event, words in told.items():
        row = found[event]
        assert isinstance(row, dict)
        lines.append(
            f"  {words:<26} nginx alone {row['alone_ms']:5.1f} ms   supervised"
            f" {row['owned_ms']:5.1f} ms (longest {row['owned_longest_ms']:.1f})"
            f"   added {row['added_ms']:.1f} ms   ratio {row['ratio']:.2f}   {row['rounds']} rounds"
        )
    row = found["answer"]
    assert isinstance(row, dict)
    lines.append(
        f"  {'first bad answer':<26} supervised {row['owned_ms']:6.1f} ms"
        f" (longest {row['owned_longest_ms']:.1f}), {row['rounds']} rounds;"
        f" (fall - 1) x interval + timeout = {found['answer_bound_ms']:.0f} ms"
    )
    lines.append(f"  aim for `added`: less than {found['aim_added_ms']:.0f} ms")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and tell; 1 where a median is above the aim."""
    parser = argparse.ArgumentParser(description="How soon the old generation accepts again.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(text)

    times = measure(given.rounds, say)
    found = summary(times)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{human(found)}\n")

    def median(event: str, side: str) -> float:
        return statistics.median(times[event][side])

    added = [median(event, "owned") - median(event, "alone") for event in ("master", "worker")]
    late = median("answer", "owned") > BOUND + AIM + median("worker", "alone")
    return 1 if max(added) >= AIM or late else 0


if __name__ == "__main__":
    sys.exit(main())
