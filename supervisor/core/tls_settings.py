"""How an https probe proves who answers, and who asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from supervisor.core.settings_table import Table

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """TLS of one probe; without `ca_file` the system's authorities are trusted."""

    server_name: str  # whom the certificate has to name; sent as SNI where it is no address
    verify: bool = True
    ca_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None  # None: it is in the certificate's file
    http2: bool = False

    @property
    def sni(self) -> str | None:
        """The name by which nginx chooses the certificate; None: none is sent (RFC 6066, 3)."""
        return None if _is_address(self.server_name) else self.server_name.lower()


def parse_tls(table: Table, *, host: str) -> TlsSettings:
    """The keys of an https probe whose Host header is `host`. Raises ConfigError."""
    verify = table.flag("verify", default=True)
    ca_file = table.optional_path("ca_file")
    if ca_file is not None and not verify:
        raise table.error("ca_file", "with verify = false nobody looks at it; leave one out")
    certificate = table.optional_path("client_certificate")
    key = table.optional_path("client_key")
    if key is not None and certificate is None:
        raise table.error("client_key", "a key alone proves nothing; add client_certificate")
    return TlsSettings(
        server_name=_server_name(table, host),
        verify=verify,
        ca_file=ca_file,
        client_certificate=certificate,
        client_key=key,
        http2=table.flag("http2", default=False),
    )


def refuse_tls(table: Table) -> None:
    """Raise ConfigError where a key of https is given and the URL is not https."""
    for key in (
        "server_name", "verify", "ca_file", "client_certificate", "client_key", "http2",
    ):  # fmt: skip
        if table.has(key):
            raise table.error(key, "it is for https alone, and the url begins with http://")


def bare_host(host: str) -> str:
    """The name or address in a Host header: without port, brackets and the last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _server_name(table: Table, host: str) -> str:
    name = table.optional_text("server_name")
    if name is None:
        name = bare_host(host)
    if not _HOST_NAME.fullmatch(name) and not _is_address(name):
        raise table.error(
            "server_name",
            f"{name!r} is neither a host name nor an address; write the name in the certificate",
        )
    return name


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
