"""The control socket, served: finds the method of each call, checks it, and bounds the clients.

The methods themselves are in `supervisor.edges.control_routes`, one connection in
`supervisor.edges.control_connection`, the socket's file in `supervisor.edges.control_socket`.
"""

from __future__ import annotations

import math
import select
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import structlog
import trio
from structlog.contextvars import bound_contextvars

from supervisor import wire
from supervisor.core.access import Role
from supervisor.core.settings import ControlSettings
from supervisor.edges.control_connection import (
    CallError,
    Connection,
    Exchange,
    Limits,
    Use,
    invalid_parameter,
)
from supervisor.edges.control_gate import Gate
from supervisor.edges.control_handover import Door
from supervisor.edges.control_routes import (
    ROUTES,
    Access,
    ControlBackend,
    Fields,
    Route,
)
from supervisor.edges.control_socket import control_listener
from supervisor.edges.handover import HandOver
from supervisor.edges.peers import Peer, peer_of
from supervisor.varlink import Method, parse_interface

__all__ = [
    "ControlBackend",
    "ControlService",
    "ControlSettings",
    "Gate",
    "Limits",
    "Peer",
    "serve_control",
]

_log = structlog.get_logger()
_DENIALS_EVERY = 10.0
_FOLDER = Path(__file__).resolve().parent.parent


class ControlService:
    """Answers calls: finds the method, checks access, the call and each reply.

    Raises:
        InterfaceError, ValueError: at construction, where an interface file and the routes do
            not name the same methods.
    """

    def __init__(
        self,
        backend: ControlBackend,
        *,
        gate: Gate,
        version: str = "",
        routes: Sequence[Route] = ROUTES,
    ) -> None:
        self._backend = backend
        self._gate = gate
        self._denials = _Denials()
        self._version = version
        self._interfaces = {
            name: parse_interface((_FOLDER / f"{name}.varlink").read_text("utf-8"))
            for name in (wire.SERVICE_INTERFACE, wire.INTERFACE)
        }
        introspection = (
            Route("GetInfo", Access.ANYONE, self._get_info),
            Route("GetInterfaceDescription", Access.ANYONE, self._get_interface_description),
        )
        self._routes = {
            wire.SERVICE_INTERFACE: {route.method: route for route in introspection},
            wire.INTERFACE: {route.method: route for route in routes},
        }
        for name, interface in self._interfaces.items():
            if interface.methods.keys() != self._routes[name].keys():
                raise ValueError(f"the routes of {name} are not the methods of its description")

    async def answer(self, exchange: Exchange) -> None:
        """Answer one call; raises CallError for one that is wrong or forbidden."""
        route, method = self._find(exchange)
        needed, because = route.needed(exchange.call.parameters)
        if needed is not Role.NOBODY:
            role = await self._gate.role_of(exchange.peer, needed)
            if role < needed:
                self._not_permitted(exchange, role, needed, because)
        if mismatch := method.check_call(exchange.call.parameters, ""):
            invalid_parameter(mismatch.path)
        exchange.expect(method.check_reply)
        if route.access.value < Role.OPERATOR or exchange.resumed is not None:
            await route.handler(self._backend, exchange, exchange.call.parameters)
            return
        peer = exchange.peer
        _log.info("control.called", method=method.name, pid=peer.pid, uid=peer.uid)
        # What the backend logs on its way says who asked.
        with bound_contextvars(caller_pid=peer.pid, caller_uid=peer.uid):
            await route.handler(self._backend, exchange, exchange.call.parameters)

    def _find(self, exchange: Exchange) -> tuple[Route, Method]:
        full_name = exchange.call.method
        interface_name, _, name = full_name.rpartition(".")
        interface = self._interfaces.get(interface_name)
        if interface is None:
            raise _service_error("InterfaceNotFound", interface=interface_name)
        if name not in interface.methods:
            raise _service_error("MethodNotFound", method=full_name)
        if exchange.call.upgrade:  # to another protocol on this connection; we have none
            raise _service_error("MethodNotImplemented", method=full_name)
        return self._routes[interface_name][name], interface.methods[name]

    def _not_permitted(
        self, exchange: Exchange, role: Role, needed: Role, because: str | None
    ) -> NoReturn:
        peer, method = exchange.peer, exchange.call.method
        self._denials.log(peer, method, role, needed)
        raise CallError(
            f"{wire.INTERFACE}.NotPermitted",
            {
                "uid": peer.uid,
                "method": method,
                "detail": _denial(peer, method, role, needed, because),
                "role": role.word,
                "needed": needed.word,
            },
        )

    async def _get_info(self, backend: ControlBackend, exchange: Exchange, given: Fields) -> None:
        await exchange.reply(
            {
                "vendor": "nginx-supervisor",
                "product": "nginx-supervisor",
                "version": self._version,
                "url": "",
                "interfaces": list(self._interfaces),
            }
        )

    async def _get_interface_description(
        self, backend: ControlBackend, exchange: Exchange, given: Fields
    ) -> None:
        interface = self._interfaces.get(str(given["interface"]))
        if interface is None:
            raise _service_error("InterfaceNotFound", interface=str(given["interface"]))
        await exchange.reply({"description": interface.description})


def _denial(peer: Peer, method: str, role: Role, needed: Role, because: str | None) -> str:
    """What is missing and how to get it, for a person."""
    who = f"uid {peer.uid}" + ("" if role is Role.NOBODY else f" ({role.word})")
    called = method if because is None else f"{method} with `{because}`"
    if needed is Role.ROOT:
        return f"cannot call {called} as {who}: it is for root alone; run it as root (sudo)"
    return (
        f"cannot call {called} as {who}: it takes the role {needed.word}; run it as root (sudo), "
        f'or have root add "user:{peer.uid}", or one of its groups as "group:NAME", to '
        f"{needed.word}s in [control] of the configuration and send the supervisor SIGHUP"
    )


class _Denials:
    """Logs who was denied what: of each uid at most one line in `_DENIALS_EVERY` seconds."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._more: Counter[int] = Counter()  # lines left out, by uid; all that were told at all

    def log(self, peer: Peer, method: str, role: Role, needed: Role) -> None:
        """Log it, or count it for the next line about this uid."""
        now = trio.current_time()
        if now - self._since > _DENIALS_EVERY:
            for uid, count in self._more.items():
                if count:
                    _log.warning("control.denied_more", uid=uid, count=count)
            self._since = now
            self._more.clear()
        if peer.uid in self._more:
            self._more[peer.uid] += 1
            return
        self._more[peer.uid] = 0
        _log.warning(
            "control.denied",
            method=method,
            pid=peer.pid,
            uid=peer.uid,
            role=role.word,
            needed=needed.word,
        )


def _service_error(name: str, **parameters: object) -> CallError:
    return CallError(f"{wire.SERVICE_INTERFACE}.{name}", parameters)


class _Admission:
    """Bounds the connections: in total, and of each uid that is no admin.

    A new one gets in while another can do without its own: one of the same uid where that has as
    many as it may, else one of a caller with no higher role. The longest idle one gives way, else
    the longest of those that only look, else the youngest of those that wait for an operation: of
    them the first to come is the one that began it. A reply that is under way is cut off only for
    somebody with a higher role: so an admin always gets in where others have taken all the places.
    """

    def __init__(self, service: ControlService, gate: Gate, limits: Limits, door: Door) -> None:
        self._service = service
        self._gate = gate
        self._limits = limits
        self._door = door
        self._open: dict[Connection, None] = {}  # in the order in which they came

    async def admit(
        self, stream: trio.SocketStream, handed: Mapping[str, Any] | None = None
    ) -> None:
        """Serve `stream` to its end, which no exception but a cancellation leaves.

        Above are the nurseries of the whole supervisor: a fault in one connection, whoever's it
        is, must cost that connection and nothing else.
        """
        try:
            await self._serve(stream, handed)
        except* Exception:  # noqa: BLE001 - the boundary: a bug of ours, told with its traceback
            _log.exception("control.connection_failed")

    async def _serve(self, stream: trio.SocketStream, handed: Mapping[str, Any] | None) -> None:
        connection = Connection(
            stream,
            peer_of(stream.socket),
            limits=self._limits,
            answer=self._service.answer,
            hung_up=lambda: _is_closed(stream.socket),
            fd=stream.socket.fileno(),
            handed=handed,
        )
        if not self._make_room(connection.peer):
            detail = f"{len(self._open)} connections are being answered; try again in a moment"
            await connection.refuse(CallError(f"{wire.INTERFACE}.Busy", {"detail": detail}))
            return
        self._open[connection] = None
        self._door.enter(connection)
        try:
            await connection.run()
        finally:
            self._door.leave(connection)
            self._open.pop(connection, None)

    def _make_room(self, peer: Peer) -> bool:
        """Whether there is room for one more of `peer`; another connection may be ended for it."""
        role = self._gate.role_now(peer)
        same = [one for one in self._open if one.peer.uid == peer.uid]
        if role < Role.ADMIN and len(same) >= self._limits.connections_of_uid:
            return _displace_one(same, self._open)
        if len(self._open) < self._limits.connections:
            return True
        ranks = {one: self._gate.role_now(one.peer) for one in self._open}
        peers = [one for one, rank in ranks.items() if rank <= role]
        lower = [one for one, rank in ranks.items() if rank < min(role, Role.ADMIN)]
        return _displace_one(peers, self._open) or _displace(lower[:1], self._open)


def _displace_one(among: list[Connection], opened: dict[Connection, None]) -> bool:
    for use in (Use.IDLE, Use.LOOKS, Use.WAITS):
        those = [connection for connection in among if connection.use is use]
        if those:
            return _displace([those[-1 if use is Use.WAITS else 0]], opened)
    return False


def _displace(leaving: list[Connection], opened: dict[Connection, None]) -> bool:
    for connection in leaving:
        del opened[connection]
        connection.give_way()
    return bool(leaving)


def _is_closed(connected: trio.socket.SocketType) -> bool:
    """Whether the other end has closed both directions (unix_poll in net/unix/af_unix.c)."""
    poll = select.poll()
    poll.register(connected.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


async def serve_control(
    settings: ControlSettings,
    backend: ControlBackend,
    *,
    gate: Gate,
    version: str = "",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    door: Door | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket until cancelled; reports the path once clients can connect.

    The socket's file is removed at the end, unless another process has replaced it. Cancelling
    closes all connections; operations are the backend's, and go on. `door` has what a predecessor
    of this process has handed on, and hands all of it on in turn.

    Raises:
        SupervisorError, ConfigError: see `control_listener`.
    """
    service = ControlService(backend, gate=gate, version=version)
    door = Door(HandOver()) if door is None else door
    admission = _Admission(service, gate, limits, door)
    inherited = door.inherited(settings.socket)
    async with (
        control_listener(settings.socket, mode=settings.mode, inherited=inherited) as listener,
        trio.open_nursery() as nursery,
    ):
        for stream, handed in door.came():
            nursery.start_soon(admission.admit, stream, handed)
        await nursery.start(trio.serve_listeners, admission.admit, [door.hang(listener)])
        task_status.started(settings.socket)
