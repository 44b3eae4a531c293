"""When a master's error log says that it has given a reload up."""

from __future__ import annotations

from supervisor.core.error_log import Entry
from supervisor.core.reload_log import MOST, SETTLE, Complaints
from supervisor.core.signals import Severity

BUSY = "bind() to 127.0.0.1:81 failed (98: Address already in use)"
GIVEN_UP = "still could not bind()"
ZONE = 'limit_req "a" uses the "$x" key while previously it used the "$y" key'


def said(text: str, *, pid: int = 7, severity: Severity = Severity.EMERG) -> Entry:
    return Entry(severity=severity, pid=pid, text=text)


def heard(*texts: str) -> Complaints:
    one = Complaints(7)
    for text in texts:
        one.hear(said(text), at=10.0)
    return one


def test_lines_that_are_no_complaint_of_the_master() -> None:
    one = heard()
    one.hear(said(BUSY, pid=8), at=10.0)
    one.hear(said("failed", severity=Severity.ALERT), at=10.0)
    assert one.final(at=99.0) == ""
    assert one.cause == ""


def test_a_complaint_counts_once_it_has_stood() -> None:
    one = heard(ZONE)
    assert one.final(at=10.0 + SETTLE / 2) == ""
    assert one.final(at=10.0 + 2 * SETTLE).startswith('[emerg] limit_req "a" uses')


def test_an_address_in_use_is_tried_again() -> None:
    one = heard(BUSY, BUSY, BUSY, BUSY)
    assert one.final(at=99.0) == ""
    one.hear(said(GIVEN_UP), at=12.5)
    assert one.final(at=12.5) == f"[emerg] {BUSY}"


def test_another_failure_of_bind_is_final() -> None:
    one = heard(BUSY.replace("98: Address already in use", "13: Permission denied"))
    assert "13: Permission denied" in one.final(at=11.0)


def test_the_lines_are_bounded() -> None:
    one = heard(*(f"number {number}" for number in range(99)), GIVEN_UP)
    assert len(one.lines) == MOST
    assert one.final(at=10.0) == "[emerg] number 0"
