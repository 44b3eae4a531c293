"""What an answer is worth, and where a redirect may lead."""

from __future__ import annotations

import pytest

from supervisor.core.http_answer import (
    Answer,
    Follow,
    Judgement,
    Refused,
    judge,
    redirect_of,
    searches,
)
from supervisor.core.observation import Outcome
from supervisor.core.probe_settings import HttpProbe, parse_probe

PRIVATE = 18931


def probe(url: str = "http://127.0.0.1:8080/a?x=1", **more: object) -> HttpProbe:
    found = parse_probe({"name": "p", "type": "http", "url": url, **more}, 1)
    assert isinstance(found, HttpProbe)
    return found


def moved(location: str | None, status: int = 301) -> Answer:
    headers = () if location is None else ((b"location", location.encode("latin-1")),)
    return Answer(status, headers, b"")


def step(
    location: str | None,
    *asked: str,
    status: int = 301,
    url: str = "http://127.0.0.1:8080/a/b?x=1",
    **more: object,
) -> Follow | Refused | None:
    one = probe(url, **{"follow_redirects": 2, **more})
    return redirect_of(moved(location, status), one, asked or (one.target,), {8080, PRIVATE})


def judged(answer: Answer, one: HttpProbe, took: float) -> Judgement:
    found = [part for part, pattern, text in searches(answer, one) if pattern.search(text)]
    return judge(answer, one, took, found)


def test_the_same_pattern_may_be_wanted_in_two_places() -> None:
    one = probe(expect_status=[301], expect_location="ok", expect_body="ok")
    answer = Answer(301, ((b"location", b"/ok"),), b"no")
    assert judged(answer, one, 0.1).detail.endswith("but the body does not match 'ok': 'no'")
    assert list(searches(Answer(500, (), b"ok"), one)) == []


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/c", "/c"),
        ("c", "/a/c"),
        ("?y=2", "/a/b?y=2"),
        ("../c#part", "/c"),
        ("//127.0.0.1/c", "/c"),
        ("http://127.0.0.1:8080/c", "/c"),
        (f"http://127.0.0.1:{PRIVATE}/c?y", "/c?y"),
        ("http://127.0.0.1", "/"),
        ("HTTP://127.0.0.1:80/c", "/c"),
    ],
)
def test_a_redirect_within_the_site_is_followed(location: str, target: str) -> None:
    assert step(location) == Follow(target)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_redirect_counts(status: int) -> None:
    assert step("/c", status=status) == Follow("/c")


def test_the_name_in_the_host_header_is_the_sites_as_well() -> None:
    assert step("http://WWW.example.org./c", host="www.example.org:81") == Follow("/c")
    assert step("http://www.example.org:81/c", host="www.example.org:81") == Follow("/c")
    assert step("http://127.0.0.1/c", host="www.example.org") == Follow("/c")


def test_https_stays_https() -> None:
    assert step("https://h/c", url="https://h/a") == Follow("/c")
    assert step("https://h:443/c", url="https://h:8443/a") == Follow("/c")
    found = step("http://h/c", url="https://h/a")
    assert found == Refused("a redirect away from https, which is not followed: 'http://h/c'")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("https://127.0.0.1/c", "away from http"),
        ("ftp://127.0.0.1/c", "away from http"),
        ("http://example.org/c", "to another host"),
        ("http://127.0.0.1@evil/", "to another host"),
        ("http://evil@127.0.0.1/", "to another host"),
        ("http://127.0.0.1:81/c", "to another port"),
        ("http://127.0.0.1:x/c", "no URL"),
        ("http://[::1/c", "no URL"),
        ("/\xff", "no URL"),
        ("/a b", "no URL"),
        ("", "no URL"),
        ("/" + "x" * 10_000 + "\n", "no URL"),
    ],
)
def test_a_redirect_to_elsewhere_is_not_followed(location: str, why: str) -> None:
    found = step(location)
    assert isinstance(found, Refused)
    assert why in found.why
    assert len(found.why) < 200


def test_a_loop_and_a_long_way_end() -> None:
    loop = step("/a", "/a", "/b")
    assert loop == Refused("a redirect loop: /a -> /b -> /a")
    long = step("/d", "/a", "/b", "/c")
    assert long == Refused("more than 2 redirects: /a -> /b -> /c")
    assert step("/c", "/a", "/b") == Follow("/c")


def test_what_is_no_redirect_to_be_followed() -> None:
    assert step("/c", follow_redirects=0) is None
    assert step("/c", status=200) is None
    assert step("/c", status=304) is None
    assert step(None) is None
    assert step("/c", expect_status=[301]) is None


@pytest.mark.parametrize(
    ("location", "outcome", "said"),
    [
        ("https://example.org/", Outcome.PASS, "status 301"),
        ("https://example.com/", Outcome.FAIL, "does not match '^https://example.org/'"),
        (None, Outcome.FAIL, "status 301 without a Location"),
    ],
)
def test_a_redirect_may_be_what_is_expected(
    location: str | None, outcome: Outcome, said: str
) -> None:
    one = probe(expect_status=[301], expect_location="^https://example.org/")
    found, detail, _ = judged(moved(location), one, 0.1)
    assert found is outcome
    assert said in detail


@pytest.mark.parametrize(
    ("answer", "took", "outcome", "said"),
    [
        (Answer(200, (), b"all ok"), 0.5, Outcome.PASS, "status 200"),
        (Answer(500, (), b"ok"), 0.5, Outcome.FAIL, "status 500, expected 200, 204"),
        (Answer(204, (), b"\xff"), 0.5, Outcome.FAIL, "status 204, but the body does not match"),
        (Answer(200, (), b"ok"), 1.5, Outcome.FAIL, "after 1.500 s, slower than 1 s"),
    ],
)
def test_status_body_and_time(answer: Answer, took: float, outcome: Outcome, said: str) -> None:
    one = probe(expect_status=[200, 204], expect_body="ok$", max_latency="1s")
    found, detail, late = judged(answer, one, took)
    assert found is outcome
    assert said in detail
    assert late is (took > 1)


def test_the_first_header_of_a_name_counts() -> None:
    answer = Answer(200, ((b"a", b"1"), (b"b", b"2"), (b"a", b"3")), b"")
    assert answer.header("A") == b"1"
    assert answer.header("c") is None
