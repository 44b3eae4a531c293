"""How long nobody is served after nginx was killed with all its workers, beside nginx's own start.

    python -m bench.crash_restart [--rounds N] [--json FILE]

In each round, by turns so that a change of the machine's mood hits both: `nginx` is started by
itself, from the start of its process to the first answer; and a supervised nginx is killed, master
and workers together, from the first SIGKILL to the answer of a connection that is opened then. That
connection waits in the queue of a held listener, so it is the outage as a client sees it. The third
line is the same with `hold_listeners = false`, where the client tries again until it is not
refused any more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from supervisor.edges import procfs
from tests.e2e.harness import site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import Site
from tests.e2e.harness.supervised import Supervised
from tools.nginx_builds import builds

ROUNDS = 30
AIM = 1.6
LIMIT = 10.0
NO_LIMITS = {"crash_limit": 1000, "start_limit": 0}


def first_answer(port: int) -> tuple[float, int]:
    """When a client has its answer, which tries again at once, and how often it was refused."""
    refused, end = 0, time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                client.sendall(b"GET / HTTP/1.0\r\nHost: site.test\r\n\r\n")
                if client.recv(65536).startswith(b"HTTP/1.1 200"):
                    return time.monotonic(), refused
        except ConnectionError:
            refused += 1
    raise TimeoutError(f"no answer within {LIMIT:g} s")


def cold(one: Site) -> float:
    """Seconds of nginx's own start."""
    began = time.monotonic()
    subprocess.run(one.argv, check=True, env={})
    answered, _ = first_answer(one.port)
    until("its pid file", lambda: one.pid_path.exists() and bool(one.pid_path.read_text()))
    pid = int(one.pid_path.read_text())
    os.kill(pid, signal.SIGQUIT)
    until("its end", lambda: (seen := procfs.read_stat(pid)) is None or not seen.alive)
    return answered - began


def crash(nginx: Supervised) -> tuple[float, int]:
    """Seconds without service, and how often the client was refused."""
    pids = [seen.pid for seen in sorted(nginx.nginx(), key=lambda seen: not seen.is_master)]
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    answered, refused = first_answer(nginx.site.port)
    nginx.until_state("running")
    until("its workers", lambda: len([seen for seen in nginx.nginx() if seen.is_accepting]) == 2)
    if nginx.settings.get("restart", {}).get("hold_listeners", True):
        until("held again", lambda: nginx.look()["held_listeners"]["count"] == 1, poll=0.01)
    return answered - began, refused


def main(argv: Sequence[str] | None = None) -> int:
    """Prints medians and ratios; exits 1 where a client was refused although listeners are held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    build = builds()[-1]
    alone: list[float] = []
    held: list[float] = []
    bound: list[float] = []
    refused = {"held": 0, "bound afresh": 0}
    with (
        site.make(build) as bare, site.make(build) as one, site.make(build) as two,
        supervised.running(one, {"restart": NO_LIMITS}) as holds,
        supervised.running(two, {"restart": {**NO_LIMITS, "hold_listeners": False}}) as binds,
    ):  # fmt: skip
        for _ in range(given.rounds):
            alone.append(cold(bare))
            seconds, count = crash(holds)
            held.append(seconds)
            refused["held"] += count
            seconds, count = crash(binds)
            bound.append(seconds)
            refused["bound afresh"] += count
    medians = {
        "nginx's own start": statistics.median(alone),
        "killed, held": statistics.median(held),
        "killed, bound afresh": statistics.median(bound),
    }
    print(f"nginx {build.version}, {given.rounds} rounds by turns; medians in ms")
    for name, seconds in medians.items():
        ratio = seconds / medians["nginx's own start"]
        print(f"  {name:<22} {seconds * 1000:6.1f}   {ratio:.2f}")
    print(f"  aim for `held`: {AIM} times nginx's own start; connections refused: {refused}")
    if given.json:
        figures = {"medians_s": medians, "refused": refused, "rounds": given.rounds}
        given.json.write_text(json.dumps(figures))
    return 1 if refused["held"] else 0


if __name__ == "__main__":
    sys.exit(main())
