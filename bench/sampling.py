"""What it costs to look at nginx's processes while an upgrade is judged.

    python -m bench.sampling [--rounds N]

Real nginx with 2, 16 and 64 workers: the CPU time of one look at all processes and queues, in a
thread, and of asking the triggers about it with a full memory of both generations, in the thread of
the engine. With the default `usage_interval` that is the CPU time for each second of an upgrade and
generation. The first look measures each process's proportional share of memory, and every tenth
does so again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from supervisor.core.case import Case
from supervisor.core.seen import SAMPLES, Seen
from supervisor.core.signals import Progress, Queue, Usage
from supervisor.core.trigger_settings import DEFAULT_TRIGGERS
from supervisor.core.triggers import weigh
from supervisor.edges.accept_queues import accept_queues
from supervisor.edges.procfs import read_stat
from supervisor.edges.usage import Sampler, processes_of
from tests.e2e.harness.ports import free_port
from tools.nginx_builds import builds

WORKERS = (2, 16, 64)
LIMIT = 30.0
OLD, NEW = 1, 2


def cpu_of(call: Callable[[], object]) -> float:
    """Seconds of CPU time that this thread takes for it."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


def remembered(looked: list[Usage | Progress]) -> Seen:
    """As many samples of both generations as are kept, all alike but for their time."""
    seen = Seen()
    for second in range(SAMPLES):
        for one in looked:
            for generation in (OLD, NEW):
                seen.add(replace(one, generation=generation, age=second + 1.0, at=float(second)))
    return seen


def measure(workers: int, rounds: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        config, pid_file = folder / "nginx.conf", folder / "nginx.pid"
        port = free_port()
        config.write_text(
            f"worker_processes {workers}; pid {pid_file};\nevents {{}}\n"
            f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 204; }} }}\n"
        )
        subprocess.run([builds()[-1].path, "-p", folder, "-c", config], check=True, timeout=LIMIT)
        ends = time.monotonic() + LIMIT
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert time.monotonic() < ends
            time.sleep(0.01)
        master = int(pid_file.read_text())
        stat = read_stat(master)
        assert stat is not None
        try:
            while len(processes_of(master, stat.start)) <= workers:
                assert time.monotonic() < ends
                time.sleep(0.01)
            return row(workers, master, stat.start, rounds)
        finally:
            os.kill(master, signal.SIGTERM)
            while read_stat(master) is not None and time.monotonic() < ends:
                time.sleep(0.01)


def row(workers: int, master: int, start: int, rounds: int) -> str:
    """The figures of one running nginx."""
    sampler = Sampler(NEW)
    looked: list[Usage | Progress] = []

    def look() -> None:
        looked[:] = sampler.look(processes_of(master, start), at=0.0)
        accept_queues()

    first = cpu_of(look)
    each = statistics.median(cpu_of(look) for _ in range(rounds))
    case = Case(candidate=NEW, reference=OLD, seen=remembered(looked), alone=True, at=SAMPLES)

    def ask() -> None:
        for news in (Usage, Progress, Queue):
            weigh(case, DEFAULT_TRIGGERS, news=news)

    asked = statistics.median(cpu_of(ask) for _ in range(rounds))
    return f"| {workers} | {first * 1e3:.1f} ms | {each * 1e3:.1f} ms | {asked * 1e3:.2f} ms |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    print("| workers | first look | each look | asking the triggers |\n|---|---|---|---|")
    for workers in WORKERS:
        print(measure(workers, given.rounds), flush=True)


if __name__ == "__main__":
    main()
