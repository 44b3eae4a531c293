"""The probes as configured: one value for each type, and how each is read from its table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import ClassVar, TypedDict
from urllib.parse import SplitResult, urlsplit

from supervisor.core.errors import ConfigError
from supervisor.core.settings_table import Table
from supervisor.core.tls_settings import TlsSettings, parse_tls, refuse_tls

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
_VISIBLE = re.compile(r"[\x21-\x7e]+", re.ASCII)
_OWN_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade"})
_NOT_IN_HTTP2 = frozenset({"keep-alive", "proxy-connection", "te"})  # RFC 9113, 8.2.2
_LOCATED = frozenset({201, 301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_ANY_ROW = 1000
_NOTHING: Mapping[str, str] = MappingProxyType({})


class OnFailure(Enum):
    """What follows where the generation that serves fails a probe that it had passed."""

    REPORT = "report"
    RESTART = "restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What every probe has; seconds."""

    name: str
    interval: float = 1.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    on_failure: OnFailure = OnFailure.REPORT


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name or number, without brackets) and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix stream socket."""

    path: str


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe(_Common):
    """GET `target` at `address`; passes where status, body and time are as expected."""

    type: ClassVar[str] = "http"
    url: str
    address: Address
    tls: TlsSettings | None = None
    target: str
    host: str  # the Host header
    headers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    expect_status: frozenset[int] = frozenset({200})
    expect_body: re.Pattern[str] | None = None
    expect_location: re.Pattern[str] | None = None
    follow_redirects: int = 0  # at most so many, in a row
    max_latency: float | None = None
    pid_header: str | None = None  # a response header that names the worker (nginx's $pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe(_Common):
    """Passes where a connection is accepted."""

    type: ClassVar[str] = "tcp"
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecProbe(_Common):
    """Passes where the command exits with 0; `user` None: nginx's worker user."""

    type: ClassVar[str] = "exec"
    command: tuple[str, ...]
    user: str | None = None
    uses_probe_address: bool = False  # it asks $PROBE_ADDRESS where that is set


ProbeSettings = HttpProbe | TcpProbe | ExecProbe


class _CommonFields(TypedDict):
    name: str
    interval: float
    timeout: float
    rise: int
    fall: int
    on_failure: OnFailure


def parse_probe(entries: Mapping[str, object], number: int) -> ProbeSettings:
    """The probe in the `number`th table `[[probe]]`. Raises ConfigError."""
    table = Table(f"[[probe]] number {number}", entries)
    name = table.text("name")
    if not _NAME.fullmatch(name):
        raise table.error("name", f"{name!r} is not made of letters, digits, '.', '_' and '-'")
    table.name = f"[[probe]] {name}"
    table.take("type")
    parse = table.choice("type", _parse_http, _TYPES)
    default = _Common(name=name)
    common = _CommonFields(
        name=name,
        interval=table.duration("interval", default.interval, positive=True),
        timeout=table.duration("timeout", default.timeout, positive=True),
        rise=table.integer("rise", default.rise, least=1, most=_ANY_ROW),
        fall=table.integer("fall", default.fall, least=1, most=_ANY_ROW),
        on_failure=table.choice(
            "on_failure", default.on_failure, {one.value: one for one in OnFailure}
        ),
    )
    probe = parse(table, common)
    table.finish()
    return probe


def parse_address(text: str) -> Address:
    """`host:port`, `[v6]:port` or the absolute path of a unix socket. Raises ValueError."""
    if text.startswith("/"):
        return UnixAddress(text)
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ValueError(f"{text!r} is no address: {exc}") from exc
    if not host or not port or parts.netloc != text or "@" in text:
        raise ValueError(
            f'{text!r} is no address; write "host:port", "[::1]:port" or the path of a socket'
        )
    return TcpAddress(host, port)


def _parse_http(table: Table, common: _CommonFields) -> HttpProbe:
    url = table.text("url")
    parts = _split_url(table, url)
    assert parts.hostname is not None
    https = parts.scheme == "https"
    address: Address = TcpAddress(parts.hostname, parts.port or (443 if https else 80))
    if table.has("unix"):
        address = UnixAddress(table.socket_path("unix"))
    host = table.optional_text("host") or parts.netloc
    if not _VISIBLE.fullmatch(host):
        raise table.error("host", f"{host!r} cannot be a Host header")
    tls = parse_tls(table, host=host) if https else None
    if tls is None:
        refuse_tls(table)
    statuses = _parse_statuses(table)
    slowest = table.duration("max_latency", 0.0, positive=True)
    return HttpProbe(
        **common,
        url=url,
        address=address,
        tls=tls,
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        host=host,
        headers=_parse_headers(table, http2=tls is not None and tls.http2),
        expect_status=statuses,
        expect_body=_parse_pattern(table, "expect_body"),
        expect_location=_parse_location(table, statuses),
        follow_redirects=_parse_redirects(table),
        max_latency=slowest or None,
        pid_header=_parse_pid_header(table),
    )


def _split_url(table: Table, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise table.error("url", f"{url!r} is no URL: {exc}") from exc
    web = parts.scheme in ("http", "https") and parts.hostname and port != 0
    if not web or "@" in parts.netloc or "#" in url or not _VISIBLE.fullmatch(url):
        raise table.error(
            "url", f"{url!r} is no URL of the form http://host:port/path?query, or https://"
        )
    return parts


def _parse_headers(table: Table, *, http2: bool) -> Mapping[str, str]:
    headers = table.text_table("headers")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise table.error(f"headers.{name}", "this cannot be a request header")
        if name.lower() in _OWN_HEADERS:
            remedy = "use the key host" if name.lower() == "host" else "leave it out"
            raise table.error(f"headers.{name}", f"the probe sets this one itself; {remedy}")
        if http2 and name.lower() in _NOT_IN_HTTP2:
            raise table.error(f"headers.{name}", "HTTP/2 has no such header; leave it out")
    return MappingProxyType(headers)


def _parse_statuses(table: Table) -> frozenset[int]:
    if not table.has("expect_status"):
        return frozenset({200})

    def status(key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 599:
            raise table.error(key, f"{value!r} is not a final HTTP status (200 to 599)")
        return value

    return frozenset(table.array("expect_status", status))


def _parse_pattern(table: Table, key: str) -> re.Pattern[str] | None:
    pattern = table.optional_text(key)
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as exc:
        raise table.error(key, f"{pattern!r} is no regular expression: {exc}") from exc


def _parse_location(table: Table, statuses: frozenset[int]) -> re.Pattern[str] | None:
    pattern = _parse_pattern(table, "expect_location")
    if pattern is not None and not statuses & _LOCATED:
        raise table.error(
            "expect_location",
            "no status in expect_status comes with a Location; add expect_status = [301], say",
        )
    return pattern


def _parse_redirects(table: Table) -> int:
    most = table.integer("follow_redirects", 0, least=0, most=_MOST_REDIRECTS)
    if most and table.has("expect_location"):
        raise table.error(
            "follow_redirects",
            "a redirect is either followed or expected; leave expect_location out",
        )
    return most


def _parse_pid_header(table: Table) -> str | None:
    name = table.optional_text("pid_header")
    if name is not None and not _TOKEN.fullmatch(name):
        raise table.error("pid_header", f"{name!r} is not the name of a header")
    return name


def _parse_tcp(table: Table, common: _CommonFields) -> TcpProbe:
    try:
        address = parse_address(table.text("address"))
    except ValueError as exc:
        raise table.error("address", str(exc)) from exc
    if isinstance(address, UnixAddress):
        table.socket_path("address")
    return TcpProbe(**common, address=address)


def _parse_exec(table: Table, common: _CommonFields) -> ExecProbe:
    command = table.texts("command")
    if not command[0].startswith("/"):
        raise table.error("command", f"{command[0]!r} is a relative path; write it from / on")
    return ExecProbe(
        **common,
        command=command,
        user=table.optional_text("user"),
        uses_probe_address=table.flag("uses_probe_address", default=False),
    )


_Parse = Callable[[Table, _CommonFields], ProbeSettings]
_TYPES: Mapping[str, _Parse] = {"http": _parse_http, "tcp": _parse_tcp, "exec": _parse_exec}


def parse_probes(value: object) -> tuple[ProbeSettings, ...]:
    """All probes of the file, in its order. Raises ConfigError, also for a name given twice."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ConfigError("cannot use probe: write each probe as a table of its own, [[probe]]")
    probes = tuple(parse_probe(one, number) for number, one in enumerate(value, 1))
    names: set[str] = set()
    for probe in probes:
        if probe.name in names:
            raise ConfigError(
                f"cannot use two probes with the name {probe.name}: rename one of them"
            )
        names.add(probe.name)
    return probes
