"""By which ways a site's answers can be attributed, and what would make them better.

The other half of `nginxctl doctor`: see `diagnosis`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from supervisor.core.advice import advise
from supervisor.core.diagnosis import (
    ConfigSeen,
    Diagnosis,
    Level,
    Site,
    finding,
    glob_of,
    of_host,
    of_nginx,
)
from supervisor.core.diagnosis_units import of_units
from supervisor.core.probe_settings import HttpProbe, ProbeSettings
from supervisor.core.server_blocks import (
    ServerBlock,
    answering,
    why_not_in_canary,
    why_not_traceable,
)

_ADVICE = ("soak_short", "timeout_impossible", "not_verified")
_HEADER = "X-Worker-Pid"
_TCP_ONLY = "a tcp probe is answered by the kernel: it says little of a worker"


def diagnose(site: Site) -> tuple[Diagnosis, ...]:
    """All findings, topic by topic."""
    return (
        *of_nginx(site), *of_evidence(site), *of_host(site),
        *of_units(site.units, site.settings.nginx),
    )  # fmt: skip


def of_evidence(site: Site) -> Iterator[Diagnosis]:
    """Who would know whether a candidate is good, and how."""
    if not site.settings.probes:
        yield finding(
            "evidence", "probes", Level.WARN,
            "no probe is configured: only what nginx itself gives away (processes that end or "
            "hang, its error log, what it uses) judges a candidate, and each verdict is unjudged",
            "in the supervisor's configuration, with a page that is well only if the site is:",
            "[[probe]]", 'name = "home"', 'type = "http"', 'url = "http://127.0.0.1/"',
        )  # fmt: skip
    if site.config is not None:
        yield from _ways(site, site.config)
        yield from _of_probes(site, site.config)
        yield from _of_logs(site.config)
    yield from _of_ports(site)


# --- ways -----------------------------------------------------------------------------------------


def _ways(site: Site, config: ConfigSeen) -> Iterator[Diagnosis]:
    file = site.settings.probe_listener.include_file
    including = [block for block in config.blocks if block.reads(file)]
    yield from _private_listener(site, config, including)
    yield from _header(site, config, private=_can_be_private(site, len(including)))
    yield from _owner(site)


def _can_be_private(site: Site, including: int) -> bool:
    """Whether a candidate would get a listener of its own, included in so many blocks."""
    return including == 1 and not site.host.include_folder_problem


def _private_listener(
    site: Site, config: ConfigSeen, including: list[ServerBlock]
) -> Iterator[Diagnosis]:
    name, file = "private_listener", site.settings.probe_listener.include_file
    if site.host.include_folder_problem:
        yield finding(
            "evidence", name, Level.WARN, site.host.include_folder_problem,
            "without that folder no canary is observed: make it, or change include_file in "
            "[probe_listener]",
        )  # fmt: skip
    if _can_be_private(site, len(including)):
        yield finding(
            "evidence", name, Level.OK, f"{_place(including[0])} includes {file}: in a canary the "
            "candidate is asked alone",
        )  # fmt: skip
    elif len(including) > 1:
        places = " and ".join(map(_place, including))
        yield finding(
            "evidence", name, Level.PROBLEM,
            f"{len(including)} server blocks include {file} ({places}): nginx will reject its "
            "listen directives in more than one, and each upgrade is refused",
            "leave it in the block that the probes look at",
        )  # fmt: skip
    elif not including:
        place, chosen = _where_to_include(site, config)
        yield finding(
            "evidence", name, Level.WARN,
            f"no server block includes {file}: in a canary both generations answer on the same "
            "address, and most of the answers are the old one's",
            f"{'in ' + place if chosen else place}, then nginxctl reload:",
            f"include {glob_of(file)};",
        )  # fmt: skip


def _where_to_include(site: Site, config: ConfigSeen) -> tuple[str, bool]:
    """The block that answers most probes, in words; whether there is one."""
    blocks = Counter(
        block
        for probe in site.settings.probes
        if (block := answering(probe, config.blocks)) is not None
    )
    if not blocks:
        return "in the one server block that the probes look at", False
    (chosen, count), *_ = blocks.most_common(1)
    answers = "answers the probes" if count == len(site.settings.probes) else "answers most probes"
    return f"{_place(chosen)}, which {answers}", True


def _place(block: ServerBlock) -> str:
    names = f" ({' '.join(block.names[:2])})" if block.names else ""
    return f"the server block at {block.file}:{block.line}{names}"


def _header(site: Site, config: ConfigSeen, *, private: bool) -> Iterator[Diagnosis]:
    asked = [one for one in site.settings.probes if isinstance(one, HttpProbe)]
    wanted = {one.pid_header for one in asked if one.pid_header is not None}
    sent = config.details.pid_headers
    unsent = sorted(_unsent(wanted, sent))
    if unsent:
        yield finding(
            "evidence", "response_header", Level.WARN,
            f"pid_header = {unsent[0]!r} is configured, and nothing in nginx's configuration sends "
            "that header with $pid",
            "in the server block that the probe looks at, and in a location that has an "
            "add_header of its own:", f"add_header {unsent[0]} $pid always;",
        )  # fmt: skip
    elif wanted:
        names = ", ".join(sorted(wanted))
        seen = f"{names} names the worker that answers: no search for it is needed"
        yield finding("evidence", "response_header", Level.OK, seen)
    elif asked:
        yield _without_header(sent, Level.NOTE if private else Level.WARN)


def _unsent(wanted: set[str], sent: tuple[str, ...]) -> set[str]:
    known = {one.lower() for one in sent}
    return {one for one in wanted if one.lower() not in known}


def _without_header(sent: tuple[str, ...], level: Level) -> Diagnosis:
    why = "it tells the worker at once, also where that has very many connections"
    if sent:
        return finding(
            "evidence", "response_header", level,
            f"nginx sends {sent[0]} with $pid, and no probe looks for it",
            f"{why}; in the supervisor's [[probe]]:", f'pid_header = "{sent[0]}"',
        )  # fmt: skip
    return finding(
        "evidence", "response_header", level, "no response header names the worker that answers",
        f"{why}; in the server block that the probe looks at, and in the supervisor's [[probe]]:",
        f"add_header {_HEADER} $pid always;", f'pid_header = "{_HEADER}"',
    )  # fmt: skip


def _owner(site: Site) -> Iterator[Diagnosis]:
    nginx = site.nginx
    if nginx is None:
        return
    if nginx.descriptors is None:
        yield finding(
            "evidence", "socket_owner", Level.WARN,
            "the sockets of nginx's workers may not be looked at: who holds the other end of a "
            "probe's connection is not known",
            "run the supervisor as root or as the workers' user; systemd: CAP_SYS_PTRACE",
        )  # fmt: skip
    else:
        yield finding(
            "evidence", "socket_owner", Level.OK,
            f"the worker that holds a probe's connection can be found ({nginx.descriptors} "
            "descriptors to look through now)",
        )  # fmt: skip


# --- probes ---------------------------------------------------------------------------------------


def _of_probes(site: Site, config: ConfigSeen) -> Iterator[Diagnosis]:
    states = dict(site.probes)
    for probe in site.settings.probes:
        yield _of_probe(site, config, probe, states.get(probe.name, "unknown"))
    for advice in advise(site.settings, config.blocks):
        if advice.reason in _ADVICE:
            yield finding("evidence", advice.reason, Level.NOTE, advice.detail)


def _of_probe(site: Site, config: ConfigSeen, probe: ProbeSettings, state: str) -> Diagnosis:
    name, file = f"probe {probe.name}", site.settings.probe_listener.include_file
    if state == "down":
        return finding(
            "evidence", name, Level.WARN, "it does not pass now, and so would judge no candidate",
            "nginxctl status shows what it says",
        )  # fmt: skip
    included = _can_be_private(site, any(block.reads(file) for block in config.blocks))
    # Without the include also what could be asked there is asked in public.
    why = why_not_in_canary(probe, config.blocks, file) if included else why_not_traceable(probe)
    if why is not None:
        return finding(
            "evidence", name, Level.NOTE,
            f"not asked in the canary, it judges from the shift on: {why}",
        )  # fmt: skip
    if not included:
        return finding(
            "evidence", name, Level.NOTE,
            "in a canary its answer counts where it happens to be a worker's of the candidate; "
            "surely from the shift on",
        )  # fmt: skip
    extra = f" ({_TCP_ONLY})" if probe.type == "tcp" else ""
    return finding("evidence", name, Level.OK, f"asked in the canary and in the soak{extra}")


# --- logs and ports -------------------------------------------------------------------------------


def _of_logs(config: ConfigSeen) -> Iterator[Diagnosis]:
    logs = config.details.error_logs
    hiding = [one for one in logs if one.hides and one.target != "/dev/null"]
    nowhere = [one for one in logs if one.target == "/dev/null"]
    for one in nowhere:
        yield finding(
            "evidence", "error_log", Level.WARN,
            f"{one.file}:{one.line} throws its error log away: what a candidate writes there "
            "at emerg, alert or crit is not seen",
            "write it into a file", "error_log /var/log/nginx/error.log warn;",
        )  # fmt: skip
    for one in hiding:
        yield finding(
            "evidence", "error_log", Level.WARN,
            f"{one.file}:{one.line} has its error log at {one.level}: lines at "
            f"{' and '.join(one.hides)} are hidden, also from whoever judges a candidate",
            "keep at least crit", f"error_log {one.target} crit;",
        )  # fmt: skip
    if not hiding and not nowhere:
        many = len(logs) or 1
        noun = "error log shows" if many == 1 else "error logs show"
        seen = f"{many} {noun} what condemns a candidate (emerg, alert, crit)"
        yield finding("evidence", "error_log", Level.OK, seen)


def _of_ports(site: Site) -> Iterator[Diagnosis]:
    listener, host = site.settings.probe_listener, site.host
    if not site.settings.probes:
        return  # nobody would ask there
    span = f"{listener.first_port}-{listener.last_port}"
    if not host.free_ports:
        yield finding(
            "evidence", "ports", Level.WARN,
            f"all ports of the private listener ({span}) are in use: no canary is observed",
            "free one, or change ports in [probe_listener]",
        )  # fmt: skip
    elif host.ephemeral is not None and _overlap(
        host.ephemeral, listener.first_port, listener.last_port
    ):
        low, high = host.ephemeral
        yield finding(
            "evidence", "ports", Level.WARN,
            f"the private listener's ports ({span}) are among those that clients get "
            f"({low}-{high}): one may be in use when it is needed",
            f"choose a range below {low} in [probe_listener], or reserve them:",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={span}",
        )  # fmt: skip
    else:
        number = listener.last_port - listener.first_port + 1
        seen = f"{len(host.free_ports)} of {number} ports of the private listener are free ({span})"
        yield finding("evidence", "ports", Level.OK, seen)


def _overlap(span: tuple[int, int], first: int, last: int) -> bool:
    return span[0] <= last and first <= span[1]
