"""What all operations share: the generations, the running upgrade and the edges."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.events import Event
from supervisor.edges import children, procfs
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.held import HeldListeners
from supervisor.edges.passing_on import StandardOutput

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from supervisor.core.settings import Settings
    from supervisor.core.signals import Signal
    from supervisor.edges.config_store import ConfigStore
    from supervisor.edges.journal import Journal
    from supervisor.edges.preflight import Plan
    from supervisor.edges.probe_listener import ProbeListener
    from supervisor.edges.store import StoredVersion, VersionStore
    from supervisor.operations.facts import Facts

POLL = 0.0005
"""Seconds between two looks at /proc; only for readiness, the candidate's appearance and workers
that leave or come back, of which the kernel tells no one but their parent."""


class Generations:
    """All generations that have a living process, by id; ids are never reused."""

    def __init__(self, first_id: int = 1) -> None:
        self._by_id: dict[int, Generation] = {}
        self._next_id = first_id

    def reserve(self) -> int:
        """An id for a generation that is to come."""
        number = self._next_id
        self._next_id += 1
        return number

    def add(self, generation: Generation) -> None:
        """Take `generation` in."""
        self._by_id[generation.id] = generation
        self._next_id = max(self._next_id, generation.id + 1)

    def get(self, number: int | None) -> Generation | None:
        """The generation with this id, None when it is gone."""
        return None if number is None else self._by_id.get(number)

    def drop(self, generation: Generation) -> None:
        """Forget a generation whose processes are all gone."""
        if self._by_id.pop(generation.id, None) is None:
            return
        generation.close()
        output = generation.output
        if output is not None and all(one.output is not output for one in self):
            output.close()

    def __iter__(self) -> Iterator[Generation]:
        return iter(sorted(self._by_id.values(), key=lambda one: one.id))

    def with_role(self, role: Role) -> Generation | None:
        """The newest generation with `role`."""
        found = [one for one in self if one.role is role]
        return found[-1] if found else None

    def tracked(self) -> set[int]:
        """The pids of all processes that belong to a generation."""
        pids = set()
        for one in self:
            pids.add(one.master.pid)
            pids.update(one.workers)
        return pids

    @property
    def next_id(self) -> int:
        """The id of the next generation that comes."""
        return self._next_id


@dataclass(slots=True, kw_only=True)
class UpgradeRun:
    """What was done so far in the running upgrade; a rollback undoes exactly this."""

    id: str
    operation: str = "upgrade"  # or rollback: an upgrade back to a stored version
    candidate_id: int | None = None
    plan: Plan | None = None
    stored: StoredVersion | None = None  # the candidate's version
    previous: str | None = None  # the id of the version that a rollback puts back
    program: Program | None = None  # the candidate's
    from_version: str | None = None
    to_version: str | None = None
    installed: bool = False  # the new binary stands at nginx.binary
    installed_file: tuple[int, int] | None = None  # device and inode of it there
    settled: trio.Event = field(default_factory=trio.Event)  # ... also after a power cut
    not_settled: SupervisorError | None = None
    usr2_sent: bool = False
    usr2_children: frozenset[int] = frozenset()  # the old master's children before USR2
    winch_workers: frozenset[int] | None = None  # the old workers when WINCH was sent
    quit_sent: bool = False  # to the old master: the point of no return
    include_text: str | None = None  # of the probe listener's file before the upgrade
    include_written: bool = False
    port: int | None = None  # the candidate's private probe listener
    tls_port: int | None = None  # ... that speaks TLS
    judged: bool = False
    hasten: bool = False
    warnings: list[dict[str, str]] = field(default_factory=list)  # by the guards
    changed: list[dict[str, str]] = field(default_factory=list)  # files of what ran before
    kept: str | None = None  # the stored copy of what somebody else put on disk meanwhile
    placing: bool = False  # the candidate's modules are put in place, to test it with them

    def known(self) -> dict[str, object]:
        """What a successor must know to undo it; part of every record in the journal."""
        return {
            "previous": self.previous,
            "to_version": self.to_version,
            "include_text": self.include_text,
            "include_written": self.include_written,
            "placing": self.placing,
            "candidate_id": self.candidate_id,
            "usr2_sent": self.usr2_sent,
            "installed": self.installed,
            "warnings": self.warnings,
            "changed": self.changed,
            "kept": self.kept,
        }


@dataclass(slots=True, kw_only=True)
class GuardRun:
    """A guarded reload: what it replaces, who may speak against it, and how far it has come."""

    id: str
    old: str  # the copy of the configuration that ran before
    new: str  # and of the one that was loaded, with what the old one's files were then
    witnesses: tuple[str, ...] = ()  # the probes that passed before it
    by: str = "operator"  # or foreign
    restoring: bool = False  # the previous files are being put back: nothing else ends it
    reason: str = ""  # why
    detail: str = ""
    left: bool = False  # by a predecessor, or by whoever cannot carry it on
    restored: str | None = None  # what to say of the files once they are back
    lock: trio.Lock = field(default_factory=trio.Lock)  # held while files are changed

    def known(self) -> dict[str, object]:
        """What a successor must know to end it."""
        return {
            "id": self.id, "old": self.old, "new": self.new, "witnesses": list(self.witnesses),
            "by": self.by, "restoring": self.restoring, "reason": self.reason,
            "detail": self.detail,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSeen:
    """The `env` directives of the configuration, for as long as its files have this signature."""

    files: tuple[str, ...]
    signature: tuple[tuple[int, ...], ...]
    directives: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsSeen:
    """What nginx told of itself and its configuration, for as long as nothing of it changes."""

    facts: Facts
    asked: tuple[object, ...]  # how it was asked
    files: tuple[str, ...]  # its binary, its modules, its configuration with the folders of that
    signature: tuple[tuple[int, ...], ...]
    program: Program | None = None  # what was started from these files


@dataclass(slots=True, kw_only=True)
class World:
    """The edges and the facts that operations work on. One task runs operations at a time."""

    settings: Settings
    log: FilteringBoundLogger
    store: VersionStore
    journal: Journal
    configs: ConfigStore
    listener: ProbeListener
    generations: Generations
    post: Callable[[Event], None]  # into the engine's queue; never blocks
    watch: Callable[[Generation], None]  # start the watcher of a new generation
    lock: Callable[[str], None]  # on the nginx with this pid file; Refusal where another has it
    background: Callable[[Callable[[], Awaitable[None]]], None]  # start a task of its own
    keep_locks: Callable[[Collection[str]], None] = lambda _: None  # and give up all others
    held: HeldListeners = field(default_factory=HeldListeners)  # the active generation's
    run: UpgradeRun | None = None
    unwritten: list[dict[str, object]] = field(default_factory=list)  # verdicts, for the history
    pid_path: str = ""  # as the configuration of the serving generation says
    sessions: set[int] = field(default_factory=set)  # of every master of this life
    reapers: set[int] = field(default_factory=lambda: {1, os.getpid()})  # whom orphans of it get
    last_program: Program | None = None  # of the generation that served last
    env_seen: EnvSeen | None = None
    facts_seen: FactsSeen | None = None
    progress: Callable[[dict[str, object]], None] = lambda _: None
    """Tell everyone who waits for the running upgrade."""
    remember: Callable[[], None] = lambda: None
    """Have the masters put on record, since one of them is another by now."""
    predecessor: str = "the supervisor died"
    """What became of the one before, where it left an upgrade unfinished."""
    version_of_upgrade: Callable[[str], str | None] = lambda _: None
    """The version that a past upgrade replaced, by the upgrade's id."""
    hasten: trio.Event = field(default_factory=trio.Event)
    look_at_logs: Callable[[], None] = lambda: None
    """Who writes error logs, and to which files, may be others by now."""
    settle_logs: Callable[[], None] = lambda: None
    """What a candidate wrote, and what was held back so far, counts now."""
    hear_output: Callable[[list[bytes], bool], None] = lambda _lines, _more: None
    """Lines that nginx wrote to its standard error."""
    hear_stdout: Callable[[bytes], None] = lambda _: None
    """Lines that nginx wrote to its standard output."""
    stdout: StandardOutput = field(default_factory=StandardOutput)  # where these go
    reloading: bool = False  # by us
    reload_id: str | None = None  # in the history, of the one that runs
    committed_id: str | None = None  # of the upgrade whose old generation drains, or drained last
    guard: GuardRun | None = None  # the guarded reload that runs, or that somebody has left
    copying: trio.Lock = field(default_factory=trio.Lock)  # held while files are being copied
    foreign_hearing: trio.Event | None = None  # a reload by somebody else is being judged until
    reloaded: Callable[[Generation, str | None], None] = lambda _generation, _before: None
    """Somebody else had this generation reloaded; the copy of what it had read before."""
    hear_signal: Callable[[Signal], None] = lambda _: None
    """Told what nginx gives away, while a reload listens."""
    keep_copy: Callable[[Generation], None] = lambda _: None
    """Have a copy of its configuration made soon."""
    told_short: bool = False  # that no descriptor is left
    last_identity: tuple[int, int] | None = None  # of a worker, while there was one

    @property
    def active(self) -> Generation | None:
        """The generation that serves."""
        return self.generations.with_role(Role.ACTIVE)

    @property
    def candidate(self) -> Generation | None:
        """The new generation of the running upgrade."""
        return self.generations.with_role(Role.CANDIDATE)

    def worker_identity(self) -> tuple[int, int] | None:
        """User and group of nginx's workers, whichever generation has any; None: never seen one.

        After the shift those are the candidate's, and in the moment of a crash they were the last.
        """
        for one in (self.candidate, self.active):
            workers = frozenset[int]() if one is None else one.brood().workers
            for pid in workers:
                if (identity := procfs.identity(pid)) is not None:
                    self.last_identity = identity
                    return identity
        return self.last_identity

    def release_old_locks(self) -> None:
        """Only the pid files that are in use stay locked: one may have moved, or never came.

        Called where nothing is under way that could still need another.
        """
        if self.run is None and self.pid_path:
            in_use = {one.program.pid_path for one in self.generations} - {""}
            self.keep_locks(in_use | {self.pid_path})

    def config_matches(self) -> bool | None:
        """Whether the configuration files are as the active generation read them; None: unknown.

        A file's size and times stand for its content, so that `status` reads no file.
        """
        active = self.active
        if active is None or not active.program.config_files:
            return None
        return files_signature(active.program.config_files) == active.program.config_signature

    def rejoin(self, generation: Generation) -> None:
        """Take a generation in as a predecessor knew it, and watch it; its master may be dead."""
        self.generations.add(generation)
        self.watch(generation)

    def join(self, generation: Generation) -> None:
        """Take a generation in and watch it."""
        self.generations.add(generation)
        self._note_reaper(generation)
        stat = procfs.read_stat(generation.master.pid)
        if stat is not None:
            generation.session = stat.session
        self.sessions.add(generation.session)
        self.watch(generation)
        self.keep_copy(generation)

    def _note_reaper(self, generation: Generation) -> None:
        """A parent in another session did not fork the master, it got it: it gets its orphans too.

        That is us, or whoever did where the supervisor was restarted or has adopted this nginx.
        """
        stat = procfs.read_stat(generation.master.pid)
        parent = None if stat is None else procfs.read_stat(stat.parent)
        if stat is not None and parent is not None and parent.session != stat.session:
            self.reapers.add(parent.pid)

    def find_strays(self, like: Generation) -> list[int]:
        """Living processes that came from `like` and that nobody tracks: its late workers.

        They are in one of our sessions, younger than its master, no masters themselves, have lost
        their parent, and run its program. That alone tells them from a subshell of the script that
        started nginx. Where the program may not be looked at, their title has to tell.
        """
        return [
            stat.pid
            for stat in self._orphans(like)
            if not stat.has_execed and _runs_program_of(like, stat.pid)
        ]

    def find_heirs(self, like: Generation) -> list[int]:
        """Living orphans of `like` that nobody tracks, whatever they run: a new master too.

        It was killed after USR2 was sent to it, and had forked already.
        """
        return [stat.pid for stat in self._orphans(like)]

    def _orphans(self, like: Generation) -> Iterator[procfs.Stat]:
        tracked = self.generations.tracked()
        stats = (procfs.read_stat(pid) for pid in like.workers)
        orphans = {stat.parent for stat in stats if stat is not None and stat.alive}
        parents = (self.reapers | orphans) - tracked
        # Not all of /proc: a crash start waits for this, and there may be thousands of processes.
        born = {pid for parent in parents for pid in procfs.children(parent)}
        for pid in sorted(born - tracked):
            stat = procfs.read_stat(pid)
            if (
                stat is not None
                and stat.alive
                and stat.session in self.sessions
                and stat.start >= like.master.start
                and stat.parent in parents
            ):
                yield stat

    def reap_strays(self) -> None:
        """Reap dead children that nobody else will: what nginx left behind, and strangers' orphans.

        The exit statuses of nginx's processes and of the supervisor's own children belong to
        whoever follows them.
        """
        children.reap(self.generations.tracked, self.reap_strays)


def _runs_program_of(generation: Generation, pid: int) -> bool:
    """By the file itself, since the name may be another file's by now."""
    found = procfs.executable(pid)
    if found is None or generation.executable is None:
        kinds = (procfs.ChildKind.ACCEPTING, procfs.ChildKind.DRAINING, procfs.ChildKind.CACHE)
        return procfs.classify(pid) in kinds
    return found == generation.executable


def files_signature(paths: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Identity, size and modification time of each file; zeros where it is gone."""
    signature = []
    for path in paths:
        try:
            found = os.stat(path)
            signature.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
        except OSError:
            signature.append((0, 0, 0, 0))
    return tuple(signature)


def files_identity(paths: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """`files_signature` with the time of the last change, which nobody can set, as the last field.

    So it tells of a file that was written in place and given its old time again.
    """
    identity = []
    for path, known in zip(paths, files_signature(paths), strict=True):
        try:
            changed = os.stat(path).st_ctime_ns
        except OSError:
            changed = 0
        identity.append((*known, changed))
    return tuple(identity)
