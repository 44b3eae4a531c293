"""Without systemd: the supervisor ends, nginx serves on, and the next supervisor adopts it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.site import sha256
from tools.load import Load
from tools.nginx_cache import Build


@pytest.mark.parametrize("means", ["detach", "SIGRTMIN"])
def test_nginx_is_left_serving(oldest: Build, newest: Build, means: str) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        before = {seen.pid for seen in nginx.nginx()}
        with Load(one.plan()) as load:
            if means == "detach":
                answer = nginx.ctl("detach")
                assert (answer.code, answer.reason) == (0, "detached")
                assert answer.last["verdict"] == "done"
            else:
                os.kill(nginx.pid, signal.SIGRTMIN)
            assert nginx.cradle.wait(nginx.pid) == 3
            assert "STOPPING=1" in nginx.said
            assert nginx.ctl("status").code == 5
            assert {seen.pid for seen in nginx.nginx()} == before
            nginx.start()
            report = load.stop()
        assert report.failures == 0, report
        assert {seen.pid for seen in nginx.nginx()} == before
        entries = nginx.ctl("history").lines
        assert [entry["operation"] for entry in entries] == (["detach"] * (means == "detach"))
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_what_is_stopped_cannot_be_left_serving(oldest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("stop").code == 0
        answer = nginx.ctl("detach")
        assert (answer.code, answer.reason) == (3, "not_running")
        assert nginx.ctl("start").code == 0
