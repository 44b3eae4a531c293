"""The control socket of a real supervisor under fire: it answers, and its memory is bounded."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from supervisor import wire
from supervisor.cli.connection import Connection
from tests.e2e.harness import attacker, checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_cache import Build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

STRANGER, VIEWER = 12004, 12001
CONTROL = {"mode": "0666", "viewers": [f"user:{VIEWER}"]}
PEAK, AFTERWARDS = 32 << 20, 16 << 20
"""Bytes that the supervisor may take more than before: in the middle of it, and for good."""


class Memory:
    """What the supervisor uses, as the kernel counts it, in bytes."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.before = self.now()
        (self._folder / "clear_refs").write_text("5")  # forget the peak (proc_pid_clear_refs(5))

    def now(self) -> int:
        return self._field("smaps_rollup", "Pss:")

    def peak(self) -> int:
        return self._field("status", "VmHWM:") - self._field("status", "VmRSS:") + self.now()

    def _field(self, file: str, name: str) -> int:
        text = (self._folder / file).read_text()
        return 1024 * next(
            int(line.split()[1]) for line in text.splitlines() if line.startswith(name)
        )


@contextmanager
def attacking(nginx: Supervised, uid: int, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, attacker.__file__, str(nginx.socket), str(uid), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def descriptors(nginx: Supervised) -> int:
    return len(os.listdir(f"/proc/{nginx.pid}/fd"))


class Status:
    """Asks for the status, again and again, as root; it has to be answered at the first try."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def ask(self, nginx: Supervised) -> None:
        began = time.monotonic()
        assert nginx.look()["state"] == "running"
        self.took.append(time.monotonic() - began)

    def __str__(self) -> str:
        median, longest = statistics.median(self.took), max(self.took)
        return f"{len(self.took)} status, median {median * 1e3:.1f} ms, longest {longest:.2f} s"


def under_fire(nginx: Supervised, attacks: list[tuple[int, str]], status: Status) -> None:
    """Let them loose at once, and ask for the status until they are done."""
    with ExitStack() as running:
        processes = [running.enter_context(attacking(nginx, *one)) for one in attacks]
        while any(process.poll() is None for process in processes):
            status.ask(nginx)
            time.sleep(0.02)
        for (uid, name), process in zip(attacks, processes, strict=True):
            assert process.returncode == 0, name
            assert process.stdout is not None
            print(f"uid {uid}: {name} {json.loads(process.stdout.read())}")


@contextmanager
def bounded(nginx: Supervised) -> Iterator[None]:
    """Memory is bounded in the block and afterwards, and no descriptor is left."""
    for _ in range(20):
        nginx.look()
    memory, opened = Memory(nginx.pid), descriptors(nginx)
    yield
    peak = memory.peak() - memory.before
    until("all connections are closed", lambda: descriptors(nginx) <= opened)
    left = memory.now() - memory.before
    print(f"memory +{peak / 2**20:.1f} MiB at most, +{left / 2**20:.1f} MiB afterwards")
    assert peak < PEAK
    assert left < AFTERWARDS


def assert_unharmed(nginx: Supervised, build: Build) -> None:
    assert nginx.ctl("reload").code == 0
    checks.assert_settled(nginx, build, sha256(build.path))
    for line in nginx.log():
        assert line.get("level") not in {"error", "critical"}, line
    denied = sum(line["event"] == "control.denied" for line in nginx.log())
    assert denied < 20, "strangers fill the log"


def test_everything_at_once_by_others(oldest: Build) -> None:
    """Root's `status` is answered all the time, and nginx serves."""
    attacks = [
        *((STRANGER, name) for name in ("churn", "half_open", "forbidden", "nested")),
        *((VIEWER, name) for name in ("deaf", "endless", "subscribers", "forbidden")),
    ]
    with site.make(oldest) as one, supervised.running(one, {"control": CONTROL}) as nginx:
        one.folder.chmod(0o755)
        status = Status()
        with Load(one.plan()) as load, bounded(nginx):
            under_fire(nginx, attacks, status)
            assert load.stop().failures == 0
        print(status)
        assert len(status.took) > 10
        assert_unharmed(nginx, oldest)


def test_followers_that_do_not_read(oldest: Build) -> None:
    """The log goes on; each of them is dropped once it has taken nothing for ten seconds."""
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        bounded(nginx),
        ExitStack() as opened,
    ):
        streams = [opened.enter_context(attacker.connected(str(nginx.socket))) for _ in range(60)]
        for stream in streams:
            stream.sendall(attacker.FOLLOW)
        with Connection(str(nginx.socket), timeout=60) as connection:
            for _ in range(500):  # a socket takes some 300 small messages (wmem_default)
                connection.send(wire.encode_call(f"{wire.INTERFACE}.Reopen"))
                assert b'"done"' in connection.receive()

        def dropped() -> int:
            return nginx.log_text().count('"control.client_too_slow"')

        until("they are dropped", lambda: dropped() == len(streams), 60, poll=0.2)
        for stream in streams:
            assert attacker.read_to_end(stream).count(b'"continues"') > 100


def test_by_root_itself(oldest: Build) -> None:
    """Who is root can have every place, and then the newest that comes is served all the same."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with bounded(nginx), ExitStack() as running:
            for name in ("endless", "half_open", "nested", "subscribers"):
                process = running.enter_context(attacking(nginx, 0, name))
                assert process.wait(180) == 0, name
                Status().ask(nginx)
        assert_unharmed(nginx, oldest)
