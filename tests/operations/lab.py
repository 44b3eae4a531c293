"""A World of real parts around a real nginx, without engine, control socket or daemon."""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import trio

from supervisor.core.events import Event
from supervisor.core.rollback import Limits
from supervisor.core.settings import (
    NginxSettings,
    ProbeListenerSettings,
    RestartSettings,
    Settings,
    StateSettings,
)
from supervisor.edges import linux, procfs, socket_owners
from supervisor.edges.config_store import ConfigStore
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.journal import Journal
from supervisor.edges.placing import sha256_of
from supervisor.edges.preflight import Plan
from supervisor.edges.probe_listener import ProbeListener
from supervisor.edges.store import VersionStore
from supervisor.operations import ending, rollback, shift, spawn, start
from supervisor.operations.config_copies import keep_copy
from supervisor.operations.world import Generations, UpgradeRun, World
from supervisor.watch import Sighting, watch
from tests.e2e.harness.ports import lease
from tools.nginx_cache import Build

LIMIT = 60.0
"""Seconds that anything which should happen at once may take on a busy machine."""

QUICK = Limits(winch=1.0, self_revive=0.4, revive=3.0, react=0.5, drain=3.0, term=1.0, kill=3.0)
"""A rollback's limits, short enough to get to the harsher means in a test."""

CONFIGURATION = """\
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
worker_processes {workers};
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    server {{
        listen 127.0.0.1:{port};
        include {folder}/probe*.conf;
        {listens}
        location / {{ return 200 "$nginx_version"; }}
    }}
}}
"""

Log = list[dict[str, Any]]


@dataclass
class Lab:
    """One nginx in a private folder, and the World that operations work on."""

    folder: Path
    build: Build
    world: World
    port: int
    workers: int
    log: Log
    told: list[Callable[[dict[str, Any]], None]]  # hear each log event as it is written
    events: list[Event] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    listens: str = ""

    # --- the site ---------------------------------------------------------------------------

    @property
    def binary(self) -> Path:
        return self.folder / "sbin" / "nginx"

    @property
    def pid_path(self) -> Path:
        return self.folder / "nginx.pid"

    @property
    def oldbin_path(self) -> Path:
        return self.folder / "nginx.pid.oldbin"

    @property
    def error_log(self) -> str:
        return (self.folder / "error.log").read_text()

    def configure(self, **changes: Any) -> None:
        """Write nginx.conf again with other values."""
        for name, value in changes.items():
            setattr(self, name, value)
        (self.folder / "nginx.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder, port=self.port, workers=self.workers,
                listens=self.listens.format(folder=self.folder),
            )
        )  # fmt: skip

    def shorten_start_timeout(self, seconds: float) -> None:
        settings = self.world.settings
        self.world.settings = replace(
            settings, restart=replace(settings.restart, start_timeout=seconds)
        )

    def break_configuration(self) -> None:
        (self.folder / "nginx.conf").write_text("this is no configuration;\n")

    def ask(self, *, timeout: float = LIMIT) -> str:
        """The version that answers a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """Every living process that runs a file of this folder, whatever became of the file."""
        found = []
        for name in os.listdir("/proc"):
            with suppress(OSError, ValueError):
                stat = procfs.read_stat(int(name))
                target = os.readlink(f"/proc/{name}/exe")
                if stat is not None and stat.alive and target.startswith(f"{self.folder}/"):
                    found.append(int(name))
        return found

    # --- the operations, as the engine would call them --------------------------------------

    async def start(self) -> Generation:
        """A first start; the active generation."""
        done = await start.start(self.world, rescue=False, cold=True)
        active = self.world.generations.get(done.generation)
        assert active is not None
        return active

    def offer(self, binary: Path, version: str) -> UpgradeRun:
        """An upgrade to `binary`, as preflight leaves it."""
        old = self.world.active
        assert old is not None
        stored = self.world.store.take(binary, modules={}, version=version)
        program = Program(
            version=version, sha256=stored.sha256, path=str(self.binary), stored=stored.id,
            workers=old.program.workers, pid_path=old.program.pid_path,
        )  # fmt: skip
        unasked: Any = None  # what only preflight itself looks at
        plan = Plan(
            stored=stored, staged=self.world.store.stage(stored.id, self.binary), build=unasked,
            config=unasked, dump="", warnings=(), seconds={}, _store=self.world.store, _undo=[],
        )  # fmt: skip
        self.world.run = UpgradeRun(
            id="u1", candidate_id=self.world.generations.reserve(), plan=plan, stored=stored,
            previous=old.program.stored, program=program, to_version=version,
        )  # fmt: skip
        return self.world.run

    async def to_canary(self, binary: Path, version: str) -> tuple[Generation, Generation]:
        """Both generations accept: the old one and the candidate."""
        self.offer(binary, version)
        with trio.fail_after(LIMIT):
            await spawn.spawn(self.world)
        old, candidate = self.world.active, self.world.candidate
        assert old is not None
        assert candidate is not None
        return old, candidate

    async def to_soak(self, binary: Path, version: str) -> tuple[Generation, Generation]:
        """Only the candidate accepts."""
        both = await self.to_canary(binary, version)
        with trio.fail_after(LIMIT):
            await shift.shift(self.world)
        return both

    async def roll_back(self, limits: Limits = QUICK) -> rollback.RolledBack:
        with trio.fail_after(3 * LIMIT):
            return await rollback.roll_back(self.world, limits)

    async def end_retiring(self) -> None:
        """See retiring generations off, as the engine's `Retire` does."""
        deadlines = ending.Deadlines(quit=3.0, term=1.0, kill=3.0)
        for generation in list(self.world.generations):
            if generation.role is Role.RETIRING:
                await ending.drain(self.world, generation, deadlines, self.world.hasten)

    # --- what must be true ------------------------------------------------------------------

    async def until(self, what: str, holds: Callable[[], object]) -> None:
        """Return when `holds`; for what has no event, as titles and nginx's own doings."""
        with trio.move_on_after(LIMIT):
            while not holds():
                await trio.sleep(0.002)
            return
        raise AssertionError(f"not within {LIMIT:g} s: {what}\n{self.log}\n{self.error_log}")

    async def assert_serves_alone(self, serving: Generation, build: Build | None = None) -> None:
        """`serving` has its exact workers, the pid file and the disk; nothing else lives."""
        build = build or self.build
        master = serving.master.pid

        def settled() -> bool:
            seen = procfs.brood_of(procfs.children(master))
            return len(seen.accepting) == self.workers and set(self.processes()) == {
                master, *seen.accepting
            }  # fmt: skip

        await self.until("one master and its workers alone", settled)
        assert self.pid_path.read_text().strip() == str(master)
        assert not self.oldbin_path.exists()
        assert await trio.to_thread.run_sync(self.ask) == build.version
        assert sha256_of(self.binary) == sha256_of(build.path)
        assert [one.master.pid for one in self.world.generations] == [master]
        assert serving.alive
        # It must stand: nginx acts on pending flags only at its next signal, so give it one.
        before = procfs.children(master)
        os.kill(master, signal.SIGIO)
        await self.until(
            "SIGIO was handled", lambda: f"(SIGIO) received from {os.getpid()}" in self.error_log
        )
        told = (self.steps(), self.error_log)
        assert set(procfs.children(master)) == set(before), told
        assert set(self.processes()) == {master, *before}, told

    def steps(self) -> list[str]:
        """The steps of the rollbacks so far."""
        return [one["step"] for one in self.log if one["event"] == "rollback.step"]


async def freeze(pid: int) -> None:
    """SIGSTOP; returns when the process has stopped."""
    os.kill(pid, signal.SIGSTOP)
    await _until(lambda: (stat := procfs.read_stat(pid)) is None or stat.stopped)


def freeze_now(pid: int) -> None:
    """The same for a caller that may not wait in trio."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + LIMIT
    while (stat := procfs.read_stat(pid)) is not None and not stat.stopped:
        assert time.monotonic() < end


async def dead(pid: int) -> None:
    """Returns when `pid` is a zombie or gone."""
    await _until(lambda: (stat := procfs.read_stat(pid)) is None or not stat.alive)


async def _until(holds: Callable[[], object]) -> None:
    with trio.fail_after(LIMIT):
        while not holds():
            await trio.sleep(0.001)


@contextmanager
def subreaper() -> Iterator[None]:
    """This process adopts orphans, for as long as the block lasts."""
    linux.become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


@asynccontextmanager
async def lab(build: Build, *, workers: int = 2, listens: str = "") -> AsyncIterator[Lab]:
    """A lab with `build` on disk and nothing running; leaves no process behind."""
    with (
        subreaper(),
        # Short, for unix sockets, and enterable by nginx's worker user, unlike pytest's own.
        tempfile.TemporaryDirectory(prefix="ops-") as name,
        lease() as ports,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        for sub in ("sbin", "logs"):
            (folder / sub).mkdir(mode=0o755)
        shutil.copy(build.path, folder / "sbin" / "nginx")
        try:
            async with trio.open_nursery() as nursery:
                made = _make(folder, build, workers, nursery, ports)
                made.configure(listens=listens)
                yield made
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _end_all(made)


def _make(folder: Path, build: Build, workers: int, nursery: trio.Nursery, ports: range) -> Lab:
    log: Log = []
    told: list[Callable[[dict[str, Any]], None]] = []

    def capture(_logger: object, level: str, event: Any) -> Any:
        seen = {**event, "level": level}
        log.append(seen)
        for tell in list(told):
            tell(seen)
        raise structlog.DropEvent

    state = folder / "state"
    state.mkdir(mode=0o700)
    settings = Settings(
        nginx=NginxSettings(
            binary=str(folder / "sbin" / "nginx"), config=str(folder / "nginx.conf"),
            prefix=f"{folder}/",
        ),
        state=StateSettings(directory=str(state)),
        probe_listener=ProbeListenerSettings(
            include_file=str(folder / "probe.conf"), first_port=ports[1], last_port=ports[1]
        ),
        restart=RestartSettings(start_timeout=LIMIT),
    )  # fmt: skip
    world = World(
        settings=settings,
        log=structlog.wrap_logger(
            None,
            processors=[capture],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        ),
        store=VersionStore(state, keep=5),
        journal=Journal(state),
        configs=ConfigStore(state),
        listener=ProbeListener(settings.probe_listener),
        generations=Generations(),
        post=lambda event: made.events.append(event),
        watch=lambda generation: nursery.start_soon(
            watch, world, generation, made.sightings.append, made.events.append
        ),
        lock=lambda path: made.locked.append(path),
        background=nursery.start_soon,
        keep_copy=lambda generation: nursery.start_soon(keep_copy, world, generation),
    )
    made = Lab(
        folder=folder, build=build, world=world, port=ports[0], workers=workers, log=log, told=told
    )
    return made


async def _end_all(made: Lab) -> None:
    """Kill what is left, masters and workers alike, and reap it: no zombie stays with pytest."""
    ended: set[int] = set()
    await _until(lambda: not _kill(made, ended))
    for generation in list(made.world.generations):
        made.world.generations.drop(generation)
    for pid in procfs.children(os.getpid()):
        stat = procfs.read_stat(pid)
        if stat is not None and not stat.alive:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _kill(made: Lab, ended: set[int]) -> list[int]:
    left = made.processes()
    for pid in left:
        ended.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


async def accepted(client: socket.socket) -> None:
    """Return when a worker has accepted the connection, so that it has to wait for its end."""
    peer, own = client.getpeername(), client.getsockname()
    await _until(lambda: socket_owners.connection_inode(peer, own) is not None)


async def pending(pid: int, number: signal.Signals) -> None:
    """Return when the signal was sent to a process that is frozen."""
    await _until(lambda: procfs.pending(pid, number))
