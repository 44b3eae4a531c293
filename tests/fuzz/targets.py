"""What is fuzzed, and what has to hold: a target takes any bytes, and raises where it finds a bug.

- `wire`: the framing, and a whole connection of the control socket, with any bytes.
- `methods`: every method with any parameters, by callers of every role, over the real route table.
- `settings`: the TOML of the supervisor's own configuration.
- `records`: journal, history and known masters, as a disk may give them back.
- `error_log`: pieces of nginx's error log, and datagrams to the supervisor's syslog socket.
- `texts`: what `nginx -T` and `nginx -V` print, the head of a file that may be an executable, and
  files that may be certificates.
- `answers`: what any server may send to an http probe (in `tests.fuzz.answers`).

They need nothing but the standard library besides what the supervisor needs: a coverage-guided
fuzzer (`tests.fuzz.guided`), hypothesis, and the corpus of what was found all call these.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
import trio.testing

import supervisor
from supervisor import wire
from supervisor.core import commands, config_read
from supervisor.core.access import NO_ID, Kind, Role, Who, grants_of
from supervisor.core.certificate import certificates_in, parse_certificate
from supervisor.core.duration import LONGEST
from supervisor.core.elf import Architecture, architecture_of, check_executable
from supervisor.core.error_log import (
    KIND,
    MESSAGE,
    TEXT,
    Scan,
    kind_of,
    parse_datagram,
    parse_line,
    severe,
)
from supervisor.core.error_log_rules import is_harmless
from supervisor.core.errors import ConfigError
from supervisor.core.nginx_config import effective, folders_of, parse_dump, parse_globals
from supervisor.core.nginx_version import lost_modules, module_of_error, parse_build
from supervisor.core.server_blocks import server_blocks
from supervisor.core.settings import ControlSettings, Settings, nginx_argv, parse_settings
from supervisor.core.signals import Severity
from supervisor.edges.config_file import settings_in
from supervisor.edges.control import ControlService, Gate, Limits, Peer
from supervisor.edges.control_connection import Connection
from supervisor.edges.journal import History, Journal, decode_line, encode_line
from supervisor.edges.runtime_state import RuntimeState
from supervisor.varlink import Basic, Nullable, parse_interface
from tests.control.fake_backend import FakeBackend
from tests.fuzz.answers import answers_target
from tests.fuzz.choices import Choices

_SOURCES = Path(supervisor.__file__).parent
_TEXTS = {
    name: parse_interface((_SOURCES / f"{name}.varlink").read_text())
    for name in (wire.INTERFACE, wire.SERVICE_INTERFACE)
}
_METHODS = [f"{name}.{method}" for name, one in _TEXTS.items() for method in one.methods]
_CONTROL = _TEXTS[wire.INTERFACE]


# --- wire ---------------------------------------------------------------------------------------

_LIMIT = 64


def wire_target(data: bytes) -> None:
    """The framing does not depend on how the bytes come; a connection answers or closes."""
    choices = Choices(data)
    sizes = [1 + choices.number(16) for _ in range(3)]
    stream = choices.rest()
    whole = _framed(stream, [len(stream) or 1])
    assert _framed(stream, sizes) == whole
    for message in stream.split(b"\0"):
        _parse(message)
    replies, _ = trio.run(_serve, stream, Peer(pid=1, uid=0, gid=0))
    assert len(replies) <= 1 + 2 * (stream.count(b"\0") + 1), "more answers than questions"
    for reply in replies:
        assert reply.error != f"{wire.INTERFACE}.InternalError", reply.parameters


def _framed(stream: bytes, sizes: Sequence[int]) -> list[bytes | str]:
    decoder, found, number = wire.Decoder(_LIMIT), list[bytes | str](), 0
    try:
        while stream:
            size = sizes[number % len(sizes)]
            number += 1
            decoder.feed(stream[:size])
            stream = stream[size:]
            while (message := decoder.next_message()) is not None:
                assert len(message) <= _LIMIT
                assert b"\0" not in message
                found.append(message)
    except wire.FrameError as error:
        found.append(str(error))
    return found


def _parse(message: bytes) -> None:
    try:
        call = wire.parse_call(message)
    except wire.FrameError:
        pass
    else:
        again = wire.encode_call(call.method, call.parameters, more=call.more, oneway=call.oneway)
        other = wire.parse_call(again[:-1])
        assert (other.method, other.more, other.oneway) == (call.method, call.more, call.oneway)
        assert other.parameters == call.parameters
    try:
        reply = wire.parse_reply(message)
    except wire.FrameError:
        return
    again = wire.encode_reply(reply.parameters, continues=reply.continues)
    assert wire.parse_reply(again[:-1]).parameters == reply.parameters


# --- methods ------------------------------------------------------------------------------------

_PEERS = (
    (Peer(pid=1, uid=0, gid=0), Role.ROOT),
    (Peer(pid=1, uid=1003, gid=5), Role.ADMIN),
    (Peer(pid=1, uid=1002, gid=5), Role.OPERATOR),
    (Peer(pid=1, uid=1009, gid=5, groups=(7, 500)), Role.OPERATOR),
    (Peer(pid=1, uid=1001, gid=5), Role.VIEWER),
    (Peer(pid=1, uid=1000, gid=5), Role.NOBODY),
)
_GATE = Gate(
    ControlSettings(
        viewers=(Who(Kind.USER, "1001"),),
        operators=(Who(Kind.USER, "1002"), Who(Kind.GROUP, "500")),
        admins=(Who(Kind.USER, "1003"),),
    ),
    own_uid=0,
)
_FOR_ADMINS = (
    commands.Stop,
    commands.Start,
    commands.Restart,
    commands.Adopt,
    commands.SelfUpgrade,
)


def methods_target(data: bytes) -> None:
    """A call has one last answer, of a declared form, and does what the caller may do only."""
    choices = Choices(data)
    peer, role = choices.one_of(_PEERS)
    name = choices.one_of(_METHODS)
    interface = _TEXTS[name.rpartition(".")[0]]
    call: dict[str, object] = {"method": name if choices.number(16) else choices.text()}
    for flag in ("more", "oneway", "upgrade"):
        if choices.number(4) == 1:
            call[flag] = choices.one_of([True, False, None, 1]) if choices.yes() else True
    given: dict[str, object] = {}
    for field, kind in interface.methods[name.rpartition(".")[2]].input.fields.items():
        if choices.yes():
            inner = kind.of if isinstance(kind, Nullable) else kind
            word = inner.word if isinstance(inner, Basic) else ""
            given[field] = _likely(choices, word) if choices.number(4) else choices.value()
    if choices.number(8) == 1:
        given[choices.text()] = choices.value()
    call["parameters"] = given if choices.number(16) else choices.value()
    message = json.dumps(call).encode() + b"\0"  # with NaN and Infinity, which are not JSON
    replies, backend = trio.run(_serve, message, peer)
    _check_answers(replies, more=call.get("more") is True, oneway=call.get("oneway") is True)
    for command, caller in backend.submitted:
        assert caller == peer
        _check_command(command, role)


def _likely(choices: Choices, word: str) -> object:
    """A value of the right type, most of the time one that means something."""
    match word:
        case "bool":
            return choices.yes()
        case "string":
            return choices.text()
        case "int":
            return choices.number(256) - 3
        case "float":
            return choices.number(256) / 7 - 1
    return choices.value()


def _check_answers(replies: Sequence[wire.Reply], *, more: bool, oneway: bool) -> None:
    if replies and replies[-1].error == f"{wire.INTERFACE}.BadMessage":
        return
    if oneway:
        assert not replies
        return
    assert replies, "no answer"
    assert [one.continues for one in replies[:-1]] == [True] * (len(replies) - 1)
    assert not replies[-1].continues
    assert more or len(replies) == 1
    for one in replies:
        if one.error is not None:
            interface, _, error = one.error.rpartition(".")
            assert error != "InternalError", one.parameters
            mismatch = _TEXTS[interface].errors[error](one.parameters, "")
            assert mismatch is None, f"{error}: {mismatch}"


def _check_command(command: commands.Command, role: Role) -> None:
    """Only what the role may, within the documented ranges; written apart from the route table."""
    assert role >= Role.OPERATOR
    if isinstance(command, _FOR_ADMINS):
        assert role >= Role.ADMIN
    if isinstance(command, commands.Upgrade):
        assert role >= Role.ADMIN or command.binary is None
        assert role is Role.ROOT or not command.trust
        for seconds in (command.canary, command.soak):
            assert seconds is None or 0 <= seconds <= LONGEST
        _check_path(command.binary)
    if isinstance(command, commands.Rollback):
        _check_path(command.to)


def _check_path(path: str | None) -> None:
    assert path is None or (path and b"\0" not in os.fsencode(path))


class _Backend(FakeBackend):
    """One whose log ends, so that following it does."""

    @asynccontextmanager
    async def log_events(
        self, *, new: bool = False
    ) -> AsyncIterator[
        tuple[Sequence[Mapping[str, object]], trio.MemoryReceiveChannel[dict[str, object]]]
    ]:
        async with super().log_events(new=new) as (recent, later):
            self.release()
            yield recent, later


_BACKEND = _Backend()
_SERVICE = ControlService(_BACKEND, gate=_GATE)  # once: it parses the interfaces


async def _serve(stream: bytes, peer: Peer) -> tuple[list[wire.Reply], FakeBackend]:
    """What a connection answers to `stream`, whose client reads to the end."""
    _BACKEND.submitted.clear()
    theirs, ours = trio.testing.memory_stream_pair()
    connection = Connection(
        ours, peer, limits=Limits(), answer=_SERVICE.answer, hung_up=lambda: False
    )
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with suppress(trio.BrokenResourceError):  # it was told so, and closed
            await theirs.send_all(stream)
            await theirs.send_eof()
        async for part in theirs:
            received += part
    assert _BACKEND.listeners == 0
    messages = bytes(received).split(b"\0")
    assert messages.pop() == b"", "half an answer"
    return [wire.parse_reply(one) for one in messages], _BACKEND


# --- settings -----------------------------------------------------------------------------------

_KEYS = sorted(
    {
        key
        for source in ("settings", "probe_settings", "tls_settings", "trigger_settings")
        for key in re.findall(
            r"\btable\.\w+\(\s*\"(\w+)\"", (_SOURCES / "core" / f"{source}.py").read_text()
        )
    }
)
_TABLES = (
    "nginx", "control", "state", "probe_listener", "upgrade", "restart", "stop", "log", "probe",
    "triggers", "syslog",
)  # fmt: skip
_NGINX = {"binary": "/usr/sbin/nginx", "config": "/etc/nginx/nginx.conf"}


def settings_target(data: bytes) -> None:
    """A file is settings that can be used, or a ConfigError that says what is wrong."""
    choices = Choices(data)
    if choices.number(4) == 0:
        text = choices.rest()
        found = _settings_or_error(lambda: settings_in(text, "a.toml"), "")
    else:
        document = _document(choices)
        found = _settings_or_error(lambda: parse_settings(document), "cannot ")
    if found is not None:
        _check_settings(found)


def _document(choices: Choices) -> dict[str, object]:
    """Mostly tables and keys that exist, with values that may be right."""
    document: dict[str, object] = {"nginx": dict(_NGINX)}
    while choices.left:
        name = choices.one_of(_TABLES) if choices.number(32) else choices.text()
        if choices.number(32) == 1:
            document[name] = choices.value()
            continue
        table = {
            choices.one_of(_KEYS) if choices.number(32) else choices.text(): choices.value()
            for _ in range(1 + choices.number(6))
        }
        if name == "probe":
            kind = choices.one_of(("http", "tcp", "exec"))
            probe = {"name": "p", "type": kind, "url": "http://127.0.0.1/", **table}
            probes = document.setdefault(name, [])
            if isinstance(probes, list):
                probes.append(probe if choices.yes() else table)
        elif isinstance(before := document.setdefault(name, {}), dict):
            before.update(table)
    return document


def _settings_or_error(read: Callable[[], Settings], beginning: str) -> Settings | None:
    try:
        found = read()
    except ConfigError as error:
        refused = error
    else:
        assert read() == found
        return found
    assert refused.detail.startswith(beginning), refused.detail
    assert refused.detail.strip(), "no word about what is wrong"
    assert re.fullmatch(r"[a-z_]+", refused.reason), refused.reason
    refused.detail.encode("utf-8", "backslashreplace")
    return None


def _check_settings(found: Settings) -> None:
    assert all("\0" not in word for word in nginx_argv(found.nginx))
    assert found.nginx.binary.startswith("/")
    assert found.nginx.inherit_variable not in found.nginx.environment
    assert len(os.fsencode(found.control.socket)) <= wire.SUN_PATH_MAX
    assert 0 <= found.control.mode <= 0o777
    for whos in found.control.roles.values():
        assert all(who.number is None or who.number < NO_ID for who in whos)
    grants_of(found.control.roles, {}, own_uid=1)
    listener = found.probe_listener
    assert 1 <= listener.first_port < listener.last_port <= 65535
    for group in (found.upgrade, found.restart, found.stop, *found.probes):
        for name in type(group).__dataclass_fields__:
            value = getattr(group, name)
            if isinstance(value, float):
                assert math.isfinite(value), f"{name} is {value}"
                assert 0 <= value <= LONGEST, f"{name} is {value}"
    assert len({probe.name for probe in found.probes}) == len(found.probes)


# --- records ------------------------------------------------------------------------------------


def records_target(data: bytes) -> None:
    """What a disk may give back for our own records is a record, or a word about the damage."""
    choices = Choices(data)
    if choices.yes():
        record: dict[str, object] = {choices.text(): choices.value() for _ in range(3)}
        with suppress(ValueError):  # what JSON cannot hold is refused when it is written
            line = encode_line(choices.number(9), record)
            assert isinstance(decode_line(line), tuple)
            at = choices.number(255) % len(line)
            cut = line[:at] + choices.some() + line[at + choices.number(3) :]
            assert isinstance(decode_line(cut), tuple | str)
        return
    text = choices.rest()
    assert isinstance(decode_line(text), tuple | str)
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name in ("masters.json", "configurations.json", "journal.jsonl", "history.jsonl"):
            Path(folder, name).write_bytes(text)
        RuntimeState(Path(folder)).configurations.load()
        known = RuntimeState(Path(folder)).load()
        assert known.masters or known.note or b"[]" in text.replace(b" ", b"")
        assert all(isinstance(one, dict) for one in History(Path(folder)).entries())
        journal = Journal(Path(folder)).read()
        assert journal.records == () or not journal.damaged or journal.note


# --- texts --------------------------------------------------------------------------------------


def texts_target(data: bytes) -> None:
    """What nginx prints, and the head of any file, can be looked at without an accident."""
    choices = Choices(data)
    kind = choices.number(5)
    raw = choices.rest()
    text = raw.decode("utf-8", "surrogateescape")
    match kind:
        case 0:
            check_executable(raw, len(raw) + 7, Architecture(62, 64, little_endian=True))
            architecture_of(raw)
        case 1:
            build = parse_build(text)
            lost_modules(build, build) if build is not None else module_of_error(text)
        case 2:
            config = effective(parse_dump("# configuration file /a:\n" + text), parse_globals(text))
            assert config.expected_workers(online_cpus=2) >= 0
            folders_of(config)
        case 3:
            parse_certificate(raw)
            for der in certificates_in(raw):
                parse_certificate(der)
        case _:
            dump = "# configuration file /a:\nhttp {\n" + text
            server_blocks(dump)
            read = config_read.read_of(dump, parse_dump(dump))
            assert config_read.from_data(config_read.to_data(read)) == read


# --- error logs ---------------------------------------------------------------------------------


def error_log_target(data: bytes) -> None:
    """Anything in a log, or in a datagram, is bounded printable entries, or nothing."""
    choices = Choices(data)
    start = choices.number(255)
    piece = data[1:] + b"\n"
    found = severe(piece)
    later = severe(piece, start=min(start, len(piece)))
    scan = Scan()
    for part in (piece, piece):
        assert len(scan.take(part, more=True).entries) <= piece.count(b"\n") * 2
    assert len(scan.before) <= MESSAGE
    assert len(later.entries) + later.more + later.doubtful <= piece.count(b"\n")
    entries = [*found.entries, *later.entries, parse_datagram(data), parse_line(data)]
    for entry in entries:
        if entry is not None:
            assert entry.text.isprintable()
            assert len(entry.text) <= TEXT
            assert 0 <= entry.pid < 10**10
            assert len(kind_of(entry.text)) <= KIND
            is_harmless(entry.text)
    assert all(one.severity <= Severity.CRIT for one in found.entries)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "wire": wire_target,
    "methods": methods_target,
    "settings": settings_target,
    "records": records_target,
    "texts": texts_target,
    "error_log": error_log_target,
    "answers": answers_target,
}
