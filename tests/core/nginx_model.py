"""A model of two nginx masters during an upgrade, in simulated time, and of who drives a rollback.

The old master's loop is modelled as ngx_process_cycle.c has it, since the races of a rollback come
from there. Signals are blocked but in sigsuspend(): those that arrive during a turn are handled in
the next one. A turn handles dead children, then HUP, then the workers that it owes, then WINCH; a
HUP beside a new binary ends the turn, and what is left over then waits for the next signal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from supervisor.core.rollback import Limits, Step, View, next_step

RELOAD_SLEEP = 0.1
"""Seconds that nginx sleeps in a true reload, before it tells the old workers to leave."""
LOOK = 0.005
"""Seconds between two looks of the driver."""
NUDGE = 0.1
"""Seconds between two wakings of a master that does not seem to act."""


class Kind(Enum):
    """What the candidate's master does."""

    HEALTHY = "healthy"
    BLOCKED = "blocked"  # hangs before it sets handlers: no workers, only KILL ends it
    STOPPED = "stopped"  # by SIGSTOP: only KILL ends it
    DEAF = "deaf"  # ignores QUIT and TERM, and goes on restarting its workers
    SPINNING = "spinning"  # never comes back to its loop
    FATAL = "fatal"  # lives, and its workers could not initialise
    CRASHING = "crashing"  # its workers die all the time
    ABSENT = "absent"  # it never came up, or is dead and gone


@dataclass(eq=False)
class Worker:
    """One worker; times are absolute."""

    ready_at: float
    hold: float = 0.0  # seconds for which a connection keeps it from ending after QUIT
    hangs: bool = False  # only KILL ends it
    leaving_at: float | None = None
    ends_at: float | None = None
    dead: bool = False

    def leave(self, now: float) -> None:
        """It was told QUIT; its title changes when it acts on that."""
        if not self.hangs and self.leaving_at is None:
            self.leaving_at = now + 0.002
            self.ends_at = self.leaving_at + self.hold

    def end(self, at: float) -> None:
        if not self.hangs:
            self.ends_at = min(at, self.ends_at or at)

    def starting(self, now: float) -> bool:
        return not self.dead and now < self.ready_at and self.leaving_at is None

    def accepting(self, now: float) -> bool:
        if self.dead or now < self.ready_at:
            return False
        return self.leaving_at is None or now < self.leaving_at


@dataclass(kw_only=True)
class Old:
    """The old master."""

    workers: list[Worker]
    expected: int
    latency: float = 0.002  # from a signal to its turn
    init: float = 0.003  # a worker's, until it accepts
    config_good: bool = True  # what is on disk, for this version
    obeys_winch: bool = True
    new_binary: bool = True
    noaccepting: bool = False
    alive: bool = True
    dies_at: float | None = None
    blocked: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)
    zombie_candidate: bool = False
    restart: bool = False
    wake_at: float | None = None
    reloading: list[Worker] | None = None  # the workers that a reload is about to replace
    winch_done: bool = False
    hups_handled: int = 0

    def signal(self, name: str, now: float) -> None:
        if not self.alive or (name == "WINCH" and not self.obeys_winch):
            return
        self.blocked.add(name)
        if self.wake_at is None:
            self.wake_at = now + self.latency

    def start_workers(self, now: float) -> None:
        self.workers += [Worker(now + self.init) for _ in range(self.expected)]

    def advance(self, now: float) -> None:
        if self.alive and self.dies_at is not None and now >= self.dies_at:
            self.alive = False
        ended = False
        for worker in self.workers:
            if not worker.dead and worker.ends_at is not None and now >= worker.ends_at:
                worker.dead = ended = True
        if ended:
            self.signal("CHLD", now)
        if self.alive and self.wake_at is not None and now >= self.wake_at:
            self.wake_at = None
            self.turn(now)

    def turn(self, now: float) -> None:
        if self.reloading is not None:
            for worker in self.reloading:
                worker.leave(now)
            self.reloading = None
            self.after_reload(now)
            return
        self.flags |= self.blocked
        self.blocked.clear()
        self.flags.discard("IO")
        if "CHLD" in self.flags:
            self.flags.discard("CHLD")
            self.reap(now)
        if "HUP" in self.flags:
            self.flags.discard("HUP")
            self.hups_handled += 1
            if self.new_binary:
                self.start_workers(now)
                self.noaccepting = False
                return  # a WINCH that is pending stays so until the next signal
            if not self.config_good:
                return
            self.reloading = [one for one in self.workers if not one.dead]
            self.start_workers(now)
            self.wake_at = now + RELOAD_SLEEP
            return
        self.after_reload(now)

    def after_reload(self, now: float) -> None:
        if self.restart:
            self.restart = False
            self.start_workers(now)
        if "WINCH" in self.flags:
            self.flags.discard("WINCH")
            self.noaccepting = self.winch_done = True
            for worker in self.workers:
                worker.leave(now)
        if self.blocked:
            self.wake_at = now + self.latency

    def reap(self, now: float) -> None:
        for worker in list(self.workers):
            if worker.dead:
                self.workers.remove(worker)
                if worker.leaving_at is None:
                    self.workers.append(Worker(now + self.init))
        if self.zombie_candidate:
            self.zombie_candidate = self.new_binary = False
            if self.noaccepting:
                self.restart, self.noaccepting = True, False


@dataclass(kw_only=True)
class Candidate:
    """The candidate's master and its workers; orphans once it is dead."""

    kind: Kind
    workers: list[Worker]
    parent: Old
    dies_at: float | None = None
    alive: bool = True
    quitting: bool = False
    kill_workers_at: float | None = None

    @property
    def ready(self) -> bool:
        return self.kind not in (Kind.BLOCKED, Kind.ABSENT)

    def master_signal(self, name: str, now: float) -> None:
        if not self.alive:
            return
        if name == "KILL":
            self.die(now)
        if self.kind in (Kind.BLOCKED, Kind.STOPPED, Kind.DEAF, Kind.SPINNING):
            return
        if name in ("QUIT", "TERM"):
            self.quitting = True
            self.worker_signal(name, now)
        if name == "TERM":
            self.kill_workers_at = now + 1.0

    def worker_signal(self, name: str, now: float, only: list[Worker] | None = None) -> None:
        for worker in self.workers if only is None else only:
            if name == "QUIT":
                worker.leave(now)
            elif name == "TERM":
                worker.end(now + 0.002)
            else:
                worker.ends_at = now

    def die(self, now: float) -> None:
        self.alive = False
        if self.parent.alive:
            self.parent.zombie_candidate = True
            self.parent.signal("CHLD", now)

    def advance(self, now: float) -> None:
        if self.alive and self.dies_at is not None and now >= self.dies_at:
            self.die(now)
        if self.alive and self.kill_workers_at is not None and now >= self.kill_workers_at:
            self.worker_signal("KILL", now)
        for worker in list(self.workers):
            if worker.ends_at is not None and now >= worker.ends_at:
                worker.dead = True
                self.workers.remove(worker)
                if self.respawns:
                    self.workers.append(self.fresh(now))
        if self.alive and self.quitting and not self.workers:
            self.die(now)

    @property
    def respawns(self) -> bool:
        acts = self.kind in (Kind.HEALTHY, Kind.DEAF, Kind.CRASHING)
        return self.alive and acts and not self.quitting

    def fresh(self, now: float) -> Worker:
        return crashing(now) if self.kind is Kind.CRASHING else Worker(now + 0.003)


def crashing(now: float) -> Worker:
    return Worker(now + 0.003, ends_at=now + 0.05)


@dataclass(kw_only=True)
class Rollback:
    """The driver's bookkeeping and its loop, as in supervisor/operations/rollback.py."""

    old: Old
    candidate: Candidate
    had: frozenset[Worker] | None  # the old workers when WINCH was sent, where that is known
    limits: Limits
    hasten_at: float | None = None
    cut: int = 0  # connections that were cut although their time was not up
    now: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    hups: int = 0
    reloads: int = 0
    relaunched: bool = False
    nudged_at: float = 0.0
    steps: list[tuple[float, Step]] = field(default_factory=list)

    def ago(self, what: str) -> float | None:
        at = self.times.get(what)
        return None if at is None else self.now - at

    def advance(self, seconds: float) -> None:
        """Let nginx go on for `seconds`."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.001)
            self.candidate.advance(self.now)
            self.old.advance(self.now)

    def look(self) -> View:
        old, candidate, now = self.old, self.candidate, self.now
        had = self.had if self.had is not None and not self.relaunched else frozenset()
        if not candidate.alive:
            self.times.setdefault("gone", now)
            if not old.zombie_candidate:
                self.times.setdefault("reaped", now)
        if candidate.workers:
            self.times.pop("alone", None)
        else:
            self.times.setdefault("alone", now)
        accepting = {one for one in old.workers if one.accepting(now)}
        starting = {one for one in old.workers if one.starting(now)}
        gone_for = None if candidate.kind is Kind.ABSENT else self.ago("gone")
        return View(
            old_alive=old.alive,
            old_accepting=len(accepting - had),
            old_starting=len(starting - had),
            old_unshifted=len(accepting & had),
            old_expected=old.expected,
            winch_sent=self.had is not None and not self.relaunched,
            winch_consumed=not had & (accepting | starting),
            candidate_alive=candidate.alive,
            candidate_reaped_for=self.ago("reaped"),
            candidate_stopped=candidate.alive and candidate.kind is Kind.STOPPED,
            candidate_ready=candidate.ready,
            candidate_accepting=sum(
                one.accepting(now) or one.starting(now) for one in candidate.workers
            ),
            candidate_workers=len(candidate.workers),
            candidate_alone_for=self.ago("alone"),
            waited=now,
            candidate_gone_for=gone_for,
            hups=self.hups,
            hup_ago=self.ago("hup"),
            quit_ago=self.ago("quit"),
            workers_quit_ago=self.ago("workers_quit"),
            term_ago=self.ago("term"),
            kill_ago=self.ago("kill"),
            reloaded=bool(self.reloads),
            relaunches=int(self.relaunched),
            hasten=self.hasten_at is not None and now >= self.hasten_at,
        )

    def run(self, *, at_most: float) -> Step:
        """Drive until the planner is done or gives up; fails after `at_most` seconds."""
        while self.now < at_most:
            view = self.look()
            step = next_step(view, self.limits)
            if step in (Step.DONE, Step.GIVE_UP):
                return step
            if step is not Step.WAIT:
                self.steps.append((self.now, step))
                self.carry_out(step, view)
                continue
            unsettled = view.winch_sent and not (view.winch_consumed and view.old_accepting)
            if unsettled and self.now - self.nudged_at >= NUDGE:
                self.nudged_at = self.now
                self.old.signal("IO", self.now)
            self.advance(LOOK)
        raise AssertionError(f"not over after {at_most} s: {self.steps[-10:]}")

    def mark(self, what: str) -> None:
        self.times[what] = self.now

    def carry_out(self, step: Step, view: View) -> None:
        now, candidate = self.now, self.candidate
        if step not in (Step.HUP_OLD, Step.RELOAD_OLD, Step.RELAUNCH_OLD):
            assert view.old_accepting + view.old_unshifted, "nobody would serve"
        if step in (Step.TERM_CANDIDATE, Step.TERM_WORKERS, Step.KILL_WORKERS) and not view.hasten:
            self.count_cuts(accepting_only=step is Step.TERM_WORKERS)
        match step:
            case Step.HUP_OLD | Step.RELOAD_OLD:
                self.check_hup(step, view)
                self.hups += 1
                self.reloads += step is Step.RELOAD_OLD
                self.mark("hup")
                self.old.signal("HUP", now)
            case Step.RELAUNCH_OLD:
                self.relaunch()
            case Step.QUIT_CANDIDATE:
                self.mark("quit")
                candidate.master_signal("QUIT", now)
            case Step.QUIT_WORKERS:
                self.mark("workers_quit")
                candidate.worker_signal("QUIT", now)
            case Step.TERM_CANDIDATE:
                self.mark("term")
                candidate.master_signal("TERM", now)
            case Step.TERM_WORKERS:
                self.mark("term")
                accepting = [one for one in candidate.workers if one.accepting(now)]
                candidate.worker_signal("TERM", now, accepting or None)
            case Step.KILL_CANDIDATE:
                self.mark("kill")
                candidate.master_signal("KILL", now)
            case Step.KILL_WORKERS:
                self.mark("kill")
                candidate.worker_signal("KILL", now)

    def count_cuts(self, *, accepting_only: bool) -> None:
        for worker in self.candidate.workers:
            told = worker.leaving_at
            if told is None or worker.hangs or self.now - told > self.limits.drain - 0.1:
                continue
            if accepting_only and any(one.accepting(self.now) for one in self.candidate.workers):
                continue
            self.cut += worker.hold > 0

    def relaunch(self) -> None:
        """The old version starts afresh on the sockets of whoever lives."""
        self.relaunched = True
        self.advance(0.02)
        workers = [Worker(self.now) for _ in range(self.old.expected)]
        self.old = Old(workers=workers, expected=self.old.expected, new_binary=False)

    def check_hup(self, step: Step, view: View) -> None:
        """A HUP beside a WINCH that is pending ends all workers; each one beside a living
        candidate adds a set."""
        if self.relaunched:
            return
        assert "WINCH" not in self.old.blocked | self.old.flags, "race A"
        if step is Step.HUP_OLD and self.hups and view.candidate_alive:
            assert not view.old_accepting, "a second set of workers"
        if step is Step.RELOAD_OLD:
            assert not view.candidate_alive
