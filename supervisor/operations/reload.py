"""Have a serving generation read its configuration again, and its logs be reopened.

A reload is done when every worker of before has been replaced, and proved when the probes that
passed before it pass again. nginx says nowhere but in its error log that it has kept the old
configuration, so that is read meanwhile.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import trio

from supervisor.core.error_log import Entry
from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.core.model import Verdict
from supervisor.core.nginx_config import under_prefix
from supervisor.core.reload_judge import Objection
from supervisor.core.reload_log import Complaints
from supervisor.core.signals import LogLine, Signal
from supervisor.edges import procfs
from supervisor.edges.generation import Generation, Program
from supervisor.edges.master_log import MasterLog
from supervisor.edges.pulse import Pulse
from supervisor.operations.config_copies import keep_copy
from supervisor.operations.facts import Facts, facts_of_running, passed_on
from supervisor.operations.foreign import expect_no_foreign_upgrade
from supervisor.operations.listeners import hold, settle
from supervisor.operations.reading import believed
from supervisor.operations.world import POLL, World

RELOAD_LIMIT = 30.0
"""Seconds within which the workers of the new configuration must be up ..."""
SLOWER = 3
"""... or so many times what the test of a large configuration took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the probes and the workers said of a reload."""

    objection: Objection | None = None
    judged: bool = False
    note: str = ""  # who has answered, in words
    interrupted: bool = False  # what was looked at is not there any more


class Jury(Protocol):
    """Whoever asks the probes."""

    async def passing(self) -> frozenset[str]:
        """The probes that pass at this moment, each asked once more for that."""
        ...

    async def hear(
        self, witnesses: frozenset[str], workers: frozenset[int], seconds: float
    ) -> Heard:
        """What these probes say of the serving generation now that `workers` are its workers.

        Returns at the first objection; without one not before `seconds` are over and each probe
        has passed as often as makes it up.
        """
        ...


class Nobody:
    """No probes: what the processes do is all there is."""

    async def passing(self) -> frozenset[str]:
        """See Jury."""
        return frozenset()

    async def hear(
        self, witnesses: frozenset[str], workers: frozenset[int], seconds: float
    ) -> Heard:
        """See Jury."""
        return Heard()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadEnd:
    """How a reload ended; `phases` is how long each of its parts took."""

    verdict: Verdict
    reason: str
    detail: str
    judged: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)


class Steps:
    """The parts of a reload in the words of an upgrade's phases, told as they begin, and timed.

    preflight: the configuration is tested. shifting: HUP, until the old workers are replaced.
    soaking: the new ones are watched. rolling_back: the previous configuration is brought back.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None] = lambda _: None) -> None:
        self._tell = tell
        self._spent: dict[str, float] = {}
        self._now = ""
        self._since = trio.current_time()

    def enter(self, phase: str, *, reason: str | None = None, detail: str | None = None) -> None:
        """`phase` begins."""
        self._account()
        self._now = phase
        told = {"event": "phase", "phase": phase, "operation": "reload"}
        self._tell({**told, "reason": reason, "detail": detail})

    def end(self, verdict: Verdict, reason: str, detail: str, *, judged: bool = False) -> ReloadEnd:
        """All is over."""
        self._account()
        phases = {name: round(spent, 6) for name, spent in self._spent.items()}
        return ReloadEnd(
            verdict=verdict, reason=reason, detail=detail, judged=judged, phases=phases
        )

    def _account(self) -> None:
        now = trio.current_time()
        if self._now:
            self._spent[self._now] = self._spent.get(self._now, 0.0) + now - self._since
        self._since = now


async def reload(world: World, jury: Jury | None = None, steps: Steps | None = None) -> ReloadEnd:
    """Test the configuration, send HUP, and see who answers then.

    Tested is what runs, not what a package manager may have put on disk for the next upgrade.
    Raises Refusal `config_rejected` with nginx's own message and what else speaks against it, with
    nothing sent. What fails after HUP is in the end that is returned: `reload_ignored` when nginx
    keeps its old workers, since it found something that `-t` did not, or what the probes say.
    """
    jury, steps = jury or Nobody(), steps or Steps()
    steps.enter("preflight")
    active = expect_reloadable(world)
    facts = await facts_of_running(world, active)
    if facts is not None:
        accept(world, facts)
    # Where nobody accepts, which a reload is to mend, a probe would only be waited for.
    witnesses = await jury.passing() if active.look().accepting else frozenset[str]()
    world.reloading = True
    try:
        steps.enter("shifting")
        try:
            fresh = await replace_workers(world, active, facts)
        except OperationFailed as exc:
            return steps.end(Verdict.FAILED, exc.reason, exc.detail)
        await adopt_facts(world, active, facts)
        world.keep_copy(active)
        steps.enter("soaking")
        heard = await jury.hear(witnesses, fresh, 0.0)
        await keep_copy(world, active)  # before anybody changes the files again
    finally:
        world.reloading = False
    if heard.objection is not None:
        found = heard.objection
        detail = (
            f"nginx runs the configuration as it is on disk, and it does not serve as before: "
            f"{found.detail}; correct it and reload again (nginxctl reload --guard would have "
            "put the previous one back)"
        )
        return steps.end(Verdict.FAILED, found.reason, detail, judged=heard.judged)
    detail = f"{len(fresh)} workers run the configuration as it is on disk{heard.note}"
    return steps.end(Verdict.COMMITTED, "reloaded", detail, judged=heard.judged)


def expect_reloadable(world: World) -> Generation:
    """The generation that is to be reloaded. Raises Refusal `not_running`, `foreign_upgrade`."""
    active = world.active
    if active is None or not active.alive:
        raise Refusal("not_running", "cannot reload: nginx does not run")
    expect_no_foreign_upgrade(active, "reload")
    return active


async def learn_reload(world: World, generation: Generation) -> None:
    """Take in what `generation` has read when somebody else had it reloaded; said in the log.

    Its configuration is taken to be what is on disk now: nobody but nginx knows what it has read.
    """
    name = f"g{generation.id}"
    before = generation.program.config_copy
    try:
        facts = await facts_of_running(world, generation)
        if facts is None or world.run is not None or world.reloading or not generation.alive:
            return  # what happens now sees to it
        accept(world, facts)
        await adopt_facts(world, generation, facts)
        generation.program = replace(generation.program, read=believed(generation))
        world.keep_copy(generation)
    except SupervisorError as exc:
        world.log.warning(
            "generation.foreign_reload", generation=name, reason=exc.reason,
            detail=f"somebody else reloaded nginx; what it runs is not known: {exc.detail}",
        )  # fmt: skip
        await adopt_facts(world, generation, None)
    except Exception:  # a bug of ours must not end the supervisor
        world.log.exception("operation.bug", operation="learn_reload", generation=name)
        return
    else:
        detail = f"somebody else reloaded nginx: {facts.workers} workers run what is on disk"
        world.log.warning("generation.foreign_reload", generation=name, reason=None, detail=detail)
    world.reloaded(generation, before)


async def replace_workers(world: World, active: Generation, facts: Facts | None) -> frozenset[int]:
    """Send HUP; the new workers, once they are complete and none of the old ones accepts.

    Raises OperationFailed `reload_ignored` with nginx's own words as soon as its log says that it
    has kept its configuration, or after a while, and `not_running` where the master is gone.
    """
    complaints = Complaints(active.master.pid)
    log = MasterLog()
    names = _error_logs(world, active, facts)
    told = {one for one in names if _is_told(world, one)}
    try:
        await trio.to_thread.run_sync(log.follow, [one for one in names if one not in told])
        world.hear_signal = partial(_hear_signal, complaints)
        if active is world.active:
            # What the reload before this one has dropped is free by now: it may come back.
            hold(world, active)
            await settle(world)
        unread = "" if log.readable or told else "; ".join(log.unreadable)
        return await _replace_workers(active, facts, complaints, log, unread)
    finally:
        world.hear_signal = lambda _: None
        log.close()  # at once: a reload that is cancelled leaves nothing open


async def _replace_workers(
    active: Generation, facts: Facts | None, complaints: Complaints, log: MasterLog, unread: str
) -> frozenset[int]:
    before = active.look().workers | active.look().starting
    limit = max(RELOAD_LIMIT, SLOWER * (0.0 if facts is None else facts.took))
    fresh: frozenset[int] | None = None
    async with trio.open_nursery() as nursery:
        if log.readable:
            nursery.start_soon(_listen, log, complaints)
        active.master.send(signal.SIGHUP)
        with trio.move_on_after(limit), Pulse(4 * POLL) as pulse:
            while active.alive and not complaints.final(at=trio.current_time()):
                brood = active.look()
                seen = brood.accepting - before
                if _complete(seen, facts, brood) and not before & brood.accepting:
                    fresh = seen
                    active.accepted = brood.accepting  # so that it is nobody else's doing
                    break
                await pulse.tick()
        nursery.cancel_scope.cancel()
    if fresh is not None:
        return fresh
    if not active.alive:
        raise OperationFailed("not_running", "cannot reload: the master is gone")
    raise _ignored(complaints, unread, limit)


def _ignored(complaints: Complaints, unread: str, limit: float) -> OperationFailed:
    """What nginx says of it; or why nothing of that is known."""
    said = complaints.cause
    if said:
        why = f"nginx has kept its old configuration: {said}; nothing else has changed"
    else:
        where = f"could not be read ({unread})" if unread else "says why, perhaps"
        why = (
            f"nginx kept its old workers for {limit:.0f} s after HUP and goes on with the old "
            f"configuration; its error log {where}"
        )
    return OperationFailed("reload_ignored", why)


def _is_told(world: World, name: str) -> bool:
    """What is written there is told as a signal: it is no file that could be followed here."""
    return name == "stderr" or (
        name.startswith("syslog:") and world.settings.syslog.socket is not None
    )


def _hear_signal(complaints: Complaints, one: Signal) -> None:
    if isinstance(one, LogLine):
        entry = Entry(severity=one.level, pid=one.pid, text=one.text)
        complaints.hear(entry, at=trio.current_time())


async def _listen(log: MasterLog, complaints: Complaints) -> None:
    while True:
        for entry in await trio.to_thread.run_sync(log.read):
            complaints.hear(entry, at=trio.current_time())
        await trio.lowlevel.wait_readable(log.fd)


def _error_logs(world: World, active: Generation, facts: Facts | None) -> list[str]:
    """Where the master writes what is wrong: the old logs at first, then the new ones.

    Paths, or `stderr`, or what is no file.
    """
    names = list(active.program.error_logs)
    if facts is not None:
        names += facts.config.error_logs or [facts.build.error_log_path]
        plain = ("stderr", "syslog:", "memory:")
        prefix = facts.build.prefix
        names = [one if one.startswith(plain) else under_prefix(one, prefix) for one in names]
    if world.settings.nginx.error_log is not None:
        names.append(world.settings.nginx.error_log)
    return names


def accept(world: World, facts: Facts) -> None:
    """Nothing that nginx would take keeps us from supervising it afterwards; raises otherwise."""
    if not facts.config.master_process:
        raise Refusal(
            "master_process_off",
            "cannot reload: the configuration says `master_process off`; without a master there "
            "is nothing to supervise",
        )
    # The pid file may have moved, and somebody else may supervise an nginx that has it there.
    world.lock(facts.pid_path)


def _complete(fresh: frozenset[int], facts: Facts | None, brood: procfs.Brood) -> bool:
    if facts is None:  # how many there will be is known to the master alone
        return bool(fresh) and not brood.starting
    return len(fresh) >= facts.workers


async def adopt_facts(world: World, active: Generation, facts: Facts | None) -> None:
    """What runs now is what is started after a crash, and what a successor finds on record."""
    if facts is None:  # what it has read is not known
        active.program = replace(active.program, config_copy=None, read=None)
        return
    environment = passed_on(active.program.environment, facts.config.env)
    program = await _keep_modules(world, active, facts)
    active.program = replace(program, environment=environment)
    world.pid_path = active.program.pid_path
    world.last_program = active.program
    world.remember()


async def _keep_modules(world: World, active: Generation, facts: Facts) -> Program:
    """The program with its new configuration; newly named modules belong to the version now.

    A version that the store has lost, or never had, is stored again.
    """
    program = facts.refresh(active.program)
    if program.stored is not None:
        with suppress(Refusal):
            known = world.store.get(program.stored).modules
            if set(known) == set(facts.modules):
                return program
    try:
        stored = await trio.to_thread.run_sync(
            lambda: world.store.take_from_process(
                active.master.pid, modules=facts.modules, version=program.version
            )
        )
        await trio.to_thread.run_sync(world.store.mark_good, stored.id)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)
        return program
    return replace(program, stored=stored.id)


def reopen(world: World) -> str:
    """USR1 to every living master, so that no generation writes on to a rotated file.

    Raises Refusal `not_running` where nothing of nginx lives.
    """
    told = []
    for generation in world.generations:
        if generation.alive and procfs.catches(generation.master.pid, signal.SIGUSR1):
            generation.master.send(signal.SIGUSR1)
            told.append(f"g{generation.id}")
        elif not generation.alive and not generation.gone:
            # Orphans have no master that would tell them; workers reopen by themselves on USR1.
            generation.signal_workers(signal.SIGUSR1)
            told.append(f"g{generation.id} (workers)")
        foreign = generation.foreign
        if foreign is not None and procfs.catches(foreign.pid, signal.SIGUSR1):
            foreign.send(signal.SIGUSR1)
            told.append(f"master {foreign.pid}, which somebody else started")
    if not told:
        raise Refusal("not_running", "cannot reopen the logs: no nginx runs; see nginxctl status")
    return f"logs reopened by {', '.join(told)}"
