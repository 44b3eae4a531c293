"""One generation: its master, its workers, and what is known of them from outside."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

import trio

from supervisor.core.config_read import ConfigRead
from supervisor.edges import procfs, sockets
from supervisor.edges.capture import Capture
from supervisor.edges.linux import ExitStatus
from supervisor.edges.process import Process


class Role(Enum):
    """The part that a generation plays now; words of the public contract."""

    ACTIVE = "active"
    CANDIDATE = "candidate"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a generation runs: the binary and the facts of the configuration that it read."""

    version: str
    sha256: str
    path: str
    stored: str | None = None  # its id in the version store
    workers: int = 1  # how many its configuration asks for
    pid_path: str = ""
    environment: tuple[str, ...] = ()  # its `env` directives: what USR2 passes on
    config_files: tuple[str, ...] = ()
    config_signature: tuple[tuple[int, ...], ...] = ()
    read: ConfigRead | None = None  # what the guards of the next upgrade compare; None: not known
    error_logs: tuple[str, ...] = ()  # the files that it writes errors to
    config_copy: str | None = None  # the id of the copy of these files; None: there is none


@dataclass(slots=True, eq=False)
class Generation:
    """A master with its workers. Owned by the registry; operations change it in one task.

    `workers` holds every worker that was seen and has not been seen dead: so the orphans of a
    master that was killed are still known.
    """

    id: int
    role: Role
    master: Process
    program: Program
    output: Capture | None = None
    workers: dict[int, Process] = field(default_factory=dict)
    exit: ExitStatus | None = None  # of the master
    told_to_stop: bool = False  # by us: its exit is then no surprise
    quitting: bool = False  # told so by somebody else: it can never serve again
    bystander: bool = False  # on no record, beside the active one: shown, and left alone
    ready: bool = False
    session: int = 0  # that its processes live in
    ended: dict[int, ExitStatus] = field(default_factory=dict)  # workers, while it starts
    changed: trio.Event = field(default_factory=trio.Event)  # somebody new; its watcher renews it
    executable: tuple[int, int] | None = None  # device and inode; None: not seen or not permitted
    accepted: frozenset[int] = frozenset()  # the workers of the configuration that was read last
    foreign: Process | None = None  # its new master, which somebody else's USR2 has started

    @property
    def alive(self) -> bool:
        """The master lives."""
        return self.exit is None and self.master.alive

    def brood(self) -> procfs.Brood:
        """The living processes of it now by kind, orphans as well."""
        # A dead master has no children, and its pid may be somebody else's by now.
        born = set(procfs.children(self.master.pid)) if self.alive else set()
        # Those that are nobody's child by now are told by when they began.
        lost = {pid: one.start for pid, one in self.workers.items() if pid not in born}
        return procfs.brood_of(born | lost.keys(), lost)

    def remember(self, pids: Iterable[int]) -> list[Process]:
        """Hold `pids` from now on; the ones that are new."""
        new = []
        for pid in pids:
            known = self.workers.get(pid)
            if known is not None and known.alive:
                continue
            process = Process.open(pid)
            if process is not None:
                if known is not None:
                    known.close()  # its pid was given away again
                self.workers[pid] = process
                new.append(process)
        if new:
            self.changed.set()
        return new

    def look(self) -> procfs.Brood:
        """`brood`, with everything that it shows remembered."""
        brood = self.brood()
        for pid in brood.masters & self.workers.keys():
            self.workers.pop(pid).close()  # it was seen before it became the new master
        self.remember(brood.all_but_masters - self.workers.keys())
        if self.executable is None:
            self._learn_executable()
        return brood

    def _learn_executable(self) -> None:
        """What it runs can be told only while somebody of it lives."""
        for pid in [self.master.pid] if self.alive else list(self.workers):
            stat = procfs.read_stat(pid)
            # A master that has not exec'd yet is still the shell that launches it.
            if stat is not None and stat.has_execed is (pid == self.master.pid):
                self.executable = self.executable or procfs.executable(pid)

    def signal_workers(self, what: signal.Signals, pids: Iterable[int] | None = None) -> None:
        """Signal the known workers (or those of `pids`) directly."""
        for pid, process in list(self.workers.items()):
            if (pids is None or pid in pids) and _is_worker(process):
                process.send(what)

    @property
    def gone(self) -> bool:
        """Neither the master nor any known worker lives."""
        return not self.alive and not any(_is_worker(one) for one in self.workers.values())

    async def any_exit(self) -> None:
        """Return when the master or a known worker exits, at once when none is left."""
        living = [one for one in self.workers.values() if _is_worker(one)]
        living += [self.master] if self.master.alive else []
        async with trio.open_nursery() as nursery:

            async def wait(process: Process) -> None:
                await process.wait_exited()
                nursery.cancel_scope.cancel()

            for one in living:
                nursery.start_soon(wait, one)

    async def all_exited(self) -> None:
        """Return when neither the master nor any worker lives; new workers are waited for too."""
        while True:
            if self.exit is None:
                self.look()
            if self.gone:
                return
            await self.any_exit()

    def close(self) -> None:
        """Let go of all processes."""
        self.master.close()
        for process in self.workers.values():
            process.close()
        self.workers.clear()
        if self.foreign is not None:
            self.foreign.close()
            self.foreign = None


def _is_worker(process: Process) -> bool:
    """It lives, and has not exec'd since it was seen.

    A new master begins as a fork of the old one, and was perhaps looked at in that very moment: it
    must never be waited for, or told to leave, as a worker of the old one.
    """
    stat = procfs.read_stat(process.pid)
    return stat is not None and stat.alive and stat.start == process.start and not stat.has_execed


def listens_no_more(master: Process) -> bool:
    """Its listeners are closed, as by QUIT; False where that cannot be seen."""
    held = sockets.held_by(master.pid)
    return held is not None and not held.counts
