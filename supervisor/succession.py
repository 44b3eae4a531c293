"""The supervisor replaces itself: when, by what, and what happens to those who wait.

The wish comes by `nginxctl self-upgrade` or SIGUSR2. The new program is tested first. The execve is
then made in the engine's own task, at a moment at which nothing is under way and nothing is between
the kernel and a task of ours. docs/adr/0007 says what goes along, and why so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from supervisor.core import commands
from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.core.succession import Moment, Ruling, rule
from supervisor.edges.logs import flush_logs
from supervisor.reconfigure import expect_replaceable
from supervisor.waiters import Reply

if TYPE_CHECKING:
    from supervisor.edges.control_handover import Door
    from supervisor.edges.handover import HandOver
    from supervisor.edges.own_program import OwnProgram
    from supervisor.engine import Engine
    from supervisor.operations.world import World
    from supervisor.service import Service

FRESH = 5.0
"""Seconds for which a test of the program on disk counts."""

HUSH = 0.5
"""Seconds that clients get to take what they are being sent."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """Who wants the supervisor replaced; `request` None: whoever sent a signal."""

    request: int | None
    now: bool
    version: str = ""  # of what is on disk
    tested: float = 0.0


class Succession:
    """One for the life of the process; its tasks run in `nursery`."""

    def __init__(
        self,
        *,
        hand_over: HandOver,
        program: OwnProgram,
        version: str,
        engine: Engine,
        world: World,
        door: Door,
        service: Service,
        nursery: trio.Nursery,
    ) -> None:
        self._hand_over = hand_over
        self._program = program
        self._version = version
        self._engine = engine
        self._world = world
        self._door = door
        self._service = service
        self._nursery = nursery
        self._wish: _Wish | None = None
        self._answered = trio.Event()  # the attempt has ended, and this program goes on
        self._failure: SupervisorError | None = None
        self._announced = False

    # --- asking for it ------------------------------------------------------------------------

    @asynccontextmanager
    async def submit(
        self, command: commands.SelfUpgrade
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Reply]]:
        """As the engine's `submit`; the verdict comes from the program that is there by then."""
        listening = self._engine.waiters.listen(command, at=trio.current_time(), upgrade_id="")
        async with listening as (number, replies):
            if number is not None:
                self._begin(_Wish(number, command.now))
            yield replies

    def request(self) -> None:
        """SIGUSR2: after the upgrade that runs, if one does. The log tells the rest."""
        self._begin(_Wish(None, now=False))

    def _begin(self, wish: _Wish) -> None:
        if self._wish is not None:
            text = "cannot replace the supervisor: that is under way already (nginxctl events)"
            self._answer(wish, Refusal("self_upgrade_in_progress", text))
            return
        self._wish = wish
        self._nursery.start_soon(self._replace, wish)

    # --- doing it -----------------------------------------------------------------------------

    async def _replace(self, wish: _Wish) -> None:
        """Return when it is known that this program goes on; else never."""
        self._announced = False
        try:
            tested = await self._test(wish)
            self._accept(tested)
            while True:
                self._answered, self._failure, self._wish = trio.Event(), None, tested
                self._engine.when_quiet(self._attempt)
                await self._answered.wait()
                _raise_if(self._failure)
                tested = await self._test(wish)  # the last test is too long ago
        except SupervisorError as exc:
            self._answer(wish, exc)
        except Exception as exc:  # noqa: BLE001 - a bug in this must not end the supervisor
            self._answer(wish, self._bug(exc))
        finally:
            self._wish = None

    def _bug(self, exc: Exception) -> SupervisorError:
        self._world.log.exception("supervisor.replacement_bug")
        text = f"cannot replace the supervisor: a fault in it ({exc!r}); it goes on as before"
        return OperationFailed("internal_error", text)

    async def _test(self, wish: _Wish) -> _Wish:
        _expect_possible(rule(self._engine.state, now=wish.now))
        version = await self._program.check()
        await expect_replaceable(self._program.config, self._world)
        return replace(wish, version=version, tested=trio.current_time())

    def _accept(self, wish: _Wish) -> None:
        if wish.request is not None:
            self._engine.waiters.accept(wish.request)
        ruling = rule(self._engine.state, now=wish.now)
        if ruling.moment is not Moment.LATER:
            return
        detail = f"{ruling.detail}; the supervisor is replaced after that"
        self._world.log.info("supervisor.replacement_waits", detail=detail)
        if wish.request is not None:
            self._engine.waiters.tell(wish.request, {"event": "waiting", "detail": detail})

    async def _attempt(self) -> bool:
        """In the engine's task, when it has nothing to do; True: do not ask again."""
        wish = self._wish
        if wish is None:
            return True
        try:
            ruling = rule(self._engine.state, now=wish.now)
            _expect_possible(ruling)
            if ruling.moment is not Moment.NOW or not self._is_settled():
                return False
            if trio.current_time() - wish.tested <= FRESH:
                return await self._go(wish)
        except SupervisorError as exc:
            self._failure = exc
        except Exception as exc:  # noqa: BLE001 - see `_replace`
            self._failure = self._bug(exc)
        self._answered.set()
        return True

    def _is_settled(self) -> bool:
        """Nothing that the machine does not know of is under way; else an event follows."""
        run, generations = self._world.run, self._world.generations
        if run is not None and run.stored is not None and not run.settled.is_set():
            self._nursery.start_soon(self._look_again, run.settled)
            return False
        if self._world.foreign_hearing is not None:
            self._nursery.start_soon(self._look_again, self._world.foreign_hearing)
            return False
        if any(generations.get(one) is None for one in self._engine.state.retiring):
            return False  # it is gone, and the pid file is being seen to
        return not self._engine.waiters.unsettled

    async def _look_again(self, after: trio.Event) -> None:
        await after.wait()
        self._engine.when_quiet(self._attempt)

    async def _go(self, wish: _Wish) -> bool:
        """Become the new program; returns False where something came between."""
        self._announce(wish)
        try:
            await self._door.hush(HUSH)
            if not self._engine.quiet or not self._is_settled():
                return False
            self._service.reloading()
            flush_logs()  # what waits in this program's memory would not go along
            try:
                self._hand_over.replace_program(self._program.argv, self._environment())
            finally:
                self._service.ready_again()
        finally:
            self._door.speak()

    def _announce(self, wish: _Wish) -> None:
        if self._announced:
            return
        self._announced = True
        detail = (
            f"the supervisor {self._version} is replaced by {wish.version}; nginx is not touched, "
            "this connection stays, and what waits for an end goes on waiting"
        )
        self._world.log.info("supervisor.restarting", to_version=wish.version, detail=detail)
        self._engine.waiters.announce({"event": "supervisor_restarting", "detail": detail})

    def _environment(self) -> dict[str, str]:
        return {**self._program.environment, **self._service.environment}

    def _answer(self, wish: _Wish, problem: SupervisorError) -> None:
        verdict = "refused" if isinstance(problem, Refusal) else "failed"
        self._world.log.warning(
            "supervisor.not_replaced", reason=problem.reason, detail=problem.detail
        )
        if wish.request is not None:
            self._engine.waiters.answer(
                wish.request, verdict, problem.reason, problem.detail, at=trio.current_time()
            )

    # --- having done it -----------------------------------------------------------------------

    @property
    def request_number(self) -> int | None:
        """Whom the successor has to tell that it is there."""
        return None if self._wish is None else self._wish.request


def _raise_if(problem: SupervisorError | None) -> None:
    if problem is not None:
        raise problem


def _expect_possible(ruling: Ruling) -> None:
    if ruling.moment is Moment.NEVER:
        raise Refusal(ruling.reason, ruling.detail)
