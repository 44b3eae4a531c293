"""Random deeds for as long as one likes, with an oracle after each.

    make soak SOAK_SECONDS=3600 SOAK_SEED=7

The deeds come in rounds: each round is all of them, shuffled. The same seed gives the same deeds
with the same choices in each; at which instant they strike depends on the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.e2e.harness import supervised
from tests.soak.deeds import DEEDS
from tests.soak.oracle import Oracle
from tests.soak.world import World, good_offers, settings, site_of
from tools.quick_load import QuickLoad, QuickPlan, Tally

RATE = 200.0
SLOW = 4


@dataclass(slots=True, kw_only=True)
class Summary:
    """What was survived."""

    seed: int
    deeds: Counter[str] = field(default_factory=Counter)
    requests: Tally = field(default_factory=Tally)
    matched: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    def take(self, load: QuickLoad, oracle: Oracle) -> None:
        """What was counted so far."""
        self.requests = load.total
        self.matched, self.excused = oracle.matched, oracle.excused
        self.verdicts = oracle.verdicts

    def __str__(self) -> str:
        total = self.requests
        lines = [f"seed {self.seed}: survived {sum(self.deeds.values())} deeds"]
        lines += [f"  {number:5} {name}" for name, number in sorted(self.deeds.items())]
        lines.append(f"  verdicts: {_counts(self.verdicts)}")
        lines.append(f"  requests: {total.sent} sent, {total.ok} ok, {_counts(total.failed)}")
        lines.append(f"    lost with a worker that was killed: {_counts(self.matched)}")
        lines.append(f"    lost to a bad candidate or a stop:  {_counts(self.excused)}")
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items())) or "none"


def sequence(seed: int) -> Iterator[str]:
    """The names of the deeds, for ever."""
    lot = random.Random(seed)
    while True:
        names = sorted(DEEDS)
        lot.shuffle(names)
        yield from names


def soak(
    seed: int,
    seconds: float,
    *,
    steps: int | None = None,
    at_least: int = 0,
    reuseport: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Do deeds for so long, and `at_least` so many, but no more than `steps`; what was survived.

    Raises at the first that is not, after it has said what was survived before; an interrupt does
    the same.

    A deed that was begun is ended, so it takes a little longer.
    """
    offers = good_offers()
    summary = Summary(seed=seed)
    with (
        site_of(offers[0].build, reuseport=reuseport) as one,
        supervised.running(one, settings(one)) as nginx,
        QuickLoad(
            QuickPlan(port=one.port, processes=1, at_once=8, rate=RATE, slow=SLOW, timeout=20.0)
        ) as load,
    ):
        world = World(nginx, offers[0], offers)
        oracle = Oracle(world, load)
        end = time.monotonic() + seconds
        for number, name in enumerate(sequence(seed)):
            if (time.monotonic() > end and number >= at_least) or number == steps:
                break
            began = time.monotonic()
            try:
                world.begin(f"{seed}/{number}")
                DEEDS[name](world)
                oracle.check()
            except BaseException as exc:
                summary.take(load, oracle)
                say(str(summary))
                exc.add_note(f"seed {seed}, deed {number}: {name}")
                raise
            summary.deeds[name] += 1
            spent = time.monotonic() - began
            say(f"{number:5} {name:34} {spent:6.2f} s  {load.total.sent} requests")
        load.stop()
        summary.take(load, oracle)
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak and tell; 1 where something was not survived."""
    parser = argparse.ArgumentParser(description="Random faults and upgrades, with an oracle.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None, help="at most so many deeds")
    parser.add_argument("--reuseport", action="store_true", help="listen with it, and hold it")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    sys.stdout.write(f"seed {seed}\n")

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with suppress(KeyboardInterrupt):
        summary = soak(seed, given.seconds, steps=given.steps, reuseport=given.reuseport, say=say)
        say(str(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
