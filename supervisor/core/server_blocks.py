"""The server blocks of a configuration, and which of them answers a request.

The private probe listener belongs to the one block that includes its file. A probe may be sent
there only where that block is also the one that answers on the probe's own address: else another
block's answer, or none, would be held against the candidate. nginx decides by the address first
(a listen of exactly that address goes before a wildcard), then by the name in the Host header
(ngx_http_find_virtual_server): an exact name, the longest name that begins with a wildcard, the
longest that ends with one, a regular expression, the default server. What cannot be told from the
configuration alone (a name that has to be resolved, a regular expression) is a doubt, and in doubt
a probe is not sent to the private listener.

A listen speaks TLS where any block says `ssl` for its address. There the name in the handshake
(SNI) chooses the block whose certificate is shown, by the same rules; without one it is the
default server's. So a probe over https needs a private listener with `ssl`, which only a block
with certificates can have, and both names have to choose that block.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from supervisor.core.nginx_config import _matches, _Reading, _split
from supervisor.core.nginx_listen import (
    ANY_IPV4,
    ANY_IPV6,
    DEFAULT_PORT,
    AddressKind,
    Listen,
    Transport,
    implied_listen,
    parse_listen,
)
from supervisor.core.nginx_syntax import Directive
from supervisor.core.probe_settings import (
    Address,
    ExecProbe,
    HttpProbe,
    ProbeSettings,
    TcpAddress,
    UnixAddress,
)

UNPRIVILEGED_PORT = 8000
"""Where an http server without any listen listens when nginx is not started by root."""

_LOCALHOST = ("127.0.0.1", "::1")
_MEANS = {"localhost": _LOCALHOST, ANY_IPV4: ("127.0.0.1",), ANY_IPV6: ("::1",)}
"""Where a connection to these goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One `server` of http, stream or mail."""

    section: str
    listens: tuple[Listen, ...]
    names: tuple[str, ...] = ()  # as written, in lower case
    default_on: frozenset[Listen] = frozenset()  # where it says default_server
    includes: tuple[str, ...] = ()  # absolute paths and patterns
    file: str = ""
    line: int = 0

    def reads(self, path: str) -> bool:
        """Whether it includes `path`, or would if that existed."""
        return any(path == one or _matches(path, one) for one in self.includes)


def server_blocks(dump: str, *, implied_port: int = DEFAULT_PORT) -> tuple[ServerBlock, ...]:
    """The server blocks in a `nginx -T` dump, in their order. Never raises."""
    files = _split(dump)
    reading = _Blocks(files, implied_port=implied_port)
    for first in list(files)[:1]:
        reading.main(first)
    return tuple(reading.blocks)


class _Blocks(_Reading):
    """Walks through the configuration as for its other facts, and keeps its blocks."""

    def __init__(self, files: dict[str, str], *, implied_port: int) -> None:
        super().__init__(files, implied_port=implied_port)
        self.blocks: list[ServerBlock] = []
        self._patterns: list[str] = []

    def _included(self, directive: Directive, file: str) -> list[str]:
        self._patterns.append(posixpath.join(self._conf_prefix, directive.arguments[0]))
        return super()._included(directive, file)

    def _server(self, section: str, block: tuple[Directive, ...], file: str, line: int) -> None:
        self._patterns = []
        listens: list[Listen] = []
        names: list[str] = []
        default_on: set[Listen] = set()
        for directive, place in self._expand(block, file):
            if directive.name == "server_name":
                names += [name.lower() for name in directive.arguments]
            elif directive.name == "listen":
                found = parse_listen(directive.arguments, section=section, file=place)
                listens += found
                if {"default_server", "default"} & set(directive.arguments):
                    default_on.update(found)
        if not listens and section == "http":
            listens.append(implied_listen(port=self._implied_port, file=file, line=line))
        self.blocks.append(
            ServerBlock(
                section=section, listens=tuple(listens), names=tuple(names),
                default_on=frozenset(default_on), includes=tuple(self._patterns), file=file,
                line=line,
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrivateTls:
    """What stands on the private listener for probes over https besides `ssl`."""

    http2: bool


def private_tls(blocks: Sequence[ServerBlock], include_file: str) -> PrivateTls | None:
    """How the block that includes the file speaks TLS on its own listens; None: it does not."""
    own = _own(blocks, include_file)
    places = set() if own is None else {place for one in own.listens if (place := _place(one))}
    secure = [place for place in places if _speaks_tls(place, blocks)]
    if not secure:
        return None
    return PrivateTls(
        http2=any(
            one.http2
            for block in blocks
            for one in block.listens
            if any(place.takes(one) for place in secure)
        )
    )


def why_not_in_canary(
    probe: ProbeSettings, blocks: Sequence[ServerBlock], include_file: str
) -> str | None:
    """Why the private listener would not answer as the probe's own address does; None: it would."""
    if isinstance(probe, ExecProbe):
        return None if probe.uses_probe_address else "the command does not use PROBE_ADDRESS"
    own = _own(blocks, include_file)
    if own is None:
        return f"no server block includes {include_file}"
    places = _places(probe.address, blocks)
    if not places:
        return f"nothing in the configuration listens on {_written(probe.address)}"
    for place in places:
        if not any(place.takes(listen) for listen in own.listens):
            return (
                f"{_written(probe.address)} is not, or not surely, an address of the server block "
                f"that includes {include_file}"
            )
        why = _why_not_by_http(probe, own, place, blocks) if isinstance(probe, HttpProbe) else None
        if why is not None:
            return why
    return None


def _own(blocks: Sequence[ServerBlock], include_file: str) -> ServerBlock | None:
    return next((block for block in blocks if block.reads(include_file)), None)


def _why_not_by_http(
    probe: HttpProbe, own: ServerBlock, place: _Place, blocks: Sequence[ServerBlock]
) -> str | None:
    where = _written(probe.address)
    secure = _speaks_tls(place, blocks)
    if secure and probe.tls is None:
        return f"{where} speaks TLS, and the url begins with http://"
    if not secure and probe.tls is not None:
        return f"{where} does not speak TLS, and the url begins with https://"
    names = {_name(probe.host)} if probe.tls is None else {_name(probe.host), probe.tls.sni}
    for name in sorted(names, key=str):
        if not _answers(own, place, blocks, name):
            by = "without a name in the handshake" if name is None else f"by the name {name}"
            return (
                f"another server block listens on {where} too, and {by} nginx may choose that one"
            )
    return None


def _speaks_tls(place: _Place, blocks: Iterable[ServerBlock]) -> bool:
    return any(one.ssl and place.takes(one) for block in blocks for one in block.listens)


def answering(probe: ProbeSettings, blocks: Sequence[ServerBlock]) -> ServerBlock | None:
    """The block that surely answers `probe` on its own address: the private listener's place.

    None where there is none, where several may, or where a command asks nobody knows whom.
    """
    if isinstance(probe, ExecProbe):
        return None
    places = _places(probe.address, blocks)
    name = _name(probe.host) if isinstance(probe, HttpProbe) else ""
    for block in blocks:
        if places and all(
            any(place.takes(listen) for listen in block.listens)
            and _answers(block, place, blocks, name)
            for place in places
        ):
            return block
    return None


def why_not_traceable(probe: ProbeSettings) -> str | None:
    """Why nobody can tell which generation answers the probe on a public address; None: one can."""
    match probe:
        case ExecProbe():
            return "a command's answer cannot be traced to a worker"
        case HttpProbe(pid_header=str()):
            return None
        case _ if isinstance(probe.address, UnixAddress):
            return "an answer on a unix socket cannot be traced to a worker without pid_header"
    return None


# --- addresses ---


@dataclass(frozen=True, slots=True)
class _Place:
    """What a connection may arrive at: all listens with this address."""

    host: str  # canonical; a path for a unix socket
    port: int

    def takes(self, listen: Listen) -> bool:
        """Whether `listen` is one of them."""
        return _place(listen) == self


def _place(listen: Listen) -> _Place | None:
    if listen.transport is not Transport.TCP:
        return None
    if listen.kind is AddressKind.UNIX:
        return _Place(posixpath.normpath(listen.host), 0)
    return _Place(_canonical(listen.host) or listen.host, listen.port)


def _canonical(host: str) -> str | None:
    """An address in its one spelling; None for a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def _places(address: Address, blocks: Iterable[ServerBlock]) -> set[_Place]:
    """Every place at which a connection to `address` may arrive."""
    bound = {
        place for block in blocks for one in block.listens if (place := _place(one)) is not None
    }
    if isinstance(address, UnixAddress):
        return bound & {_Place(posixpath.normpath(address.path), 0)}
    here = {place for place in bound if place.port == address.port}
    named = {place for place in here if _canonical(place.host) is None}
    written = address.host.lower()
    numbers = _MEANS.get(_canonical(written) or written, (_canonical(written),))
    found = set[_Place]()
    for number in numbers:
        if number is None:  # a name: the one that a listen has as well, else it may mean any
            return here & {_Place(written, address.port)} or here
        exact = _Place(number, address.port)
        any_address = _Place(ANY_IPV6 if ":" in number else ANY_IPV4, address.port)
        found |= here & {exact} or (here & {any_address}) | named
    return found


def _written(address: Address) -> str:
    if isinstance(address, TcpAddress):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    return address.path


# --- names ---


def _name(host: str) -> str:
    """The name in a Host header: without port, in lower case, without the last dot."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().removesuffix(".")


def _answers(
    own: ServerBlock, place: _Place, blocks: Iterable[ServerBlock], name: str | None
) -> bool:
    """Whether nginx surely chooses `own` for `name` among the blocks at `place`."""
    there = [block for block in blocks if any(place.takes(one) for one in block.listens)]
    by_word = [block for block in there if any(place.takes(one) for one in block.default_on)]
    default = (by_word or there)[0]
    if len(there) == 1 or name is None:
        return default is own
    patterns = [(block, pattern) for block in there for pattern in block.names]
    exact = [block for block, pattern in patterns if name == pattern.removeprefix(".")]
    if exact:
        return exact[0] is own
    for affix in (_leading, _trailing):
        matching = [(len(pattern), block) for block, pattern in patterns if affix(name, pattern)]
        if matching:
            longest = max(length for length, _ in matching)
            return next(block for length, block in matching if length == longest) is own
    if any(pattern.startswith("~") or "$" in pattern for _, pattern in patterns):
        return False  # nobody can tell without the regular expressions and the host's own name
    return default is own


def _leading(name: str, pattern: str) -> bool:
    """`*.example.org`, or `.example.org`, which means the bare name as well."""
    return pattern.startswith(("*.", ".")) and name.endswith(pattern.removeprefix("*"))


def _trailing(name: str, pattern: str) -> bool:
    """`www.example.*`."""
    return pattern.endswith(".*") and name.startswith(pattern.removesuffix("*"))
