"""What each runtime dependency costs at start-up: import time and resident memory.

    python -m bench.dependencies [--rounds N]

Each import happens in a fresh interpreter, by turns, beside one that imports nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

LIBRARIES = ("trio", "psutil", "structlog", "h11", "h2.connection", "logging_journald")
ROUNDS = 15
_PROGRAM = """
import json, sys, time
began = time.perf_counter()
for name in sys.argv[1:]:
    __import__(name)
spent = time.perf_counter() - began
with open("/proc/self/status") as status:
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
print(json.dumps([spent, resident]))
"""


def measure(names: tuple[str, ...]) -> tuple[float, int]:
    """Seconds of the import of `names`, and the interpreter's resident KiB after it."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *names], check=True, capture_output=True, text=True
    )
    spent, resident = json.loads(done.stdout)
    return float(spent), int(resident)


def main() -> int:
    """Print medians; the memory is what is added to an interpreter without imports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    groups: list[tuple[str, ...]] = [(), *((name,) for name in LIBRARIES), LIBRARIES]
    seen: dict[tuple[str, ...], list[tuple[float, int]]] = {group: [] for group in groups}
    for _ in range(rounds):
        for group in groups:
            seen[group].append(measure(group))
    empty = statistics.median(resident for _, resident in seen[()])
    for group in groups[1:]:
        spent = statistics.median(one for one, _ in seen[group])
        added = statistics.median(resident for _, resident in seen[group]) - empty
        name = "all" if len(group) > 1 else group[0]
        print(f"{name:16} {1000 * spent:7.1f} ms   {added / 1024:6.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
