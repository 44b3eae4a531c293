"""What clients lose when the supervisor dies under systemd: `python -m bench.under_systemd`.

In a booted box, as the tests in tests/booted have it, under as much load as goes. Prints rows for
docs/figures.md and fails where a request was lost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.booted import site
from tests.booted.box import Box
from tests.booted.manager import drop_in, wait_until_up_again
from tests.booted.roots import SUITES, project_layer, root_of

WATCHDOG = "2s"


def killed(box: Box, supervisor: int) -> None:
    """SIGKILL, to the main process alone."""
    box.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", site.UNIT)


def stuck(box: Box, supervisor: int) -> None:
    """Stopped, so that the watchdog has to end it."""
    box.run("kill", "-STOP", str(supervisor))


def deaths(box: Box, means: Callable[[Box, int], None], times: int) -> str:
    """The row of a death that happens `times` times. Raises AssertionError where that is wrong."""
    supervisor, master = site.main_pid(box), site.master_pid(box)
    took = []
    with box.quick_load() as load:
        for _ in range(times):
            began = time.monotonic()
            means(box, supervisor)
            supervisor = wait_until_up_again(box, supervisor)
            took.append(time.monotonic() - began)
        load.stop()
    assert site.master_pid(box) == master, "nginx was not adopted"
    failed = sum(load.total.failed.values())
    assert not failed, load.total.failed
    return f"{times} | {load.total.ok:,} | {failed} | {statistics.median(took):.1f} s |"


def main() -> int:
    """Exits 1 by an exception where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="trixie")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    roots = {suite: root_of(suite) for suite in SUITES}
    lower = [project_layer(roots), roots[given.suite]]
    with tempfile.TemporaryDirectory(prefix="box-") as folder, Box(lower, Path(folder)) as box:
        site.configure(box)
        limit = "StartLimitIntervalSec=0"
        drop_in(box, f"WatchdogSec={WATCHDOG}\n[Unit]\n{limit}")
        site.start(box)
        print(f"| SIGKILL of the supervisor | {deaths(box, killed, given.rounds)}")
        few = max(1, given.rounds // 4)
        print(f"| it hangs, `WatchdogSec={WATCHDOG}` | {deaths(box, stuck, few)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
