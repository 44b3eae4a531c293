"""Held listeners: a crash refuses nobody, and no stale duplicate leaves anybody hanging."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import LIMIT, kill
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load, Report
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import Build

NEW = {"new": 4, "new_rate": 200.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 20.0}
"""New connections only, which wait longer than anything here takes."""
FAMILIES = (
    "server {{ listen [::1]:{port}; listen {address}:{port} backlog=100; "
    'location / {{ return 200 "more\\n"; }} }}'
)
QUIC = (
    "server {{ listen 127.0.0.1:{port} quic{more}; ssl_certificate {pem}; "
    'ssl_certificate_key {pem}; location / {{ return 200 "h3"; }} }}'
)
PEM = Path(__file__).parents[1] / "nginx" / "site.test.pem"
UDP = "stream {{ server {{ listen 127.0.0.1:{port} udp; return udp-$pid; }} }}"


def kill_all(nginx: Supervised) -> list[int]:
    """SIGKILL to the master and all its workers, together; their pids."""
    pids = [one.pid for one in sorted(nginx.nginx(), key=lambda one: not one.is_master)]
    for pid in pids:
        kill(pid, signal.SIGKILL)
    return pids


def until_restarted(nginx: Supervised, count: int = 1) -> None:
    until("the restart", lambda: nginx.look()["restarts"] == count, poll=0.02)
    nginx.until_state("running")


def only_resets(report: Report, most: int) -> None:
    """Nothing but requests whose worker was killed: those have lost their connection."""
    assert report.count("refused") == 0, report
    assert report.count("timeout") == 0, report
    cut = report.count("reset") + report.count("truncated")
    assert report.failures == cut, report
    assert cut <= most, report


def held(nginx: Supervised) -> dict[str, Any]:
    found = nginx.look()["held_listeners"]
    assert isinstance(found, dict)
    return found


def ask(place: tuple[str, int] | str, limit: float = LIMIT) -> str:
    """The answer to a request on a new connection."""
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    if not isinstance(place, str) and ":" in place[0]:
        family = socket.AF_INET6
    with socket.socket(family) as asked:
        asked.settimeout(limit)
        asked.connect(place)
        asked.sendall(b"GET / HTTP/1.0\r\nHost: site.test\r\n\r\n")
        return b"".join(iter(lambda: asked.recv(65536), b"")).decode()


def ask_udp(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.settimeout(LIMIT)
        asked.connect(("127.0.0.1", port))
        asked.send(b"?")
        return asked.recv(100).decode()


def refused(port: int) -> bool:
    with socket.socket() as asked:
        asked.settimeout(LIMIT)
        return asked.connect_ex(("127.0.0.1", port)) != 0


def shared(nginx: Supervised) -> int:
    """How many sockets the supervisor and the master both have open: the listeners."""
    return len(sockets(nginx.pid) & sockets(nginx.masters()[0].pid))


def sockets(pid: int) -> set[str]:
    found = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(one))
    return {one for one in found if one.startswith("socket:")}


@contextmanager
def owned(one: Site, **restart: object) -> Iterator[Supervised]:
    with supervised.running(one, {"restart": restart} if restart else {}) as nginx:
        if one.options.reuseport <= bool(restart.get("hold_reuseport")):
            until("held", lambda: held(nginx)["count"] or not held(nginx)["available"], poll=0.02)
        yield nginx


# --- crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuseport", [False, True], ids=["shared", "reuseport"])
def test_the_master_is_killed_and_its_workers_serve_until_the_next_one_does(
    oldest: Build, newest: Build, *, reuseport: bool
) -> None:
    with site.make(oldest, Options(reuseport=reuseport)) as one, owned(one) as nginx:
        before = {seen.pid for seen in nginx.nginx()}
        with Load(one.plan(**NEW)) as load:
            os.kill(nginx.masters()[0].pid, signal.SIGKILL)
            until_restarted(nginx)
            report = load.stop()
        assert report.failures == 0, report
        assert not before & {seen.pid for seen in nginx.nginx()}
        assert "bind()" not in one.log_text()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_everything_is_killed_and_nobody_is_refused(oldest: Build, newest: Build) -> None:
    more = FAMILIES.replace("{address}", "127.0.0.2")
    with site.make(oldest, Options(unix=True)) as one:
        main, http = UDP.format(port=one.ports[1]), more.format(port=one.ports[1])
        one.configure(Options(unix=True, main=main, http=http))
        with owned(one) as nginx:
            places = [("::1", one.ports[1]), ("127.0.0.2", one.ports[1]), str(one.unix_path)]
            kept = [f"[::1]:{one.ports[1]}", f"127.0.0.1:{one.port}", f"127.0.0.2:{one.ports[1]}"]
            kept = sorted([f"127.0.0.1:{one.ports[1]}/udp", *kept, f"unix:{one.unix_path}"])
            told = held(nginx)
            assert told == {"available": True, "count": 5, "addresses": kept, "detail": None}
            inode = one.unix_path.stat().st_ino
            for count in (1, 2, 3):
                with Load(one.plan(**NEW)) as load:
                    kill_all(nginx)
                    until_restarted(nginx, count)
                    report = load.stop()
                only_resets(report, most=NEW["new"])
            for place in places:
                assert " 200 " in ask(place), place
            assert ask_udp(one.ports[1]).startswith("udp-")
            assert one.unix_path.stat().st_ino == inode
            assert "bind()" not in one.log_text()
            assert held(nginx) == told
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            assert nginx.ctl("upgrade", newest.path).code == 0
            checks.assert_settled(nginx, newest, sha256(newest.path))


@pytest.mark.needs("http_v3")
@pytest.mark.parametrize("build", builds()[-1:], ids=str)
@pytest.mark.parametrize("reuseport", [False, True], ids=["shared", "reuseport"])
def test_everything_is_killed_and_quic_is_bound_still(build: Build, *, reuseport: bool) -> None:
    """The datagrams of open connections are lost with the worker; the address never is."""
    with site.make(build) as one:
        quic = QUIC.format(port=one.spare_port, more=" reuseport" if reuseport else "", pem=PEM)
        one.configure(Options(http=quic))
        with owned(one, hold_reuseport=reuseport) as nginx:
            address = f"127.0.0.1:{one.spare_port}/udp"
            until("held", lambda: address in held(nginx)["addresses"], poll=0.02)
            before = bound(one.spare_port)
            assert len(before) == (2 if reuseport else 1)
            kill_all(nginx)
            assert bound(one.spare_port) == before
            until_restarted(nginx)
            assert bound(one.spare_port) == before
            assert "bind()" not in one.log_text()
            checks.assert_settled(nginx, build, sha256(build.path))
            assert nginx.ctl("upgrade", candidate(build, "good")).code == 0
            nginx.until_state("running")
            assert bound(one.spare_port) == before


def bound(port: int) -> set[str]:
    """The inodes of the UDP sockets on a port of 127.0.0.1 (/proc/net/udp)."""
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1] == f"0100007F:{port:04X}"}


def test_everything_is_killed_with_reuseport_held(oldest: Build) -> None:
    with (
        site.make(oldest, Options(reuseport=True)) as one,
        owned(one, hold_reuseport=True) as nginx,
    ):
        assert held(nginx)["count"] == 2
        with Load(one.plan(**NEW)) as load:
            kill_all(nginx)
            until_restarted(nginx)
            report = load.stop()
        only_resets(report, most=NEW["new"])
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("how", ["reuseport", "switched off"])
def test_what_is_not_held_is_bound_afresh(oldest: Build, how: str) -> None:
    options = Options(reuseport=how == "reuseport")
    with site.make(oldest, options) as one:
        settings = {} if options.reuseport else {"hold_listeners": False}
        with owned(one, **settings) as nginx:
            assert held(nginx)["addresses"] == []
            assert held(nginx)["available"] is options.reuseport
            kill_all(nginx)
            until_restarted(nginx)
            checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_listener_that_the_configuration_has_no_more_is_not_in_the_way(oldest: Build) -> None:
    """The held 127.0.0.1 would keep the new 0.0.0.0 of the same port from being bound."""
    with site.make(oldest) as one, owned(one) as nginx:
        text = one.config.read_text()
        one.config.write_text(text.replace(f"listen 127.0.0.1:{one.port}", f"listen {one.port}"))
        kill_all(nginx)
        until_restarted(nginx)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        until("held", lambda: held(nginx)["addresses"] == [f"0.0.0.0:{one.port}"], poll=0.02)
        assert "bind()" not in one.log_text()


def test_the_start_limit_closes_them_and_says_so(oldest: Build) -> None:
    with site.make(oldest) as one, owned(one, start_limit=2) as nginx:
        text = one.config.read_text()
        one.config.write_text("broken;")
        kill_all(nginx)
        nginx.until_state("degraded")
        until("closed", lambda: held(nginx)["count"] == 0, poll=0.02)
        seen = nginx.look()
        assert "clients are refused" in seen["detail"], seen
        assert refused(one.port)
        assert any(line["event"] == "listeners.released" for line in nginx.log())
        one.config.write_text(text)
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        until("held again", lambda: held(nginx)["count"] == 1, poll=0.02)


def test_clients_wait_while_nginx_cannot_be_started(oldest: Build) -> None:
    with site.make(oldest) as one, owned(one) as nginx:
        text = one.config.read_text()
        one.config.write_text("broken;")
        kill_all(nginx)
        seen = nginx.until_state("backoff")
        assert "wait in the held listeners" in seen["detail"], seen
        with socket.create_connection(("127.0.0.1", one.port), timeout=30.0) as waiting:
            waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
            one.config.write_text(text)
            assert b" 200 " in waiting.recv(65536)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- reloads by somebody else -------------------------------------------------------------------


def reload_behind_its_back(nginx: Supervised) -> None:
    os.kill(nginx.masters()[0].pid, signal.SIGHUP)


def test_a_foreign_reload_removes_a_listener_and_adds_it_again(oldest: Build) -> None:
    with site.make(oldest) as one:
        plain = one.config.read_text()
        more = f"listen 127.0.0.1:{one.spare_port};"
        both = plain.replace("server_name site.test;", f"server_name site.test; {more}")
        one.config.write_text(both)
        # A worker that drains keeps the listeners' exits from being noticed by its own exit.
        with owned(one) as nginx, unfinished.request(one.port):
            until("both held", lambda: held(nginx)["count"] == 2, poll=0.02)
            for _ in range(3):
                one.config.write_text(plain)
                reload_behind_its_back(nginx)
                until("refused", lambda: refused(one.spare_port), poll=0.02)
                assert held(nginx)["count"] == 1
                one.config.write_text(both)
                reload_behind_its_back(nginx)
                until("it serves", lambda: not refused(one.spare_port), poll=0.02)
                assert " 200 " in ask(("127.0.0.1", one.spare_port))
                until("held again", lambda: held(nginx)["count"] == 2, poll=0.02)
        assert "still could not bind" not in one.log_text()


@pytest.mark.parametrize("hold_reuseport", [False, True], ids=["not-held", "held"])
def test_a_foreign_reload_shrinks_the_workers_of_reuseport(
    oldest: Build, *, hold_reuseport: bool
) -> None:
    options = Options(reuseport=True, workers=4)
    with site.make(oldest, options) as one, owned(one, hold_reuseport=hold_reuseport) as nginx:
        assert held(nginx)["count"] == (4 if hold_reuseport else 0)
        one.configure(Options(reuseport=True, workers=2))
        reload_behind_its_back(nginx)
        until("2 workers", lambda: len([s for s in nginx.nginx() if s.is_worker]) == 2)
        if hold_reuseport:
            until("2 held", lambda: held(nginx)["count"] == 2, poll=0.02)
        for _ in range(60):
            assert " 200 " in ask(("127.0.0.1", one.port))


def with_more(one: Site) -> str:
    """The configuration with one more listener, on the spare port."""
    more = f"listen 127.0.0.1:{one.spare_port};"
    text = one.config.read_text()
    return text.replace("server_name site.test;", f"server_name site.test; {more}")


def test_the_master_dies_before_its_new_listener_was_seen(oldest: Build) -> None:
    """Only a worker has it then, and its address could not be bound beside that."""
    with site.make(oldest) as one, owned(one) as nginx:
        os.kill(nginx.pid, signal.SIGSTOP)
        one.config.write_text(with_more(one))
        reload_behind_its_back(nginx)
        place = ("127.0.0.1", one.spare_port)
        until("it serves", lambda: not refused(one.spare_port), poll=0.02)
        assert " 200 " in ask(place)
        with Load(one.plan(**NEW, port=one.spare_port)) as load:
            os.kill(nginx.masters()[0].pid, signal.SIGKILL)
            os.kill(nginx.pid, signal.SIGCONT)
            until_restarted(nginx)
            assert load.stop().failures == 0
        assert "bind()" not in one.log_text()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_both_masters_die_and_only_the_candidate_had_a_listener(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, owned(one) as nginx:
        one.config.write_text(with_more(one))
        asked = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        with Load(one.plan(**NEW)) as load, Load(one.plan(**NEW, port=one.spare_port)) as more:
            for master in nginx.masters():
                os.kill(master.pid, signal.SIGKILL)
            assert nginx.end(asked).code == 4
            for report in (load.stop(), more.stop()):
                assert report.failures == 0, report
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_foreign_reload_leaves_no_listener_at_all(oldest: Build) -> None:
    with site.make(oldest) as one, owned(one) as nginx:
        text = one.config.read_text()
        one.config.write_text(text[: text.index("http {")])
        reload_behind_its_back(nginx)
        until("refused", lambda: refused(one.port), poll=0.02)
        one.config.write_text(text)
        reload_behind_its_back(nginx)
        until("it serves", lambda: not refused(one.port), poll=0.02)
        until("held again", lambda: held(nginx)["count"] == 1, poll=0.02)
        assert "bind()" not in one.log_text()


# --- a configuration that was changed before the crash -------------------------------------------


def test_a_held_socket_does_not_keep_nginx_from_starting(oldest: Build) -> None:
    """Of two listeners nginx binds the wildcard alone, which is not the one that it had."""
    with site.make(oldest) as one, owned(one) as nginx:
        listen = f"listen 127.0.0.1:{one.port} sndbuf=64k;"
        text = one.config.read_text()
        assert listen in text
        both = f"listen 127.0.0.1:{one.port}; listen {one.port};"
        one.config.write_text(text.replace(listen, both))
        kill_all(nginx)
        until_restarted(nginx)
        assert "bind()" not in one.log_text()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_unix_socket_that_is_dropped_and_added_again(oldest: Build) -> None:
    """Its file would be in the way; nginx removes that where it inherits the socket."""
    with site.make(oldest, Options(unix=True)) as one, owned(one) as nginx:
        text = one.config.read_text()
        one.config.write_text(text.replace(f"listen unix:{one.unix_path};", ""))
        kill_all(nginx)
        until_restarted(nginx)
        assert not one.unix_path.exists()
        until("it is let go", lambda: held(nginx)["count"] == 1, poll=0.02)
        one.config.write_text(text)
        assert nginx.ctl("reload").code == 0
        assert " 200 " in ask(str(one.unix_path))


def test_more_listeners_than_the_usual_limit_of_descriptors_allows(oldest: Build) -> None:
    """The supervisor raises its soft limit; nginx gets the one that it would have had."""
    with site.make(oldest) as one, supervised.on(one) as nginx:
        port = one.spare_port
        many = "".join(f"listen 127.0.{i // 250}.{i % 250 + 2}:{port}; " for i in range(600))
        one.configure(Options(http=f"server {{ {many} return 200 many; }}"))
        text = one.config.read_text()
        one.config.write_text(text.replace("worker_connections 512", "worker_connections 1000"))
        limited = 'ulimit -S -n 1024; exec "$@"'
        nginx.program = ["/bin/sh", "-c", limited, "sh", *nginx.program]
        nginx.start()
        until("held", lambda: held(nginx)["count"] == 601, poll=0.02)
        kill_all(nginx)
        until_restarted(nginx)
        assert " 200 " in ask(("127.0.2.2", port))
        limits = Path(f"/proc/{nginx.masters()[0].pid}/limits").read_text()
        assert " 1024 " in next(line for line in limits.splitlines() if "open files" in line)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


# --- an end that is meant -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["stop", "restart"])
def test_new_clients_are_refused_at_once_while_a_stop_drains(oldest: Build, command: str) -> None:
    with site.make(oldest) as one, owned(one) as nginx:
        with unfinished.request(one.port):
            asked = nginx.begin(command)
            until("refused", lambda: refused(one.port), poll=0.01)
            assert nginx.look()["held_listeners"]["count"] == 0
        assert nginx.end(asked).code == 0
        if command == "restart":
            checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_foreign_quit_is_followed_by_a_master_on_the_same_sockets(oldest: Build) -> None:
    """It is restarted, as `on_foreign_stop` says; nobody is refused meanwhile."""
    with site.make(oldest, Options(unix=True)) as one, owned(one) as nginx:
        with Load(one.plan(**NEW)) as load:
            os.kill(nginx.masters()[0].pid, signal.SIGQUIT)
            until_restarted(nginx)
            report = load.stop()
        assert report.failures == 0, report
        # nginx has removed the unix socket's file: a new one was made.
        assert " 200 " in ask(str(one.unix_path))
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_foreign_quit_that_is_to_stay_closes_them(oldest: Build) -> None:
    settings = {"nginx": {"on_foreign_stop": "stop"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        until("held", lambda: held(nginx)["count"] == 1, poll=0.02)
        os.kill(nginx.masters()[0].pid, signal.SIGQUIT)
        nginx.until_state("stopped")
        assert refused(one.port)
        assert held(nginx)["count"] == 0


def test_a_foreign_quit_that_is_to_stay_refuses_while_a_client_drains(oldest: Build) -> None:
    settings = {"nginx": {"on_foreign_stop": "stop"}}
    with site.make(oldest) as one, supervised.running(one, settings) as nginx:
        until("held", lambda: held(nginx)["count"] == 1, poll=0.02)
        with unfinished.request(one.port):
            os.kill(nginx.masters()[0].pid, signal.SIGQUIT)
            nginx.until_state("stopped")
            until("refused", lambda: refused(one.port), poll=0.02)
            assert len(nginx.masters()) == 1


def test_settings_change_what_is_held(oldest: Build) -> None:
    with site.make(oldest) as one, owned(one) as nginx:
        assert shared(nginx) == 1
        text = nginx.toml.read_text()
        nginx.toml.write_text(f"{text}\n[restart]\nhold_listeners = false\n")
        os.kill(nginx.pid, signal.SIGHUP)
        until("released", lambda: not held(nginx)["available"], poll=0.02)
        assert held(nginx)["count"] == 0
        assert shared(nginx) == 0
        nginx.toml.write_text(text)
        os.kill(nginx.pid, signal.SIGHUP)
        until("held", lambda: held(nginx)["count"] == 1, poll=0.02)
