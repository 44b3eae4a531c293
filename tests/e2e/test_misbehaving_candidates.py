"""What candidates that are made for the thirty misbehaviours do to users, and what they do not.

No supervisor is there: nginx is upgraded by hand, so that nobody ends what is to be seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from tests.e2e.harness.bare import Bare, until
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.misbehaving import first_bad_act, made, users_of
from tests.e2e.harness.site import put
from tests.e2e.harness.users import Asked, Users
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

PLAIN = {"http /", "http /cached", "http /old", "http /unprobed", "second /", "kept /"}
TLS = {"https", "h2"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind, and what fails with it, for what cause."""

    kind: str
    failing: Mapping[str, str]
    knobs: Mapping[str, int]

    def __str__(self) -> str:
        return self.kind


FAULTS = (
    Fault("good", {}, {}),
    Fault("wrong_certificate", dict.fromkeys(TLS, "certificate"), {}),
    Fault("broken_handshake", dict.fromkeys(TLS, "reset"), {}),
    Fault("broken_http2", {"h2": "reset"}, {}),
    Fault("wrong_redirect", {"http /old": "redirect"}, {}),
    Fault("unreachable_backend", {"http /unprobed": "status"}, {}),
    Fault("unwritable_cache", {}, {}),
    Fault("silent_listeners", {"second /": "timeout", "kept /": "timeout"}, {"loopback": 2}),
    Fault("slow_answers", {}, {"late_ms": 300}),
)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_users_notice_just_that(oldest: Build, newest: Build, cradle: Cradle, fault: Fault) -> None:
    with made(oldest) as site:
        nginx = Bare(site, cradle)
        old = nginx.start()
        assert "[crit]" not in site.log_text()
        put(candidate(newest, fault.kind, **fault.knobs), site.binary)
        began = time.monotonic()
        nginx.usr2(old)
        nginx.winch(old)
        until("the old master alone", lambda: nginx.workers(old) == [])
        patience = 1.0 if "timeout" in fault.failing.values() else 20.0
        with Users(replace(users_of(site), timeout=patience)) as users:
            asked = _each_once(users)

        noted = first_bad_act(site)
        if fault.kind == "good":
            assert noted is None
        else:
            assert noted is not None
            assert began < noted < time.monotonic()
        for what in PLAIN | TLS:
            causes = {one.cause for one in asked if one.what == what}
            assert causes == {fault.failing.get(what, "")}, (what, causes)
        assert ("[crit]" in site.log_text()) == (fault.kind == "unwritable_cache")
        assert {one.version for one in asked if not one.cause} == {newest.version}
        latency = min(one.ended - one.began for one in asked if one.what in ("http /", "https"))
        assert (latency >= 0.3) == (fault.kind == "slow_answers"), latency


def _each_once(users: Users) -> list[Asked]:
    """Let each user ask everything at least once."""
    while True:
        asked = users.report()
        if {one.what for one in asked} >= PLAIN | TLS:
            return users.stop()
        time.sleep(0.1)
