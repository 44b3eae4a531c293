"""What a certificate says of itself, against OpenSSL's reading of the same files."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.certificate import Certificate, certificates_in, parse_certificate

FOLDER = Path(__file__).parents[1] / "tls"
FILES = sorted(FOLDER.glob("*.pem"))
FIRST = (FOLDER / "first.test.pem").read_bytes()
(DER,) = certificates_in(FIRST)


def read(name: str) -> Certificate:
    (der,) = certificates_in((FOLDER / f"{name}.test.pem").read_bytes())
    found = parse_certificate(der)
    assert found is not None
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_read_as_openssl_reads_it(path: Path) -> None:
    (der,) = certificates_in(path.read_bytes())
    found = parse_certificate(der)
    said = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    assert found is not None
    assert found.subject == "site.test"
    assert found.names == tuple(value for _, value in said["subjectAltName"])
    assert found.not_before == ssl.cert_time_to_seconds(said["notBefore"])
    assert found.not_after == ssl.cert_time_to_seconds(said["notAfter"])
    assert found.fingerprint == hashlib.sha256(der).hexdigest()


def test_the_key_is_told_apart_from_the_certificate() -> None:
    first, same_key, renewed = read("first"), read("same_key"), read("renewed")
    assert first.key == same_key.key != renewed.key
    assert len({first.fingerprint, same_key.fingerprint, renewed.fingerprint}) == 3


def test_a_chain_begins_with_the_server_s_own() -> None:
    other = (FOLDER / "other.test.pem").read_bytes()
    chain = certificates_in(FIRST + b"\nin between\n" + other)
    assert chain == [DER, *certificates_in(other)]
    assert certificates_in(FIRST.replace(b" CERT", b" TRUSTED CERT")) == [DER]
    assert certificates_in(b"-----BEGIN CERTIFICATE-----\nabcde\n-----END CERTIFICATE-----") == []
    assert certificates_in(b"nothing of the kind") == []


# --- made by hand: what OpenSSL's own tools do not write ---------------------------------------


def element(tag: int, content: bytes) -> bytes:
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes(2)
    return bytes([tag, 0x82]) + length + content


def made(
    *,
    subject: bytes = b"",
    validity: bytes = element(0x17, b"990101000000Z") + element(0x18, b"20490101000000Z"),
    version: bytes = b"",
    extensions: bytes = b"",
) -> bytes:
    body = version + element(0x02, b"\1") + element(0x30, b"") + element(0x30, b"")
    body += element(0x30, validity) + element(0x30, subject) + element(0x30, b"key") + extensions
    return element(0x30, element(0x30, body) + element(0x30, b"") + element(0x03, b""))


def common_name(tag: int, value: bytes, oid: bytes = b"\x55\x04\x03") -> bytes:
    return element(0x31, element(0x30, element(0x06, oid) + element(tag, value)))


def test_times_of_both_centuries() -> None:
    found = parse_certificate(made())
    assert found is not None
    assert found.not_before == ssl.cert_time_to_seconds("Jan  1 00:00:00 1999 GMT")
    assert found.not_after == ssl.cert_time_to_seconds("Jan  1 00:00:00 2049 GMT")
    assert found.subject == "no name"
    odd = element(0x17, b"990101000000Z") + element(0x04, b"20490101000000Z")
    assert parse_certificate(made(validity=odd)) is None


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        (common_name(0x0C, "ü.test".encode()), "ü.test"),
        (common_name(0x13, b"a.test") + common_name(0x13, b"b.test"), "b.test"),
        (common_name(0x1E, "a".encode("utf-16-be")), "a"),
        (common_name(0x0C, b"\xff"), "\ufffd"),
        (common_name(0x0C, b"a" * 300), "a" * 128),
        (common_name(0x0C, b"an organisation", b"\x55\x04\x0a"), "no name"),
    ],
)
def test_subjects(subject: bytes, shown: str) -> None:
    found = parse_certificate(made(subject=subject))
    assert found is not None
    assert found.subject == shown


def alternative_names(content: bytes, oid: bytes = b"\x55\x1d\x11") -> bytes:
    value = element(0x04, element(0x30, content))
    critical = element(0x01, b"\xff")
    one = element(0x30, element(0x06, oid) + critical + value)
    return element(0xA3, element(0x30, one))


def test_names() -> None:
    names = element(0x82, b"*.site.test") + element(0x87, b"\x7f\0\0\1") + element(0x81, b"a@b")
    unique = element(0x81, b"\0id")
    found = parse_certificate(
        made(version=element(0xA0, b""), extensions=unique + alternative_names(names))
    )
    assert found is not None
    assert (found.subject, found.names) == ("*.site.test", ("*.site.test", "127.0.0.1"))
    other = parse_certificate(made(extensions=alternative_names(names, b"\x55\x1d\x13")))
    assert other is not None
    assert other.names == ()
    many = parse_certificate(made(extensions=alternative_names(element(0x82, b"a") * 2000)))
    assert many is not None
    assert len(many.names) == 100


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x80",
        b"\x30\x85\0\0\0\0\1",
        element(0x31, b""),
        element(0x30, b""),
        element(0x30, element(0x30, b"")),
        made(extensions=alternative_names(element(0x87, b"\1\2"))),
        made(validity=element(0x17, b"9901010000Z")),
        made(validity=element(0x17, b"\xff\xff0101000000Z") * 2),
        DER[:-1],
        DER[:200],
    ],
)
def test_what_is_none(der: bytes) -> None:
    assert parse_certificate(der) is None


@given(st.binary(max_size=200), st.integers(0, len(DER)), st.integers(0, 20))
def test_any_bytes_are_looked_at_without_an_accident(data: bytes, at: int, cut: int) -> None:
    parse_certificate(data)
    parse_certificate(DER[:at] + data + DER[at + cut :])
    certificates_in(b"-----BEGIN CERTIFICATE-----" + data + b"-----END CERTIFICATE-----")
