"""Patterns are searched in any text without holding anybody up."""

from __future__ import annotations

import re
import time

import pytest
import trio

from supervisor.core.observation import Outcome
from supervisor.edges import children, pattern_search
from supervisor.edges.http_exchange import BadAnswerError
from supervisor.edges.pattern_search import found_in, is_quick
from tests.edges.probe_targets import LIMIT, answering, ask

EVIL = r"(\w+\s?)*!ok"
EVIL_TEXT = "x" * 60


@pytest.mark.parametrize(
    ("pattern", "length", "quick"),
    [
        ("^ok$", 2**20, True),
        ("heal.hy|fine", 2**20, True),
        ("(a)(b)\\1", 2**20, True),
        ("ok.*", 1000, True),
        ("ok.*", 1001, False),
        ("a.*b.+c", 100, True),
        ("a.*b.+c", 101, False),
        ("(a+)+b", 10, False),
        ("(a|b){2,}", 10, False),
        (r"(a*)\1", 10, False),
        ("(?P<x>a*)(?P=x)", 10, False),
        ("a?" * 17 + "a" * 17, 20, False),
    ],
)
def test_what_is_searched_at_once_is_quick(pattern: str, length: int, *, quick: bool) -> None:
    assert is_quick(pattern, length) is quick


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("ok", "it is ok", True),
        ("ok", "it is not", False),
        ("^o.*k$", "o" + "x" * 100_000 + "k", True),
        ("^o.*k$", "o" + "x" * 100_000, False),
        ("(é+)+\ud800", "ééé\ud800", True),
        ("(?im)^(b+)+$", "a\nBB\n", True),
    ],
)
async def test_what_is_there_is_found(pattern: str, text: str, *, found: bool) -> None:
    assert await found_in(text, re.compile(pattern)) is found


async def test_a_search_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pattern_search._PROGRAM
    quicker = program.replace("(2, 2)", "(1, 1)")
    assert quicker != program
    monkeypatch.setattr(pattern_search, "_PROGRAM", quicker)
    body = EVIL_TEXT.encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with trio.fail_after(LIMIT):
        # The search is our own doing: the timeout of the probe is the server's.
        found = await ask(answering(answer), expect_body=re.compile(EVIL), timeout=0.5)
    assert found.outcome is Outcome.FAIL
    assert found.detail == (
        "it takes more than 2 s of CPU time to tell whether '(\\\\w+\\\\s?)*!ok' matches an answer "
        "of 60 characters"
    )
    assert children.running() == []


async def test_cancelling_ends_the_search() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found_in, EVIL_TEXT, re.compile(EVIL))
        with trio.fail_after(LIMIT):
            while not children.running():
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert children.running() == []


async def test_a_host_that_gives_no_time_is_nobodys_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pattern_search, "WALL_LIMIT", 0.05)
    began = time.monotonic()
    with pytest.raises(BadAnswerError, match="host overloaded: nobody") as caught:
        await found_in(EVIL_TEXT, re.compile(EVIL))
    assert caught.value.outcome is Outcome.INCONCLUSIVE
    assert time.monotonic() - began < LIMIT
    assert children.running() == []


async def test_where_no_process_can_be_made_nothing_is_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pattern_search.sys, "executable", "/nonexistent")
    with pytest.raises(BadAnswerError, match="No such file") as caught:
        await found_in(EVIL_TEXT, re.compile(EVIL))
    assert caught.value.outcome is Outcome.INCONCLUSIVE
