"""What a generation has read: the part of its configuration that another one can be compared with.

A running master keeps its configuration in memory and nobody can ask it for that; the files may be
others by now. So the supervisor notes what matters of it at the moment when it was read, and keeps
the note as long as the generation lives. The text itself is not kept: it may hold passwords, and
be as large as 64 MiB.

Of a file that belongs to TLS its identity is noted (device, inode, size and times), and of a public
one (certificates, revocation lists, parameters) its digest, and what the certificate says. A secret
file (a session ticket key) is never opened. Private keys are not noted at all: `nginx -t` refuses a
key that does not belong to its certificate, so whether the key has changed is told by the public
key in the certificate.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from supervisor.core.certificate import Certificate
from supervisor.core.nginx_config import _DEEPEST_INCLUDE, NginxConfig, _Reading, _split
from supervisor.core.nginx_listen import DEFAULT_PORT, AddressKind, Listen, Transport
from supervisor.core.nginx_syntax import Directive
from supervisor.core.nginx_version import option_of_directive

MOST_LISTENS = 4096
MOST_ZONES = 1000
MOST_FILES = 5000
_MOST_DIRECTIVES = 1_000_000
_DEEPEST_BLOCK = 16
_NO_DIRECTIVES = frozenset({"map", "geo", "types", "split_clients", "charset_map", "match"})
"""Blocks of entries, which only look like directives."""

_ZONE = re.compile(r"(?:keys_)?zone=([^:=]+):(\d+[kKmMgG]?)")
_SIZE = re.compile(r"\d+[kKmMgG]?")
_SHARED = re.compile(r"shared:([^:]+):(\d+[kKmMgG]?)")
_NAMED_ZONES = frozenset({"zone", "lua_shared_dict"})
_SHARED_CACHES = frozenset({"ssl_session_cache", "ssl_ocsp_cache"})


class Kind(Enum):
    """What a file of TLS is for."""

    CERTIFICATE = "certificate"
    TRUSTED = "trusted certificates"
    REVOKED = "revocation list"
    PARAMETERS = "parameters"
    TICKET_KEY = "session ticket key"

    @property
    def is_secret(self) -> bool:
        """It is never opened."""
        return self is Kind.TICKET_KEY


_FILES = {
    "ssl_certificate": Kind.CERTIFICATE,
    "ssl_client_certificate": Kind.TRUSTED,
    "ssl_trusted_certificate": Kind.TRUSTED,
    "ssl_crl": Kind.REVOKED,
    "ssl_dhparam": Kind.PARAMETERS,
    "ssl_stapling_file": Kind.PARAMETERS,
    "ssl_session_ticket_key": Kind.TICKET_KEY,
}
_UPSTREAM = re.compile(r"(?:proxy|grpc|uwsgi)_(ssl_.*)")
_NO_FILE = ("data:", "engine:", "store:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a directive stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone of shared memory; `directive` tells what for."""

    name: str
    size: str
    directive: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was in a public file; `problem` where it could not be told."""

    digest: str = ""
    certificate: Certificate | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFile:
    """A file that nginx reads once, when it reads its configuration."""

    path: str
    kind: Kind
    place: Place
    identity: tuple[int, ...] = ()  # device, inode, size, mtime, ctime (ns); empty: not seen
    contents: Contents | None = None  # None: nobody has looked


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A directive (or a word of `listen`) that takes a module."""

    option: str  # of configure
    directive: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRead:
    """What one configuration means for whoever comes next; `cut` where it was too much."""

    listens: tuple[Listen, ...] = ()
    zones: tuple[Zone, ...] = ()
    files: tuple[TlsFile, ...] = ()
    uses: tuple[Use, ...] = ()  # the first of each module
    modules: tuple[str, ...] = ()  # as load_module names them
    user: tuple[str, ...] = ()
    by_variable: int = 0  # certificates that are chosen, and read, at each handshake
    tickets: bool = True  # some server hands out session tickets
    cut: bool = False

    @property
    def uses_tls(self) -> bool:
        """Some listener speaks TLS."""
        return any(one.ssl for one in self.listens)


NOTHING_READ = ConfigRead()


def read_of(dump: str, config: NginxConfig) -> ConfigRead:
    """What is to be noted of a `nginx -T` dump; `config` is what else was read of it."""
    noting = _Noting(_split(dump))
    noting.run()
    user = () if config.user is None else tuple(one for one in config.user if one is not None)
    too_many = (len(config.listens) > MOST_LISTENS, len(noting.zones) > MOST_ZONES)
    return ConfigRead(
        listens=config.listens[:MOST_LISTENS],
        zones=tuple(noting.zones.values())[:MOST_ZONES],
        files=tuple(noting.tls_files.values())[:MOST_FILES],
        uses=tuple(noting.uses.values()),
        modules=config.load_modules,
        user=user,
        by_variable=noting.by_variable,
        tickets=not noting.ticket_words or "on" in noting.ticket_words,
        cut=noting.left <= 0 or any(too_many) or len(noting.tls_files) > MOST_FILES,
    )


class _Noting(_Reading):
    """Walks through every block of the configuration."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(files, implied_port=DEFAULT_PORT)
        self.zones: dict[str, Zone] = {}
        self.tls_files: dict[tuple[str, Kind], TlsFile] = {}
        self.uses: dict[str, Use] = {}
        self.by_variable = 0
        self.ticket_words: set[str] = set()
        self.left = _MOST_DIRECTIVES

    def run(self) -> None:
        """Note all of it."""
        for first in list(self._texts)[:1]:
            for context, directive, file in self._walk(self._directives(first), first, (), ()):
                self._note(context, directive, Place(file=file, line=directive.line))

    def _walk(
        self,
        directives: Iterable[Directive],
        file: str,
        context: tuple[str, ...],
        around: tuple[str, ...],
    ) -> Iterator[tuple[tuple[str, ...], Directive, str]]:
        """Each directive with the blocks around it and its file.

        `around` is the files whose includes led here, through blocks as well: one that includes
        itself is followed once, and as many includes as would take for ever are given up.
        """
        for one in directives:
            self.left -= 1
            if self.left <= 0:
                return
            if one.name == "include" and one.block is None:
                if len(one.arguments) != 1 or len(around) >= _DEEPEST_INCLUDE:
                    continue
                for path in self._included(one, file):
                    if path != file and path not in around:
                        within = (*around, file)
                        yield from self._walk(self._directives(path), path, context, within)
                continue
            yield context, one, file
            deeper = one.block if one.name not in _NO_DIRECTIVES else None
            if deeper and len(context) < _DEEPEST_BLOCK:
                yield from self._walk(deeper, file, (*context, one.name), around)

    def _note(self, context: tuple[str, ...], one: Directive, place: Place) -> None:
        section = context[0] if context else ""
        words = [one.name]
        if one.name == "listen":
            words = [_LISTEN_WORDS[word] for word in one.arguments[1:] if word in _LISTEN_WORDS]
        for word in words:
            option = option_of_directive(word, section=section)
            if option is not None and option not in self.uses:
                told = one.name if word == one.name else f"listen {' '.join(one.arguments)}"
                self.uses[option] = Use(option=option, directive=told, place=place)
        self._note_zone(one, place)
        self._note_file(one, place)
        if one.name == "ssl_session_tickets":
            self.ticket_words.update(one.arguments[:1])

    def _note_zone(self, one: Directive, place: Place) -> None:
        found = None
        if one.name in _NAMED_ZONES:
            named = len(one.arguments) > 1 and _SIZE.fullmatch(one.arguments[1])
            found = one.arguments[:2] if named else None
        else:
            pattern = _SHARED if one.name in _SHARED_CACHES else _ZONE
            for argument in one.arguments:
                if match := pattern.fullmatch(argument):
                    found = (match[1], match[2])
        if found is not None and found[0] not in self.zones:
            name, size = found
            self.zones[name] = Zone(name=name, size=size, directive=one.name, place=place)

    def _note_file(self, one: Directive, place: Place) -> None:
        upstream = _UPSTREAM.fullmatch(one.name)
        kind = _FILES.get(upstream[1] if upstream else one.name)
        if kind is None or len(one.arguments) != 1 or not one.arguments[0]:
            return
        (path,) = one.arguments
        if "$" in path:
            self.by_variable += 1
        elif not path.startswith(_NO_FILE):
            path = posixpath.normpath(posixpath.join(self._conf_prefix, path))
            file = TlsFile(path=path, kind=kind, place=place)
            self.tls_files.setdefault((path, kind), file)


_LISTEN_WORDS = {"ssl": "ssl", "http2": "http2", "quic": "http3"}


# --- as data, for the disk and for a successor --------------------------------------------------


def to_data(read: ConfigRead) -> dict[str, Any]:
    """`read` as JSON can hold it."""
    return {
        **_flat(read),
        "listens": [_flat(one) for one in read.listens],
        "zones": [{**_flat(one), "place": _flat(one.place)} for one in read.zones],
        "files": [
            {
                **_flat(one),
                "place": _flat(one.place),
                "contents": None if one.contents is None else _flat_contents(one.contents),
            }
            for one in read.files
        ],
        "uses": [{**_flat(one), "place": _flat(one.place)} for one in read.uses],
    }


def _flat_contents(contents: Contents) -> dict[str, Any]:
    found = contents.certificate
    return {**_flat(contents), "certificate": None if found is None else _flat(found)}


def _flat(
    value: Listen | Zone | TlsFile | Place | Use | Contents | Certificate | ConfigRead,
) -> Any:
    """Its fields; ten times as fast as dataclasses.asdict, which copies all that is in them."""
    flat = {name: getattr(value, name) for name in _NAMES[type(value)]}
    return {key: one.value if isinstance(one, Enum) else one for key, one in flat.items()}


_NAMES = {
    kind: tuple(one.name for one in fields(kind))
    for kind in (Listen, Zone, TlsFile, Place, Use, Contents, Certificate, ConfigRead)
}


def from_data(data: Mapping[str, Any]) -> ConfigRead:
    """What `to_data` made. Raises KeyError, TypeError or ValueError where it is no such thing."""
    known = dict(data)
    flags = [known[name] for name in ("tickets", "cut")]
    if not all(isinstance(one, bool) for one in flags) or type(known["by_variable"]) is not int:
        raise TypeError("a flag or a number is none")
    return ConfigRead(
        **{
            **known,
            "listens": tuple(_listen(one) for one in known["listens"]),
            "zones": tuple(
                Zone(**{**_texts(one, "place"), "place": _place(one["place"])})
                for one in known["zones"]
            ),
            "files": tuple(_file(one) for one in known["files"]),
            "uses": tuple(
                Use(**{**_texts(one, "place"), "place": _place(one["place"])})
                for one in known["uses"]
            ),
            "modules": tuple(_text(one) for one in known["modules"]),
            "user": tuple(_text(one) for one in known["user"]),
        }
    )


def _listen(data: Mapping[str, Any]) -> Listen:
    listen = Listen(
        **{**data, "kind": AddressKind(data["kind"]), "transport": Transport(data["transport"])}
    )
    if type(listen.port) is not int or type(listen.line) is not int:
        raise TypeError("a port or a line is no number")
    _texts({"host": listen.host, "section": listen.section, "file": listen.file})
    return listen


def _file(data: Mapping[str, Any]) -> TlsFile:
    contents = data["contents"]
    return TlsFile(
        path=_text(data["path"]),
        kind=Kind(data["kind"]),
        place=_place(data["place"]),
        identity=tuple(int(one) for one in data["identity"]),
        contents=None if contents is None else _contents(contents),
    )


def _contents(data: Mapping[str, Any]) -> Contents:
    found = data["certificate"]
    certificate = None
    if found is not None:
        certificate = Certificate(
            **{
                **_texts(found, "names", "not_before", "not_after"),
                "names": tuple(_text(one) for one in found["names"]),
                "not_before": float(found["not_before"]),
                "not_after": float(found["not_after"]),
            }
        )
    return Contents(
        digest=_text(data["digest"]), problem=_text(data["problem"]), certificate=certificate
    )


def _place(data: Mapping[str, Any]) -> Place:
    return Place(file=_text(data["file"]), line=int(data["line"]))


def _texts(data: Mapping[str, Any], *others: str) -> dict[str, Any]:
    return {key: value if key in others else _text(value) for key, value in data.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
