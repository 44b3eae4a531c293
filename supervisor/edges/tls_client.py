"""TLS for probes: contexts that follow their files, the handshake, and its failures in words."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import trio

from supervisor.core.observation import Outcome
from supervisor.core.tls_settings import TlsSettings
from supervisor.edges.http_exchange import BadAnswerError

FILES_LIMIT = 5.0
"""Seconds for the files of a probe, which are not the server's time."""
_LARGEST_FILE = 16 * 1024 * 1024
_MOST_CONTEXTS = 64
_AFTER_CLOSE = "the connection was closed in the TLS handshake"

_VERIFY = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed, and nobody vouches for it",
    19: "the certificate is of an unknown authority (self-signed certificate in its chain)",
    20: "the certificate is of an unknown authority",
    21: "the certificate is of an unknown authority",
    23: "the certificate was revoked",
    62: "the certificate is for another name than {name}",
    64: "the certificate is for another address than {name}",
}
"""X509_V_ERR_* (openssl/x509_vfy.h); what is not here is told in OpenSSL's words."""

_REASONS = {
    "WRONG_VERSION_NUMBER": "what answers does not speak TLS",
    "HTTP_REQUEST": "what answers does not speak TLS",
    "UNEXPECTED_MESSAGE": "what answers does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it offers no version of TLS that is safe (1.2 or 1.3)",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it refuses every version of TLS that is safe (1.2 or 1.3)",
    "TLSV1_UNRECOGNIZED_NAME": "it does not know the name {name}",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "it does not speak what was asked for by ALPN",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it refuses our client certificate: unknown authority",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses our client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it refuses our client certificate: expired",
}

_contexts: dict[TlsSettings, tuple[object, ssl.SSLContext]] = {}


async def secured(
    stream: trio.SocketStream, tls: TlsSettings, context: ssl.SSLContext
) -> trio.SSLStream[trio.SocketStream]:
    """The stream after a handshake that proved what `tls` asks for. Raises BadAnswerError."""
    secure = trio.SSLStream(stream, context, server_hostname=tls.server_name, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as exc:
        raise BadAnswerError(f"TLS handshake failed: {tls_cause(exc, tls)}") from exc
    if tls.http2 and secure.selected_alpn_protocol() != "h2":
        raise BadAnswerError("it does not speak HTTP/2 there (ALPN did not choose h2)")
    return secure


async def context_for(tls: TlsSettings) -> ssl.SSLContext:
    """What is needed for a handshake, read anew where a file has changed.

    Raises BadAnswerError, inconclusive: a file of ours that cannot be read is nobody's fault who
    answers.
    """
    # In a thread: the system's authorities take milliseconds, and a disk may hang.
    with trio.move_on_after(FILES_LIMIT):
        return await trio.to_thread.run_sync(_context_for, tls, abandon_on_cancel=True)
    named = ", ".join(path for _, path in _files(tls)) or "the system's authorities"
    raise BadAnswerError(f"cannot load {named} within {FILES_LIMIT:g} s", Outcome.INCONCLUSIVE)


def tls_cause(exc: BaseException, tls: TlsSettings) -> str | None:
    """Why TLS failed, for people; None where the failure is not one of TLS."""
    inner = exc.__cause__
    if isinstance(inner, ssl.SSLCertVerificationError):
        known = _VERIFY.get(inner.verify_code)
        if known is None:
            return f"the certificate is not good: {inner.verify_message}"
        return known.format(name=tls.server_name)
    if isinstance(inner, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _AFTER_CLOSE
    if isinstance(inner, ssl.SSLError):
        reason = inner.reason or type(inner).__name__
        if reason in _REASONS:
            return _REASONS[reason].format(name=tls.server_name)
        return reason.lower().replace("_", " ")
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno)
    return None


def _context_for(tls: TlsSettings) -> ssl.SSLContext:
    signature = tuple(_signatures(tls))
    known = _contexts.get(tls)
    if known is not None and known[0] == signature:
        return known[1]
    context = _make(tls)
    if len(_contexts) >= _MOST_CONTEXTS:
        _contexts.clear()
    _contexts[tls] = (signature, context)
    return context


def _signatures(tls: TlsSettings) -> Iterator[object]:
    """What changes with the files. Raises BadAnswerError where one of ours is no file."""
    for key, path in _files(tls):
        try:
            found = os.stat(path)
        except OSError as exc:
            raise _cannot_load(key, path, exc) from exc
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
            why = "it is no regular file of a sensible size"
            raise BadAnswerError(f"cannot load {key} {path}: {why}", Outcome.INCONCLUSIVE)
        yield found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    if tls.verify and tls.ca_file is None:
        system = ssl.get_default_verify_paths()
        for known in (system.cafile, system.capath):
            if known and Path(known).exists():
                yield known, os.stat(known).st_mtime_ns


def _files(tls: TlsSettings) -> Iterator[tuple[str, str]]:
    for key in ("ca_file", "client_certificate", "client_key"):
        path = getattr(tls, key)
        if path is not None:
            yield key, path


def _make(tls: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cafile=tls.ca_file)
        except OSError as exc:  # SSLError is one
            raise _cannot_load("ca_file", tls.ca_file, exc) from exc
    if tls.client_certificate is not None:
        try:
            context.load_cert_chain(tls.client_certificate, tls.client_key, _no_password)
        except (OSError, ValueError) as exc:
            raise _cannot_load("client_certificate", tls.client_certificate, exc) from exc
    context.set_alpn_protocols(["h2"] if tls.http2 else ["http/1.1"])
    return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    raise ValueError("its key is encrypted, and there is nobody to type the password")


def _cannot_load(key: str, path: str, exc: Exception) -> BadAnswerError:
    if isinstance(exc, ssl.SSLError):
        cause = (exc.reason or "it is no PEM file").lower().replace("_", " ")
    elif isinstance(exc, OSError) and exc.errno:
        cause = os.strerror(exc.errno)
    else:
        cause = str(exc)
    return BadAnswerError(f"cannot load {key} {path}: {cause}", Outcome.INCONCLUSIVE)
