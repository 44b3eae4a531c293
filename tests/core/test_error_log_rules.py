"""Which lines of a candidate's error log condemn it, and which never do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core.error_log import kind_of
from supervisor.core.error_log_rules import is_harmless
from supervisor.core.errors import ConfigError
from supervisor.core.seen import BEFORE, Seen
from supervisor.core.settings_table import Table
from supervisor.core.signals import LogLine, Severity
from supervisor.core.trigger_settings import DEFAULT_TRIGGERS, TriggerSettings, parse_triggers
from supervisor.core.triggers import Case, Trigger, weigh

OLD, NEW = 1, 2
ALERT = LogLine(
    generation=NEW, pid=7, level=Severity.ALERT, text="*1 zero size buf in output, client: ::1",
    at=5.0, log="/var/log/nginx/error.log",
)  # fmt: skip
CRIT = replace(
    ALERT, level=Severity.CRIT, text='*9 open() "/cache/a" failed (13: Permission denied)'
)


def judged(
    *lines: LogLine, settings: TriggerSettings = DEFAULT_TRIGGERS, reference: int | None = OLD
) -> Trigger | None:
    seen = Seen()
    for one in lines:
        seen.add(one)
    case = Case(candidate=NEW, reference=reference, seen=seen, alone=False, at=9.0)
    return weigh(case, settings, news=LogLine)


def test_one_alert_of_a_new_kind_condemns() -> None:
    found = judged(ALERT)
    assert found is not None
    assert found.reason == "error_log"
    assert found.detail == (
        "process 7 of the candidate g2 wrote into /var/log/nginx/error.log "
        "[alert] *1 zero size buf in output, client: ::1; nobody wrote such a line before"
    )
    emerg = judged(replace(ALERT, level=Severity.EMERG, log=""))
    assert emerg is not None
    assert " wrote [emerg] *1 zero" in emerg.detail
    assert judged(ALERT, reference=None) is not None


def test_some_critical_lines_of_one_kind_condemn() -> None:
    least = DEFAULT_TRIGGERS.error_log_crit
    assert judged(*[CRIT] * (least - 1)) is None
    assert judged(*[CRIT] * (least - 1), replace(CRIT, text="mkdir() failed (13: x)")) is None
    found = judged(*[CRIT] * least)
    assert found is not None
    assert "[crit] *9 open()" in found.detail


def test_the_worst_line_is_told() -> None:
    found = judged(*[CRIT] * 9, replace(ALERT, at=99.0))
    assert found is not None
    assert "[alert]" in found.detail


@pytest.mark.parametrize("generation", [OLD, BEFORE])
def test_what_others_wrote_as_well_condemns_nobody(generation: int) -> None:
    before = replace(ALERT, generation=generation, text="*77 zero size buf in output, client: ::2")
    assert judged(before, ALERT) is None
    assert judged(ALERT, before) is None
    other = replace(before, text="the http output chain is empty")
    assert judged(other, ALERT) is not None


def test_lines_of_the_old_generation_or_of_nobody_condemn_nobody() -> None:
    assert judged(replace(ALERT, generation=OLD), replace(ALERT, generation=None)) is None


def test_lower_levels_condemn_nobody() -> None:
    assert judged(*[replace(ALERT, level=Severity.ERROR)] * 60) is None


def test_it_can_be_tuned_and_switched_off() -> None:
    off = TriggerSettings(error_log_emerg=0, error_log_alert=0, error_log_crit=0)
    lines = [replace(ALERT, level=level) for level in Severity for _ in range(60)]
    assert judged(*lines, settings=off) is None
    assert judged(ALERT, settings=TriggerSettings(error_log_alert=2)) is None
    assert judged(ALERT, ALERT, settings=TriggerSettings(error_log_alert=2)) is not None
    ignoring = TriggerSettings(error_log_ignore=("^zero size buf",))
    assert judged(ALERT, settings=ignoring) is None


def test_the_settings_are_read() -> None:
    table = Table(
        "[triggers]",
        {"error_log_emerg": 2, "error_log_alert": 0, "error_log_crit": 64,
         "error_log_ignore": ["^lua "]},
    )  # fmt: skip
    settings = parse_triggers(table)
    table.finish()
    assert (settings.error_log_emerg, settings.error_log_alert) == (2, 0)
    assert (settings.error_log_crit, settings.error_log_ignore) == (64, ("^lua ",))
    for wrong in ({"error_log_crit": 65}, {"error_log_ignore": ["("]}):
        with pytest.raises(ConfigError, match="error_log_"):
            parse_triggers(Table("[triggers]", wrong))


# Seen in healthy upgrades from 1.18.0 and 1.22.1 to 1.26.3, and when a syslog server is away.
HARMLESS = """\
*1 SSL_do_handshake() failed (SSL: error:0A0000C6:SSL routines::packet length too long) while SSL \
handshaking, client: 127.0.0.1, server: 127.0.0.1:28572
*1 SSL_do_handshake() failed (SSL: error:0A000126:SSL routines::unexpected eof while reading)
*7 stat() "/tmp/x/priv/x" failed (13: Permission denied), client: 127.0.0.1, server:
*7 connect() to unix:/x/none.sock failed (2: No such file or directory) while connecting to upstream
*7 connect() to 10.0.0.9:80 failed (99: Cannot assign requested address) while connecting to up
*7 bind(10.0.0.9) failed (98: Address already in use) while connecting to upstream
*5 open socket #12 left in connection 7
aborting
connect() failed (111: Unknown error)
connect() failed (13: Permission denied)
connect() failed (13: Permission denied) while logging to syslog, server: unix:/x/log.sock
send() failed (107: Transport endpoint is not connected) while logging to syslog, server: unix:/x
64 worker_connections are not enough
*64 1024 worker_connections are not enough, reusing connections
accept4() failed (24: Too many open files)
*3 pwrite() "/x/cache/a" failed (28: No space left on device) while reading upstream
unlink() "/x/cache/b/67/0e" failed (2: No such file or directory)
kill(4711, 15) failed (3: No such process)
worker process 4711 exited on signal 11
worker process 4711 exited with fatal code 2 and cannot be respawned
ignoring stale global SSL error (SSL: error:0A0000C6:SSL routines::x)
unknown directive "foo" in /etc/nginx/nginx.conf:12
*8 sendfile() reported that "/www/a" was truncated at 4096 while sending response to client
could not allocate node in cache keys zone "z"
setrlimit(RLIMIT_NOFILE, 99999999) failed (1: Operation not permitted)
setpriority(-5) failed (13: Permission denied)
sched_setaffinity() failed (22: Invalid argument)
io_setup() failed (38: Function not implemented)
setsockopt(TCP_FASTOPEN, 5) 0.0.0.0:80 failed, ignored (92: Protocol not available)
"""


@pytest.mark.parametrize("text", HARMLESS.splitlines())
def test_what_clients_and_the_host_bring_about_condemns_nobody(text: str) -> None:
    assert is_harmless(text)
    line = replace(ALERT, level=Severity.EMERG, text=text)
    assert judged(*[line] * 60) is None


@pytest.mark.parametrize(
    "text",
    [
        "bad candidate: something is wrong here",
        '*9 open() "/cache/a" failed (13: Permission denied) while reading response header',
        "*9 connect() to unix:/x.sock failed (13: Permission denied) while connecting to upstream",
        "*3 zero size buf in output t:0 r:0 f:0, client: ::1, server: a, request: "
        '"GET /SSL_do_handshake() failed HTTP/1.1"',
        "epoll_ctl(1, 7) failed (17: File exists)",
        "setsockopt(SO_REUSEPORT) 0.0.0.0:80 failed (1: Operation not permitted)",
        "mmap(MAP_ANON|MAP_SHARED, 99) failed (1: Operation not permitted)",
    ],
)
def test_what_speaks_against_a_binary_is_not_harmless(text: str) -> None:
    assert not is_harmless(text)


def test_the_memory_of_kinds_is_bounded_and_lasts() -> None:
    seen = Seen()
    for number in range(300):
        word = "".join(chr(ord("g") + int(one)) for one in str(number))
        seen.add(replace(ALERT, text=f"kind {word}"))
    kinds = seen.lines(NEW)
    assert len(kinds) == 256
    assert kind_of("kind g") not in kinds
    seen.add(replace(ALERT, generation=BEFORE))
    seen.keep_only({OLD})
    assert seen.lines(NEW) == {}
    assert len(seen.lines(BEFORE)) == 1
