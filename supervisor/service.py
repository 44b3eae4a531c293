"""What the service manager is told, and when: systemd where its unit started the supervisor.

READY comes when a worker accepts connections, whoever has started it, and not before. The line for
people follows every change. Signs of life come out of the engine's own loop, so that a supervisor
whose engine is stuck is a dead one: the manager ends it, nginx serves on, and the next supervisor
adopts it. While nginx starts or stops they extend the manager's time-outs as well: how long that
may take is for the supervisor's configuration to say, which has a limit for each step.
"""

from __future__ import annotations

import errno
import math
import re
from typing import TYPE_CHECKING

import trio

from supervisor.core.errors import SupervisorError
from supervisor.core.model import Phase, State
from supervisor.core.service_status import is_ending, may_serve, service_status
from supervisor.snapshot import condition

if TYPE_CHECKING:
    from supervisor.edges.notify import Notifier
    from supervisor.engine import Engine
    from supervisor.operations.world import World

SIGNS_OF_LIFE = 3
"""In each period of the watchdog: two may be late on a machine that has no time."""
EXTENSION, EXTEND_EVERY = 30.0, 10.0
"""Seconds: how long the manager shall wait from each sign on, and how soon the next one comes."""
_LEAVES = "the supervisor leaves nginx serving and ends"
_REASONS = {
    "already_supervised": errno.EBUSY,
    "bad_configuration": errno.EINVAL,
}
_OF_NGINX = re.compile(r"\(([1-9][0-9]{0,2}): [A-Z]")


class Service:
    """One for the life of the process."""

    def __init__(self, world: World, notifier: Notifier) -> None:
        self._world = world
        self._notifier = notifier
        self._told = ""
        self._note = ""
        self._ending = False
        self._successor = False
        self._stir = trio.Event()
        self.told_ready = False

    @property
    def environment(self) -> dict[str, str]:
        """What a program that takes this one's place needs to speak to the same manager."""
        return self._notifier.environment

    # --- by events ----------------------------------------------------------------------------

    def settled(self, state: State) -> None:
        """Tell what has changed, where anything has."""
        text = self._text(state)
        if is_ending(state):
            if not self._ending:
                self._ending = True
                self._notifier.stopping(text)
                self._stir.set()
        elif self._successor or (not self.told_ready and self._serves(state)):
            self._successor, self.told_ready = False, True
            self._notifier.ready(text)
        elif text != self._told:
            self._notifier.status(text)
        self._told = text

    def inherit(self, *, told_ready: bool) -> None:
        """Go on for a predecessor in this process; the next `settled` ends its RELOADING."""
        self.told_ready = self._successor = told_ready

    def reloading(self) -> None:
        """Our own configuration is read again, or this program replaced: `reloaded` follows."""
        if self.told_ready:  # before that, the READY that ends it would say that nginx serves
            self._notifier.reloading()

    def reloaded(self, state: State, problem: str | None) -> None:
        """That is over; `problem`: why everything is as before. Said until the next reload."""
        self._note = "" if problem is None else f"the configuration on disk is rejected: {problem}"
        self._told = self._text(state)
        if self.told_ready:
            self._notifier.ready(self._told, error=0 if problem is None else errno.EINVAL)
        else:
            self._notifier.status(self._told)

    def ready_again(self) -> None:
        """This program was not replaced after all."""
        if self.told_ready:
            self._notifier.ready(self._told)

    def _text(self, state: State) -> str:
        generations = list(self._world.generations)
        told, reason = None, None
        if state.phase in (Phase.IDLE, Phase.DRAINING):
            seen, why, _ = condition(state, self._world.active, generations)
            if seen in ("degraded", "upgrading"):
                told, reason = seen, why
        versions = {one.id: one.program.version for one in generations}
        run = self._world.run
        if run is not None and run.to_version and state.candidate is not None:
            versions.setdefault(state.candidate, run.to_version)  # it is being started
        note = _LEAVES if state.leaving else self._note
        return service_status(state, versions, told=told, reason=reason, note=note)

    def _serves(self, state: State) -> bool:
        known = list(self._world.generations)
        if not may_serve(state):
            return False
        if any(one.brood().accepting for one in known):
            return True
        # Workers of a master that somebody else has started beside ours serve as well.
        return condition(state, self._world.active, known)[0] == "upgrading"

    # --- signs of life ------------------------------------------------------------------------

    async def keep_alive(self, engine: Engine) -> None:
        """Give signs of life as long as the engine's loop goes round; one task, until cancelled."""
        if not self._notifier.listened_to:
            return
        while True:
            await engine.goes_round()
            if not self._ending:
                self.settled(engine.state)  # nobody tells of what others do to nginx
            extend = self._ending or not self.told_ready
            self._notifier.alive(extend=EXTENSION if extend else None)
            with trio.move_on_after(self._pause(extends=extend)):
                await self._stir.wait()
                self._stir = trio.Event()

    def _pause(self, *, extends: bool) -> float:
        period = self._notifier.watchdog.seconds
        signs = math.inf if period is None else period / SIGNS_OF_LIFE
        return min(signs, EXTEND_EVERY) if extends else signs


def errno_of(problem: SupervisorError) -> int:
    """The error number that says best why the supervisor ends: the system's own, where it says one.

    nginx names it in brackets: `bind() to 0.0.0.0:80 failed (98: Address already in use)`.
    """
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        cause = cause.__cause__
    said = _OF_NGINX.search(problem.detail)
    return int(said[1]) if said else _REASONS.get(problem.reason, errno.ECANCELED)
