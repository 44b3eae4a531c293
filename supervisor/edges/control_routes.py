"""The control interface: which methods there are, who may call them, and what each one does.

`ROUTES` is the whole API with its access column, so that authorisation cannot be forgotten for a
method: one without a row is not served, and a row without access cannot be written. The form of
calls and replies is not written here but in org.nginxsupervisor.Control.varlink, and every message
is checked against that.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Protocol

import trio

from supervisor import wire
from supervisor.core import commands
from supervisor.core.access import Role
from supervisor.core.duration import LONGEST
from supervisor.edges.control_connection import CallError, Exchange, Use, invalid_parameter
from supervisor.edges.peers import Peer

Fields = dict[str, object]
ProgressEvents = AbstractAsyncContextManager["trio.MemoryReceiveChannel[Fields]"]
LogEvents = AbstractAsyncContextManager[
    tuple[Sequence[Mapping[str, object]], "trio.MemoryReceiveChannel[Fields]"]
]


class ControlBackend(Protocol):
    """What the socket needs of the engine. The dicts are structs of the interface file."""

    async def freshen(self) -> None:
        """What a snapshot tells of files and packages is as they are now; at most some seconds."""
        ...

    def status(self) -> Fields:
        """The reply of Status: a snapshot, at once, whatever is running."""
        ...

    def submit(
        self, command: commands.Command | commands.SelfUpgrade, peer: Peer
    ) -> ProgressEvents:
        """Ask for an operation; entering gives its Progress events, the last one the verdict.

        The first event is `accepted` where the command is: that is what `--no-wait` waits for.
        Entering has the command taken, all or nothing, when it is cancelled as well. Leaving
        early ends the listening and never the operation. The sender does not wait for the
        receiver. A channel that ends without a verdict means that the supervisor ends. What the
        body of the `async with` raises passes through unchanged (no nursery around it).
        """
        ...

    def resume(
        self, number: int | None, undelivered: Sequence[Mapping[str, object]]
    ) -> ProgressEvents:
        """As `submit` for what a predecessor of this process has begun, and told so far."""
        ...

    async def history(self, limit: int | None) -> Sequence[Mapping[str, object]]:
        """The last `limit` verdicts (None: all that are kept), the oldest first.

        Nobody waits for the disk meanwhile.
        """
        ...

    def versions(self) -> Sequence[Mapping[str, object]]:
        """The stored versions."""
        ...

    async def check(self) -> Fields:
        """The reply of Check; changes nothing, may be cancelled."""
        ...

    async def health(self) -> Fields:
        """The reply of Health; it waits for the engine, and may be cancelled."""
        ...

    async def doctor(self) -> Fields:
        """The reply of Doctor; changes nothing, may be cancelled."""
        ...

    def log_events(self, *, new: bool = False) -> LogEvents:
        """The recent LogEvents, and a channel of those after them, with none lost in between.

        `new`: without those that a predecessor of this process has logged.
        """
        ...


class Access(Enum):
    """Who may call a method; the value is the role that it takes."""

    ANYONE = Role.NOBODY  # who can connect; the file's mode decides about that
    VIEW = Role.VIEWER  # looks, and has nothing run
    OPERATE = Role.OPERATOR  # neither brings a program onto the host nor stops nginx
    ADMIN = Role.ADMIN
    ROOT = Role.ROOT


Handler = Callable[[ControlBackend, Exchange, Fields], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of the control interface; `more` has the parameters that take more access.

    A parameter counts as given unless it is null or false.
    """

    method: str
    access: Access
    handler: Handler
    more: Mapping[str, Access] = field(default_factory=dict)

    def needed(self, given: Mapping[str, object]) -> tuple[Role, str | None]:
        """The role that this call takes, and the parameter that makes it more than the method."""
        role, because = self.access.value, None
        for name, access in self.more.items():
            if access.value > role and given.get(name) not in (None, False):
                role, because = access.value, name
        return role, because


async def _status(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await backend.freshen()
    await exchange.reply(backend.status())


async def _upgrade(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    command = commands.Upgrade(
        binary=_path(given, "binary"),
        canary=_seconds(given, "canary_s"),
        soak=_seconds(given, "soak_s"),
        hold=given.get("hold") is True,
        dry_run=given.get("dry_run") is True,
        if_changed=given.get("if_changed") is True,
        trust=given.get("trust") is True,
    )
    last = "accepted" if given.get("wait") is False else "verdict"
    await _operate(backend, exchange, command, last=last)


async def _promote(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Promote())


async def _rollback(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Rollback(to=_path(given, "to")))


async def _reload(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Reload(guard=given.get("guard") is True))


async def _reopen(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Reopen())


async def _drain(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    if given["now"] is not True:
        invalid_parameter("now")
    await _operate(backend, exchange, commands.Drain())


async def _stop(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Stop(now=given.get("now") is True))


async def _start(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Start())


async def _restart(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Restart())


async def _adopt(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Adopt(take_over=given.get("take_over") is True))


async def _detach(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await _operate(backend, exchange, commands.Detach())


async def _self_upgrade(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    command = commands.SelfUpgrade(now=given.get("now") is True)
    await _operate(backend, exchange, command)


async def _history(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    limit = given.get("limit")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        invalid_parameter("limit")
    await exchange.reply_rows("entries", partial(backend.history, limit))


async def _versions(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    await exchange.reply({"versions": backend.versions()})


async def _check(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    with exchange.while_connected(Use.LOOKS):
        checked = await backend.check()
    await exchange.reply(checked)


async def _health(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    with exchange.while_connected(Use.LOOKS):
        found = await backend.health()
    await exchange.reply(found)


async def _doctor(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    with exchange.while_connected(Use.LOOKS):
        found = await backend.doctor()
    await exchange.reply(found)


async def _events(backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
    follow = given.get("follow") is True
    if follow and not exchange.call.more:
        raise CallError(f"{wire.SERVICE_INTERFACE}.ExpectedMore", {})
    resumed = exchange.resumed
    with exchange.while_connected(Use.LOOKS):
        async with backend.log_events(new=resumed is not None) as (recent, later):
            if follow:
                exchange.events = later
            if resumed is not None:
                recent = [*resumed.undelivered, *recent]
            if recent or resumed is None:
                await exchange.reply({"entries": recent}, continues=follow)
            if follow:
                async for event in later:
                    await exchange.reply({"entries": [event]}, continues=True)
                await exchange.reply({"entries": []})


async def _operate(
    backend: ControlBackend,
    exchange: Exchange,
    command: commands.Command | commands.SelfUpgrade,
    *,
    last: str = "verdict",
) -> None:
    """Submit `command` and forward its events until the one named `last`, or the verdict."""
    resumed = exchange.resumed
    if resumed is None:
        submitted = backend.submit(command, exchange.peer)
    else:
        submitted = backend.resume(resumed.number, resumed.undelivered)
    async with submitted as events:
        if exchange.call.oneway:
            return
        exchange.events = events
        with exchange.while_connected(Use.WAITS):
            async for event in events:
                ends = event.get("event") in {last, "verdict"}
                await exchange.reply({"progress": event}, continues=not ends)
                if ends:
                    return
    detail = "the supervisor ends before the operation does"
    raise CallError(f"{wire.INTERFACE}.Interrupted", {"detail": detail})


def _path(given: Fields, name: str) -> str | None:
    text = given.get(name)
    if text is None:
        return None
    if not isinstance(text, str) or not text or "\0" in text:
        invalid_parameter(name)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name can have
        invalid_parameter(name)
    return text


def _seconds(given: Fields, name: str) -> float | None:
    number = given.get(name)
    if number is None:
        return None
    # JSON has no infinity, but 1e999 is one; and an upgrade that never ends is nobody's plan.
    if not isinstance(number, int | float) or not 0 <= number <= LONGEST:
        invalid_parameter(name)
    return float(number)


ROUTES: tuple[Route, ...] = (
    Route("Status", Access.VIEW, _status),
    Route("History", Access.VIEW, _history),
    Route("Versions", Access.VIEW, _versions),
    Route("Health", Access.VIEW, _health),
    Route("Check", Access.OPERATE, _check),
    Route("Doctor", Access.OPERATE, _doctor),  # it has nginx run, to tell its configuration
    Route("Events", Access.VIEW, _events),
    # With a binary it runs as root what the caller names; with `trust`, what others can change.
    Route(
        "Upgrade",
        Access.OPERATE,
        _upgrade,
        more={"binary": Access.ADMIN, "trust": Access.ROOT},
    ),
    Route("Promote", Access.OPERATE, _promote),
    Route("Rollback", Access.OPERATE, _rollback),
    Route("Reload", Access.OPERATE, _reload),
    Route("Reopen", Access.OPERATE, _reopen),
    Route("Drain", Access.OPERATE, _drain),
    Route("Stop", Access.ADMIN, _stop),
    Route("Start", Access.ADMIN, _start),
    Route("Restart", Access.ADMIN, _restart),
    Route("Adopt", Access.ADMIN, _adopt),
    Route("Detach", Access.ADMIN, _detach),
    Route("SelfUpgrade", Access.ADMIN, _self_upgrade),
)
