"""The control socket, served: finds the method of each call, checks it, and bounds the clients.

The methods themselves are in `supervisor.edges.control_routes`, one connection in
`supervisor.edges.control_connection`, the socket's file in `supervisor.edges.control_socket`.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio

from supervisor import wire
from supervisor.core.settings import ControlSettings
from supervisor.edges.control_connection import (
    CallError,
    Connection,
    Exchange,
    Limits,
    Peer,
    Use,
    invalid_parameter,
)
from supervisor.edges.control_routes import (
    ROUTES,
    Access,
    ControlBackend,
    Fields,
    Route,
    not_permitted,
)
from supervisor.edges.control_socket import control_listener
from supervisor.varlink import Method, parse_interface

__all__ = ["ControlBackend", "ControlService", "ControlSettings", "Limits", "Peer", "serve_control"]

_log = structlog.get_logger()
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
        allowed_uids: frozenset[int],
        version: str = "",
        routes: Sequence[Route] = ROUTES,
    ) -> None:
        self._backend = backend
        self._allowed_uids = allowed_uids
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
        if route.access is not Access.ANYONE and exchange.peer.uid not in self._allowed_uids:
            allowed = ", ".join(str(uid) for uid in sorted(self._allowed_uids))
            not_permitted(exchange, f"only uid {allowed} may; run it as that user (sudo)")
        if mismatch := method.check_call(exchange.call.parameters, ""):
            invalid_parameter(mismatch.path)
        if route.access is Access.OPERATE:
            peer = exchange.peer
            _log.info("control.called", method=method.name, pid=peer.pid, uid=peer.uid)
        exchange.expect(method.check_reply)
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


def _service_error(name: str, **parameters: object) -> CallError:
    return CallError(f"{wire.SERVICE_INTERFACE}.{name}", parameters)


class _Admission:
    """Bounds the connections. A new one always gets in while another can do without its own.

    The longest idle one gives way, else the longest of those that only look, else the youngest of
    those that wait for an operation: of them the first to come is the one that began it.
    """

    def __init__(self, service: ControlService, limits: Limits) -> None:
        self._service = service
        self._limits = limits
        self._open: dict[Connection, None] = {}  # in the order in which they came

    async def admit(self, stream: trio.SocketStream) -> None:
        """Serve `stream` to its end, which no exception but a cancellation leaves.

        Above are the nurseries of the whole supervisor: a fault in one connection, whoever's it
        is, must cost that connection and nothing else.
        """
        try:
            await self._serve(stream)
        except* Exception:  # noqa: BLE001 - the boundary: a bug of ours, told with its traceback
            _log.exception("control.connection_failed")

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = Connection(
            stream,
            peer_of(stream.socket),
            limits=self._limits,
            answer=self._service.answer,
            hung_up=lambda: _is_closed(stream.socket),
        )
        if len(self._open) >= self._limits.connections and not self._make_room():
            detail = f"{len(self._open)} connections are being answered; try again in a moment"
            await connection.refuse(CallError(f"{wire.INTERFACE}.Busy", {"detail": detail}))
            return
        self._open[connection] = None
        try:
            await connection.run()
        finally:
            self._open.pop(connection, None)

    def _make_room(self) -> bool:
        for use in (Use.IDLE, Use.LOOKS, Use.WAITS):
            those = [connection for connection in self._open if connection.use is use]
            if those:
                leaving = those[-1 if use is Use.WAITS else 0]
                del self._open[leaving]
                leaving.give_way()
                return True
        return False


_UCRED = "iII"  # struct ucred: pid, uid, gid


def peer_of(connected: trio.socket.SocketType) -> Peer:
    """Who called connect(2), as the kernel recorded it then."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_UCRED))
    pid, uid, gid = struct.unpack(_UCRED, raw)
    return Peer(pid=pid, uid=uid, gid=gid)


def _is_closed(connected: trio.socket.SocketType) -> bool:
    """Whether the other end has closed both directions (unix_poll in net/unix/af_unix.c)."""
    poll = select.poll()
    poll.register(connected.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


async def serve_control(
    settings: ControlSettings,
    backend: ControlBackend,
    *,
    allowed_uids: frozenset[int],
    version: str = "",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket until cancelled; reports the path once clients can connect.

    The socket's file is removed at the end, unless another process has replaced it. Cancelling
    closes all connections; operations are the backend's, and go on.

    Raises:
        SupervisorError, ConfigError: see `control_listener`.
    """
    service = ControlService(backend, allowed_uids=allowed_uids, version=version)
    admission = _Admission(service, limits)
    async with (
        control_listener(settings.socket, mode=settings.mode) as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(trio.serve_listeners, admission.admit, [listener])
        task_status.started(settings.socket)
