r"""Which lines of a candidate's error log condemn it.

A kind of line (`error_log.kind_of`) that the generation before it, or the log from before, has as
well is the site's or the host's. Of the others a few are left out whoever writes them: what
clients, the host and the end of connections bring about on any nginx. Most were seen on healthy
upgrades of 1.18, 1.22 and 1.26 under clients that misbehave; the others are what the source writes
for causes that lie elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from supervisor.core.signals import LogLine, Severity

HARMLESS = (
    # Of the host, which both generations share: memory, disks, descriptors, buffers.
    r"\((?:5|12|23|24|28|30|105|122): ",
    r"^\d+ worker_connections are not enough",
    r"shared memory|could not allocate (?:node|new session)|ngx_slab_alloc\(\) failed: no memory",
    # Of what this host forbids or lacks, and nginx does without: each start says so again.
    r"^(?:setrlimit|setpriority|sched_setaffinity|prctl|io_setup|eventfd)\([^)]*\) failed \(",
    r"^[gs]etsockopt\(.* failed, ignored \(\d+: ",
    # Of clients: broken handshakes and records, in whatever words this OpenSSL has for it.
    r"\bSSL_(?:do_handshake|read|read_early_data|write|sendfile|shutdown)\(\) failed",
    r"^ignoring stale global SSL error",
    r"\((?:71|103|104|107|110|113): ",
    # Of what lies behind nginx: a unix socket that is not there, no local port left, or a syslog
    # server that is away, which older versions tell with no more words than these.
    r"^connect\(\) (?:to \S+ )?failed \((?!1:|13:)",
    r"^bind\(\S+\) failed \(9[89]: ",
    r"^connect\(\) failed \(13: [^)]*\)(?: while logging to syslog|$)",
    r"while logging to syslog",
    # Of files: a place that workers may not look at is asked for, content changes while it is sent,
    # and one cache manager has removed what the other one wanted to (both have the same folder).
    r"^stat\(\) \".*\" failed",
    r"was truncated at \d+",
    r"^(?:unlink|rename|rmdir|opendir)\(\) \".*\" failed \((?:2|17|39): ",
    # Of an end: connections that a worker leaves, and signals to one that has ended.
    r"^open socket #\d+ left in connection",
    r"^aborting$",
    r"^kill\(\d+, \d+\) failed \(3: ",
    r"^sendmsg\(\) failed \((?:9|32): ",
    # The kernel tells of these by itself, and triggers of their own look at them.
    r"process \d+ exited (?:on signal|with)",
    # The configuration on disk is wrong: whoever had nginx read it again is told by that.
    r" in /\S+:\d+$",
    r"^(?:still could not bind\(\)|bind\(\) to \S+ failed \(98: )",
)
"""What never condemns, as expressions that are searched in a line without the connection's number.

More of them come from the settings.
"""

_CONNECTION = re.compile(r"^\*\d+ ")
_CONTEXT = re.compile(r", client: .*", re.DOTALL)


def condemning(
    kinds: Mapping[str, Sequence[LogLine]],
    known: Collection[str],
    limits: Mapping[Severity, int],
    ignore: Sequence[str] = (),
) -> LogLine | None:
    """The first line that condemns whoever wrote all of `kinds`; None where none does.

    `known` are the kinds that count for nothing, `limits` how many lines of one kind and level it
    takes (0: no number of them), `ignore` more expressions beside `HARMLESS`.
    """
    found: list[LogLine] = []
    for kind, lines in kinds.items():
        if kind in known or is_harmless(lines[-1].text, tuple(ignore)):
            continue
        for level, least in limits.items():
            of_level = [one for one in lines if one.level is level]
            if least and len(of_level) >= least:
                found.append(of_level[0])
    return min(found, key=lambda one: (one.level, one.at), default=None)


def is_harmless(text: str, ignore: tuple[str, ...] = ()) -> bool:
    """Whether a line says nothing about the binary that wrote it."""
    said = _CONTEXT.sub("", _CONNECTION.sub("", text))
    return any(_compiled(one).search(said) for one in (*HARMLESS, *ignore))


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)
