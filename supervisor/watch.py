"""Watch one generation: its master and its workers by pidfd, its number of workers by count.

Beside that, what it writes to its standard error goes into our log, as far as it can be told (see
`_tell_output`), and what it writes to its standard output to our own (`passing_on`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from supervisor.core.error_log import pid_of
from supervisor.core.events import Event, MasterExited
from supervisor.core.judge import SETTLE
from supervisor.core.signals import ProcessKind
from supervisor.edges import procfs
from supervisor.edges.capture import PIECE, Capture
from supervisor.edges.descriptors import RESERVE
from supervisor.edges.generation import Generation, Role, listens_no_more
from supervisor.edges.last_words import last_words
from supervisor.edges.linux import ExitStatus
from supervisor.edges.passing_on import PassingOn
from supervisor.edges.process import Process
from supervisor.operations.foreign import note_foreign_master, successor_text
from supervisor.operations.listeners import hold
from supervisor.operations.reload import learn_reload
from supervisor.operations.world import World

CENSUS = 1.0
"""Seconds between two counts when nothing happens; exits are noticed at once.

So are workers that somebody else has come across first, as whoever waits for a candidate does.
"""

RESPAWN = 0.005
"""Seconds after a worker's exit at which its successor is expected to be there."""

TITLE = 0.01
"""Seconds until a process that starts is looked at again, then twice as many each time: what it is
there for shows only once it has started, and perhaps not for long."""

LINE = 1024
"""Characters of a line of nginx's output that go into the log."""

OUTPUT_BACKLOG = 2**20
"""Bytes of nginx's output that may be unread; where there is more, the oldest is dropped ..."""

OUTPUT_KEPT = 2**16
"""... and this much of it is told."""

OUTPUT_FLOOD = 0.1
"""Seconds between two looks at the output while it comes faster than it can be told."""

_NOT_READ = (
    "nginx writes more to its standard output than whoever reads the supervisor's own takes; the "
    "oldest was dropped, and nginx did not wait"
)
_LINES_AT_ONCE = 64  # about a millisecond; then others have their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """A worker of `generation` is gone."""

    generation: int
    pid: int
    status: ExitStatus
    draining: bool  # it was seen leaving before
    at: float
    kind: ProcessKind = ProcessKind.WORKER  # or a cache process
    lived: float | None = None  # seconds from its start to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The workers of `generation` at one moment."""

    generation: int
    brood: procfs.Brood
    master_stopped: bool
    at: float


Sighting = WorkerExited | Counted


async def watch(
    world: World,
    generation: Generation,
    see: Callable[[Sighting], None],
    post: Callable[[Event], None],
) -> None:
    """Report until the generation has neither master nor workers.

    Cancelling stops the reports and touches no process.
    """
    draining: set[int] = set()
    watched: set[int] = set()
    left: set[int] = set()  # workers that ended as they were told
    caches: set[int] = set()  # cache processes

    async def master() -> None:
        await generation.master.wait_exited()
        status = await generation.master.exit_status()
        if not status.orderly:
            # One that leaves by itself leaves last; else the youngest workers may be unknown.
            generation.remember(world.find_strays(generation))
        generation.exit = status
        generation.changed.set()
        tell_output_now(world, generation)  # before anything is done about it: it says why
        successor = "" if generation.told_to_stop else successor_text(world, generation)
        detail = f"master {generation.master.pid} of g{generation.id} ({generation.exit})"
        if generation.role is Role.CANDIDATE and not generation.told_to_stop:
            logs = generation.program.error_logs
            said = await trio.to_thread.run_sync(last_words, generation.master.pid, logs)
            detail += f": {said}" if said else ""
        post(
            MasterExited(
                generation=generation.id,
                orderly=generation.exit.orderly and not generation.told_to_stop,
                detail=f"{detail}; {successor}" if successor else detail,
                at=trio.current_time(),
                started=trio.current_time() - generation.master.age,
                replaced=bool(successor),
            )
        )

    async def worker(process: Process) -> None:
        await process.wait_exited()
        ended, lived = trio.current_time(), process.age
        status = await process.exit_status()
        watched.discard(process.pid)
        if status.orderly:
            left.add(process.pid)
        else:
            generation.accepted -= {process.pid}
        if generation.workers.get(process.pid) is not process:
            return  # it has turned out to be the new master
        if not generation.ready:
            generation.ended[process.pid] = status  # whoever waits for it must know
        generation.workers.pop(process.pid).close()
        see(
            WorkerExited(
                generation=generation.id, pid=process.pid, status=status,
                draining=process.pid in draining, at=ended, lived=lived,
                kind=ProcessKind.CACHE if process.pid in caches else ProcessKind.WORKER,
            )
        )  # fmt: skip
        caches.discard(process.pid)
        for delay in (RESPAWN, SETTLE):
            await trio.sleep(delay)
            generation.changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(master)
        nursery.start_soon(_tell_output, world, generation)
        nursery.start_soon(_pass_on_stdout, world, generation)
        stopped, starting, pause = False, frozenset[int](), TITLE
        while not (generation.exit is not None and generation.gone):
            brood = generation.look()
            if generation is world.active and not generation.told_to_stop:
                hold(world, generation)
            draining |= brood.draining
            caches |= brood.cache
            if brood.accepting and not brood.accepting & generation.accepted:
                # As after a reload, or where all of them were killed.
                if generation.accepted and generation.accepted <= draining | left:
                    _learn_reload(world, generation)
                generation.accepted = brood.accepting
            for pid, process in list(generation.workers.items()):
                if pid not in watched:
                    watched.add(pid)
                    nursery.start_soon(worker, process)
            _tell_descriptors(world)
            note_foreign_master(world, generation, brood)
            was_stopped, stopped = stopped, generation.master.stopped
            if stopped is not was_stopped:
                _tell_stopped(world, generation, stopped=stopped)
            see(
                Counted(
                    generation=generation.id, brood=brood, master_stopped=stopped,
                    at=trio.current_time(),
                )
            )  # fmt: skip
            if not generation.quitting and _is_told_to_quit(generation, brood):
                generation.quitting = True
                successor = successor_text(world, generation)
                detail = (
                    f"master {generation.master.pid} of g{generation.id} was told to quit by "
                    "somebody else: it closes its listeners and waits for connections"
                )
                post(
                    MasterExited(
                        generation=generation.id, orderly=True, at=trio.current_time(),
                        detail=f"{detail}; {successor}" if successor else detail,
                        started=trio.current_time() - generation.master.age,
                        replaced=bool(successor),
                    )
                )  # fmt: skip
            if generation.changed.is_set():  # else somebody waits for this one
                generation.changed = trio.Event()
            pause = 2 * pause if brood.starting <= starting else TITLE
            starting = brood.starting
            longest = min(CENSUS, world.settings.restart.hold_check)
            with trio.move_on_after(min(pause, longest) if starting else longest):
                await generation.changed.wait()
        nursery.cancel_scope.cancel()


def _learn_reload(world: World, generation: Generation) -> None:
    """Somebody else has had the serving generation reloaded, unless it is an operation of ours."""
    if generation is not world.active or not generation.ready or generation.told_to_stop:
        return
    if not world.reloading and world.run is None:
        world.background(partial(learn_reload, world, generation))


def _is_told_to_quit(generation: Generation, brood: procfs.Brood) -> bool:
    """By somebody else: its workers leave, and it listens no more (as after WINCH it still does).

    It may go on so for hours, while connections are refused; nothing but TERM can be told to it
    (ngx_process_cycle.c: `continue` before anything else is handled).
    """
    if generation.told_to_stop or not generation.ready or not generation.alive:
        return False
    if brood.accepting or brood.starting or not brood.draining:
        return False
    return listens_no_more(generation.master)


def _tell_descriptors(world: World) -> None:
    """Say it once, and again when it is over: probes and clients are the first to feel it."""
    RESERVE.fill()
    was_short, world.told_short = world.told_short, RESERVE.was_needed()
    if was_short is world.told_short:
        return
    if world.told_short:
        detail = (
            "no descriptor is left but the reserve: probes cannot ask, clients are not answered, "
            "an upgrade is not begun; raise LimitNOFILE=, or see who keeps so many open"
        )
        world.log.error("supervisor.no_descriptors", detail=detail)
    else:
        world.log.info("supervisor.descriptors_back")


def _tell_stopped(world: World, generation: Generation, *, stopped: bool) -> None:
    """A stopped master takes no signal; its workers serve on, so that nobody notices otherwise."""
    fields = {"generation": f"g{generation.id}", "pid": generation.master.pid}
    if stopped:
        detail = "it takes no signal until SIGCONT; its workers serve on"
        world.log.warning("generation.master_stopped", **fields, detail=detail)
    else:
        world.log.info("generation.master_continued", **fields)


async def _pass_on_stdout(world: World, generation: Generation) -> None:
    """What nginx writes to its standard output, to ours; generations that share it pass it on once.

    Until cancelled.
    """
    if generation.output is None or generation.output.stdout is None:
        return

    def lost(count: int, problem: str) -> None:
        why = f"the supervisor's own cannot be written to: {problem}" if problem else _NOT_READ
        world.log.warning("nginx.stdout_dropped", bytes=count, detail=why)

    stdout = generation.output.stdout
    await PassingOn(
        stdout, world.stdout, lost=lost, seen=lambda lines: world.hear_stdout(lines)
    ).run()


async def _tell_output(world: World, generation: Generation) -> None:
    """What nginx writes to its standard error, into our log; until cancelled.

    Generations that were upgraded from one another share it: the lines carry nginx's own pids.
    All that is there is told at each look, unless it is too much: then the oldest is dropped
    unread, since it is memory, and the looks come closer together while that lasts.
    """
    output = generation.output
    if output is None:
        return
    lost, told_loss = 0, 0.0
    try:
        while True:
            pause = CENSUS
            if output.behind > OUTPUT_BACKLOG:
                pause = OUTPUT_FLOOD
                while more := output.drop_all_but(OUTPUT_KEPT):
                    lost += more
                    await trio.lowlevel.checkpoint()
            if lost and trio.current_time() - told_loss >= CENSUS:
                _tell_lost(world, lost)
                lost, told_loss = 0, trio.current_time()
            for _ in range(1 + output.behind // PIECE):  # not what comes while this is told
                lines = output.drain()
                for start in range(0, len(lines), _LINES_AT_ONCE):
                    more = output.more or start + _LINES_AT_ONCE < len(lines)
                    _tell_lines(world, lines[start : start + _LINES_AT_ONCE], more=more)
                    await trio.lowlevel.cancel_shielded_checkpoint()  # they are drained already
            await trio.sleep(pause)
    finally:
        while more := output.drop_all_but(OUTPUT_KEPT):
            lost += more
        if lost:
            _tell_lost(world, lost)
        _tell_now(world, output)


def tell_output_now(world: World, generation: Generation) -> None:
    """What it wrote to its standard error by now, without waiting for the next look."""
    if generation.output is not None:
        _tell_now(world, generation.output)


def _tell_now(world: World, output: Capture) -> None:
    """The next of the output without a pause, as much as takes some milliseconds."""
    for _ in range(OUTPUT_KEPT // PIECE):
        lines = output.drain()
        _tell_lines(world, lines, more=output.more)


def _tell_lost(world: World, lost: int) -> None:
    detail = "nginx writes more to its standard error than can be logged"
    world.log.warning("nginx.output_dropped", bytes=lost, detail=detail)


def _tell_lines(world: World, lines: list[bytes], *, more: bool) -> None:
    world.hear_output(lines, more)
    for line in lines:
        text = line.decode(errors="replace").removesuffix("\r")
        world.log.info("nginx.output", line=text[:LINE], **_whose(world, line))


def _whose(world: World, line: bytes) -> dict[str, str]:
    """The generation that a message names a process of; an access log's lines name nobody."""
    pid = pid_of(line)
    for one in world.generations if pid is not None else ():
        if pid == one.master.pid or pid in one.workers:
            return {"generation": f"g{one.id}"}
    return {}
