"""What clients lose in upgrades, rollbacks and crashes: nothing but what a killed worker had taken.

    python -m bench.nothing_lost [--requests N] [--reuseport] [--json FILE]

Requests on new connections, as many as two processes can make, and beside them always sixteen whose
answer takes nginx a third of a second, go on without a pause while nginx is
upgraded, rolled back, and killed: the master alone, the master with all its workers, a worker, a
candidate, the old master, and the supervisor. Before a process is killed it is stopped and asked
(through /proc) whose connections it has accepted. Every request that failed is then one of these:

refused, timed out, bad   there may be none, whatever was killed
reset, cut                the answer did not come whole: there has to be a kill of the worker that
                          had accepted this connection, by its address and port, at that time

The run ends when at least N requests were made and each deed of the list was done. It fails (exit
status 1) for a single request that is not explained, and also where the load itself had no port.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.harness import checks, supervised
from tests.soak import deeds
from tests.soak.world import World, good_offers, settings, site_of
from tools.casualties import unexplained
from tools.quick_load import Failure, QuickLoad, QuickPlan, Tally

REQUESTS = 1_000_000
TIMEOUT = 5.0
AT_ONCE = 12
SLOW = 8
ROUND = (
    "upgrade",
    "crash_of_everything",
    "upgrade_held_and_promoted",
    "crash_of_master",
    "rollback",
    "death_of_supervisor",
    "death_of_candidate_in_upgrade",
    "crash_of_everything",
    "upgrade_to_package",
    "take_over",
    "death_of_supervisor_in_upgrade",
    "crash_of_worker",
    "death_of_old_master_in_upgrade",
    "crash_of_master",
    "foreign_upgrade",
    "death_of_everything_in_upgrade",
    "death_of_supervisor_and_master",
    "upgrade",
    "death_of_old_master_while_held",
    "foreign_reload",
    "self_upgrade",
    "upgrade_held_and_promoted",
    "self_upgrade_in_upgrade",
)
"""Deeds of the soak that offer no bad nginx and stop none: they have no right to lose a request."""
SUPERVISOR_DIES = (
    "death_of_supervisor",
    "death_of_supervisor_and_master",
    "death_of_supervisor_in_upgrade",
)
UPGRADES_A_ROUND = 10
"""At least: what is refused, beside a held one or struck early, does not count."""
UPGRADES = 50
"""In the long form, in proportion in a shorter one."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What was done and what it cost."""

    deeds: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    """Seconds that the slowest good answer took in any deed of this name."""
    verdicts: Counter[str] = field(default_factory=Counter)
    requests: Tally = field(default_factory=Tally)
    killed: int = 0
    matched: Counter[str] = field(default_factory=Counter)
    left: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def upgrades(self) -> int:
        """Those that started a second generation, and those that somebody else made."""
        ended = self.verdicts["committed"] + self.verdicts["rolled_back"]
        return ended + self.deeds["foreign_upgrade"]

    @property
    def is_good(self) -> bool:
        """Nothing was lost that no kill explains, and every request was counted."""
        total = self.requests
        return not self.left and not total.no_port and not total.pending and total.ok > 0

    def as_json(self) -> dict[str, object]:
        """The figures."""
        total = self.requests
        causes = ("refused", "timeout", "bad", "other", "reset", "cut")
        return {
            "requests": total.sent,
            "ok": total.ok,
            "slow": total.slow,
            "seconds": round(self.seconds, 1),
            **{cause: total.failed[cause] for cause in causes},
            "matched": sum(self.matched.values()),
            "unexplained": len(self.left),
            "without_local_port": total.no_port,
            "killed_processes": self.killed,
            "p50_ms": round(1000 * total.latency(0.5), 1),
            "p99_ms": round(1000 * total.latency(0.99), 1),
            "max_ms": round(1000 * total.latency(1.0), 1),
            "versions": dict(total.versions),
            "upgrades": self.upgrades,
            "verdicts": dict(self.verdicts),
            "deeds": dict(self.deeds),
            "slowest_ms": {name: round(1000 * took, 1) for name, took in self.slowest.items()},
        }

    def __str__(self) -> str:
        told = self.as_json()
        lines = [
            f"{told['requests']} requests on new connections in {told['seconds']} s,"
            f" {told['ok']} answered ({told['slow']} slow ones)",
            f"  refused {told['refused']}   timed out {told['timeout']}   bad {told['bad']}"
            f"   other {told['other']}",
            f"  reset {told['reset']}   closed before the answer was whole {told['cut']}:"
            f" {told['matched']} of these were accepted by a worker that was killed then",
            f"  not explained {told['unexplained']}",
            f"  p50 {told['p50_ms']} ms   p99 {told['p99_ms']} ms   max {told['max_ms']} ms",
            f"  through {sum(self.deeds.values())} deeds: {self.upgrades} upgrades"
            f" ({self.verdicts['committed']} committed, {self.verdicts['rolled_back']} rolled back,"
            f" {self.deeds['foreign_upgrade']} by hand; {self.verdicts['refused']} more refused,"
            " beside a held one or as nginx died in their preflight),",
            f"  {self.killed} processes of nginx killed, and"
            f" {sum(self.deeds[name] for name in SUPERVISOR_DIES)} times the supervisor",
        ]
        lines += [
            f"    {number:4} {name:32} slowest answer {1000 * self.slowest[name]:6.0f} ms"
            for name, number in sorted(self.deeds.items())
        ]
        lines += [f"  NOT EXPLAINED: {one}" for one in self.left[:20]]
        return "\n".join(lines)


def measure(requests: int, *, reuseport: bool, say: Callable[[str], None]) -> Result:
    """Do the deeds under load until there were so many requests; what it cost."""
    offers = good_offers()
    result = Result()
    rounds = max(1, math.ceil(UPGRADES / UPGRADES_A_ROUND * requests / REQUESTS))
    with (
        site_of(offers[0].build, reuseport=reuseport) as one,
        supervised.running(one, settings(one)) as nginx,
        QuickLoad(QuickPlan(port=one.port, at_once=AT_ONCE, slow=SLOW, timeout=TIMEOUT)) as load,
    ):
        world = World(nginx, offers[0], offers)
        world.quiet()
        began = time.monotonic()
        done = 0
        while done < rounds * len(ROUND) or load.total.sent < requests:
            name = ROUND[done % len(ROUND)]
            world.begin(f"{done}")
            deeds.DEEDS[name](world)
            world.quiet()
            done += 1
            result.deeds[name] += 1
            lap = load.lap()
            result.slowest[name] = max(result.slowest.get(name, 0.0), lap.latency(1.0))
            _take(result, lap, world)
            say(f"\r{load.total.sent} requests, {done} deeds, {len(result.left)} not explained ")
        _take(result, load.stop(), world)
        result.seconds = time.monotonic() - began
        say("\r" + " " * 60 + "\r")
        checks.assert_settled(nginx, world.serving.build, world.serving.sha)
        result.requests = load.total
        result.killed = len(world.kills)
        result.verdicts.update(verdict["verdict"] for verdict in nginx.history())
    return result


def _take(result: Result, lap: Tally, world: World) -> None:
    left = unexplained(lap.failures, world.kills)
    result.left += left
    result.matched += Counter(one.cause for one in lap.failures) - Counter(
        one.cause for one in left
    )
    if len(lap.failures) != sum(lap.failed.values()):
        raise RuntimeError("too many failures between two looks to keep each of them")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and tell; 1 where a request was lost without a cause."""
    parser = argparse.ArgumentParser(description="What clients lose in upgrades and crashes.")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--reuseport", action="store_true", help="listen with it, and hold it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(text)

    result = measure(given.requests, reuseport=given.reuseport, say=say)
    if given.json is not None:
        given.json.write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{result}\n")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
