"""What an http probe makes of an answer: is it as expected, and where does a redirect lead?

A redirect is followed on the site that was asked, at the address that was asked: in a canary that
is the candidate's own, so an answer that leads elsewhere (another host, another scheme, another
port) would be somebody else's. nginx writes the port of the listener into a redirect, so both the
port of the URL and the one that was really asked are the site's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from supervisor.core.observation import Outcome
from supervisor.core.probe_settings import HttpProbe
from supervisor.core.tls_settings import bare_host

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SHOWN = 80
_URL = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the names of its headers are in lower case."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> bytes | None:
        """The first header of this name."""
        wanted = name.lower().encode("ascii")
        return next((value for one, value in self.headers if one == wanted), None)


@dataclass(frozen=True, slots=True)
class Follow:
    """Ask for `target` next."""

    target: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A redirect that is not followed, and why."""

    why: str


class Judgement(NamedTuple):
    """Of one answer; `too_late`: it was good, and came after `max_latency`."""

    outcome: Outcome
    detail: str
    too_late: bool = False


class Part(Enum):
    """What of an answer is searched for a pattern."""

    LOCATION = "Location"
    BODY = "body"


def searches(answer: Answer, probe: HttpProbe) -> Iterator[tuple[Part, re.Pattern[str], str]]:
    """The patterns that the answer is judged by, and the text in which each has to be."""
    if answer.status not in probe.expect_status:
        return
    location = answer.header("location")
    if probe.expect_location is not None and location is not None:
        yield Part.LOCATION, probe.expect_location, location.decode("utf-8", "replace")
    if probe.expect_body is not None:
        yield Part.BODY, probe.expect_body, answer.body.decode("utf-8", "replace")


def judge(answer: Answer, probe: HttpProbe, took: float, found: Collection[Part]) -> Judgement:
    """Whether the answer is as expected after `took` seconds, and what is to be told of it.

    `found` are those of `searches` whose pattern is in their text.
    """
    said = f"status {answer.status}"
    if answer.status not in probe.expect_status:
        expected = ", ".join(str(one) for one in sorted(probe.expect_status))
        return Judgement(Outcome.FAIL, f"{said}, expected {expected}")
    if probe.expect_location is not None:
        location = answer.header("location")
        if location is None:
            return Judgement(Outcome.FAIL, f"{said} without a Location")
        shown = location.decode("utf-8", "replace")
        if Part.LOCATION not in found:
            return Judgement(
                Outcome.FAIL,
                f"{said}, but the Location does not match {probe.expect_location.pattern!r}: "
                f"{shown[:_SHOWN]!r}",
            )
    if probe.expect_body is not None and Part.BODY not in found:
        body = answer.body.decode("utf-8", "replace")
        return Judgement(
            Outcome.FAIL,
            f"{said}, but the body does not match {probe.expect_body.pattern!r}: {body[:_SHOWN]!r}",
        )
    if probe.max_latency is not None and took > probe.max_latency:
        late = f"{said} after {took:.3f} s, slower than {probe.max_latency:g} s"
        return Judgement(Outcome.FAIL, late, too_late=True)
    return Judgement(Outcome.PASS, said)


def redirect_of(
    answer: Answer, probe: HttpProbe, asked: Sequence[str], ports: Collection[int]
) -> Follow | Refused | None:
    """What to do about a redirect; None: the answer is the one to be judged.

    `asked` are the targets so far, `ports` those that are the site's own.
    """
    if not probe.follow_redirects or answer.status in probe.expect_status:
        return None
    location = answer.header("location")
    if answer.status not in REDIRECTS or location is None:
        return None
    if len(asked) > probe.follow_redirects:
        return Refused(f"more than {probe.follow_redirects} redirects: {_trail(asked)}")
    target = _target(location.decode("latin-1"), probe, asked[-1], ports)
    if isinstance(target, Follow) and target.target in asked:
        return Refused(f"a redirect loop: {_trail([*asked, target.target])}")
    return target


def _target(
    location: str, probe: HttpProbe, asked: str, ports: Collection[int]
) -> Follow | Refused:
    scheme = "http" if probe.tls is None else "https"
    shown = repr(location[:_SHOWN])
    no_url = Refused(f"a redirect to what is no URL: {shown}")
    if not _URL.fullmatch(location):
        return no_url
    try:
        found = urlsplit(urljoin(f"{scheme}://{probe.host}{asked}", location))
        port, name = found.port, found.hostname
    except ValueError:
        return no_url
    if found.scheme != scheme:
        return Refused(f"a redirect away from {scheme}, which is not followed: {shown}")
    own = {bare_host(probe.host).lower(), bare_host(urlsplit(probe.url).netloc).lower()}
    if name is None or name.removesuffix(".") not in own or "@" in found.netloc:
        return Refused(f"a redirect to another host, which is not followed: {shown}")
    usual = 80 if probe.tls is None else 443
    written = {urlsplit(probe.url).port, urlsplit(f"//{probe.host}").port}
    if port not in (None, usual, *ports, *written):
        return Refused(f"a redirect to another port, which is not followed: {shown}")
    return Follow((found.path or "/") + (f"?{found.query}" if found.query else ""))


def _trail(targets: Sequence[str]) -> str:
    return " -> ".join(one[:_SHOWN] for one in targets)
