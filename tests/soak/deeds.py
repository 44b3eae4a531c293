"""What is done to nginx and its supervisor: commands, mistakes, crashes, and other people.

Each deed returns when what it did is over, and says in the world who serves now. What it draws by
lot comes from the world's generator, which begins anew for each deed: so a seed gives the same
deeds whatever the times are.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.harness import processes
from tests.e2e.harness.site import put
from tests.soak.world import UnexpectedError, World
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

Deed = Callable[[World], None]
DEEDS: dict[str, Deed] = {}
SHORT = ("--canary", "300ms", "--soak", "300ms")


def deed(do: Deed) -> Deed:
    """Put it on the list, under its own name."""
    DEEDS[do.__name__] = do
    return do


# --- commands ---------------------------------------------------------------------------------


@deed
def upgrade(world: World) -> None:
    """A good one is committed."""
    offer = world.another()
    world.ask("upgrade", offer.path)
    world.serving = offer


@deed
def upgrade_to_package(world: World) -> None:
    """A package has replaced the file on disk; `upgrade` takes it."""
    offer = world.another()
    put(offer.path, world.nginx.site.binary)
    world.ask("upgrade")
    world.serving = offer


@deed
def upgrade_held_and_promoted(world: World) -> None:
    """A person looks at it and says yes; a second upgrade and a reload are refused meanwhile."""
    offer = world.another()
    asked = world.nginx.begin("upgrade", offer.path, "--hold")
    world.until("held", lambda: world.nginx.in_phase("held"))
    for command in (("upgrade", world.another().path), ("reload",)):
        world.ask(*command, codes=(3,))
    world.ask("promote")
    world.answer(asked, "upgrade", "--hold")
    world.serving = offer


@deed
def upgrade_held_and_rolled_back(world: World) -> None:
    """A person looks at it and says no; its master may not want to hear it."""
    kind = world.random.choice(["good", "deaf_master", "spin_master"])
    bad = candidate(world.another().build, kind)
    asked = world.nginx.begin("upgrade", bad, "--hold")
    world.until("held", lambda: world.nginx.in_phase("held"))
    world.ask("rollback")
    world.answer(asked, "upgrade", "--hold", codes=(4,))
    if kind != "good":
        # Its workers have to be ended, with whom they were about to answer, by the supervisor.
        world.allow("reset", "cut")


@deed
def rollback(world: World) -> None:
    """After a commit: an upgrade back to the version that served before, where there is one."""
    answer = world.ask("rollback", codes=(0, 3))
    if answer.code == 3:
        if answer.reason != "no_previous_version":
            raise UnexpectedError(f"rollback: {answer}")
        return
    serving = world.quiet()["generations"][0]["sha256"]
    world.serving = next(one for one in world.offers if one.sha == serving)


@deed
def reload(world: World) -> None:
    """nginx reads its configuration again."""
    world.ask("reload")


@deed
def reopen(world: World) -> None:
    """The logs are opened again."""
    world.ask("reopen")


@deed
def stop_and_start(world: World) -> None:
    """Everything is meant to be off for a moment."""
    world.allow("refused", "reset", "cut")
    world.ask("stop", *world.random.choice([(), ("--now",)]))
    if world.nginx.nginx():
        raise UnexpectedError(f"a stop leaves {[str(one) for one in world.nginx.nginx()]}")
    world.ask("start")


@deed
def restart(world: World) -> None:
    """A stop and a start in one."""
    world.allow("refused", "reset", "cut")
    world.ask("restart")


@deed
def take_over(world: World) -> None:
    """Another master on the same sockets, in the place of the one that serves."""
    world.ask("adopt", "--take-over")


@deed
def self_upgrade(world: World) -> None:
    """The supervisor executes itself again, in place."""
    world.ask("self-upgrade")


@deed
def self_upgrade_in_upgrade(world: World) -> None:
    """It goes on with the upgrade afterwards: its client gets the verdict."""

    def strike() -> None:
        world.ask("self-upgrade", "--now", codes=(0, 3))

    _in_an_upgrade(
        world,
        strike,
        hold=world.random.random() < 0.5,
    )


@deed
def reload_with_other_workers(world: World) -> None:
    """The configuration has another number of workers from now on."""
    _with_other_workers(world)
    world.ask("reload")


@deed
def edited_configuration_and_crash(world: World) -> None:
    """Somebody edits it and tells nobody; what starts after a crash has read it."""
    _with_other_workers(world)
    crash_of_everything(world)


def _with_other_workers(world: World) -> None:
    options = world.nginx.site.options
    if options.reuseport:
        return  # nginx itself loses who waits in the queue of a socket that has no worker any more
    number = world.random.choice([one for one in (1, 2, 3, 4) if one != options.workers])
    world.nginx.site.configure(replace(options, workers=number))


@deed
def settings_read_again(world: World) -> None:
    """SIGHUP to the supervisor, which is to hold nothing, and then to hold again."""
    toml, wanted = world.nginx.toml, world.nginx.toml.read_text()
    for text, available in (
        (wanted.replace("[restart]", "[restart]\nhold_listeners = false"), False),
        (wanted, True),
    ):
        toml.write_text(text)
        os.kill(world.nginx.pid, signal.SIGHUP)
        world.until(
            "it is in force",
            lambda: world.nginx.look()["held_listeners"]["available"] is available,  # noqa: B023
        )


# --- bad candidates -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A candidate that goes wrong, and what it costs clients that it answers meanwhile."""

    kind: str
    knobs: Mapping[str, int | str] = field(default_factory=dict)
    costs: tuple[str, ...] = ()

    def made_from(self, build: Build) -> Path:
        """The binary."""
        return candidate(build, self.kind, into=None, **self.knobs)


_CUT = ("reset", "cut")
BAD = (
    Bad(kind="status_500", costs=("bad",)),
    Bad(kind="status_500", knobs={"where": "inherited"}, costs=("bad",)),
    Bad(kind="wrong_body", costs=("bad",)),
    Bad(kind="reset_connections", costs=_CUT),
    Bad(kind="refuse_new_listeners"),
    Bad(kind="silent_listeners"),
    Bad(kind="exit_at_once"),
    Bad(kind="exit_later", knobs={"delay_ms": 100}),
    Bad(kind="hang"),
    Bad(kind="stop_after", knobs={"delay_ms": 100}, costs=_CUT),
    Bad(kind="workers_fatal"),
    Bad(kind="workers_exit", costs=_CUT),
    Bad(kind="workers_crash", costs=_CUT),
    Bad(kind="worker_crash_once", costs=_CUT),
    Bad(kind="hang_workers", costs=(*_CUT, "timeout")),
)
REFUSED = ("wrapper", "truncated", "wrong_architecture", "not_nginx", "not_executable", "empty")


@deed
def bad_candidate(world: World) -> None:
    """An upgrade that is rolled back by itself."""
    bad = world.random.choice(BAD)
    world.allow(*bad.costs)
    world.ask("upgrade", bad.made_from(world.another().build), codes=(4,))


@deed
def refused_candidate(world: World) -> None:
    """A file that is no nginx for this machine: nothing is changed."""
    kind = world.random.choice(REFUSED)
    world.ask("upgrade", candidate(world.another().build, kind), codes=(3,))


# --- somebody else ------------------------------------------------------------------------------


@deed
def foreign_reload(world: World) -> None:
    """HUP to the master, as `nginx -s reload` does."""
    (master,) = world.masters()
    before = world.accepting(master.pid)
    os.kill(master.pid, signal.SIGHUP)
    world.until("other workers", lambda: bool(world.accepting(master.pid) - before))
    world.until("the old ones' end", lambda: not world.accepting(master.pid) & before)


@deed
def foreign_upgrade(world: World) -> None:
    """USR2, WINCH and QUIT by hand, as a package's script does."""
    offer = world.another()
    put(offer.path, world.nginx.site.binary)
    (old,) = world.masters()
    workers = world.nginx.site.options.workers
    os.kill(old.pid, signal.SIGUSR2)
    world.until(
        "two generations",
        lambda: any(
            one.pid != old.pid and len(world.accepting(one.pid)) == workers
            for one in world.masters()
        ),
    )
    if world.random.random() < 0.5:
        os.kill(old.pid, signal.SIGWINCH)
        world.until("its workers' end", lambda: not world.accepting(old.pid))
    os.kill(old.pid, signal.SIGQUIT)
    world.until("the old one's end", lambda: processes.look(old.pid) is None)
    world.serving = offer


@deed
def foreign_winch(world: World) -> None:
    """WINCH to the only master, which leaves it without workers: a reload brings them back."""
    (master,) = world.masters()
    before = world.accepting(master.pid)
    os.kill(master.pid, signal.SIGWINCH)
    world.until("other workers", lambda: bool(world.accepting(master.pid) - before))


@deed
def foreign_quit(world: World) -> None:
    """QUIT to the only master: it is followed by another on the same sockets."""
    (master,) = world.masters()
    os.kill(master.pid, signal.SIGQUIT)
    _restarted(world, {master.pid})


@deed
def broken_configuration(world: World) -> None:
    """A reload is refused; the master dies meanwhile, and starts once it is mended."""
    config = world.nginx.site.config
    text = config.read_text()
    config.write_text("broken;\n")
    try:
        world.ask("reload", codes=(1, 3))
        if world.random.random() < 0.5:
            world.kill([world.masters()[0].pid])  # its workers serve on
        else:
            world.kill(world.everything())  # clients wait in the held listeners
        world.until("it waits", lambda: world.nginx.look()["state"] == "backoff")
    finally:
        config.write_text(text)


@deed
def package_without_upgrade(world: World) -> None:
    """What a package has put on disk is not what a crash starts."""
    put(world.another().path, world.nginx.site.binary)
    crash_of_everything(world)


# --- deaths -------------------------------------------------------------------------------------


def _restarted(world: World, gone: set[int]) -> None:
    """A master that was not there before the crash serves."""

    def again() -> bool:
        masters = {one.pid for one in world.masters()}
        return bool(masters - gone) and not masters & gone

    world.until("another master", again)
    world.quiet()


@deed
def crash_of_master(world: World) -> None:
    """SIGKILL to the master alone: its workers serve until the next one does."""
    (master,) = world.masters()
    world.kill([master.pid])
    _restarted(world, {master.pid})


@deed
def crash_of_everything(world: World) -> None:
    """SIGKILL to the master and all workers."""
    gone = world.everything()
    world.kill(gone)
    _restarted(world, set(gone))


@deed
def crash_of_worker(world: World) -> None:
    """The master replaces it."""
    (master,) = world.masters()
    victim = world.random.choice(sorted(world.accepting(master.pid)))
    world.kill([victim])
    workers = world.nginx.site.options.workers
    world.until("its successor", lambda: len(world.accepting(master.pid) - {victim}) == workers)


@deed
def death_of_supervisor(world: World) -> None:
    """SIGKILL, and another one that finds what serves."""
    world.nginx.die()
    world.nginx.start()


@deed
def death_of_supervisor_and_master(world: World) -> None:
    """Both; the workers that are left serve until the next supervisor has started a master."""
    (master,) = world.masters()
    world.nginx.die()
    world.kill([master.pid])
    world.nginx.start()


@deed
def death_of_everything_and_supervisor(world: World) -> None:
    """As a power failure: nobody is left to hold the sockets."""
    world.allow("refused", "reset", "cut")
    world.nginx.die()
    world.kill(world.everything())
    world.nginx.start()


def _in_an_upgrade(world: World, strike: Callable[[], None], *, hold: bool = False) -> None:
    """Begin an upgrade, strike at a random moment of it, and see how it ends."""
    offer = world.another()
    asked = world.nginx.begin("upgrade", offer.path, *(("--hold",) if hold else SHORT))
    if hold:
        world.until("held", lambda: world.nginx.in_phase("held"))
    else:
        time.sleep(world.random.uniform(0.0, 1.2))
    strike()
    if hold:
        world.ask("promote", codes=(0, 3, 4))
    # 5, 6: the supervisor died, before or after it had taken the call.
    world.answer(asked, "upgrade", codes=(0, 3, 4, 5, 6))
    world.resolve(offer)


@deed
def death_of_supervisor_in_upgrade(world: World) -> None:
    """The next one ends what was begun, forward or back."""
    _in_an_upgrade(world, lambda: death_of_supervisor(world))


@deed
def death_of_old_master_in_upgrade(world: World) -> None:
    """The oldest master there is at that moment, alone or with its workers."""

    def strike() -> None:
        masters = world.masters()
        if masters:
            whole = world.random.random() < 0.5
            world.kill(world.family(masters[0].pid) if whole else [masters[0].pid])

    _in_an_upgrade(world, strike)


@deed
def death_of_candidate_in_upgrade(world: World) -> None:
    """The youngest master, where there are two: alone or with its workers."""

    def strike() -> None:
        masters = world.masters()
        if len(masters) == 2:
            whole = world.random.random() < 0.5
            world.kill(world.family(masters[1].pid) if whole else [masters[1].pid])

    _in_an_upgrade(world, strike)


@deed
def death_of_everything_in_upgrade(world: World) -> None:
    """Both generations at once."""
    _in_an_upgrade(world, lambda: world.kill(world.everything()))


@deed
def death_of_old_master_while_held(world: World) -> None:
    """The standby is gone when the candidate is promoted."""
    _in_an_upgrade(world, lambda: world.kill([world.masters()[0].pid]), hold=True)


@deed
def storm(world: World) -> None:
    """One fault upon the other in an upgrade, and none is waited out."""

    def hup() -> None:
        for master in world.masters():
            os.kill(master.pid, signal.SIGHUP)

    def pause() -> None:
        _pause(world, world.nginx.pid)

    def supervisor_dies() -> None:
        world.nginx.die()
        if not world.nginx.nginx():
            world.allow("refused", "reset", "cut")  # nobody is left to hold the sockets
        world.nginx.start()

    faults: list[Callable[[], None]] = [
        lambda: world.kill(world.everything()),
        lambda: world.kill([one.pid for one in world.masters()[:1]]),
        lambda: world.kill([one.pid for one in world.masters()[1:]]),
        lambda: world.kill(world.everything()[-1:]),
        supervisor_dies,
        hup,
        pause,
    ]

    def strike() -> None:
        for _ in range(world.random.randint(2, 5)):
            world.random.choice(faults)()
            time.sleep(world.random.uniform(0.0, 0.4))

    _in_an_upgrade(world, strike)


@deed
def death_of_supervisor_while_it_starts(world: World) -> None:
    """The one after the one that died does not live long either."""
    world.nginx.die()
    world.nginx.launch()
    time.sleep(world.random.uniform(0.0, 0.6))
    world.nginx.die()
    world.nginx.start()


def _in_a_command(world: World, strike: Callable[[], None]) -> None:
    """Begin something, strike at a random moment of it, and see how it ends."""
    command = world.random.choice(
        [("reload",), ("adopt", "--take-over"), ("rollback",), ("restart",), ("self-upgrade",)]
    )
    if command == ("restart",):
        world.allow("refused", "reset", "cut")
    asked = world.nginx.begin(*command)
    time.sleep(world.random.uniform(0.0, 0.4))
    strike()
    world.answer(asked, *command, codes=range(7))
    world.resolve(*(world.offers if command == ("rollback",) else ()))


@deed
def crash_in_command(world: World) -> None:
    """Of all of nginx, of masters alone, or of one worker."""

    def strike() -> None:
        every = world.everything()
        masters = {one.pid for one in world.masters()}
        workers = [pid for pid in every if pid not in masters]
        wish = world.random.choice(["everything", "masters", "worker"])
        if wish == "worker":
            world.kill(workers[:1])
        else:
            world.kill(every if wish == "everything" else masters)

    _in_a_command(world, strike)


@deed
def death_of_supervisor_in_command(world: World) -> None:
    """The next one finds two masters on the same sockets, none, or one that is leaving."""
    _in_a_command(world, lambda: death_of_supervisor(world))


# --- pauses ---------------------------------------------------------------------------------------


def _pause(world: World, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(world.random.uniform(0.1, 1.5))
    os.kill(pid, signal.SIGCONT)


@deed
def pause_of_supervisor(world: World) -> None:
    """SIGSTOP, and CONT a while later."""
    _pause(world, world.nginx.pid)


@deed
def crash_while_supervisor_is_paused(world: World) -> None:
    """Clients wait until it goes on."""
    os.kill(world.nginx.pid, signal.SIGSTOP)
    gone = world.everything()
    world.kill(gone)
    time.sleep(world.random.uniform(0.1, 1.0))
    os.kill(world.nginx.pid, signal.SIGCONT)
    _restarted(world, set(gone))


@deed
def pause_of_supervisor_in_upgrade(world: World) -> None:
    """It goes on where it was, or rolls back."""
    _in_an_upgrade(world, lambda: _pause(world, world.nginx.pid))


@deed
def pause_of_master(world: World) -> None:
    """Workers do not need it; nothing follows."""
    _pause(world, world.masters()[0].pid)
