"""Roles: the access column, the gate that decides, and who gets in where all places are taken."""

from __future__ import annotations

import os
import re
import stat
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

import supervisor
from supervisor import wire
from supervisor.core import commands
from supervisor.core.access import Kind, Role, Who
from supervisor.core.settings import ControlSettings
from supervisor.edges import control, control_gate
from supervisor.edges.control import ControlService, Gate, Limits, Peer
from supervisor.edges.control_gate import notes_on
from supervisor.edges.control_routes import ROUTES
from tests.control.fake_backend import FakeBackend, gate_for, verdict
from tests.control.test_protocol import CONTROL, SERVICE, connected
from tests.control.test_server import UPGRADE_CALL, assert_serves, client, receive

VIEWER, OPERATOR, ADMIN = (Peer(pid=1, uid=uid, gid=uid) for uid in (1001, 1002, 1003))
IN_A_GROUP = Peer(pid=1, uid=1004, gid=1004, groups=(7, 500))
STRANGER = Peer(pid=1, uid=1000, gid=1000)
ROOT = Peer(pid=1, uid=0, gid=0)
GIVEN = ControlSettings(
    viewers=(Who(Kind.USER, "1001"),),
    operators=(Who(Kind.USER, "1002"), Who(Kind.GROUP, "500")),
    admins=(Who(Kind.USER, "1003"),),
)
GATE = Gate(GIVEN, own_uid=0)

CALLS: list[tuple[str, dict[str, object], Role]] = [
    ("Status", {}, Role.VIEWER),
    ("History", {}, Role.VIEWER),
    ("Versions", {}, Role.VIEWER),
    ("Events", {}, Role.VIEWER),
    ("Doctor", {}, Role.OPERATOR),
    ("Health", {}, Role.VIEWER),
    ("Check", {}, Role.OPERATOR),
    ("Upgrade", {}, Role.OPERATOR),
    ("Upgrade", {"binary": None, "trust": False, "hold": True}, Role.OPERATOR),
    ("Upgrade", {"binary": "/x"}, Role.ADMIN),
    ("Upgrade", {"binary": "/x", "dry_run": True}, Role.ADMIN),
    ("Upgrade", {"trust": True}, Role.ROOT),
    ("Upgrade", {"binary": "/x", "trust": True}, Role.ROOT),
    ("Promote", {}, Role.OPERATOR),
    ("Rollback", {}, Role.OPERATOR),
    ("Rollback", {"to": "1.22.1"}, Role.OPERATOR),
    ("Reload", {}, Role.OPERATOR),
    ("Reopen", {}, Role.OPERATOR),
    ("Drain", {"now": True}, Role.OPERATOR),
    ("Stop", {}, Role.ADMIN),
    ("Start", {}, Role.ADMIN),
    ("Restart", {}, Role.ADMIN),
    ("Adopt", {}, Role.ADMIN),
    ("Adopt", {"take_over": True}, Role.ADMIN),
    ("Detach", {}, Role.ADMIN),
    ("SelfUpgrade", {}, Role.ADMIN),
    ("SelfUpgrade", {"now": True}, Role.ADMIN),
]


def test_every_route_is_in_the_matrix_and_says_its_role_in_the_interface() -> None:
    """Whoever adds a method decides who may call it, here, in the table and in the description."""
    interface = Path(supervisor.__file__).parent / f"{wire.INTERFACE}.varlink"
    told = re.findall(r"^# Role: (.+)\.\nmethod (\w+)\(", interface.read_text(), re.MULTILINE)
    lowest: dict[str, Role] = {}
    for method, _, role in CALLS:
        lowest[method] = min(role, lowest.get(method, role))
    for route in ROUTES:
        assert route.access.value > Role.NOBODY, f"{route.method} is for anybody"
        assert route.access.value is lowest.get(route.method), f"{route.method}: see CALLS"
        more = "".join(f" with `{name}` {one.value.word}" for name, one in route.more.items())
        words = {method: role for role, method in told}[route.method]
        assert words.replace(";", "").replace(",", "") == route.access.value.word + more


@pytest.mark.parametrize(
    ("peer", "role"),
    [
        (STRANGER, Role.NOBODY),
        (VIEWER, Role.VIEWER),
        (OPERATOR, Role.OPERATOR),
        (IN_A_GROUP, Role.OPERATOR),
        (ADMIN, Role.ADMIN),
        (ROOT, Role.ROOT),
    ],
    ids=lambda one: one.word if isinstance(one, Role) else f"uid {one.uid}",
)
async def test_who_may_call_what(backend: FakeBackend, peer: Peer, role: Role) -> None:
    assert GATE.role_now(peer) is role
    async with connected(backend, peer=peer, gate=GATE) as client:
        (info,) = await client.call(f"{SERVICE}.GetInfo")
        assert info.error is None
        for method, parameters, needed in CALLS:
            before = len(backend.submitted)
            (reply,) = await client.call(method, parameters)
            if role >= needed:
                assert reply.error is None, f"{method} {parameters}: {reply.error}"
                continue
            assert reply.error == f"{CONTROL}.NotPermitted", f"{method} {parameters}"
            told = dict(reply.parameters)
            detail = str(told.pop("detail"))
            assert told == {
                "uid": peer.uid, "method": f"{CONTROL}.{method}",
                "role": role.word, "needed": needed.word,
            }  # fmt: skip
            assert f"cannot call {CONTROL}.{method}" in detail
            assert f"uid {peer.uid}" in detail
            assert "root (sudo)" in detail
            assert (f"{needed.word}s in [control]" in detail) is (needed is not Role.ROOT)
            assert len(backend.submitted) == before, "it was asked for all the same"


async def test_a_call_that_is_forbidden_and_wrong_is_forbidden(backend: FakeBackend) -> None:
    """Nothing is said about parameters to those who may not call at all."""
    async with connected(backend, peer=VIEWER, gate=GATE) as client:
        for given in ({"binary": 5}, {"binary": []}, {"trust": "no"}, {"nonsense": 1}):
            reply = await client.error("Upgrade", given)
            assert reply.error == f"{CONTROL}.NotPermitted"


async def test_a_role_that_was_taken_away_is_gone_on_an_open_connection(
    backend: FakeBackend,
) -> None:
    gate = Gate(GIVEN, own_uid=0)
    async with connected(backend, peer=OPERATOR, gate=gate) as client:
        (reply,) = await client.call("Reload")
        assert reply.error is None
        await gate.take(ControlSettings(viewers=GIVEN.operators))
        assert (await client.error("Reload")).error == f"{CONTROL}.NotPermitted"
        (reply,) = await client.call("Status")
        assert reply.error is None


# --- names -----------------------------------------------------------------------------------

NAMED = ControlSettings(viewers=(Who(Kind.GROUP, "web"),), admins=(Who(Kind.USER, "1003"),))
WEB_ID = 500


class Directory:
    """Stands in for a slow directory server: answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()
        self.known = dict.fromkeys(NAMED.viewers, WEB_ID)
        monkeypatch.setattr(control_gate, "look_up", self._look_up)

    def _look_up(self, settings: ControlSettings) -> dict[Who, int]:
        self.asked.set()
        assert self.answers.wait(60)
        return self.known


async def test_a_slow_look_up_keeps_only_those_waiting_whom_it_decides_about(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(monkeypatch)
    gate = Gate(NAMED, own_uid=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.take, NAMED)
        for peer in (ROOT, ADMIN):
            async with connected(backend, peer=peer, gate=gate) as client:
                (reply,) = await client.call("Status")
                assert reply.error is None
        assert not gate.role_now(IN_A_GROUP)
        async with connected(backend, peer=IN_A_GROUP, gate=gate) as client:
            await client.send(wire.encode_call(f"{CONTROL}.Status"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            directory.answers.set()
            told = await client.receive()
            assert told is not None
            assert told.error is None


async def test_a_look_up_that_never_ends_is_not_waited_for(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    gate = Gate(NAMED, own_uid=0)  # and nobody ever answers
    began = trio.current_time()
    async with connected(backend, peer=IN_A_GROUP, gate=gate) as client:
        assert (await client.error("Status")).error == f"{CONTROL}.NotPermitted"
    assert trio.current_time() - began == pytest.approx(control_gate.LOOK_UP_TIMEOUT)


async def test_of_two_configurations_the_later_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Directory(monkeypatch)
    gate = Gate(NAMED, own_uid=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.take, NAMED)
        await trio.to_thread.run_sync(directory.asked.wait, 60)
        monkeypatch.setattr(control_gate, "look_up", lambda settings: {})
        await gate.take(ControlSettings())
        directory.answers.set()
    assert gate.role_now(IN_A_GROUP) is Role.NOBODY
    assert gate.role_now(ADMIN) is Role.NOBODY


async def test_a_name_that_nobody_knows_gives_nothing_and_is_told(folder: Path) -> None:
    unknown = Who(Kind.GROUP, "no-such-group-here")
    settings = ControlSettings(
        socket=str(folder / "s"), mode=0o666, group=unknown,
        viewers=(unknown, Who(Kind.USER, "no-such-user\udc80")),
        operators=(Who(Kind.USER, "root"),),
    )  # fmt: skip
    gate = Gate(settings, own_uid=0)
    with capture_logs() as logs:
        await gate.take(settings)
    assert [(log["event"], log.get("setting")) for log in logs[:3]] == [
        ("control.name_unknown", "viewers"),
        ("control.name_unknown", "viewers"),
        ("control.name_unknown", "group"),
    ]
    assert gate.role_now(ROOT) is Role.ROOT
    notes = notes_on(settings)
    assert len(notes) == 3
    assert "cannot find the group 'no-such-group-here' of viewers in [control]" in notes[0]
    assert "the socket's file keeps its group" in notes[2]


async def test_roles_that_nobody_can_use_are_told(folder: Path) -> None:
    settings = ControlSettings(socket=str(folder / "none"), viewers=(Who(Kind.USER, "5"),))
    with capture_logs() as logs:
        await Gate(settings, own_uid=0).take(settings)
    assert [log["event"] for log in logs] == ["control.closed_to_roles", "control.socket_access"]
    assert 'mode = "0666"' in notes_on(settings)[0]
    assert notes_on(ControlSettings()) == []


async def test_the_sockets_mode_and_group_follow_the_configuration(
    control: str, folder: Path
) -> None:
    groups = [gid for gid in os.getgroups() if gid != os.getegid()]
    if os.geteuid() == 0:
        groups.append(54321)
    for gid in (*groups, os.getegid()):
        settings = ControlSettings(socket=control, mode=0o660, group=Who(Kind.GROUP, str(gid)))
        await Gate(settings, own_uid=0).take(settings)
        found = os.lstat(control)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, gid)
    await Gate(ControlSettings(), own_uid=0).take(ControlSettings(socket=control))
    found = os.lstat(control)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o600, os.getegid())
    file = folder / "file"
    file.touch(mode=0o600)
    await Gate(ControlSettings(), own_uid=0).take(ControlSettings(socket=str(file), mode=0o666))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "it is no socket, and not ours"


# --- denials ---------------------------------------------------------------------------------


async def test_a_flood_of_forbidden_calls_is_counted_and_not_logged(
    backend: FakeBackend, autojump_clock: trio.testing.MockClock
) -> None:
    service = ControlService(backend, gate=GATE)

    async def ask(peer: Peer, times: int) -> None:
        async with connected(backend, peer=peer, service=service) as client:
            for _ in range(times):
                assert (await client.error("Stop")).error == f"{CONTROL}.NotPermitted"

    with capture_logs() as logs:
        await ask(STRANGER, 50)
        await ask(VIEWER, 1)
        await trio.sleep(control._DENIALS_EVERY + 1)
        await ask(STRANGER, 2)
    assert [(log["event"], log["uid"], log.get("count")) for log in logs] == [
        ("control.denied", 1000, None),
        ("control.denied", 1001, None),
        ("control.denied_more", 1000, 49),
        ("control.denied", 1000, None),
    ]


# --- places ----------------------------------------------------------------------------------


class Callers:
    """Gives each connection, in the order in which they come, another caller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next: list[Peer] = []
        monkeypatch.setattr(control, "peer_of", lambda stream: self.next.pop(0))


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> Callers:
    return Callers(monkeypatch)


@pytest.fixture
def gate() -> Gate:
    return GATE


async def assert_open(stream: trio.SocketStream) -> None:
    await stream.send_all(wire.encode_call(f"{SERVICE}.GetInfo"))
    reply = await receive(stream)
    assert reply is not None
    assert reply.error is None


@pytest.mark.parametrize("limits", [Limits(connections=6, connections_of_uid=2)])
async def test_a_user_without_the_role_admin_has_few_places(control: str, callers: Callers) -> None:
    callers.next = [VIEWER, OPERATOR, OPERATOR, OPERATOR, ADMIN, ADMIN, ADMIN, ADMIN]
    async with AsyncExitStack() as opened:
        streams = []
        for _ in range(8):  # an admin has as many as there are
            stream = await opened.enter_async_context(client(control))
            await assert_open(stream)
            streams.append(stream)
        for left in (1, 0):  # the operator's own first, then the viewer's, for the last admin
            assert await receive(streams.pop(left)) is None
        for stream in streams:
            await assert_open(stream)


@pytest.mark.parametrize("limits", [Limits(connections=2, connections_of_uid=2)])
async def test_an_admin_gets_in_where_others_have_all_places(
    control: str, backend: FakeBackend, callers: Callers
) -> None:
    """Also where all of them are being answered and read nothing."""
    large = {"name": "n", "ok": False, "detail": "x" * 3_000_000}  # more than the socket takes
    backend.checked = {"ok": False, "findings": [large]}
    callers.next = [OPERATOR, OPERATOR, VIEWER, IN_A_GROUP, ADMIN]
    async with client(control) as one, client(control) as two:
        for stream in (one, two):
            await stream.send_all(wire.encode_call(f"{wire.INTERFACE}.Check"))
            assert await stream.receive_some(1)
        for _ in range(2):  # neither a lower role nor the same
            async with client(control) as late:
                reply = await receive(late)
                assert reply is not None
                assert reply.error == f"{wire.INTERFACE}.Busy"
        await assert_serves(control)
        assert b"\0" not in b"".join([part async for part in one])


@pytest.mark.parametrize("limits", [Limits(connections=2, connections_of_uid=9)])
async def test_nobody_displaces_a_higher_role(
    control: str, backend: FakeBackend, callers: Callers
) -> None:
    backend.hold()
    callers.next = [ADMIN, OPERATOR, VIEWER, OPERATOR]
    async with client(control) as admin, client(control) as operator:
        await operator.send_all(UPGRADE_CALL)
        for _ in backend.events:
            assert await receive(operator) is not None
        async with client(control) as viewer:
            reply = await receive(viewer)
            assert reply is not None
            assert reply.error == f"{wire.INTERFACE}.Busy"
        async with client(control) as another:  # the same role: its own one that waits gives way
            told = await receive(operator)
            assert told is not None
            assert told.error == f"{wire.INTERFACE}.GaveWay"
            await assert_open(another)
        await assert_open(admin)
        assert backend.submitted == [(commands.Upgrade(), OPERATOR)]
        backend.release(verdict("committed"))


def test_the_gate_of_the_other_tests() -> None:
    gate = gate_for(33)
    assert [gate.role_now(Peer(pid=1, uid=uid, gid=5)) for uid in (0, 33, 34)] == [
        Role.ROOT,
        Role.ADMIN,
        Role.NOBODY,
    ]
