"""Wiring only: builds the edges, opens the nurseries, turns signals into events."""

from __future__ import annotations

import argparse
import faulthandler
import os
import secrets
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from supervisor.backend import Backend, detachable, killed_with_us
from supervisor.core.commands import Reload, Reopen
from supervisor.core.errors import ConfigError, SupervisorError
from supervisor.core.events import LeaveRequested, TerminateRequested
from supervisor.core.leaving import DETACHED
from supervisor.core.model import State
from supervisor.core.settings import ControlSettings, Settings
from supervisor.edges import linux
from supervisor.edges.config_file import load_settings
from supervisor.edges.config_store import ConfigStore
from supervisor.edges.control import serve_control
from supervisor.edges.control_gate import Gate, notes_on
from supervisor.edges.control_handover import Door
from supervisor.edges.descriptors import RESERVE, open_standard_descriptors
from supervisor.edges.fdstore import DescriptorStore
from supervisor.edges.fdstore import receive as receive_kept
from supervisor.edges.files import private_folder
from supervisor.edges.generation import Generation
from supervisor.edges.handover import HANDLED, HandOver, Parcel, let_signals_come, receive
from supervisor.edges.held import HeldListeners
from supervisor.edges.journal import History, Journal
from supervisor.edges.lock import SupervisorLock, lock_path
from supervisor.edges.log_tap import LogTap
from supervisor.edges.logs import configure_logs, flush_logs
from supervisor.edges.notify import VARIABLE as NOTIFY_SOCKET
from supervisor.edges.notify import Notifier
from supervisor.edges.own_program import OwnProgram
from supervisor.edges.probe_listener import ProbeListener
from supervisor.edges.probes import Prober
from supervisor.edges.runtime_state import RuntimeState
from supervisor.edges.signals import SignalInbox
from supervisor.edges.store import VersionStore
from supervisor.effects import NginxEffects
from supervisor.engine import Engine
from supervisor.evidence import Evidence
from supervisor.inheritance import Estate, register, take_over
from supervisor.jury import Jury
from supervisor.log_watch import LogWatch
from supervisor.operations.config_copies import keep_copy
from supervisor.operations.listeners import settle, take_back
from supervisor.operations.world import Generations, World
from supervisor.reconfigure import reconfigure, restart_policy_of, rules_of
from supervisor.reloads import Reloads
from supervisor.sampling import watch_usage
from supervisor.service import Service, errno_of
from supervisor.snapshot import version
from supervisor.story import Story
from supervisor.succession import Succession
from supervisor.verdicts import utc_now
from supervisor.watch import Sighting, watch

ASK_MANAGER = 2.0
"""Seconds for systemd to tell how it ends the unit; other signals wait for so long at most."""

DESCRIPTION = """\
Owns an nginx master: keeps it running, upgrades its binary under live traffic, and brings the old
binary back where the new one misbehaves. `nginxctl` tells it what to do and shows what it sees."""

EPILOG = """\
signals to `run`:
  SIGTERM, SIGINT, SIGQUIT
                   stop nginx, then end (so does `systemctl stop` or `restart` of its unit)
  SIGRTMIN         end once nothing is under way and leave nginx serving (see `nginxctl detach`)
  SIGKILL          nginx serves on; the next supervisor adopts it
  SIGHUP           read the configuration again
  SIGUSR1          have nginx reopen its log files
  SIGUSR2          replace the supervisor by what is on disk now (as `nginxctl self-upgrade`)

exit codes:
  0  `run`: told to end, and nginx is stopped; `check`: the configuration is good
  1  nginx could not be started the first time, or not be stopped, or another supervisor owns it;
     or told to leave nginx serving when it did not run although it should
  2  the configuration or the arguments are wrong
  3  told to leave nginx as it is: it serves, or was stopped on purpose"""

EXIT_CONFIG = 2

SWITCH_INTERVAL = 0.0005
"""Seconds after which a running thread lets another one have the interpreter."""

LAST_WORDS = 1.0
"""Seconds that clients get to read their last reply before the supervisor ends."""


def parser() -> argparse.ArgumentParser:
    """What `nginx-supervisor` understands."""
    made = argparse.ArgumentParser(
        prog="nginx-supervisor",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=version())
    commands = made.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "own nginx until told to end: start it, or adopt the one that runs"),
        ("check", "read the configuration, say what is wrong with it, change nothing"),
    ):
        # Whoever wants to know the configuration of one that runs reads its command.
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        command.add_argument(
            "--config", required=True, type=Path, metavar="FILE", help="the configuration (TOML)"
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """`nginx-supervisor`: exits 0 after SIGTERM or SIGINT, 1 on a failed first start, 2 on bad
    configuration."""
    given = parser().parse_args(argv)
    # `check` may be run by a supervisor, to which the service manager belongs.
    notifier = Notifier.from_environment() if given.command == "run" else Notifier(None)
    store = DescriptorStore(notifier.environment.get(NOTIFY_SOCKET), receive_kept())
    try:
        settings = load_settings(given.config)
        if given.command == "check":
            print(f"{given.config}: ok")
            for note in (*missing_folders(settings), *notes_on(settings.control)):
                print(f"nginx-supervisor: {note}", file=sys.stderr)
            return 0
        open_standard_descriptors()
        hand_over = receive()
        story, tap = Story(), LogTap()
        configure_logs(settings.log, extra=(story, tap))
        # The watchdog's SIGABRT ends a supervisor that is stuck: its log shall say where.
        faulthandler.enable(2)
        linux.expect_pidfds()
        linux.become_subreaper()
        linux.raise_file_limit()
        RESERVE.fill()
        # A thread that writes must not keep the engine from a signal for 5 ms (the default).
        sys.setswitchinterval(SWITCH_INTERVAL)
        found = Given(
            config=given.config, settings=settings, story=story, tap=tap, hand_over=hand_over,
            notifier=notifier, store=store,
        )  # fmt: skip
        return trio.run(_run_alone, found)
    except SupervisorError as exc:
        store.forget()
        print(f"nginx-supervisor: {exc.detail}", file=sys.stderr)
        notifier.failed(errno_of(exc), exc.detail)
        return EXIT_CONFIG if isinstance(exc, ConfigError) else 1
    finally:
        flush_logs()


def missing_folders(settings: Settings) -> list[str]:
    """What has to exist when the supervisor starts, and does not yet; a unit file may make it."""
    needed = {
        "the control socket": Path(settings.control.socket).parent,
        "the probe listener's file": Path(settings.probe_listener.include_file).parent,
    }
    if settings.syslog.socket is not None:
        needed["the syslog socket"] = Path(settings.syslog.socket).parent
    return [
        f"the folder {folder} of {what} is missing; make it before the start, or let the unit"
        " file do so (RuntimeDirectory=)"
        for what, folder in needed.items()
        if not folder.is_dir()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a supervisor begins with: its configuration, and what others have left for it."""

    config: Path
    settings: Settings
    story: Story
    tap: LogTap
    hand_over: HandOver
    notifier: Notifier
    store: DescriptorStore


async def _run_alone(given: Given) -> int:
    """`run`; an error that was raised on purpose comes out of its nurseries as itself."""
    try:
        return await run(given)
    except BaseExceptionGroup as group:
        cause = _cause(group)
        raise cause from (cause.__cause__ or group)  # what it was made of is told as ERRNO


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in `group`; the group itself where there are several, or a bug."""
    known, others = group.split(SupervisorError)
    if known is None or others is not None or len(known.exceptions) != 1:
        return group
    inner = known.exceptions[0]
    return _cause(inner) if isinstance(inner, BaseExceptionGroup) else inner


class Locks:
    """The lock on the nginx that is supervised; it moves when the pid file does."""

    def __init__(self, hand_over: HandOver) -> None:
        self._held: dict[Path, SupervisorLock] = {}
        handed = hand_over.take("locks")
        self._handed = () if handed is None else handed.fds  # held until the end, as the others
        hand_over.register("locks", self._give)

    def take(self, pid_path: str) -> None:
        """Lock the nginx with this pid file. Raises Refusal `already_supervised`."""
        lock = SupervisorLock(Path(pid_path))
        if lock.path not in self._held:
            if not lock.inherit(self._handed):
                lock.acquire()
            self._held[lock.path] = lock

    def _give(self) -> Parcel:
        return Parcel(fds=tuple(one.fd for one in self._held.values() if one.fd is not None))

    def keep_only(self, pid_paths: Collection[str]) -> None:
        """Give up the locks on all other pid files: another supervisor may have those now."""
        wanted = {lock_path(Path(one)) for one in pid_paths}
        for path in self._held.keys() - wanted:
            lock = self._held.pop(path)
            self._handed = tuple(fd for fd in self._handed if fd != lock.fd)
            lock.release()

    def release(self) -> None:
        """Give all locks up."""
        for lock in self._held.values():
            lock.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What was built, for the tasks that run it."""

    world: World
    engine: Engine
    effects: NginxEffects
    evidence: Evidence
    prober: Prober
    backend: Backend
    service: Service
    log_watch: LogWatch
    gate: Gate
    estate: Estate


async def run(given: Given) -> int:
    """Own nginx until told to end; returns the exit code."""
    log: FilteringBoundLogger = structlog.get_logger()
    locks = Locks(given.hand_over)
    try:
        async with trio.open_nursery() as nursery:
            parts = build(given, log, locks, nursery)
            nursery.start_soon(given.notifier.run)
            nursery.start_soon(given.store.run)
            await nursery.start(serve_signals, given.config, parts, given.hand_over)
            take_back(parts.world, given.store.take_back(), "from the service manager's store")
            first = take_over(given.hand_over, parts.estate)
            register(given.hand_over, parts.estate)
            await nursery.start(_serve_control, given.settings.control, parts)
            nursery.start_soon(parts.gate.take, given.settings.control)
            await nursery.start(parts.prober.run)
            await nursery.start(parts.log_watch.run)
            nursery.start_soon(parts.effects.keep_record)
            parts.service.settled(parts.engine.state)
            nursery.start_soon(parts.service.keep_alive, parts.engine)
            if parts.backend.replaced is None:
                log.info(
                    "supervisor.started",
                    pid=os.getpid(),
                    version=version(),
                    config=str(given.config),
                )
            _note_manager(given.notifier, log)
            code = await parts.engine.run(*first)
            await settle(parts.world)
            await parts.engine.wait_told(LAST_WORDS)
            log.info("supervisor.exiting", code=code)
            if code not in (0, DETACHED):
                why = parts.engine.state
                failure = SupervisorError(why.reason or "", why.detail)
                given.notifier.failed(errno_of(failure), why.detail)
            nursery.cancel_scope.cancel()
    finally:
        locks.release()
    return code


def _note_manager(notifier: Notifier, log: FilteringBoundLogger) -> None:
    """Say in the log what of the unit file will not work."""
    if notifier.deaf:
        detail = (
            "systemd has started the supervisor and does not listen to it: set Type=notify in the"
            " unit, or systemd knows neither when nginx serves nor that a stop takes its time, and"
            " with Type=forking it ends the supervisor when TimeoutStartSec= is over"
        )
        log.warning("service_manager.not_listening", detail=detail)
    if notifier.watchdog.problem:
        log.warning("service_manager.no_watchdog", detail=notifier.watchdog.problem)


async def _serve_control(
    control: ControlSettings,
    parts: Parts,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    await serve_control(
        control, parts.backend, gate=parts.gate, version=version(), door=parts.estate.door,
        task_status=task_status,
    )  # fmt: skip


def build(given: Given, log: FilteringBoundLogger, locks: Locks, nursery: trio.Nursery) -> Parts:
    """All the parts, connected. Raises SupervisorError where the state directory is unusable."""
    config, settings, hand_over = given.config, given.settings, given.hand_over
    directory = Path(settings.state.directory)
    private_folder(directory, uid=os.getuid())
    history, runtime = History(directory), RuntimeState(directory)
    program = OwnProgram.of_this_process(config)

    def see(sighting: Sighting) -> None:
        log_watch.look()
        evidence.see(sighting)

    def watch_generation(generation: Generation) -> None:
        nursery.start_soon(watch, world, generation, see, engine.post)
        nursery.start_soon(watch_usage, world, generation, evidence.signals)

    world = World(
        settings=settings,
        log=log,
        store=VersionStore(directory, keep=settings.state.keep_versions),
        journal=Journal(directory),
        configs=ConfigStore(directory),
        listener=ProbeListener(settings.probe_listener),
        generations=Generations(first_id=runtime_first_id(runtime)),
        post=lambda event: engine.post(event),
        watch=watch_generation,
        background=nursery.start_soon,
        keep_copy=lambda generation: nursery.start_soon(keep_copy, world, generation),
        lock=locks.take,
        keep_locks=locks.keep_only,
        held=HeldListeners(
            enabled=settings.restart.hold_listeners,
            with_reuseport=settings.restart.hold_reuseport,
            store=given.store,
        ),
    )
    prober = Prober(
        settings.probes,
        report=lambda seen: evidence.observe(seen),
        worker_identity=world.worker_identity,
    )
    evidence = Evidence(
        world,
        settings.probes,
        prober,
        post=lambda event: engine.post(event),
        progress=lambda reply: engine.progress(reply),
        revive=lambda: nursery.start_soon(reload_to_revive, engine, log),
    )
    log_watch = LogWatch(world, evidence.signal, hand_over)
    world.look_at_logs, world.hear_output = log_watch.look, log_watch.hear_output
    world.hear_stdout, world.settle_logs = log_watch.hear_stdout, log_watch.settle
    service = Service(world, given.notifier)
    effects = NginxEffects(
        world, evidence, history, runtime, service,
        lambda verdicts: Reloads(
            world, Jury(world, evidence, prober), verdicts, new_id=new_upgrade_id,
            resume=lambda: finish_reload(engine, log),
        ),
    )  # fmt: skip
    world.progress = lambda reply: engine.progress(reply)
    engine = Engine(
        State(rules=rules_of(settings), restarts=restart_policy_of(settings)),
        effects,
        log,
        new_upgrade_id=new_upgrade_id,
        clock=trio.current_time,
        accepts=lambda: any(one.brood().accepting for one in world.generations),
    )
    given.story.tell_of(world, lambda: engine.state.phase.value)
    backend = Backend(
        config=config, world=world, engine=engine, effects=effects, evidence=evidence,
        history=history, tap=given.tap, error_logs=log_watch.report, started=utc_now(),
    )  # fmt: skip
    door = Door(hand_over, engine.waiters.number_of)
    backend.succession = succession = Succession(
        hand_over=hand_over, program=program, version=version(), engine=engine, world=world,
        door=door, service=service, nursery=nursery,
    )  # fmt: skip
    estate = Estate(
        world=world, engine=engine, evidence=evidence, effects=effects, backend=backend,
        tap=given.tap, door=door, succession=succession, version=version(),
        background=nursery.start_soon,
    )  # fmt: skip
    return Parts(
        world=world, engine=engine, effects=effects, evidence=evidence, prober=prober,
        backend=backend, service=service, log_watch=log_watch,
        gate=Gate(settings.control, own_uid=os.getuid()), estate=estate,
    )  # fmt: skip


async def reload_to_revive(engine: Engine, log: FilteringBoundLogger) -> None:
    """Have the workers of the serving master started again, and say what came of it."""
    async with engine.submit(Reload()) as answers:
        verdicts = [reply async for reply in answers if "verdict" in reply]
    for reply in verdicts:
        tell = log.warning if reply["verdict"] == "committed" else log.error
        tell("generation.revived", verdict=reply["verdict"], detail=reply["detail"])


async def finish_reload(engine: Engine, log: FilteringBoundLogger) -> None:
    """Have a guarded reload that stands half done ended; its verdict is in the history."""
    async with engine.submit(Reload(guard=True, resume=True)) as answers:
        verdicts = [reply async for reply in answers if "verdict" in reply]
    for reply in verdicts:
        if reply["verdict"] == "refused":
            log.warning("reload.not_resumed", reason=reply["reason"], detail=reply["detail"])


def new_upgrade_id() -> str:
    """Sorts by time and cannot be mistaken for another: 20260102T030405-1a2b3c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def runtime_first_id(runtime: RuntimeState) -> int:
    """Generations go on counting where the last supervisor stopped."""
    known = runtime.load().masters
    return 1 + max((one.generation for one in known), default=0)


async def serve_signals(
    config: Path,
    parts: Parts,
    hand_over: HandOver,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn signals into what they ask for.

    SIGTERM, SIGINT and SIGQUIT (with which `docker stop` ends the official nginx images) stop
    nginx and end the supervisor, SIGRTMIN leaves nginx serving and ends it, SIGUSR1 reopens
    nginx's logs, SIGHUP reads the supervisor's own configuration again, SIGUSR2 replaces the
    supervisor by what is on disk, SIGCHLD sweeps orphans.
    """
    with SignalInbox(HANDLED) as signals:
        hand_over.unheard = lambda: signals.unheard
        let_signals_come(hand_over)
        task_status.started()
        while True:
            number = await signals.next()
            if number == signal.SIGCHLD:
                parts.world.reap_strays()
            elif number == signal.SIGUSR2:
                parts.estate.succession.request()
            elif number == signal.SIGHUP:
                parts.service.reloading()
                problem = await reconfigure(
                    config, parts.world, parts.evidence, parts.prober, parts.gate
                )
                parts.service.reloaded(parts.engine.state, problem)
            elif number == signal.SIGUSR1:
                async with parts.engine.submit(Reopen()) as answers:
                    async for _ in answers:
                        pass
            elif number == signal.SIGRTMIN:
                await leave(parts)
            else:
                parts.engine.post(TerminateRequested())


async def leave(parts: Parts) -> None:
    """End and leave nginx serving, unless the end of this process is the end of all others.

    Where systemd would kill nginx then, it is stopped properly instead: the unit comes back.
    """
    problem = detachable()
    if problem is not None:
        parts.world.log.warning("request.refused", reason=problem.reason, detail=problem.detail)
        return
    with trio.move_on_after(ASK_MANAGER):
        problem = await killed_with_us()
    if problem is None:
        parts.engine.post(LeaveRequested())
        return
    parts.world.log.error(
        "request.refused", reason=problem.reason, detail=f"{problem.detail}; nginx is stopped now"
    )
    parts.engine.post(TerminateRequested())


if __name__ == "__main__":
    sys.exit(main())
