r"""Lines of nginx's error log as evidence: whose line it is, how bad, and of which kind.

nginx writes `2026/11/24 13:11:55 [alert] 19384#19384: *12 text`, with one write(2) for each message
of at most 2048 bytes (ngx_log_error_core, NGX_MAX_ERROR_STR), and over syslog the same behind an
RFC 3164 head, one datagram for each message (ngx_syslog_writer).

A message is not escaped. A client's `GET /a%0a2026/11/24%2013:11:55%20[alert]%201%231:%20x` puts a
whole line of its own making into the file (seen with 1.18 and 1.26). So a line of a file counts
only where no message that began less than 2048 bytes before it shows that it holds a line break:
by a part that is no line of nginx's, by its request (which nginx writes as it came, `%0a` and all),
by being cut at the very limit, or by quoting what users and programs behind nginx may write.
Datagrams have ends, so nothing of this concerns syslog.

The *kind* of a line is what is left without numbers, names, addresses and the client's context: so
lines of two generations can be compared.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.signals import Severity

MESSAGE = 2048
"""Bytes of nginx's longest message, with its line break."""
TEXT = 512
"""Characters of a line that are kept."""
KIND = 160
"""Characters of a kind that are kept."""
ALIKE = 16
"""Lines of one process that begin alike and are taken out of one piece of a log ..."""
LINES = 256
"""... and lines at all; the others are counted."""

_LEVEL = {
    b"emerg": Severity.EMERG,
    b"alert": Severity.ALERT,
    b"crit": Severity.CRIT,
    b"error": Severity.ERROR,
    b"warn": Severity.WARN,
    b"notice": Severity.NOTICE,
    b"info": Severity.INFO,
    b"debug": Severity.DEBUG,
}
_TIME = rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
_HEAD = rb"%s \[(%s)\] (\d{1,10})#(\d{1,10}): " % (_TIME, b"|".join(_LEVEL))
_PID = re.compile(_TIME + rb" \[[a-z]{1,6}\] (\d{1,10})#")
_LINE = re.compile(rb"^" + _HEAD + rb"([^\n]{0,%d})" % MESSAGE, re.MULTILINE)
_SEVERE = re.compile(rb"^" + _TIME + rb" \[(?:emerg|alert|crit)\] ", re.MULTILINE)
_OF_A_CONNECTION = re.compile(rb"^" + _HEAD + rb"\*\d", re.MULTILINE)
_FOREIGN_PART = re.compile(rb"^(?!" + _TIME + rb" \[[a-z]{1,6}\] \d)[^\n]", re.MULTILINE)
_AT_THE_END = re.compile(rb"%0a|\" was not found in \"|\": password mismatch", re.IGNORECASE)
_AT_THE_BEGINNING = re.compile(rb"sent in stderr: \"")
_SYSLOG = re.compile(rb"<\d{1,3}>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [^\n]{0,400}?" + _HEAD)

_NO_KIND = re.compile(
    r"\((?P<errno>\d+): [^)]*\)"  # its number says it; the words differ between versions
    r'|"[^"]*"?'
    r"|unix:[^\s,]+"
    r"|\b0x[0-9a-fA-F]+"
    r"|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\](?::\d+)?"
    r"|\b[0-9A-F]*\d[0-9A-Fa-f.:]*"
)
_CONNECTION = re.compile(r"\*\d+ ")
_NUMBER = b"*0123456789 "  # of the connection
_BEGINNING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message as nginx wrote it; `pid` is what it says of itself."""

    severity: Severity
    pid: int
    text: str  # bounded and printable


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a piece of a log: the severe lines, and how many more of them there were."""

    entries: tuple[Entry, ...] = ()
    more: int = 0
    doubtful: int = 0  # lines that a client may have made up


def parse_line(raw: bytes) -> Entry | None:
    """The message in one line, of any level; None where it is none of nginx's."""
    match = _LINE.match(raw)
    return None if match is None else _entry(match)


def pid_of(line: bytes) -> int | None:
    """The process that a line says it is of, message or not; a client can make one up."""
    match = _PID.match(line)
    return None if match is None else int(match[1])


def parse_datagram(raw: bytes) -> Entry | None:
    """The message in what nginx sends to syslog, with or without a host name; None if none.

    All that follows the head is one message, also where it holds line breaks.
    """
    match = _SYSLOG.match(raw)
    if match is None:
        return None
    return Entry(
        severity=_LEVEL[match[1]], pid=int(match[2]), text=printable(raw[match.end() :][:MESSAGE])
    )


def severe(piece: bytes, *, start: int = 0, stop: int | None = None) -> Found:
    """The lines of `piece` at `crit` and worse that begin at `start` or later, and before `stop`.

    `piece` begins and ends with whole lines. What stands before `start` was looked at before, and
    is there as the context that tells a made up line: the last 2048 bytes of it will do. What
    stands behind `stop` is the same for the last lines: their message may go on there.
    """
    places = [match.start() for match in _SEVERE.finditer(piece, start)]
    if stop is not None:
        places = places[: bisect_left(places, stop)]
    if not places:
        return Found()
    doubts = _Doubts(piece)
    entries: list[Entry] = []
    alike: dict[tuple[bytes, bytes], int] = {}
    more = doubtful = 0
    for place in places:
        match = _LINE.match(piece, place)
        if match is None:
            continue  # cut, or nobody's
        if doubts.about(place):
            doubtful += 1
            continue
        beginning = match[2], match[4].lstrip(_NUMBER)[:_BEGINNING]
        alike[beginning] = alike.get(beginning, 0) + 1
        if alike[beginning] > ALIKE or len(entries) >= LINES:
            more += 1  # a flood of one kind must not hide another line
        else:
            entries.append(_entry(match))
    return Found(tuple(entries), more, doubtful)


@dataclass(slots=True)
class Scan:
    """Looks through a log that comes in parts; one part's end may be in the middle of a message."""

    before: bytes = b""  # the last of what was looked at
    held: bytes = b""  # lines whose message may go on in the next part

    def take(self, lines: bytes, *, more: bool = False) -> Found:
        """What is in the next whole lines; `more`: the next part is there already."""
        piece, start = self.before + self.held + lines, len(self.before)
        stop = len(piece)
        if more:
            stop = max(start, piece.rfind(b"\n", start, max(start, stop - MESSAGE)) + 1)
        self.before, self.held = piece[max(0, stop - MESSAGE) : stop], piece[stop:]
        return severe(piece, start=start, stop=stop)


class _Doubts:
    """Tells whether a line may be part of a message that began before it."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self._began = [match.start() for match in _OF_A_CONNECTION.finditer(piece)]
        self._parts = [match.start() for match in _FOREIGN_PART.finditer(piece)]
        self._ends = [match.start() for match in _AT_THE_END.finditer(piece)]
        self._quotes = [match.start() for match in _AT_THE_BEGINNING.finditer(piece)]

    def about(self, place: int) -> bool:
        """Whether some message of a connection that began before `place` may reach beyond it."""
        first = bisect_left(self._began, place - MESSAGE + 1)
        for began in self._began[first : bisect_left(self._began, place)]:
            end = began + MESSAGE
            if self._piece[end - 1 : end] == b"\n":
                return True
            if _any_in(self._parts, began, end) or _any_in(self._ends, place, end):
                return True
            if _any_in(self._quotes, began, place):
                return True
        return False


def _any_in(places: Sequence[int], start: int, end: int) -> bool:
    return bisect_right(places, start) < bisect_left(places, end)


def _entry(match: re.Match[bytes]) -> Entry:
    return Entry(severity=_LEVEL[match[1]], pid=int(match[2]), text=printable(match[4]))


def printable(raw: bytes) -> str:
    """`raw` as text that does no harm on a terminal, of at most `TEXT` characters."""
    text = raw[: TEXT + 1].decode("utf-8", "backslashreplace")
    text = "".join(one if one.isprintable() else _escaped(one) for one in text)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "backslashreplace").decode("ascii")


def kind_of(text: str) -> str:
    """What two lines of one kind have in common; never longer than `KIND` characters."""
    text = _CONNECTION.sub("", text, count=1)
    for context in (", client: ", ", server: "):
        text = text.partition(context)[0]
    return _NO_KIND.sub(_without, text)[:KIND]


def _without(match: re.Match[str]) -> str:
    if match["errno"] is not None:
        return f"(errno {match['errno']})"
    return '""' if match[0].startswith('"') else "N"
