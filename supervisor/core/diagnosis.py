"""What `nginxctl doctor` makes of a site: what is well, what is not, and what to write where.

Everything that is looked at comes in as facts; here they become findings. A `problem` will have an
upgrade refused, or is an outage in waiting; a `warn` makes verdicts worth less, or will surprise; a
`note` is an improvement that one may do without.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from supervisor.core.nginx_config import NginxConfig
from supervisor.core.nginx_details import NginxDetails
from supervisor.core.server_blocks import ServerBlock
from supervisor.core.settings import Settings
from supervisor.core.unit_file import UnitsSeen


class Level(Enum):
    """How much it matters; words of the public contract."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One finding: what was seen, what to do about it, and lines that can be copied as they are."""

    topic: str
    name: str
    level: Level
    seen: str
    advice: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxSeen:
    """The generation that serves, as the kernel shows it."""

    generation: str
    version: str
    pid: int
    workers: int  # that accept
    why_not_upgradable: str = ""
    pid_file: str
    pid_file_problem: str = ""
    oldbin_master: int | None = None
    needed_bytes: int = 0  # for a second generation
    available_bytes: int = 0
    reuseport_counts: tuple[tuple[str, int], ...] = ()  # address, sockets that the master has
    files_limit: int | None = None  # of a worker, by the kernel; None: without, or not to be seen
    descriptors: int | None = None  # open in all workers; None: may not be looked at
    stored: bool = True  # what runs is whole in the version store


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSeen:
    """The machine, and the supervisor on it."""

    kernel: str
    supervisor: str  # its version
    inet_diag: bool
    pidfd_getfd: bool
    exit_info: bool
    ephemeral: tuple[int, int] | None  # the range of ports that clients get
    free_ports: tuple[int, ...]  # of the private listener's range
    include_folder_problem: str = ""
    state_problem: str = ""
    held: tuple[bool, int] = (True, 0)  # held listeners: available, how many
    executable_memory: bool = True  # may be written as well; a sandbox may forbid it


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSeen:
    """The configuration on disk, as nginx itself reads it."""

    config: NginxConfig
    details: NginxDetails
    blocks: tuple[ServerBlock, ...]
    workers: int  # that it asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """All facts."""

    settings: Settings
    nginx: NginxSeen | None
    host: HostSeen
    config: ConfigSeen | None
    refused: str = ""  # why nginx does not take its configuration
    busy: str = ""  # what is under way, in which nginx is neither asked nor judged
    probes: tuple[tuple[str, str], ...] = ()  # name, state
    units: UnitsSeen = field(default_factory=lambda: UnitsSeen(without="not looked at"))


def finding(
    topic: str, name: str, level: Level, seen: str, advice: str = "", *lines: str
) -> Diagnosis:
    """The finding with these parts."""
    return Diagnosis(topic=topic, name=name, level=level, seen=seen, advice=advice, lines=lines)


def of_nginx(site: Site) -> Iterator[Diagnosis]:
    """Is it there, and would it take an upgrade?"""
    nginx = site.nginx
    if site.busy:
        yield finding(
            "nginx", "configuration", Level.NOTE, f"not looked at: {site.busy}",
            "ask again afterwards: what depends on nginx and its configuration is left out",
        )  # fmt: skip
        return
    if nginx is None:
        yield finding(
            "nginx", "running", Level.PROBLEM, "no nginx runs under this supervisor",
            "nginxctl status says why; nginxctl start starts it",
        )  # fmt: skip
    else:
        yield from _of_running(nginx)
    yield from _of_configuration(site)
    if nginx is not None:
        yield from _of_upgrade(site, nginx)


def _of_running(nginx: NginxSeen) -> Iterator[Diagnosis]:
    what = f"{nginx.generation}, nginx {nginx.version}, master {nginx.pid}"
    if nginx.workers:
        workers = _many(nginx.workers, "worker")
        yield finding("nginx", "running", Level.OK, f"{what}, {workers} accepting")
    else:
        yield finding(
            "nginx", "running", Level.PROBLEM, f"{what}: no worker accepts connections",
            "nginxctl reload brings them back where the configuration is good",
        )  # fmt: skip


def _of_configuration(site: Site) -> Iterator[Diagnosis]:
    if site.config is not None:
        files = _many(len(site.config.config.files), "file")
        yield finding(
            "nginx", "configuration", Level.OK, f"nginx accepts what is on disk ({files})"
        )
    else:
        yield finding(
            "nginx", "configuration", Level.PROBLEM, site.refused,
            "until it is corrected each reload and each upgrade is refused; what depends on the "
            "configuration was not looked at",
        )  # fmt: skip


def _of_upgrade(site: Site, nginx: NginxSeen) -> Iterator[Diagnosis]:
    if nginx.why_not_upgradable:
        yield finding("nginx", "upgradable", Level.PROBLEM, nginx.why_not_upgradable)
    else:
        yield finding("nginx", "upgradable", Level.OK, "the master would take USR2")
    if nginx.pid_file_problem:
        yield finding(
            "nginx", "pid_file", Level.PROBLEM, nginx.pid_file_problem,
            f"{nginx.pid_file} has to hold {nginx.pid}, as a regular file in a folder that takes "
            "changes: nginx renames it in an upgrade",
        )  # fmt: skip
    else:
        yield finding(
            "nginx", "pid_file", Level.OK, f"{nginx.pid_file} names the master, and can be renamed"
        )
    if nginx.oldbin_master is not None:
        yield finding(
            "nginx", "oldbin", Level.PROBLEM,
            f"the old master {nginx.oldbin_master} of an earlier upgrade still runs",
            "end it once its connections may close", f"kill -QUIT {nginx.oldbin_master}",
        )  # fmt: skip
    yield from _of_memory(nginx)
    yield from _of_store(nginx)
    if site.config is not None:
        yield from _of_workers(nginx, site.config)
        yield from _of_files(nginx, site.config.details)
        yield from _of_drain(site, site.config)


def _of_memory(nginx: NginxSeen) -> Iterator[Diagnosis]:
    needed, available = nginx.needed_bytes // 2**20, nginx.available_bytes // 2**20
    seen = f"a second generation needs about {needed} MiB; {available} MiB are available"
    if nginx.available_bytes < nginx.needed_bytes:
        advice = "free memory, or raise MemoryMax= of the unit: an upgrade is refused until then"
        yield finding("nginx", "memory", Level.PROBLEM, seen, advice)
    else:
        yield finding("nginx", "memory", Level.OK, seen)


def _of_store(nginx: NginxSeen) -> Iterator[Diagnosis]:
    if nginx.stored:
        yield finding("nginx", "store", Level.OK, "what runs is whole in the version store")
    else:
        yield finding(
            "nginx", "store", Level.WARN, "what runs is not, or not whole, in the version store",
            "the next upgrade stores it first, from the running process; until then a crash "
            "starts what is on disk",
        )  # fmt: skip


def _of_workers(nginx: NginxSeen, config: ConfigSeen) -> Iterator[Diagnosis]:
    reuseport = {str(one) for one in config.config.listens if one.reuseport}
    odd = [(at, held) for at, held in nginx.reuseport_counts if held != config.workers]
    odd = [(at, held) for at, held in odd if at in reuseport and held > 1]
    if odd:
        at, held = odd[0]
        yield finding(
            "nginx", "workers", Level.PROBLEM,
            f"{at} has reuseport with {held} sockets, and the configuration on disk asks for "
            f"{config.workers} workers: an upgrade is refused, as clients would hang",
            "reload first, or keep the number for the upgrade", f"worker_processes {held};",
        )  # fmt: skip
    elif nginx.workers and nginx.workers != config.workers:
        yield finding(
            "nginx", "workers", Level.NOTE,
            f"{nginx.workers} workers accept, and the configuration on disk asks for "
            f"{config.workers}",
            "nginxctl reload applies it",
        )  # fmt: skip


def _of_files(nginx: NginxSeen, details: NginxDetails) -> Iterator[Diagnosis]:
    limit, wanted = nginx.files_limit, details.worker_connections
    if limit is None:
        return
    seen = f"a worker may open {limit} files, and worker_connections is {wanted}"
    if limit < wanted:
        yield finding(
            "nginx", "files", Level.WARN, seen,
            "a proxied connection takes two; in the main context of "
            f"{details.main_file}, or LimitNOFILE= in the supervisor's unit:",
            f"worker_rlimit_nofile {2 * wanted};",
        )  # fmt: skip
    else:
        yield finding("nginx", "files", Level.OK, seen)


def _of_drain(site: Site, config: ConfigSeen) -> Iterator[Diagnosis]:
    limit = config.config.worker_shutdown_timeout
    if limit is not None:
        seen = f"worker_shutdown_timeout: old connections end within {limit:g} s"
        yield finding("nginx", "drain", Level.OK, seen)
        return
    most = site.settings.upgrade.drain_timeout
    level = Level.WARN if config.details.passes_websockets else Level.NOTE
    why = "websockets are passed on, and " if config.details.passes_websockets else ""
    yield finding(
        "nginx", "drain", level,
        f"{why}no worker_shutdown_timeout is set: one open connection keeps the old generation "
        f"after an upgrade, until drain_timeout ({most:g} s) has it ended; the next upgrade waits "
        "for that",
        f"in the main context of {config.details.main_file}, with the time that fits:",
        "worker_shutdown_timeout 60s;",
    )  # fmt: skip


def of_host(site: Site) -> Iterator[Diagnosis]:
    """The supervisor and the kernel."""
    host = site.host
    yield finding("host", "supervisor", Level.OK, f"nginx-supervisor {host.supervisor}")
    if host.state_problem:
        yield finding(
            "host", "state", Level.PROBLEM, host.state_problem,
            "without its state directory no upgrade begins, and verdicts are lost",
        )  # fmt: skip
    missing = [
        f"{name} ({without})"
        for there, name, without in (
            (host.inet_diag, "inet_diag", "one socket is looked for in the list of all"),
            (host.pidfd_getfd, "pidfd_getfd", "listeners cannot be held over a crash"),
            (host.exit_info, "PIDFD_GET_INFO", "how a worker ended is known from the log alone"),
        )
        if not there
    ]
    if missing:
        yield finding(
            "host", "kernel", Level.NOTE,
            f"Linux {host.kernel} does not have, or not allow: {'; '.join(missing)}",
            "inet_diag is a module; pidfd_getfd needs CAP_SYS_PTRACE in a container; "
            "PIDFD_GET_INFO came with Linux 6.15",
        )  # fmt: skip
    else:
        yield finding("host", "kernel", Level.OK, f"Linux {host.kernel} has all that is of use")
    yield from _of_held(site)
    yield from _of_machine_code(site)


def _of_held(site: Site) -> Iterator[Diagnosis]:
    available, count = site.host.held
    if available and count:
        what = _many(count, "listening socket")
        seen = f"{what} held: a crash of nginx refuses no connection"
        yield finding("host", "held_listeners", Level.OK, seen)
    elif not site.settings.restart.hold_listeners:
        yield finding(
            "host", "held_listeners", Level.NOTE,
            "hold_listeners is off: between a crash of nginx and its next start connections are "
            "refused",
        )  # fmt: skip
    else:
        yield finding(
            "host", "held_listeners", Level.WARN, "no listening socket is held: a crash of nginx "
            "refuses connections until its next start",
            "nginxctl events says why; reuseport listeners are held with hold_reuseport = true",
        )  # fmt: skip


def _of_machine_code(site: Site) -> Iterator[Diagnosis]:
    used = site.config.details.machine_code if site.config is not None else ()
    if not used or site.host.executable_memory:
        return
    lua = [name for name in used if name != "pcre_jit"]
    effect = (
        f"LuaJIT ({lua[0]}) ends the worker in which it compiles"
        if lua
        else "pcre_jit has no effect, and regular expressions are slower for it"
    )
    yield finding(
        "host", "machine_code", Level.WARN if lua else Level.NOTE,
        f"the unit forbids memory that is writable and executable: {effect}",
        "in a drop-in of the supervisor's unit (jit.conf, see docs/hardening.md), then "
        "daemon-reload; it holds for an nginx that the next supervisor starts, or takes over:",
        "[Service]", "MemoryDenyWriteExecute=no",
    )  # fmt: skip


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def glob_of(include_file: str) -> str:
    """What to write behind `include`: with a `*`, so that a missing file is no error to nginx."""
    stem, suffix = posixpath.splitext(include_file)
    return f"{stem}*{suffix}"
