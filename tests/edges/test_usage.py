"""What real processes use, and how they get on, as /proc tells it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.core.signals import ProcessKind, Progress, Usage
from supervisor.edges import usage as usage_module
from supervisor.edges.procfs import read_stat
from supervisor.edges.usage import Sampler, processes_of
from tests.edges.running_nginx import RunningNginx
from tools.nginx_builds import builds

MEGABYTE = 2**20
LIMIT = 30.0

PROGRAM = """
import os, select, sys, threading, time
line = sys.stdin.readline().split()
while line:
    match line[0]:
        case "grow":
            kept = bytearray(int(line[1]))
            kept[::4096] = b"x" * len(kept[::4096])
        case "files": files = [open("/dev/null") for _ in range(int(line[1]))]
        case "sockets":
            import socket
            sockets = [socket.socket() for _ in range(int(line[1]))]
        case "spin": threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
        case "pipe":
            first, second = os.pipe()
            epoll = select.epoll()
            epoll.register(first)
        case "ready": os.write(second, b"x")
    print("done", flush=True)
    line = sys.stdin.readline().split()
"""


class Puppet:
    """A process that does what it is told."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.sampler = Sampler(2)
        self.do("nothing")

    def do(self, what: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def look(self, kind: ProcessKind = ProcessKind.WORKER) -> tuple[Usage, Progress]:
        used, progress = self.sampler.look([(self.pid, kind)], at=5.0)
        assert isinstance(used, Usage)
        assert isinstance(progress, Progress)
        return used, progress

    def until(self, holds: Callable[[Usage, Progress], bool]) -> tuple[Usage, Progress]:
        ends = time.monotonic() + LIMIT
        while not holds(*(seen := self.look())):
            assert time.monotonic() < ends, seen
            time.sleep(0.01)
        return seen

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def puppet() -> Iterator[Puppet]:
    made = Puppet()
    try:
        yield made
    finally:
        made.end()


def test_memory_is_measured_and_what_comes_later_is_added() -> None:
    with puppet() as one:
        before, _ = one.look()
        assert before.memory is not None
        one.do(f"grow {50 * MEGABYTE}")
        after, _ = one.look()  # within EXACT_EVERY: only the private memory is asked for
        assert after.memory is not None
        assert 45 * MEGABYTE < after.memory - before.memory < 60 * MEGABYTE
        assert (after.generation, after.pid, after.at) == (2, one.pid, 5.0)
        assert after.age >= before.age > 0


def test_a_big_process_is_never_measured_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = usage_module._read
    monkeypatch.setattr(usage_module, "_read", lambda path: asked.append(path) or read(path))
    with puppet() as one:
        monkeypatch.setattr(usage_module, "EXACT_MOST", 0)
        used, _ = one.look()
        assert used.memory
        assert not any(path.endswith("smaps_rollup") for path in asked)
        monkeypatch.undo()
        monkeypatch.setattr(usage_module, "_read", lambda path: asked.append(path) or read(path))
        (again, _) = one.sampler.look([(one.pid, ProcessKind.WORKER)], at=6.0, exact=False)
        assert isinstance(again, Usage)
        assert not any(path.endswith("smaps_rollup") for path in asked)
        one.look()
        assert any(path.endswith("smaps_rollup") for path in asked)


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_descriptors_are_counted_and_sockets_told_apart(
    monkeypatch: pytest.MonkeyPatch, *, kernel_tells: bool
) -> None:
    if not kernel_tells:  # before Linux 6.2
        stat = os.stat
        monkeypatch.setattr(
            usage_module.os, "stat", lambda path: os.stat_result([*stat(path)[:6], 0, 0, 0, 0])
        )
    with puppet() as one:
        before, _ = one.look()
        one.do("files 300")
        files, _ = one.look()
        one.do("sockets 300")
        both, _ = one.look()
    assert before.descriptors == 3
    assert (files.descriptors, files.sockets) == (303, 0)
    assert both.descriptors == 603
    assert both.sockets is not None
    assert 250 < both.sockets < 350


def test_no_more_descriptors_are_counted_than_is_bearable(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat
    monkeypatch.setattr(
        usage_module.os, "stat", lambda path: os.stat_result([*stat(path)[:6], 0, 0, 0, 0])
    )
    monkeypatch.setattr(usage_module, "LISTED", 100)
    with puppet() as one:
        one.do("files 300")
        assert one.look()[0].descriptors == 100


def test_a_thread_that_spins_is_the_busiest_and_reads_nothing() -> None:
    with puppet() as one:
        _, idle = one.look()
        one.do("spin")
        _, begun = one.until(lambda _, now: (now.awake or 0) > (idle.awake or 0) + 0.2)
        _, later = one.until(lambda _, now: (now.awake or 0) > (begun.awake or 0) + 0.3)
        assert begun.calls == later.calls


def test_a_process_that_sleeps_has_no_turns_and_a_place() -> None:
    with puppet() as one:
        _, first = one.until(lambda _, now: now.state == "S")
        time.sleep(0.05)
        _, second = one.look()
        assert (first.turns, first.awake) == (second.turns, second.awake)
        assert "read" in second.place  # it waits for its standard input, a pipe


def test_events_that_are_not_fetched_show_at_the_epoll_instance() -> None:
    with puppet() as one:
        one.do("pipe")
        assert one.look()[1].unfetched is False
        one.do("ready")
        assert one.look()[1].unfetched is True
        assert one.look()[1].unfetched is True  # asking took nothing away


def test_what_has_no_epoll_instance_has_no_events() -> None:
    with puppet() as one:
        assert one.look()[1].unfetched is None


def test_an_instance_that_watches_only_what_came_later_is_a_librarys() -> None:
    with select.epoll() as epoll:
        first, second = os.pipe()
        try:
            epoll.register(first)
            watched = min(first, second) > epoll.fileno()
            sampler = Sampler(1)
            sampler.look([(os.getpid(), ProcessKind.WORKER)], at=0.0)
            known = sampler._known[os.getpid()]
            assert not watched or known.epoll != epoll.fileno()
        finally:
            os.close(first)
            os.close(second)


def test_the_handlers_of_a_master_are_told(tmp_path: Path) -> None:
    with RunningNginx(tmp_path, builds()[0]) as nginx:
        (master, *_), sampler = (
            processes_of(nginx.identity.pid, nginx.identity.start_ticks),
            Sampler(1),
        )
        assert master == (nginx.identity.pid, ProcessKind.MASTER)
        ends = time.monotonic() + LIMIT
        while True:
            _, seen = sampler.look([master], at=0.0)
            assert isinstance(seen, Progress)
            if "sigsuspend" in seen.place:
                break
            assert time.monotonic() < ends, seen
        assert (seen.deaf_to, seen.blocked, seen.state) == ("", False, "S")
    with puppet() as one:
        _, python = one.look(ProcessKind.MASTER)
        assert "QUIT" in python.deaf_to.split()


def test_a_generation_is_its_master_workers_and_cache_processes(tmp_path: Path) -> None:
    cache = f"proxy_cache_path {tmp_path}/cache keys_zone=z:1m;"
    with RunningNginx(tmp_path, builds()[0], http=cache) as nginx:
        pid, start = nginx.identity.pid, nginx.identity.start_ticks
        ends = time.monotonic() + LIMIT
        while len(found := processes_of(pid, start)) < 5:
            assert time.monotonic() < ends, found
            time.sleep(0.01)
        kinds = [kind for _, kind in found]
        assert kinds == [
            ProcessKind.MASTER, ProcessKind.WORKER, ProcessKind.WORKER, ProcessKind.CACHE,
            ProcessKind.CACHE,
        ]  # fmt: skip
        seen = Sampler(1).look(found, at=1.0)
        assert [one.kind for one in seen if isinstance(one, Usage)] == kinds
        workers = [one for one in seen if isinstance(one, Progress) and one.kind is kinds[1]]
        assert {one.unfetched for one in workers} <= {True, False}
        assert processes_of(pid, start + 1) == []
    assert processes_of(pid, start) == []


def test_the_dead_are_left_out() -> None:
    with puppet() as one:
        one.look()
        stat = read_stat(one.pid)
        os.kill(one.pid, signal.SIGKILL)
        ends = time.monotonic() + LIMIT
        while (now := read_stat(one.pid)) is not None and now.alive:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert stat is not None
        assert one.sampler.look([(one.pid, ProcessKind.WORKER)], at=0.0) == []  # a zombie
    assert one.sampler.look([(one.pid, ProcessKind.WORKER)], at=0.0) == []
    assert one.sampler.look([], at=0.0) == []
