"""The load generator is itself under test: it sees nothing where nothing is lost, and it sees loss.

nginx is driven by hand here, without a supervisor.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.e2e.harness import processes, site
from tests.e2e.harness.bare import Bare, until
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.site import Options, Site
from tools.load import Load, Report
from tools.nginx_cache import Build

Running = tuple[Site, Bare]


def test_a_clean_upgrade_by_hand_loses_nothing(
    each_pair: tuple[Build, Build], cradle: Cradle
) -> None:
    old_build, new_build = each_pair
    with site.make(old_build) as one:
        nginx = Bare(one, cradle)
        old = nginx.start()
        with Load(one.plan()) as load:
            one.install(new_build)
            new = nginx.usr2(old)
            nginx.winch(old)
            nginx.quit(old)
            alone = time.monotonic()
            until("answers", lambda: load.report().answers_since(alone).total() > 20, poll=0.05)
            report = load.stop()
        assert report.failures == 0, report
        assert report.kinds["slow"].ok >= 1, report
        assert set(report.versions) == {old_build.version, new_build.version}
        assert set(report.answers_since(alone)) == {new_build.version}
        assert nginx.masters() == [new]
        assert one.pid_path.read_text() == f"{new}\n"
        nginx.quit(new)
        assert cradle.living() == []


@pytest.fixture
def running(oldest: Build, cradle: Cradle) -> Iterator[Running]:
    with site.make(oldest) as one:
        nginx = Bare(one, cradle)
        nginx.start()
        yield one, nginx


def failed_after(running: Running, breakage: str, cause: str, **plan: float) -> Report:
    """What the load reports when nginx is broken by one signal to the master; it has to fail so."""
    one, nginx = running
    with Load(one.plan(**plan)) as load:
        os.kill(nginx.master, getattr(signal, breakage))
        until(cause, lambda: load.report().kinds["new"].failed.get(cause, 0) >= 5, poll=0.05)
        return load.stop()


def test_a_stopped_server_is_counted_as_refused(running: Running) -> None:
    report = failed_after(running, "SIGQUIT", "refused", slow_seconds=1.5)
    assert report.kinds["slow"].failed.get("truncated", 0) == 0, report


def test_a_terminated_server_truncates_the_slow_download(running: Running) -> None:
    report = failed_after(running, "SIGTERM", "refused", slow_seconds=60)
    assert report.kinds["slow"].failed.get("truncated") == 1, report


def test_a_server_without_workers_is_counted_as_timeout(running: Running) -> None:
    failed_after(running, "SIGWINCH", "timeout", timeout=0.5, slow=0)


@pytest.mark.parametrize(
    ("cause", "location"), [("status", "return 503;"), ("body", 'return 200 "no\\n";')]
)
def test_wrong_answers_are_counted(running: Running, cause: str, location: str) -> None:
    one, nginx = running
    with Load(one.plan(slow=0)) as load:
        assert load.report().failures == 0
        one.config.write_text(one.config.read_text().replace('return 200 "ok\\n";', location))
        reload(nginx)
        until("failures", lambda: load.report().kinds["new"].failures > 5, poll=0.05)
        report = load.stop()
    assert set(report.kinds["new"].failed) == {cause}, report


def test_a_wrong_byte_in_a_slow_download_is_counted(running: Running) -> None:
    one, _ = running
    big = one.folder / "www" / "big"
    content = bytearray(big.read_bytes())
    content[1_500_000] ^= 1
    big.write_bytes(content)
    with Load(one.plan(new=0, keepalive=0, idle=0, slow_seconds=1)) as load:
        until("a failure", lambda: load.report().failures > 0, poll=0.05)
        report = load.stop()
    assert report.kinds["slow"].failed.get("body", 0) > 0, report


def test_a_closed_idle_connection_is_counted_apart(running: Running) -> None:
    one, nginx = running
    with Load(one.plan(new=0, slow=0)) as load:
        reload(nginx)
        until(
            "idle ones reused",
            lambda: sum(k.reused_idle_closed for k in load.report().kinds.values()) >= 6,
            poll=0.05,
        )
        report = load.stop()
    assert report.failures == 0, report
    # Each of the clients had a connection that the reload closed, and each noticed once.
    assert sum(kind.reused_idle_closed for kind in report.kinds.values()) == 6, report


def test_a_download_is_really_in_flight(running: Running) -> None:
    """The kernel's buffers must not swallow the file, or a download would hold no worker."""
    one, nginx = running
    master = nginx.master
    with Load(one.plan(new=0, keepalive=0, idle=0, slow_seconds=60)):
        os.kill(master, signal.SIGQUIT)
        until("nobody accepts", lambda: not any(s.is_accepting for s in nginx.workers(master)))
        time.sleep(1.0)  # in which a worker without a connection would be gone
        assert processes.look(master) is not None
    until("its end with the download's", lambda: processes.look(master) is None)


def test_the_load_ends_with_its_parent(running: Running) -> None:
    one, _ = running
    with Load(one.plan()) as load:
        pid = load.pid
        assert load._process is not None
        assert load._process.stdin is not None
        load._process.stdin.close()
        until("the load process gone", lambda: processes.look(pid) is None)
        load._process.stdin = None


def test_the_load_works_over_a_unix_socket(oldest: Build, cradle: Cradle) -> None:
    with site.make(oldest, Options(unix=True)) as one:
        Bare(one, cradle).start()
        with Load(replace(one.plan(slow_seconds=0.5), address=str(one.unix_path))) as load:
            until("answers", lambda: load.report().requests > 50, poll=0.05)
            report = load.stop()
    assert report.failures == 0, report


def reload(nginx: Bare) -> None:
    """Reload, and return when only new workers accept."""
    before = {one.pid for one in nginx.workers(nginx.master)}
    os.kill(nginx.master, signal.SIGHUP)

    def replaced() -> bool:
        accepting = {one.pid for one in nginx.workers(nginx.master) if one.is_accepting}
        return bool(accepting) and not accepting & before

    until("new workers", replaced)
