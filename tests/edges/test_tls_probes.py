"""Probes over https: who answers is proved, HTTP/2 is spoken, and each failure is told in words."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

import pytest
import trio

from supervisor.core.observation import Outcome
from supervisor.core.probe_settings import UnixAddress
from supervisor.core.tls_settings import TlsSettings
from supervisor.edges import http_exchange, tls_client
from supervisor.edges.http_probe import MOST_BODY, check_http
from supervisor.edges.probe_finding import Finding
from tests import certificates
from tests.certificates import NAME
from tests.edges.probe_targets import (
    LIMIT,
    OK,
    SELF,
    Handler,
    answering,
    held_by,
    http,
    read_request,
    serving,
)
from tests.edges.tls_targets import (
    Http2,
    Secure,
    answering_h2,
    over_tls,
    server_context,
    trusting,
)


async def ask(handler: Handler, tls: TlsSettings, **changes: object) -> Finding:
    async with serving(handler) as port:
        probe = http(port, url=f"https://127.0.0.1:{port}/", host=NAME, tls=tls, **changes)
        return await check_http(probe, probe.address, None, known=lambda _pid: False)


def plainly(folder: Path, handler: Handler | None = None, **changes: object) -> Handler:
    """`handler` over TLS with the certificate in `folder`."""
    return over_tls(handler or answering(OK), server_context(folder, **changes))  # type: ignore[arg-type]


async def test_a_good_answer_passes_and_sends_the_name(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    context = server_context(tmp_path)
    names: list[str | None] = []
    context.sni_callback = lambda _s, name, _c: names.append(name)  # type: ignore[assignment]
    found = await ask(over_tls(answering(OK), context), trusting(tmp_path))
    assert (found.outcome, found.detail) == (Outcome.PASS, "status 200")
    assert names == [NAME]
    assert 0 < found.latency < LIMIT


async def test_an_address_is_proved_and_not_sent_as_a_name(tmp_path: Path) -> None:
    certificates.write(tmp_path, names=("127.0.0.1",))
    context = server_context(tmp_path)
    names: list[str | None] = []
    context.sni_callback = lambda _s, name, _c: names.append(name)  # type: ignore[assignment]
    tls = trusting(tmp_path, server_name="127.0.0.1")
    found = await ask(over_tls(answering(OK), context), tls)
    assert (found.outcome, names) == (Outcome.PASS, [None])


BAD = {
    "expired": ({"expired": True}, "the certificate has expired"),
    "another name": ({"names": ("other.test",)}, f"is for another name than {NAME}"),
    "unknown authority": ({"by": "somebody"}, "the certificate is of an unknown authority"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_wrong_certificate_is_told_in_words(tmp_path: Path, name: str) -> None:
    how, said = BAD[name]
    certificates.write(tmp_path, **how)  # type: ignore[arg-type]
    handler = plainly(tmp_path)
    found = await ask(handler, trusting(tmp_path))
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("TLS handshake failed: the certificate")
    assert said in found.detail
    unverified = await ask(handler, trusting(tmp_path, verify=False, ca_file=None))
    assert unverified.outcome is Outcome.PASS
    assert unverified.detail == "status 200 (certificate not verified)"


async def test_an_address_that_the_certificate_does_not_name(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    found = await ask(plainly(tmp_path), trusting(tmp_path, server_name="127.0.0.2"))
    assert found.detail.endswith("the certificate is for another address than 127.0.0.2")


async def test_the_systems_authorities_do_not_know_ours(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    found = await ask(plainly(tmp_path), trusting(tmp_path, ca_file=None))
    assert "unknown authority" in found.detail


async def test_a_client_certificate_is_presented(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    client = certificates.write(tmp_path, names=("client",), file="client.pem").certificate
    handler = plainly(tmp_path, client_ca=True)
    for key in (None, str(client)):
        tls = trusting(tmp_path, client_certificate=str(client), client_key=key)
        assert (await ask(handler, tls)).outcome is Outcome.PASS
    without = await ask(handler, trusting(tmp_path))
    assert without.outcome is Outcome.FAIL
    certificates.write(tmp_path, names=("client",), by="somebody", file="client.pem")
    stranger = await ask(handler, trusting(tmp_path, client_certificate=str(client)))
    assert stranger.outcome is Outcome.FAIL


async def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    handler, tls = plainly(tmp_path), trusting(tmp_path)
    assert (await ask(handler, tls)).outcome is Outcome.PASS
    first = await tls_client.context_for(tls)
    assert await tls_client.context_for(tls) is first
    certificates.authority("somebody").cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    assert "unknown authority" in (await ask(handler, tls)).detail


def _garbage(folder: Path) -> str:
    path = folder / "garbage.pem"
    path.write_text("no certificate")
    return str(path)


def _encrypted(folder: Path) -> str:
    path = folder / "encrypted.pem"
    pair = certificates.authority("ours").issue_cert("client")
    key = pair.private_key_pem.bytes()
    loaded = _load_key(key)
    path.write_bytes(pair.cert_chain_pems[0].bytes() + loaded)
    return str(path)


def _load_key(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )  # fmt: skip


LACKS = {
    "missing": ("ca_file", lambda folder: str(folder / "none"), "No such file or directory"),
    "no certificate": ("ca_file", _garbage, "no certificate or crl found"),
    "folder": ("ca_file", str, "no regular file"),
    "encrypted": ("client_certificate", _encrypted, "its key is encrypted"),
    "client garbage": ("client_certificate", _garbage, "cannot load client_certificate"),
}


@pytest.mark.parametrize("name", LACKS)
async def test_what_we_lack_ourselves_is_nobodys_failure(tmp_path: Path, name: str) -> None:
    key, make, said = LACKS[name]
    certificates.write(tmp_path)
    path = make(tmp_path)  # type: ignore[operator]
    found = await ask(plainly(tmp_path), trusting(tmp_path, **{key: path}))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.detail.startswith(f"cannot load {key} {path}")
    assert said in found.detail


async def test_a_fifo_in_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    certificates.write(tmp_path)
    tls = trusting(tmp_path, ca_file=str(tmp_path / "fifo"))
    assert (await ask(plainly(tmp_path), tls)).outcome is Outcome.INCONCLUSIVE


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    with trio.socket.socket(trio.socket.AF_UNIX) as bound:
        await bound.bind(str(tmp_path / "s"))
        bound.listen()
        async with trio.open_nursery() as nursery:
            listeners = [trio.SocketListener(bound)]
            nursery.start_soon(trio.serve_listeners, plainly(tmp_path), listeners)
            probe = http(443, host=NAME, tls=trusting(tmp_path))
            found = await check_http(probe, UnixAddress(str(tmp_path / "s")), None, known=bool)
            nursery.cancel_scope.cancel()
    assert found.outcome is Outcome.PASS


async def test_the_worker_is_found_behind_tls(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    async with serving(plainly(tmp_path, answering(OK, close=False))) as port:
        probe = http(port, host=NAME, tls=trusting(tmp_path))
        found = await check_http(probe, probe.address, held_by(SELF), known=bool)
    assert (found.outcome, found.worker_pid) == (Outcome.PASS, SELF)


# --- HTTP/2 ---


def h2_server(folder: Path, handler: object, *, alpn: str = "h2") -> Handler:
    return over_tls(handler, server_context(folder, alpn=alpn))  # type: ignore[arg-type]


async def test_http2_is_spoken_where_it_is_asked_for(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    requests: list[dict[str, str]] = []

    async def handle(stream: Secure) -> None:
        server = Http2(stream)
        number = await server.serve()
        requests.append(server.request)
        server.connection.send_headers(number, [(":status", "103")])
        server.connection.send_headers(number, [(":status", "200"), ("x-pid", "77")])
        server.connection.send_data(number, b"ok")
        server.connection.send_headers(number, [("x-trailer", "1")], end_stream=True)
        server.connection.ping(b"12345678")
        await server.flush()
        await stream.receive_some(1)

    async with serving(h2_server(tmp_path, handle)) as port:
        tls = trusting(tmp_path, http2=True)
        probe = http(
            port, host=NAME, tls=tls, target="/a?b", headers={"X-One": "1"}, pid_header="X-Pid",
            expect_body=re.compile("^ok$"),
        )  # fmt: skip
        found = await check_http(probe, probe.address, None, known=lambda pid: pid == 77)
    assert (found.outcome, found.detail, found.worker_pid) == (Outcome.PASS, "status 200", 77)
    (request,) = requests
    assert request == {
        ":method": "GET", ":scheme": "https", ":authority": NAME, ":path": "/a?b", "x-one": "1",
        "user-agent": "nginx-supervisor", "accept": "*/*",
    }  # fmt: skip


async def test_http2_reads_as_large_a_body_as_any(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    tls = trusting(tmp_path, http2=True)
    whole = await ask(h2_server(tmp_path, answering_h2(body=b"x" * MOST_BODY)), tls)
    assert (whole.outcome, whole.detail) == (Outcome.PASS, "status 200")
    refused = await ask(h2_server(tmp_path, answering_h2(503)), tls)
    assert refused.detail == "status 503, expected 200"


async def test_a_server_without_http2_is_told_apart(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    found = await ask(plainly(tmp_path), trusting(tmp_path, http2=True))
    assert found.outcome is Outcome.FAIL
    assert "does not speak" in found.detail
    assert "ALPN" in found.detail


# --- along redirects ---


async def test_a_redirect_is_followed_over_tls_too(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    asked = []

    async def handle(stream: trio.SocketStream) -> None:
        request = await read_request(stream)
        target = request.split()[1].decode()
        asked.append(target)
        moved = b"HTTP/1.1 301 M\r\nLocation: https://site.test/b\r\nContent-Length: 0\r\n\r\n"
        await stream.send_all(moved if target == "/a" else OK)

    tls = trusting(tmp_path)
    found = await ask(plainly(tmp_path, handle), tls, target="/a", follow_redirects=1)  # type: ignore[arg-type]
    assert (found.outcome, asked) == (Outcome.PASS, ["/a", "/b"])


def test_the_contexts_that_are_kept_are_bounded(tmp_path: Path) -> None:
    certificates.write(tmp_path)
    for number in range(tls_client._MOST_CONTEXTS + 2):
        tls_client._context_for(trusting(tmp_path, server_name=f"n{number}"))
    assert len(tls_client._contexts) <= tls_client._MOST_CONTEXTS


def test_a_failure_without_a_known_cause_has_the_librarys_words() -> None:
    tls = TlsSettings(server_name=NAME)

    def told(cause: BaseException | None) -> str | None:
        broken = trio.BrokenResourceError()
        broken.__cause__ = cause
        return tls_client.tls_cause(broken, tls)

    assert told(None) is None
    assert told(ssl.SSLEOFError()) == "the connection was closed in the TLS handshake"
    odd = ssl.SSLCertVerificationError()
    odd.verify_code, odd.verify_message = 22, "chain {too} long"
    assert told(odd) == "the certificate is not good: chain {too} long"
    assert http_exchange.MOST_RECEIVED > MOST_BODY
