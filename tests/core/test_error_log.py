"""Lines of nginx's error log: read, told from made up ones, and compared by their kind."""

from __future__ import annotations

import pytest

from supervisor.core.error_log import (
    ALIKE,
    KIND,
    LINES,
    MESSAGE,
    TEXT,
    Found,
    Scan,
    kind_of,
    parse_datagram,
    parse_line,
    pid_of,
    severe,
)
from supervisor.core.signals import Severity

AT = b"2026/11/24 13:11:55 "
ALERT = AT + b"[alert] 7#7: something is wrong here\n"
REQUEST = AT + b'[error] 9#9: *1 open() "/x" failed (2: No such file or directory), client: ::1\n'


def texts(found: Found) -> list[str]:
    return [one.text for one in found.entries]


# --- one message --------------------------------------------------------------------------------


def test_a_line_is_read() -> None:
    entry = parse_line(AT + b"[crit] 19384#19385: *12 pread() failed\n")
    assert entry is not None
    assert (entry.severity, entry.pid, entry.text) == (
        Severity.CRIT,
        19384,
        "*12 pread() failed",
    )
    assert [
        parse_line(AT + b"[%s] 1#1: x" % level.name.lower().encode()).severity  # type: ignore[union-attr]  # each is one
        for level in Severity
    ] == list(Severity)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nginx: [emerg] no pid in it",
        b"[alert] 7#7: no time",
        AT + b"[loud] 7#7: no such level",
        AT + b"[alert] -7#7: x",
        AT + b"[alert] 99999999999#7: x",
        AT + b"[alert] 7#7",
        b"\xff\xfe\0\0" * 9,
        b"x" + ALERT,
    ],
)
def test_what_is_no_line_is_none(raw: bytes) -> None:
    assert parse_line(raw) is None
    assert severe(raw + b"\n") == Found()


def test_text_is_bounded_and_printable() -> None:
    long = parse_line(AT + b"[alert] 7#7: " + b"x" * 2**20)
    assert long is not None
    assert len(long.text) == TEXT
    assert long.text.endswith("x…")
    odd = parse_line(AT + b"[alert] 7#7: \x1b[31m\xff\0\xe2\x80\xa8 \xc3\xa9 end")
    assert odd is not None
    assert odd.text == "\\x1b[31m\\xff\\x00\\u2028 é end"
    assert odd.text.isprintable()


@pytest.mark.parametrize(
    "head",
    [
        b"<186>Nov 24 13:32:44 host nginx: ",
        b"<186>Nov  4 13:32:44  nginx: ",  # 1.18, before it knows the host's name
        b"<186>Nov 24 13:32:46 nginx: ",  # nohostname
        b"<191>Nov 24 13:32:46 a.b.example my_tag: ",
    ],
)
def test_a_datagram_is_read(head: bytes) -> None:
    entry = parse_datagram(head + AT + b"[crit] 7#8: *1 a\nb")
    assert entry is not None
    assert (entry.severity, entry.pid, entry.text) == (Severity.CRIT, 7, "*1 a\\nb")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        ALERT,
        b"<186>Nov 24 13:32:44 host nginx: text",
        b"<13>1 2026-11-24T13:11:55Z host app - - - " + ALERT,
        b"<186>Nov 24 13:32:44 " + b"h" * 500 + b" nginx: " + ALERT,
        b"\xff" * 70000,
    ],
)
def test_other_datagrams_are_none(raw: bytes) -> None:
    assert parse_datagram(raw) is None


# --- a piece of a log ---------------------------------------------------------------------------


def test_only_the_severe_lines_are_found() -> None:
    piece = b"".join(
        AT + b"[%s] 7#7: %s\n" % ((one.name.lower().encode(),) * 2) for one in Severity
    )
    assert texts(severe(piece)) == ["emerg", "alert", "crit"]


def test_what_was_looked_at_before_is_not_found_again() -> None:
    assert texts(severe(ALERT + ALERT, start=len(ALERT))) == ["something is wrong here"]
    assert severe(ALERT, start=len(ALERT)) == Found()


def test_a_flood_is_counted_and_hides_no_other_line() -> None:
    found = severe(ALERT * (ALIKE + 9) + ALERT.replace(b"something", b"elsewhat"))
    assert (len(found.entries), found.more, found.doubtful) == (ALIKE + 1, 9, 0)
    assert found.entries[-1].text == "elsewhat is wrong here"
    many = severe(b"".join(ALERT.replace(b" 7#", b" %d#" % pid) for pid in range(LINES + 9)))
    assert (len(many.entries), many.more) == (LINES, 9)


def test_a_cut_line_is_passed_over() -> None:
    assert texts(severe(AT + b"[alert] 7#\n" + ALERT)) == ["something is wrong here"]


def test_lines_around_a_request_are_found() -> None:
    found = severe(REQUEST + ALERT + REQUEST)
    assert (texts(found), found.doubtful) == (["something is wrong here"], 0)


FORGED = ALERT.replace(b"something is wrong here", b"forged")
HEAD = AT + b'[error] 9#9: *1 open() "/www/a"'
TAIL = b'" failed (2: No such file or directory), client: ::1, request: "GET /a%22%0aX HTTP/1.0"\n'
USER = AT + b'[error] 9#9: *1 user "a\n'


@pytest.mark.parametrize(
    "piece",
    [
        # What nginx really wrote for GET /a%22%0a2026/11/24%2013:32:45%20[alert]%20...%0aend
        HEAD + b"\n" + FORGED + b"end" + TAIL,
        HEAD + b"\n" + FORGED[:-1] + TAIL,
        HEAD + b"\n" + FORGED + AT + b"[error] 9#9: *1 x" + TAIL.replace(b"%0a", b"%0A"),
        # Cut at the limit, so that its end does not show.
        HEAD + b"\n" + (FORGED * 99)[: MESSAGE - 2 - len(HEAD)] + b"\n",
        # Behind a first part that looks whole.
        HEAD + TAIL.replace(b"%0a", b"") + FORGED + b"end" + TAIL,
        # From a user's name.
        USER + FORGED + b'" was not found in "/htpasswd", client: ::1\n',
        USER + FORGED[:-1] + b'" was not found in "/htpasswd", client: ::1\n',
        USER + FORGED[:-1] + b'": password mismatch, client: ::1\n',
        # From a program behind nginx.
        AT + b'[error] 9#9: *1 FastCGI sent in stderr: "a\n' + FORGED,
    ],
)
def test_a_line_that_somebody_else_made_up_is_not_believed(piece: bytes) -> None:
    found = severe(piece)
    assert (found.entries, found.more) == ((), 0)
    assert found.doubtful >= 1
    context = severe(piece, start=piece.index(FORGED[:-1]))
    assert context.entries == ()


def test_a_message_that_is_cut_anywhere_is_doubted_as_a_whole() -> None:
    filler = AT + b"[notice] 7#7: x\n"
    whole = filler * 99 + HEAD + b"\n" + FORGED + b"end" + TAIL + filler * 99 + ALERT
    for cut in (at + 1 for at in range(len(whole)) if whole[at : at + 1] == b"\n"):
        scan = Scan()
        first, second = scan.take(whole[:cut], more=True), scan.take(whole[cut:])
        assert texts(first) + texts(second) == ["something is wrong here"]
        assert scan.held == b""


def test_distant_requests_cast_no_doubt() -> None:
    notice = AT + b"[notice] 7#7: x\n"
    filler = notice * (MESSAGE // len(notice) + 1)
    piece = HEAD + b"\nend" + TAIL + filler + ALERT
    assert texts(severe(piece)) == ["something is wrong here"]


# --- kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            '*12 open() "/cache/a" failed (13: Permission denied), client: 1.2.3.4, server: x',
            '*7 open() "/cache/b" failed (13: Unknown error), client: ::1, server: y',
        ),
        ("worker process 12 exited on signal 9", "worker process 7 exited on signal 11"),
        (
            "connect() to unix:/a.sock failed (2: No such file or directory)",
            "connect() to unix:/b.sock failed (2: x)",
        ),
        ("connect() to 10.0.0.1:80 failed", "connect() to 127.0.0.1:8080 failed"),
        ("connect() to [::1]:80 failed", "connect() to [fe80::1]:8080 failed"),
        ("SSL: error:0A00010B:SSL routines::x", "SSL: error:0A0000C6:SSL routines::x"),
        ("at 0x7fff12ab", "at 0x5512"),
        ('cut "in the mid', 'cut "elsewhere'),
        ("x, server: a", "x, server: b"),
    ],
)
def test_lines_of_one_kind(one: str, other: str) -> None:
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('open() "/a" failed (13: Permission denied)', 'open() "/a" failed (28: No space left)'),
        ('open() "/a" failed (13: x)', 'mkdir() "/a" failed (13: x)'),
        ("dead beef", "dead end"),
    ],
)
def test_lines_of_two_kinds(one: str, other: str) -> None:
    assert kind_of(one) != kind_of(other)


def test_a_kind_is_bounded() -> None:
    assert len(kind_of("word " * 999)) == KIND


def test_whose_a_line_says_it_is() -> None:
    assert pid_of(AT + b"[notice] 12#7: signal process started") == 12
    assert pid_of(b'127.0.0.1 - - [24/Nov/2026] "GET / HTTP/1.1"') is None
