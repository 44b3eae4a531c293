"""Servers that speak TLS, and HTTP/2 over it, as well or as badly as they are told."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import trio

from supervisor.core.tls_settings import TlsSettings
from tests import certificates
from tests.certificates import NAME
from tests.edges.probe_targets import Handler

Secure = trio.SSLStream[trio.SocketStream]
SecureHandler = Callable[[Secure], Awaitable[None]]


def trusting(folder: Path, **changes: object) -> TlsSettings:
    """What a probe of `site.test` needs, after `certificates.write`."""
    known = {"server_name": NAME, "ca_file": str(folder / "authority.pem")}
    return TlsSettings(**{**known, **changes})  # type: ignore[arg-type]


def server_context(
    folder: Path, *, alpn: str = "http/1.1", client_ca: bool = False
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols([alpn])
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        certificates.authority("ours").configure_trust(context)
    return context


def over_tls(handler: SecureHandler, context: ssl.SSLContext) -> Handler:
    """The same as a handler of plain connections."""

    async def handle(plain: trio.SocketStream) -> None:
        secure = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        await handler(secure)

    return handle


class Http2:
    """A server's side of HTTP/2 for one request."""

    def __init__(self, stream: Secure) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.request: dict[str, str] = {}

    async def serve(self) -> int:
        """Greet, and read the request; the number of its stream."""
        self.connection.initiate_connection()
        await self.flush()
        while True:
            for event in self.connection.receive_data(await self.stream.receive_some(65536)):
                if isinstance(event, h2.events.RequestReceived):
                    self.request = dict(event.headers)  # type: ignore[arg-type]
                    await self.flush()
                    assert event.stream_id is not None
                    return event.stream_id
            await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())


def answering_h2(status: int = 200, body: bytes = b"ok", **headers: str) -> SecureHandler:
    async def handle(stream: Secure) -> None:
        server = Http2(stream)
        number = await server.serve()
        fields = [(":status", str(status)), *((k.replace("_", "-"), v) for k, v in headers.items())]
        server.connection.send_headers(number, fields)
        for at in range(0, len(body), 16384):
            server.connection.send_data(number, body[at : at + 16384])
        server.connection.end_stream(number)
        await server.flush()
        while await stream.receive_some(65536):
            pass

    return handle


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2, right or wrong."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


DATA, HEADERS, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = (
    0, 1, 3, 4, 5, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS = 1, 4
STATUS_200 = b"\x88"
