"""The protocol over memory streams: every method, every kind of wrong call, and its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from supervisor import wire
from supervisor.core import commands
from supervisor.edges.control import ControlService, Gate, Limits, Peer
from supervisor.edges.control_connection import Connection
from supervisor.edges.control_routes import ROUTES
from tests.control.fake_backend import STATUS, FakeBackend, gate_for, log_event, progress, verdict

ROOT = Peer(pid=10, uid=0, gid=0)
OWNER = Peer(pid=11, uid=33, gid=33)
STRANGER = Peer(pid=12, uid=1000, gid=1000)
GATE = gate_for(33)
CONTROL = wire.INTERFACE
SERVICE = wire.SERVICE_INTERFACE


class Client:
    """Speaks to one connection of the server over memory."""

    def __init__(self, stream: trio.StapledStream) -> None:  # type: ignore[type-arg]
        self.stream = stream
        self._decoder = wire.Decoder(1 << 24)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> wire.Reply | None:
        """The next reply, or None at the end."""
        while (message := self._decoder.next_message()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._decoder.feed(data)
        return wire.parse_reply(message)

    async def call(
        self, method: str, parameters: dict[str, object] | None = None, *, more: bool = False
    ) -> list[wire.Reply]:
        name = method if "." in method else f"{CONTROL}.{method}"
        await self.send(wire.encode_call(name, parameters, more=more))
        replies = []
        while (reply := await self.receive()) is not None:
            replies.append(reply)
            if not reply.continues:
                break
        return replies

    async def error(self, method: str, parameters: dict[str, object] | None = None) -> wire.Reply:
        (reply,) = await self.call(method, parameters)
        assert reply.error is not None
        return reply


@asynccontextmanager
async def connected(
    backend: FakeBackend,
    *,
    peer: Peer = ROOT,
    limits: Limits | None = None,
    hung_up: Callable[[], bool] = lambda: True,
    gate: Gate = GATE,
    service: ControlService | None = None,
) -> AsyncIterator[Client]:
    """A client of a connection that the service answers."""
    theirs, ours = trio.testing.memory_stream_pair()
    service = service or ControlService(backend, gate=gate, version="0.1.0")
    connection = Connection(
        ours, peer, limits=limits or Limits(), answer=service.answer, hung_up=hung_up
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        async with theirs:
            yield Client(theirs)


async def test_status_is_the_snapshot(backend: FakeBackend, autojump_clock: object) -> None:
    async with connected(backend) as client:
        (reply,) = await client.call("Status")
        assert reply.parameters == STATUS
        assert not reply.continues


CALLS: list[tuple[str, dict[str, object], commands.Command]] = [
    ("Upgrade", {}, commands.Upgrade()),
    (
        "Upgrade",
        {
            "binary": "/tmp/nginx",
            "canary_s": 1,
            "soak_s": 0.5,
            "hold": True,
            "dry_run": True,
            "if_changed": True,
            "trust": True,
            "wait": True,
        },
        commands.Upgrade(
            binary="/tmp/nginx",
            canary=1.0,
            soak=0.5,
            hold=True,
            dry_run=True,
            if_changed=True,
            trust=True,
        ),
    ),
    ("Upgrade", {"binary": None, "hold": None, "canary_s": None}, commands.Upgrade()),
    ("Promote", {}, commands.Promote()),
    ("Rollback", {}, commands.Rollback()),
    ("Rollback", {"to": "1.22.1"}, commands.Rollback(to="1.22.1")),
    ("Reload", {}, commands.Reload()),
    ("Reload", {"guard": True}, commands.Reload(guard=True)),
    ("Reopen", {}, commands.Reopen()),
    ("Drain", {"now": True}, commands.Drain()),
    ("Stop", {}, commands.Stop()),
    ("Stop", {"now": True}, commands.Stop(now=True)),
    ("Start", {}, commands.Start()),
    ("Restart", {}, commands.Restart()),
    ("Adopt", {}, commands.Adopt()),
    ("Adopt", {"take_over": True}, commands.Adopt(take_over=True)),
    ("SelfUpgrade", {}, commands.SelfUpgrade()),
    ("SelfUpgrade", {"now": True}, commands.SelfUpgrade(now=True)),
]


@pytest.mark.parametrize(("method", "parameters", "command"), CALLS)
async def test_an_operation_reaches_the_backend_and_streams(
    backend: FakeBackend, method: str, parameters: dict[str, object], command: commands.Command
) -> None:
    async with connected(backend) as client:
        replies = await client.call(method, parameters, more=True)
    assert backend.submitted == [(command, ROOT)]
    assert [reply.parameters["progress"] for reply in replies] == backend.events
    assert [reply.continues for reply in replies] == [True, True, True, False]
    assert backend.listeners == 0


@pytest.mark.parametrize(("method", "parameters", "command"), CALLS)
async def test_without_more_only_the_verdict_is_sent(
    backend: FakeBackend, method: str, parameters: dict[str, object], command: commands.Command
) -> None:
    async with connected(backend) as client:
        replies = await client.call(method, parameters)
    assert [reply.parameters["progress"] for reply in replies] == backend.events[-1:]


async def test_without_wait_the_acceptance_is_the_last_reply(backend: FakeBackend) -> None:
    backend.hold()
    async with connected(backend) as client:
        (reply,) = await client.call("Upgrade", {"wait": False}, more=True)
        assert reply.parameters["progress"] == backend.events[0]
        (status,) = await client.call("Status")
        assert status.error is None


async def test_without_wait_a_refusal_is_still_told(backend: FakeBackend) -> None:
    backend.events = [verdict("refused", "upgrade_in_progress")]
    async with connected(backend) as client:
        (reply,) = await client.call("Upgrade", {"wait": False}, more=True)
    assert reply.parameters["progress"] == backend.events[0]


async def test_an_end_without_a_verdict_is_an_interruption(backend: FakeBackend) -> None:
    backend.events = progress("canary")
    async with connected(backend) as client:
        replies = await client.call("Upgrade", more=True)
    assert replies[-1].error == f"{CONTROL}.Interrupted"


async def test_what_only_looks(backend: FakeBackend) -> None:
    backend.past = [verdict("committed", upgrade_id="u1"), verdict("failed", upgrade_id="u2")]
    async with connected(backend) as client:
        (everything,) = await client.call("History")
        (last,) = await client.call("History", {"limit": 1})
        (versions,) = await client.call("Versions")
        (checked,) = await client.call("Check")
    assert everything.parameters == {"entries": backend.past}
    assert last.parameters == {"entries": backend.past[1:]}
    assert versions.parameters == {"versions": backend.versions()}
    assert checked.parameters == backend.checked


async def test_events_in_one_reply(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        (reply,) = await client.call("Events")
    assert reply.parameters == {"entries": backend.log}
    assert backend.listeners == 0


async def test_events_that_follow(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Events", {"follow": True}, more=True))
        first = await client.receive()
        backend.release(log_event("upgrade.accepted"))
        second = await client.receive()
        last = await client.receive()
    assert first is not None
    assert second is not None
    assert last is not None
    assert (first.parameters, first.continues) == ({"entries": backend.log}, True)
    assert second.parameters == {"entries": [log_event("upgrade.accepted")]}
    assert (last.parameters, last.continues) == ({"entries": []}, False)


@pytest.mark.parametrize(
    ("method", "parameters", "name"),
    [
        ("Status", {"verbose": True}, "verbose"),
        ("Upgrade", {"binary": 1}, "binary"),
        ("Upgrade", {"binary": ""}, "binary"),
        ("Upgrade", {"binary": "/a\0b"}, "binary"),
        ("Upgrade", {"binary": "/\ud800"}, "binary"),
        ("Rollback", {"to": "\ud800"}, "to"),
        ("Upgrade", {"canary_s": "10s"}, "canary_s"),
        ("Upgrade", {"canary_s": 1e300}, "canary_s"),
        ("Upgrade", {"canary_s": 10**400}, "canary_s"),
        ("Upgrade", {"soak_s": 365 * 86400 + 1}, "soak_s"),
        ("Upgrade", {"canary_s": -1}, "canary_s"),
        ("Upgrade", {"soak_s": -0.5}, "soak_s"),
        ("Upgrade", {"hold": 1}, "hold"),
        ("Upgrade", {"canary": 1}, "canary"),
        ("Rollback", {"to": ["1.22.1"]}, "to"),
        ("Drain", {}, "now"),
        ("Drain", {"now": False}, "now"),
        ("Stop", {"now": "yes"}, "now"),
        ("History", {"limit": 0}, "limit"),
        ("History", {"limit": 1.5}, "limit"),
        ("History", {"limit": True}, "limit"),
        ("Events", {"follow": "yes"}, "follow"),
        (f"{SERVICE}.GetInterfaceDescription", {}, "interface"),
    ],
)
async def test_a_wrong_parameter_is_named(
    backend: FakeBackend, method: str, parameters: dict[str, object], name: str
) -> None:
    async with connected(backend) as client:
        reply = await client.error(method, parameters)
        assert reply.error == f"{SERVICE}.InvalidParameter"
        assert reply.parameters == {"parameter": name}
        (status,) = await client.call("Status")  # the connection is still good
        assert status.error is None
    assert backend.submitted == []


@pytest.mark.parametrize("window", ["1e999", "-1e999"])
async def test_an_infinite_window(backend: FakeBackend, window: str) -> None:
    async with connected(backend) as client:
        call = f'{{"method":"{CONTROL}.Upgrade","parameters":{{"canary_s":{window}}}}}'
        await client.send(call.encode() + b"\0")
        reply = await client.receive()
    assert reply is not None
    assert reply.error == f"{SERVICE}.InvalidParameter"
    assert reply.parameters == {"parameter": "canary_s"}
    assert backend.submitted == []


@pytest.mark.parametrize(
    ("method", "error", "parameters"),
    [
        (f"{CONTROL}.Explode", "MethodNotFound", {"method": f"{CONTROL}.Explode"}),
        (f"{CONTROL}.State", "MethodNotFound", {"method": f"{CONTROL}.State"}),
        (f"{CONTROL}.", "MethodNotFound", {"method": f"{CONTROL}."}),
        ("org.example.Other.Status", "InterfaceNotFound", {"interface": "org.example.Other"}),
        (".Status", "InterfaceNotFound", {"interface": ""}),
    ],
)
async def test_an_unknown_method_or_interface(
    backend: FakeBackend, method: str, error: str, parameters: dict[str, object]
) -> None:
    async with connected(backend) as client:
        reply = await client.error(method)
    assert (reply.error, reply.parameters) == (f"{SERVICE}.{error}", parameters)


async def test_a_method_without_any_interface(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        await client.send(b'{"method":"Status"}\0')
        reply = await client.receive()
    assert reply is not None
    assert reply.error == f"{SERVICE}.InterfaceNotFound"


async def test_following_events_needs_more(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        reply = await client.error("Events", {"follow": True})
    assert reply.error == f"{SERVICE}.ExpectedMore"


async def test_another_protocol_is_not_offered(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        await client.send(b'{"method":"org.nginxsupervisor.Control.Status","upgrade":true}\0')
        reply = await client.receive()
    assert reply is not None
    assert reply.error == f"{SERVICE}.MethodNotImplemented"


async def test_introspection(backend: FakeBackend) -> None:
    async with connected(backend, peer=STRANGER) as client:
        (info,) = await client.call(f"{SERVICE}.GetInfo")
        assert info.parameters["version"] == "0.1.0"
        assert info.parameters["interfaces"] == [SERVICE, CONTROL]
        for name in (SERVICE, CONTROL):
            (reply,) = await client.call(f"{SERVICE}.GetInterfaceDescription", {"interface": name})
            assert f"interface {name}\n" in str(reply.parameters["description"])
        unknown = await client.error(f"{SERVICE}.GetInterfaceDescription", {"interface": "a.b"})
        assert unknown.error == f"{SERVICE}.InterfaceNotFound"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.method)
async def test_nobody_else_may_do_anything(backend: FakeBackend, route: object) -> None:
    method = route.method  # type: ignore[attr-defined]
    with capture_logs() as logs:
        async with connected(backend, peer=STRANGER) as client:
            reply = await client.error(method)
    assert reply.error == f"{CONTROL}.NotPermitted"
    assert reply.parameters["uid"] == 1000
    assert reply.parameters["method"] == f"{CONTROL}.{method}"
    assert "uid 1000" in str(reply.parameters["detail"])
    assert backend.submitted == []
    assert [log["event"] for log in logs] == ["control.denied"]


async def test_the_owner_may_do_all_but_trust(backend: FakeBackend) -> None:
    async with connected(backend, peer=OWNER) as client:
        (reply,) = await client.call("Upgrade", {"binary": "/x", "trust": False})
        assert reply.error is None
        denied = await client.error("Upgrade", {"binary": "/x", "trust": True})
    assert denied.error == f"{CONTROL}.NotPermitted"
    assert [peer for _, peer in backend.submitted] == [OWNER]


async def test_operations_are_logged_with_their_caller(backend: FakeBackend) -> None:
    with capture_logs() as logs:
        async with connected(backend, peer=OWNER) as client:
            await client.call("Status")
            await client.call("Reload")
    assert logs == [
        {
            "event": "control.called",
            "log_level": "info",
            "method": "Reload",
            "pid": 11,
            "uid": 33,
        }
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"hello\0",
        b"\0",
        b"[]\0",
        b"\xff\xfe\0",
        b"[" * 300_000 + b"\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
    ],
    ids=["text", "empty", "array", "no utf-8", "deep", "http"],
)
async def test_garbage_is_told_and_the_connection_closed(backend: FakeBackend, data: bytes) -> None:
    async with connected(backend) as client:
        await client.send(data)
        reply = await client.receive()
        assert reply is not None
        assert reply.error == f"{CONTROL}.BadMessage"
        assert await client.receive() is None


async def test_calls_before_the_garbage_are_answered(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Status") + b"hello\0")
        first, second, end = [await client.receive() for _ in range(3)]
    assert first is not None
    assert second is not None
    assert (first.error, second.error, end) == (None, f"{CONTROL}.BadMessage", None)


async def test_a_call_that_is_too_long_is_refused_before_it_is_whole(backend: FakeBackend) -> None:
    async with connected(backend, limits=Limits(request_bytes=100)) as client:
        await client.send(b'{"method":"' + b"x" * 100)
        reply = await client.receive()
        assert reply is not None
        assert "longer than 100 bytes" in str(reply.parameters["detail"])
        assert await client.receive() is None


async def test_pipelined_calls_are_answered_in_order(backend: FakeBackend) -> None:
    backend.hold()
    async with connected(backend) as client:
        await client.send(
            wire.encode_call(f"{CONTROL}.Upgrade")
            + wire.encode_call(f"{CONTROL}.Reopen", {}, oneway=True)
            + wire.encode_call(f"{CONTROL}.Status")
        )
        await trio.testing.wait_all_tasks_blocked()
        assert [type(command) for command, _ in backend.submitted] == [commands.Upgrade]
        backend.release(verdict("committed"))
        first, second = [await client.receive() for _ in range(2)]
    assert first is not None
    assert second is not None
    assert first.parameters["progress"] == verdict("committed")
    assert second.parameters == STATUS


async def test_more_pipelined_calls_than_are_buffered(backend: FakeBackend) -> None:
    async with connected(backend, limits=Limits(pipelined=2)) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Status") * 50)
        for _ in range(50):
            reply = await client.receive()
            assert reply is not None
            assert reply.parameters == STATUS


async def test_oneway_gets_no_answer_not_even_an_error(backend: FakeBackend) -> None:
    async with connected(backend) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Reopen", {}, oneway=True))
        await client.send(wire.encode_call(f"{CONTROL}.Nonsense", {}, oneway=True))
        (status,) = await client.call("Status")
    assert status.parameters == STATUS
    assert [type(command) for command, _ in backend.submitted] == [commands.Reopen]


async def test_hanging_up_ends_the_listening_and_not_the_operation(backend: FakeBackend) -> None:
    backend.hold()
    async with connected(backend) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Upgrade", {}, more=True))
        for _ in backend.events:
            assert await client.receive() is not None
        assert backend.listeners == 1
    await backend.listener_left.wait()
    assert backend.listeners == 0
    assert len(backend.submitted) == 1


async def test_calls_that_arrived_before_the_hang_up_are_carried_out(backend: FakeBackend) -> None:
    backend.hold()
    async with connected(backend) as client:
        await client.send(
            wire.encode_call(f"{CONTROL}.Status")
            + wire.encode_call(f"{CONTROL}.Reload", more=True)
            + wire.encode_call(f"{CONTROL}.Reopen", {}, oneway=True)
        )
    await backend.listener_left.wait()
    assert [type(command) for command, _ in backend.submitted] == [
        commands.Reload,
        commands.Reopen,
    ]


async def test_a_half_closed_connection_gets_its_answer(backend: FakeBackend) -> None:
    backend.hold()
    async with connected(backend, hung_up=lambda: False) as client:
        await client.send(wire.encode_call(f"{CONTROL}.Reload"))
        await client.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        backend.release(verdict("committed"))
        reply = await client.receive()
        assert reply is not None
        assert reply.parameters["progress"] == verdict("committed")
        assert await client.receive() is None


async def test_a_call_that_stays_unfinished_is_closed(
    backend: FakeBackend, autojump_clock: object
) -> None:
    async with connected(backend) as client:
        begin = trio.current_time()
        await trio.sleep(1000)  # silence between calls has no limit
        (status,) = await client.call("Status")
        assert status.error is None
        for byte in b'{"method"':  # a byte now and then does not help
            await client.send(bytes([byte]))
            await trio.sleep(1)
        reply = await client.receive()
        assert reply is not None
        assert "not whole after 10.0 s" in str(reply.parameters["detail"])
        assert await client.receive() is None
        assert trio.current_time() - begin == pytest.approx(1010)


async def test_a_client_that_takes_no_replies_is_dropped(
    backend: FakeBackend, autojump_clock: object
) -> None:
    theirs, ours = trio.testing.lockstep_stream_pair()  # sends wait for the receiver
    service = ControlService(backend, gate=GATE)
    connection = Connection(
        ours, ROOT, limits=Limits(), answer=service.answer, hung_up=lambda: True
    )
    backend.hold()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await theirs.send_all(wire.encode_call(f"{CONTROL}.Upgrade", more=True))
            await backend.listener_left.wait()
            await theirs.aclose()
    assert [log["event"] for log in logs] == ["control.called", "control.client_too_slow"]
    assert len(backend.submitted) == 1


async def test_a_reply_of_the_wrong_form_is_our_fault_and_told_so(backend: FakeBackend) -> None:
    backend.snapshot = {**STATUS, "restarts": "none"}
    with capture_logs() as logs:
        async with connected(backend) as client:
            reply = await client.error("Status")
            backend.snapshot = STATUS
            (good,) = await client.call("Status")
    assert reply.error == f"{CONTROL}.InternalError"
    assert "restarts should be an int" in str(reply.parameters["detail"])
    assert good.error is None
    assert [log["event"] for log in logs] == ["control.bad_reply"]


async def test_a_fault_in_the_backend_harms_one_call(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, object]:
        raise ZeroDivisionError("a fault")

    with capture_logs() as logs, monkeypatch.context() as patch:
        async with connected(backend) as client:
            patch.setattr(backend, "status", broken)
            reply = await client.error("Status")
            (good,) = await client.call("Versions")
    assert reply.error == f"{CONTROL}.InternalError"
    assert reply.parameters == {"detail": "ZeroDivisionError: a fault"}
    assert good.error is None
    assert [log["event"] for log in logs] == ["control.call_failed"]


def test_every_method_has_one_route() -> None:
    backend = FakeBackend()
    with pytest.raises(ValueError, match="not the methods of its description"):
        ControlService(backend, gate=GATE, routes=ROUTES[1:])
    doubled = (*ROUTES, replace(ROUTES[0], method="Extra"))
    with pytest.raises(ValueError, match="not the methods of its description"):
        ControlService(backend, gate=GATE, routes=doubled)
