"""What an X.509 certificate says of itself: for whom it is, and from when until when.

Only what is shown to people and compared is read out of the DER (RFC 5280, section 4.1): nothing
here decides whom to trust. Bytes that are no certificate give None, never an exception, and no
length in them is believed beyond the bytes that are there.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END ", re.ASCII
)
_MOST_NAMES = 100
_LONGEST_NAME = 128
_COMMON_NAME = b"\x55\x04\x03"  # 2.5.4.3
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"  # 2.5.29.17
_SEQUENCE = 0x30
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_ENCODINGS = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}  # else Latin-1, of old


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate; times are Unix seconds, digests are SHA-256 in hex."""

    subject: str  # its common name, else the first of its names
    names: tuple[str, ...]  # DNS names and addresses that it is for, at most a hundred
    not_before: float
    not_after: float
    fingerprint: str
    key: str  # of the public key


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    whole: bytes  # with tag and length
    content: bytes


def certificates_in(pem: bytes) -> list[bytes]:
    """The DER of each certificate in a PEM file, the first being a server's own.

    Whatever else is in it (a private key) is passed over.
    """
    found = []
    for match in _PEM.finditer(pem):
        try:
            found.append(binascii.a2b_base64(match[1]))
        except binascii.Error:
            continue
    return found


def parse_certificate(der: bytes) -> Certificate | None:
    """What `der` says; None where it is no certificate."""
    try:
        return _certificate(der)
    except (ValueError, LookupError, OverflowError):
        return None


def _certificate(der: bytes) -> Certificate:
    outer = _first(der, _SEQUENCE)
    fields = list(_elements(_first(outer.content, _SEQUENCE).content))
    if fields[0].tag == _VERSION:
        del fields[0]
    _, _, _, validity, subject, key, *optional = fields  # serial, algorithm and issuer before it
    begin, end = (_time(one) for one in _elements(validity.content))
    names = tuple(
        name
        for one in optional
        if one.tag == _EXTENSIONS
        for name in _alternative_names(_first(one.content, _SEQUENCE).content)
    )[:_MOST_NAMES]
    return Certificate(
        subject=_common_name(subject.content) or next(iter(names), "no name"),
        names=names,
        not_before=begin,
        not_after=end,
        fingerprint=hashlib.sha256(outer.whole).hexdigest(),
        key=hashlib.sha256(key.whole).hexdigest(),
    )


def _elements(data: bytes) -> Iterator[_Element]:
    """The elements that follow each other in `data`. Raises ValueError where one is cut."""
    begin = 0
    while begin < len(data):
        length, content = data[begin + 1], begin + 2
        if length & 0x80:
            octets = length & 0x7F
            if octets > 4:  # more than 4 GiB
                raise ValueError("no length")
            length = int.from_bytes(data[content : content + octets])
            content += octets
        end = content + length
        if len(data) < end:
            raise ValueError("cut")
        yield _Element(data[begin], data[begin:end], data[content:end])
        begin = end


def _first(data: bytes, tag: int) -> _Element:
    found = next(_elements(data), None)
    if found is None or found.tag != tag:
        raise ValueError("another element")
    return found


def _time(one: _Element) -> float:
    text = one.content.decode("ascii")
    if one.tag == _UTC_TIME:  # two digits of the year: 50 to 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    elif one.tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _common_name(subject: bytes) -> str:
    found = ""
    for group in _elements(subject):
        for attribute in _elements(group.content):
            kind, value = _elements(attribute.content)
            if kind.content == _COMMON_NAME:
                found = _text(value)
    return found


def _text(value: _Element) -> str:
    encoding = _ENCODINGS.get(value.tag, "latin-1")
    return value.content.decode(encoding, "replace")[:_LONGEST_NAME]


def _alternative_names(extensions: bytes) -> Iterator[str]:
    for extension in _elements(extensions):
        kind, *_, value = _elements(extension.content)  # between them it may say "critical"
        if kind.content != _ALTERNATIVE_NAMES:
            continue
        for name in _elements(_first(value.content, _SEQUENCE).content):
            if name.tag == _DNS_NAME:
                yield name.content.decode("latin-1")[:_LONGEST_NAME]
            elif name.tag == _IP_ADDRESS:
                yield str(ip_address(name.content))
