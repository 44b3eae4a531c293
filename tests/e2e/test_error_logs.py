"""What nginx writes into its error logs, as evidence against a candidate; and what never is."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

WINDOWS = {"canary": "300ms", "soak": "1500ms"}
ALERT = "bad candidate: something is wrong here"
CERTIFICATE = Path(__file__).parents[1] / "nginx" / "site.test.pem"


def events(nginx: Supervised, name: str) -> list[dict[str, Any]]:
    return [line for line in nginx.log() if line["event"] == name]


def assert_condemned(nginx: Supervised, answer: Answer, build: Build, log: str) -> None:
    """Rolled back for the line, which the verdict tells, with its process and where it stands."""
    assert (answer.code, answer.reason) == (4, "error_log"), answer
    detail = answer.last["detail"]
    (told,) = [one for one in events(nginx, "nginx.error_line") if one["line"] == ALERT]
    assert f"process {told['pid']} of the candidate {told['generation']} wrote into" in detail
    assert f"wrote into {log} [alert] {ALERT}; nobody wrote such a line before" in detail
    assert (told["level"], told["severity"], told["log"]) == ("warning", "alert", log)
    (shown,) = nginx.status()["error_logs"]["lines"]
    assert shown == {"time": shown["time"], **{key: told[key] for key in shown if key != "time"}}
    checks.assert_rolled_back(nginx, build, sha256(build.path))


# --- what condemns ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "rotated", "second", "stderr", "dev-stderr"])
def test_an_alert_of_a_new_kind_condemns(oldest: Build, newest: Build, where: str) -> None:
    with site.make(oldest) as one:
        log = one.error_log
        if where == "second":
            log = one.folder / "logs" / "own.log"
            one.configure(Options(error_log=str(log), http=f"error_log {one.error_log} info;"))
        elif where == "stderr":
            one.configure(Options(error_log="stderr"))
        elif where == "dev-stderr":
            one.error_log.symlink_to("/dev/stderr")
        with supervised.running(one, {"upgrade": WINDOWS}) as nginx:
            if where == "rotated":
                log.rename(log.with_name("error.log.1"))
                assert nginx.ctl("reopen").code == 0
                until("the log is there again", log.exists)
            bad = nginx.ctl("upgrade", candidate(newest, "alerting"))
            told = "its standard error" if "stderr" in where else str(log)
            assert_condemned(nginx, bad, oldest, told)


def cached(one: Site, *, log: str) -> Options:
    """A site with a cache whose http part writes its errors to `log`."""
    backend = f"127.0.0.1:{one.spare_port}"
    return Options(
        http=(
            f"error_log {log};"
            f"proxy_cache_path {one.folder}/temp/cache keys_zone=pages:1m;"
            f'server {{ listen {backend}; location / {{ return 200 "$request_uri"; }} }}'
        ),
        server=(
            f"location /cached/ {{ proxy_pass http://{backend}; proxy_cache pages; "
            "proxy_cache_valid 1m; }"
        ),
    )


def test_critical_lines_over_syslog_condemn(oldest: Build, newest: Build) -> None:
    """Also behind a replacement of the supervisor; the socket is the workers' user's by then."""
    with site.make(oldest) as one:
        path = one.folder / "run" / "log.sock"
        one.configure(cached(one, log=f"syslog:server=unix:{path},nohostname,tag=web crit"))
        settings = {"syslog": {"socket": str(path)}, "upgrade": {**WINDOWS, "soak": "20s"}}
        with supervised.running(one, settings) as nginx:
            until("it is the workers'", lambda: path.stat().st_mode & 0o777 == 0o600)
            assert path.stat().st_uid != os.getuid()
            before = path.stat().st_ino
            assert nginx.ctl("self-upgrade").code == 0
            assert path.stat().st_ino == before
            with busy(lambda number: ask(one.port, f"GET /cached/{number} HTTP/1.0\r\n\r\n")):
                bad = nginx.ctl("upgrade", candidate(newest, "unwritable_cache"))
            assert (bad.code, bad.reason) == (4, "error_log"), bad
            assert "wrote into syslog [crit] *" in bad.last["detail"]
            assert "rename() " in bad.last["detail"]
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        assert not path.exists()


def test_a_syslog_socket_that_nobody_reads_harms_nobody(oldest: Build) -> None:
    """Neither while the supervisor is stopped, its queue being full, nor while there is none."""
    with site.make(oldest) as one:
        path = one.folder / "run" / "log.sock"
        one.configure(
            Options(
                main=f"error_log syslog:server=unix:{path} crit;",
                server=f"location /private/ {{ root {one.folder}; try_files $uri =404; }}",
            )
        )
        (one.folder / "private").mkdir(mode=0o700)

        def lines() -> int:
            told = nginx.look()["error_logs"]["lines"]
            return sum(each["log"] == "syslog" for each in told)

        def all_answered() -> None:
            for _ in range(600):  # the queue holds some hundreds at most
                assert b"404" in ask(one.port, "GET /private/x HTTP/1.0\r\n\r\n")

        with supervised.running(one, {"syslog": {"socket": str(path)}}) as nginx:
            kill(nginx.pid, signal.SIGSTOP)
            all_answered()
            kill(nginx.pid, signal.SIGCONT)
            until("what had room is heard", lambda: lines() == 1)
            nginx.die()
            all_answered()
            nginx.start()
            assert lines() == 0
            until(
                "they connect anew",
                lambda: bool(ask(one.port, "GET /private/x HTTP/1.0\r\n\r\n")) and lines() == 1,
            )


# --- what does not ------------------------------------------------------------------------------


@contextmanager
def busy(act: Callable[[int], object]) -> Iterator[None]:
    """A client that does `act` again and again, with another number each time."""
    over = threading.Event()

    def work() -> None:
        number = 0
        while not over.wait(0.002):
            number += 1
            act(number)

    client = threading.Thread(target=work)
    client.start()
    try:
        yield
    finally:
        over.set()
        client.join()


def ask(port: int, data: str | bytes, limit: float = 5.0, *, reset: bool = False) -> bytes:
    """What is answered to these bytes; empty where nothing is, within `limit` seconds."""
    data = data if isinstance(data, bytes) else data.encode()
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), limit) as client:
        client.sendall(data)
        if reset:
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return b"" if reset else client.recv(4096)
    return b""


def worker_that_answers(one: Site) -> int:
    head = ask(one.port, "GET / HTTP/1.0\r\nHost: site.test\r\n\r\n").decode()
    (pid,) = [line.split()[1] for line in head.splitlines() if line.startswith("X-Pid:")]
    return int(pid)


def test_lines_of_others_condemn_nobody(oldest: Build, newest: Build) -> None:
    """Neither of the old generation, nor of a foreign pid, nor what a client made up."""
    options = Options(server="location /www/ { root /nonexistent; }")
    with site.make(oldest, options) as one, supervised.running(one, {"upgrade": WINDOWS}) as nginx:
        old = nginx.status()["generations"][0]["master_pid"]
        asked = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        head = "2026/11/24 13:11:55 [alert]"
        with one.error_log.open("a") as log:
            log.write(f"{head} {old}#{old}: by the old one\n")
            log.write(f"{head} 1#1: by a stranger\n{head} 99")
            log.write("\0" * 9999 + "\xff\n" + "x" * 10**6 + f"\n{head} 1#1: behind it\n")
        worker = worker_that_answers(one)
        forged = f"2026/11/24%2013:11:55%20[alert]%20{worker}%23{worker}:%20made%20up"
        ask(one.port, f"GET /www/a%22%0a{forged}%0a HTTP/1.0\r\n\r\n")
        ask(one.port, f"GET /www/a%22%0a{forged}%0a{'x' * 2500} HTTP/1.0\r\n\r\n")
        until("they are doubted", lambda: bool(events(nginx, "error_log.lines_doubted")))
        others = {"by the old one", "by a stranger", "behind it"}
        until("it is known whose they are", lambda: others <= set(told_lines(nginx)))
        assert nginx.ctl("promote").code == 0
        good = nginx.end(asked)
        assert good.code == 0, good
        assert one.log_text().count(f"\n2026/11/24 13:11:55 [alert] {worker}#{worker}: made") == 2
        told = told_lines(nginx)
        assert told["by the old one"] == "g1"
        assert told["by a stranger"] is told["behind it"] is None
        assert "made up" not in told
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_what_clients_make_up_on_standard_error_condemns_nobody(
    oldest: Build, newest: Build
) -> None:
    """Neither by what other programs take for the end of a line, nor by what is no text."""
    options = Options(error_log="stderr", server="location /www/ { root /nonexistent; }")
    with site.make(oldest, options) as one, supervised.running(one, {"upgrade": WINDOWS}) as nginx:
        asked = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        worker = worker_that_answers(one)
        forged = f"2026/11/24%2013:11:55%20[alert]%20{worker}%23{worker}:%20made%20up"
        for end in ("%0c", "%0d", "%1c", "%c2%85", "%e2%80%a8"):
            ask(one.port, f"GET /www/a{end}{forged} HTTP/1.0\r\n\r\n")
        ask(one.port, f"GET /www/{'%ff' * 200}%0a{forged}{'x' * 2500} HTTP/1.0\r\n\r\n")
        until("they are doubted", lambda: bool(events(nginx, "error_log.lines_doubted")))
        assert nginx.ctl("promote").code == 0
        good = nginx.end(asked)
        assert good.code == 0, good
        assert "made up" not in told_lines(nginx)


@pytest.mark.parametrize("case", ["seen", "in-the-log"])
def test_what_was_written_before_condemns_nobody(oldest: Build, newest: Build, case: str) -> None:
    """By the generation before, or where the supervisor is new, in the log that it finds."""
    with site.make(oldest) as one:
        one.install(oldest)
        site.put(candidate(oldest, "alerting", always=1), one.binary)
        with supervised.running(one, {"upgrade": WINDOWS}) as nginx:
            until("it is heard", lambda: ALERT in one.log_text())
            if case == "in-the-log":
                nginx.die()
                nginx.start()
            good = nginx.ctl("upgrade", candidate(newest, "alerting"))
            assert good.code == 0, good
            assert good.last["reason"] == "healthy"


def test_what_the_host_forbids_at_each_start_condemns_nobody(oldest: Build, newest: Build) -> None:
    """A supervisor that is new to this nginx, whose log was rotated since it was started."""
    options = Options(main="worker_rlimit_nofile 99999999;")
    with site.make(oldest, options) as one, supervised.running(one, {"upgrade": WINDOWS}) as nginx:
        until("it is forbidden", lambda: " setrlimit(RLIMIT_NOFILE" in one.log_text())
        nginx.die()
        os.truncate(one.error_log, 0)
        nginx.start()
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        until("so it is again", lambda: " setrlimit(RLIMIT_NOFILE" in one.log_text())


def test_it_can_be_switched_off(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        settings = {"upgrade": WINDOWS, "triggers": {"error_log_ignore": ["^bad candidate: "]}}
        with supervised.running(one, settings) as nginx:
            good = nginx.ctl("upgrade", candidate(newest, "alerting"))
            assert good.code == 0, good
            (told,) = {line["line"] for line in events(nginx, "nginx.error_line")}
            assert told == ALERT


def hello() -> bytes:
    """A TLS client's first message."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="site.test").do_handshake()
    return outgoing.read()


def misbehave(one: Site, first: bytes) -> Callable[[int], object]:
    """What has a healthy nginx write [crit] lines, and much else."""
    tls, patience = one.spare_port, 0.05
    deeds: list[Callable[[int], object]] = [
        lambda number: ask(tls, first + b"\0" * (number % 300), patience),
        lambda number: ask(tls, first[: number % len(first)], reset=True),
        lambda number: ask(tls, first[: 5 + number % 90] + b"\xff" * 400, patience),
        lambda _: ask(tls, first + b"\x17\x03\x03\xff\xff" + b"x" * 99, patience),
        lambda _: ask(tls, first, reset=True),
        lambda _: ask(tls, b"GET / HTTP/1.0\r\n\r\n", patience),
        lambda _: ask(one.port, b"\x16\x03\x01\xff\xff" + b"x" * 99, patience),
        lambda _: ask(one.port, "GET /big HTTP/1.0\r\n\r\n", reset=True),
        lambda _: ask(one.port, "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", patience),
        lambda _: ask(one.port, "GET /private/x HTTP/1.0\r\n\r\n", patience),
        lambda _: ask(one.port, "GET /gone HTTP/1.0\r\n\r\n", patience),
        lambda number: ask(one.port, f"GET /{'a' * number} HTTP/1.0\r\n\r\n", patience),
    ]
    return lambda number: deeds[number % len(deeds)](number)


def told_lines(nginx: Supervised) -> dict[str, str | None]:
    """The lines that were told, and whose they are."""
    return {line["line"]: line["generation"] for line in events(nginx, "nginx.error_line")}


def critical(one: Site, word: str) -> int:
    lines = one.log_text().splitlines()
    return len([line for line in lines if "[crit]" in line and word in line])


def test_clients_that_misbehave_condemn_nobody(oldest: Build, newest: Build) -> None:
    """They begin when only the candidate is left to hear of them.

    It is the older one: of TLS clients newer versions speak at lower levels.
    """
    with site.make(newest) as one:
        one.configure(
            Options(
                server=(
                    f"listen 127.0.0.1:{one.spare_port} ssl; ssl_certificate {CERTIFICATE};"
                    f"ssl_certificate_key {CERTIFICATE}; location /private/ {{ root {one.folder}; "
                    f"try_files $uri =404; }} location /gone {{ proxy_pass "
                    f"http://unix:{one.folder}/none.sock; }}"
                )
            )
        )
        (one.folder / "private").mkdir(mode=0o700)
        words = ("SSL_do_handshake() failed", "stat() ", "connect() to unix:")
        with supervised.running(one, {"upgrade": WINDOWS}) as nginx:
            asked = nginx.begin("upgrade", oldest.path, "--hold")
            nginx.until_phase("held")
            with busy(misbehave(one, hello())):
                until("all is said", lambda: all(critical(one, each) >= 5 for each in words))
            assert nginx.ctl("promote").code == 0
            good = nginx.end(asked)
            assert good.code == 0, good
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
