"""On a CPU that is overloaded a healthy server is excused, and one that hangs is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from supervisor.core.observation import Observation, Outcome
from supervisor.edges import host_load
from supervisor.edges.host_load import LoadMeter
from supervisor.edges.probes import Aim, Prober
from tests.edges.probe_targets import LIMIT, WORKER, http

SERVER = """
import socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        client, _ = server.accept()
        with client:
            client.recv(65536)
            time.sleep(float(sys.argv[1]))
            client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
"""
BUSY = 6


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Ended by its pid at the end, whatever happens."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as one:
        try:
            yield one
        finally:
            one.kill()


@contextmanager
def server(seconds: float) -> Iterator[tuple[int, int]]:
    """One that takes `seconds` for an answer; its pid and port."""
    with process(SERVER, str(seconds)) as one:
        assert one.stdout is not None
        yield one.pid, int(one.stdout.readline())


@pytest.fixture
def crowd() -> Iterator[None]:
    """This test and all that it starts share one CPU with busy processes; the others are free."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with ExitStack() as stack:
            for _ in range(BUSY):
                stack.enter_context(process("while True: pass"))
            yield
    finally:
        os.sched_setaffinity(0, allowed)


async def looks(pid: int, port: int, *, until: Outcome, **changes: object) -> list[Observation]:
    """What is told of the server until one such outcome is among it."""
    seen: list[Observation] = []
    done = trio.Event()

    def take(one: Observation) -> None:
        seen.append(one)
        if one.outcome is until:
            done.set()

    probe = http(port, interval=0.001, **changes)
    prober = Prober([probe], report=take, worker_identity=lambda: WORKER)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run)
        prober.aim(Aim(generation=2, processes=lambda: [pid]))
        with trio.fail_after(LIMIT):
            await done.wait()
        nursery.cancel_scope.cancel()
    return seen


@pytest.mark.usefixtures("crowd")
async def test_a_server_that_has_to_wait_for_a_cpu_is_excused() -> None:
    with server(0) as (pid, port):
        seen = await looks(pid, port, until=Outcome.INCONCLUSIVE, max_latency=0.005)
    last = seen[-1]
    assert last.detail.startswith("host overloaded: of ")
    assert "(status 200 after " in last.detail
    assert last.generation is None


@pytest.mark.usefixtures("crowd")
async def test_a_server_that_hangs_is_not_excused_there() -> None:
    with server(3600) as (pid, port):
        seen = await looks(pid, port, until=Outcome.FAIL, timeout=0.3)
        assert seen[-1].detail.startswith("timed out after 0.3 s: ")
        assert Outcome.PASS not in {one.outcome for one in seen}


@pytest.mark.usefixtures("crowd")
async def test_a_server_that_is_slow_by_itself_is_not_excused_there() -> None:
    with server(0.2) as (pid, port):
        seen = await looks(pid, port, until=Outcome.FAIL, max_latency=0.05)
        assert "slower than 0.05 s" in seen[-1].detail


async def test_what_a_generation_uses_itself_is_counted() -> None:
    with process("while True: pass") as busy:
        meter = LoadMeter([busy.pid, os.getpid()])
        with trio.fail_after(LIMIT):
            while True:
                load = meter.load(timeout=1.0, asked=busy.pid, aside=0.0)
                if load.server_worked > 0.1:
                    break
                await trio.sleep(0.01)
    assert load.took > 0.05
    assert load.server_worked > load.worked >= 0
    assert load.server_waited >= 0


async def test_a_supervisor_that_was_stopped_is_told_from_one_that_waits() -> None:
    meter = LoadMeter([])
    itself = os.getpid()
    # Again and again: the first one may come before we have stopped.
    script = f"while sleep 0.3; do kill -CONT {itself}; done"
    with subprocess.Popen(["/bin/sh", "-c", script]) as waker:
        began = time.monotonic()
        while time.monotonic() - began < 0.2:
            os.kill(itself, signal.SIGSTOP)
        waker.kill()
    load = meter.load(timeout=0.1, asked=None, aside=0.05)
    assert load.took > 0.2
    assert load.server_waited == load.server_worked == 0
    assert load.cpus == len(os.sched_getaffinity(0))


async def test_who_is_gone_or_somebody_else_has_used_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert host_load._used(2**22 + 1) == host_load._Used(0.0, 0.0)
    before, now = host_load._Used(2.0, 0.5), host_load._Used(1.0, 0.7)
    assert host_load._since(before, now) == host_load._Used(0.0, 0.0)
    monkeypatch.setattr(host_load, "MOST_PROCESSES", 2)
    assert len(LoadMeter(range(1, 100))._before) == 2
    each = {1: host_load._Used(0.0, 0.2), 2: host_load._Used(0.0, 0.3)}
    assert host_load._waited(each, 1) == 0.2
    assert host_load._waited(each, None) == host_load._waited(each, 3) == 0.3
