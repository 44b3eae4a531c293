"""The `listen` directive of http, stream and mail servers, as values that can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - the name of an address, nothing is bound here
ANY_IPV6 = "::"
DEFAULT_PORT = 80
# A wider range is a mistake or an attack on whoever expands it; nginx itself would open that many.
_WIDEST_RANGE = 4096
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_BIND_OPTIONS = re.compile(
    r"bind|reuseport|deferred|backlog=.*|rcvbuf=.*|sndbuf=.*|accept_filter=.*|ipv6only=.*"
    r"|so_keepalive=.*|fastopen=.*|setfib=.*"
)


class AddressKind(Enum):
    """What a listening socket is bound to."""

    TCP = "tcp"
    TCP6 = "tcp6"
    UNIX = "unix"


class Transport(Enum):
    """Stream or datagram."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """One address that nginx will listen on, and the file that says so.

    `host` is a path for a unix socket (and `port` 0), `0.0.0.0` or `::` for all addresses, and may
    be a host name as it was written.
    """

    kind: AddressKind
    host: str
    port: int
    transport: Transport = Transport.TCP
    reuseport: bool = False
    ssl: bool = False
    http2: bool = False  # by an option of this line, as before nginx 1.25.1
    binds: bool = False  # nginx binds it even beside a wildcard of the same port
    quic: bool = False
    section: str = "http"
    file: str = ""
    line: int = field(default=0, compare=False)

    @property
    def address(self) -> tuple[AddressKind, str, int, Transport]:
        """What the kernel tells sockets apart by."""
        return (self.kind, self.host, self.port, self.transport)

    @property
    def is_wildcard(self) -> bool:
        """It takes connections for every local address of its family."""
        return self.host in (ANY_IPV4, ANY_IPV6)

    def __str__(self) -> str:
        if self.kind is AddressKind.UNIX:
            return f"unix:{self.host}"
        host = f"[{self.host}]" if self.kind is AddressKind.TCP6 else self.host
        return f"{host}:{self.port}" + ("/udp" if self.transport is Transport.UDP else "")


def implied_listen(*, port: int, file: str, line: int = 0) -> Listen:
    """What an http server without any `listen` listens on."""
    return Listen(kind=AddressKind.TCP, host=ANY_IPV4, port=port, file=file, line=line)


def parse_listen(
    arguments: tuple[str, ...], *, section: str, file: str, line: int = 0
) -> tuple[Listen, ...]:
    """The addresses of one `listen` directive: several for a range of ports, none if it is odd."""
    if not arguments:
        return ()
    options = arguments[1:]
    place = _place(arguments[0])
    if place is None:
        return ()
    kind, host, ports = place
    datagram = "udp" in options or "quic" in options
    return tuple(
        Listen(
            kind=kind,
            host=host,
            port=port,
            transport=Transport.UDP if datagram else Transport.TCP,
            reuseport="reuseport" in options,
            ssl="ssl" in options or "quic" in options,
            http2="http2" in options,
            binds=any(_BIND_OPTIONS.fullmatch(option) for option in options),
            quic="quic" in options,
            section=section,
            file=file,
            line=line,
        )
        for port in ports
    )


def _place(text: str) -> tuple[AddressKind, str, range] | None:
    if text.startswith("unix:"):
        return AddressKind.UNIX, text[len("unix:") :], range(1)
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        if not closing or (rest and not rest.startswith(":")):
            return None
        ports = _ports(rest[1:])
        return None if ports is None else (AddressKind.TCP6, _canonical(host.lower()), ports)
    host, colon, port_text = text.rpartition(":")
    if not colon:
        # A bare number is a port, anything else a host: that is how nginx reads it.
        host, port_text = ("", text) if _PORTS.fullmatch(text) else (text, "")
    ports = _ports(port_text)
    if ports is None:
        return None
    return AddressKind.TCP, ANY_IPV4 if host in ("", "*") else host.lower(), ports


def _canonical(host: str) -> str:
    """As the kernel spells it: a socket is told by its address, however that was written."""
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return host if address.ipv4_mapped else str(address)


def _ports(text: str) -> range | None:
    if not text:
        return range(DEFAULT_PORT, DEFAULT_PORT + 1)
    match = _PORTS.fullmatch(text)
    if match is None:
        return None
    first = int(match[1])
    last = int(match[2] or first)
    if not 0 < first <= last < 65536 or last - first >= _WIDEST_RANGE:
        return None
    return range(first, last + 1)
