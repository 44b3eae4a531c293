"""What an upgrade would change besides the binary, told before the first signal.

Each guard is a pure function over one `Comparison`: what the generation that serves has read and
holds open, against what the candidate will read. A `Finding` is a warning, which the settings may
make a refusal, or a note: what every upgrade of such a site does, and nobody can avoid. What the
serving generation has read is not always known (it was adopted, the record was lost): then the
kernel's sockets are compared, and the times of files with the start of its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum

from supervisor.core.certificate import Certificate
from supervisor.core.config_read import ConfigRead, Contents, Kind, TlsFile, Use, Zone
from supervisor.core.errors import Refusal
from supervisor.core.guard_settings import Guard, GuardSettings, Level
from supervisor.core.nginx_listen import AddressKind, Listen, Transport
from supervisor.core.nginx_version import NginxBuild, lost_modules, older_library

Address = tuple[AddressKind, str, int, Transport]

MOST_FINDINGS = 32
"""Told, and kept with a verdict; what is more is counted in the last one."""

_MOST_NAMED = 8
_DETAIL = 512


class Severity(Enum):
    """How much a finding asks for."""

    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was; `detail` says what it means for users, and what to do."""

    guard: Guard
    detail: str
    severity: Severity = Severity.WARNING

    def to_data(self) -> dict[str, str]:
        """As events, the log and the history have it."""
        return {
            "guard": self.guard.value,
            "severity": self.severity.value,
            "detail": self.detail[:_DETAIL],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The two generations; None where something of the serving one is not known."""

    candidate: ConfigRead
    build: NginxBuild
    workers: int  # that the candidate will start
    running: ConfigRead | None = None
    running_build: NginxBuild | None = None
    held: Mapping[Address, int] | None = None  # how many sockets it has of each address
    since: float | None = None  # Unix seconds: what it has read is not younger
    now: float  # Unix seconds
    ours: str = ""  # the file of the private probe listener, which comes and goes


def findings(compared: Comparison, settings: GuardSettings) -> tuple[Finding, ...]:
    """What the guards that are on have found, in their order; all warnings before the notes."""
    found = [
        one
        for guard, look in GUARDS
        if settings.of(guard) is not Level.OFF
        for one in look(compared)
    ]
    found.sort(key=lambda one: one.severity is Severity.NOTE)
    return tuple(found)


def bounded(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """As many of them as are told."""
    if len(found) <= MOST_FINDINGS:
        return tuple(found)
    kept = found[: MOST_FINDINGS - 1]
    left = f"{len(found) - len(kept)} more findings are not shown"
    return (*kept, replace(found[len(kept)], detail=left))


_REASONS = {
    Guard.LISTENERS: "listener_dropped",
    Guard.REUSEPORT: "reuseport_workers_changed",
    Guard.SHARED_ZONES: "shared_zone_changed",
    Guard.QUIC: "quic_connections_lost",
    Guard.CERTIFICATES: "certificate_changed",
    Guard.SESSION_TICKETS: "session_ticket_keys_changed",
    Guard.MODULES: "module_lost",
}


def refusal(found: Iterable[Finding], settings: GuardSettings) -> Refusal | None:
    """The first warning that the settings make a refusal; None: the upgrade may go on."""
    for one in found:
        if one.severity is Severity.WARNING and settings.of(one.guard) is Level.REFUSE:
            return Refusal(
                _REASONS[one.guard],
                f'cannot upgrade: {one.detail} (guards.{one.guard.value} = "refuse")',
            )
    return None


# --- listeners ----------------------------------------------------------------------------------


def unix_listeners_dropped(compared: Comparison) -> dict[str, str]:
    """The unix listeners that the candidate would unlink, and where each stood, if that is known.

    No setting allows it: the path is gone under the generation that serves, and no rollback brings
    it back.
    """
    wanted = {one.address for one in compared.candidate.listens}
    return {
        address[1]: _stood(compared, address)
        for address in sorted(_before(compared), key=str)
        if address[0] is AddressKind.UNIX and address not in wanted
    }


def _before(compared: Comparison) -> set[Address]:
    """What is listened on now: the kernel knows, the configuration only says."""
    if compared.held is not None:
        return set(compared.held)
    listens = () if compared.running is None else compared.running.listens
    return {one.address for one in listens}


def _stood(compared: Comparison, address: Address) -> str:
    for one in () if compared.running is None else compared.running.listens:
        if one.address == address:
            return f" ({one.file}:{one.line} had it)"
    return ""


def _listeners(compared: Comparison) -> Iterator[Finding]:
    before = _before(compared)
    listens = [one for one in compared.candidate.listens if one.file != compared.ours]
    yield from _dropped(compared, before)
    if compared.held is None and compared.running is None:
        yield _note(
            Guard.LISTENERS, "the active master's sockets may not be looked at, and what it has "
            "read is not known: nobody can tell which listeners come or go",
        )  # fmt: skip
        return
    added = {
        str(one): f"{one} ({one.file}:{one.line})"
        for one in listens
        if one.address not in before and _is_number(one) and not _covered(one, before)
    }
    if added:
        yield _note(
            Guard.LISTENERS,
            f"new listeners: {_some(added.values())}; the candidate alone opens them, and a "
            "rollback closes them again",
        )
    yield from _speaks_otherwise(compared, listens)


def _dropped(compared: Comparison, before: set[Address]) -> Iterator[Finding]:
    wanted = {one.address for one in compared.candidate.listens}
    # A name may stand for any address; nginx has resolved it, and nothing is resolved here.
    named = {(one.port, one.transport) for one in compared.candidate.listens if not _is_number(one)}
    running = () if compared.running is None else compared.running.listens
    ours = {one.address for one in running if one.file == compared.ours}
    for address in sorted(before - wanted - ours, key=str):
        kind, host, port, transport = address
        if kind is AddressKind.UNIX or (port, transport) in named:
            continue
        shown = Listen(kind=kind, host=host, port=port, transport=transport)
        yield Finding(
            guard=Guard.LISTENERS,
            detail=f"{shown} is no longer listened on{_stood(compared, address)}: from the shift "
            "on its clients wait for nobody, and once the old master has left they are refused; "
            "put the listener back, or reload first, which drops it for good",
        )


def _covered(listen: Listen, before: set[Address]) -> bool:
    """A wildcard that is open already takes its connections: nginx binds nothing then."""
    if listen.binds:
        return False
    host = {AddressKind.TCP: "0.0.0.0", AddressKind.TCP6: "::"}.get(listen.kind, "")  # noqa: S104
    return (listen.kind, host, listen.port, listen.transport) in before


def _is_number(listen: Listen) -> bool:
    return listen.kind is not AddressKind.TCP or listen.host.replace(".", "").isdigit()


def _speaks_otherwise(compared: Comparison, listens: Iterable[Listen]) -> Iterator[Finding]:
    if compared.running is None:
        return
    was, now = _speaks_tls(compared.running.listens), _speaks_tls(listens)
    for address in sorted(was.keys() & now.keys(), key=str):
        if (listen := now[address]).ssl is not was[address].ssl:
            change = "speaks TLS from now on" if listen.ssl else "no longer speaks TLS"
            yield Finding(
                guard=Guard.LISTENERS,
                detail=f"{listen} {change} ({listen.file}:{listen.line}): while both generations "
                "accept, a client meets either; reload first to change that alone",
            )


def _speaks_tls(listens: Iterable[Listen]) -> dict[Address, Listen]:
    """By address; where several servers share one, a listen with `ssl` speaks for all."""
    found: dict[Address, Listen] = {}
    for one in listens:
        if one.address not in found or one.ssl:
            found[one.address] = one
    return found


def _reuseport(compared: Comparison) -> Iterator[Finding]:
    """One reuseport socket belongs to each worker: clients of one that has none hang."""
    if compared.held is None:
        return
    shown: dict[Address, Listen] = {}
    for one in compared.candidate.listens:
        if one.file != compared.ours and (one.reuseport or one.address not in shown):
            shown[one.address] = one
    for address, listen in shown.items():
        held = compared.held.get(address, 0)
        where = f"{listen} ({listen.file}:{listen.line})"
        if listen.reuseport and held not in (0, 1, compared.workers):
            yield Finding(
                guard=Guard.REUSEPORT,
                detail=f"{where} has reuseport with {held} sockets, and the configuration on disk "
                f"asks for {compared.workers} workers; connections to the sockets without a worker "
                f"would hang. Set worker_processes {held} for the upgrade and reload afterwards",
            )
        elif not listen.reuseport and held > 1:
            yield Finding(
                guard=Guard.REUSEPORT,
                detail=f"{where} has lost its reuseport: the running generation has {held} sockets "
                "of it, the candidate would take one, and connections to the others would hang. "
                "Put reuseport back for the upgrade and reload afterwards",
            )


# --- shared memory ------------------------------------------------------------------------------

_LOST = {
    "limit_req_zone": "request rates are counted from nothing, and by each generation for itself "
    "while both accept",
    "limit_conn_zone": "each generation counts its own connections: until the old ones end, a "
    "client may have twice as many",
    "ssl_session_cache": "TLS sessions are negotiated in full once more",
    "ssl_ocsp_cache": "the status of client certificates is asked for again",
    "zone": "what was learned about the upstream servers is lost (failures, health, changes by an "
    "API that no state file keeps)",
    "lua_shared_dict": "its contents are lost",
    "js_shared_dict_zone": "its contents are lost, but for what a state file keeps",
    "keyval_zone": "its contents are lost, but for what a state file keeps",
}
_CACHE = (
    "the files stay, and are found; until the candidate's cache loader has read their names (a "
    "minute or more of a large cache) neither max_size nor min_uses counts them"
)


def _shared_zones(compared: Comparison) -> Iterator[Finding]:
    """No zone is handed over by USR2: each generation begins with empty ones."""
    by_directive: dict[str, list[Zone]] = {}
    for zone in compared.candidate.zones:
        by_directive.setdefault(zone.directive, []).append(zone)
    for directive, zones in by_directive.items():
        is_cache = directive.endswith("_cache_path")
        lost = _CACHE if is_cache else _LOST.get(directive, "its contents are lost")
        names = _some(f"{one.name} {one.size} ({one.place})" for one in zones)
        yield _note(Guard.SHARED_ZONES, f"{directive} {names} starts empty: {lost}")
    before = {} if compared.running is None else {one.name: one for one in compared.running.zones}
    for zone in compared.candidate.zones:
        was = before.get(zone.name)
        if was is not None and _bytes(was.size) != _bytes(zone.size):
            change = "shrinks" if _bytes(zone.size) < _bytes(was.size) else "grows"
            yield Finding(
                guard=Guard.SHARED_ZONES,
                detail=f"{zone.directive} {zone.name} {change} from {was.size} to {zone.size} "
                f"({zone.place}) with this upgrade, and a rollback takes that back as well",
            )


def _bytes(size: str) -> int:
    unit = {"k": 2**10, "m": 2**20, "g": 2**30}.get(size[-1:].lower())
    return int(size) if unit is None else int(size[:-1]) * unit


# --- QUIC ---------------------------------------------------------------------------------------


def _quic(compared: Comparison) -> Iterator[Finding]:
    running = () if compared.running is None else compared.running.listens
    listens = {str(one) for one in (*compared.candidate.listens, *running) if one.quic}
    if listens:
        yield Finding(
            guard=Guard.QUIC,
            detail=f"http3 on {_some(sorted(listens))} is best effort: both generations read from "
            "the same UDP sockets, so packets of a connection may reach the one that does not know "
            "it; such a connection stalls until its client gives up and connects anew, usually by "
            "TCP. Canary answers over http3 come from either generation",
        )


# --- TLS ----------------------------------------------------------------------------------------


def _certificates(compared: Comparison) -> Iterator[Finding]:
    known = _by_path(compared.running)
    for file in compared.candidate.files:
        if file.kind is Kind.TICKET_KEY:
            continue
        was = known.get((file.path, file.kind))
        now = file.contents or Contents(problem="it was not looked at")
        if now.problem:
            yield _note(
                Guard.CERTIFICATES,
                f"{file.path} ({file.place}) is not compared: {now.problem}",
            )
            continue
        certificate = now.certificate
        if certificate is not None and file.kind is Kind.CERTIFICATE:
            yield from _out_of_time(file, certificate, compared.now)
        yield from _replaced(file, was, now, compared.since)
    if compared.candidate.by_variable:
        yield _note(
            Guard.CERTIFICATES,
            f"{compared.candidate.by_variable} certificate directives name their files by "
            "variables: both generations read these at each handshake, so nothing is compared",
        )
    if compared.candidate.cut:
        yield _note(
            Guard.CERTIFICATES,
            "the configuration is larger than what is compared: not every file was looked at",
        )


def _by_path(read: ConfigRead | None) -> dict[tuple[str, Kind], TlsFile]:
    return {} if read is None else {(one.path, one.kind): one for one in read.files}


def _out_of_time(file: TlsFile, certificate: Certificate, now: float) -> Iterator[Finding]:
    if certificate.not_after < now:
        told = f"HAS EXPIRED at {_moment(certificate.not_after)}"
    elif certificate.not_before > now:
        told = f"IS NOT VALID before {_moment(certificate.not_before)}"
    else:
        return
    yield Finding(
        guard=Guard.CERTIFICATES,
        detail=f"the certificate for {certificate.subject} in {file.path} ({file.place}) {told}: "
        "clients refuse it; replace the file before the upgrade",
    )


def _replaced(
    file: TlsFile, was: TlsFile | None, now: Contents, since: float | None
) -> Iterator[Finding]:
    before = None if was is None else was.contents
    if was is not None and was.identity == file.identity and was.identity:
        return
    if before is not None and not before.problem:
        if before.digest == now.digest:
            return
        if before.certificate is not None and now.certificate is not None:
            yield from _another_certificate(file, before.certificate, now.certificate)
            return
        told = "it was replaced since the running generation has read it"
    elif was is not None and was.identity:
        told = "it was replaced since the running generation has read it"
    elif since is not None and file.identity and file.identity[-1] > since * 1e9:
        told = f"it was changed after the running workers were started ({_moment(since)})"
    else:
        return
    certificate = now.certificate
    if certificate is not None:
        told += (
            f"; now it is for {certificate.subject}, valid until {_moment(certificate.not_after)}"
        )
    yield Finding(guard=Guard.CERTIFICATES, detail=_with_remedy(file, told))


def _another_certificate(file: TlsFile, before: Certificate, now: Certificate) -> Iterator[Finding]:
    if before.fingerprint == now.fingerprint:
        yield _note(
            Guard.CERTIFICATES,
            f"{file.kind.value} {file.path} ({file.place}): the first certificate is the same, "
            "what follows it was replaced since the running generation has read it",
        )
        return
    told = (
        f"the running generation has {before.subject} until {_moment(before.not_after)}, the file "
        f"now has {now.subject} until {_moment(now.not_after)}"
    )
    if before.key != now.key:
        told += ", with another key"
    if now.not_after < before.not_after:
        told += ", WHICH ENDS EARLIER"
    if lost := [name for name in before.names if name not in now.names]:
        told += f"; it is NO LONGER for {_some(lost)}"
    yield Finding(guard=Guard.CERTIFICATES, detail=_with_remedy(file, told))


def _with_remedy(file: TlsFile, told: str) -> str:
    what = "" if file.kind is Kind.CERTIFICATE else f"{file.kind.value} "
    return (
        f"{what}{file.path} ({file.place}): {told}; to change that alone, reload before the upgrade"
    )


def _session_tickets(compared: Comparison) -> Iterator[Finding]:
    read = compared.candidate
    keys = [one for one in read.files if one.kind is Kind.TICKET_KEY]
    if read.uses_tls and read.tickets and not keys:
        yield _note(
            Guard.SESSION_TICKETS,
            "without ssl_session_ticket_key each generation makes its own ticket keys: clients of "
            "the old one negotiate in full once more, and back and forth while both accept",
        )
    known = _by_path(compared.running)
    seen = {one.identity for one in known.values() if one.kind is Kind.TICKET_KEY}
    for file in keys:
        if not file.identity or file.identity in seen:
            continue  # the same file, perhaps under another name: keys are rotated so
        was = known.get((file.path, file.kind))
        changed_at = file.identity[-1] / 1e9
        if was is not None and was.identity:
            told = "it was replaced since the running generation has read it"
        elif compared.since is not None and changed_at > compared.since:
            told = f"it was changed after the running workers started ({_moment(compared.since)})"
        else:
            continue
        yield Finding(
            guard=Guard.SESSION_TICKETS,
            detail=f"session ticket key {file.path} ({file.place}): {told}; tickets of the old "
            "generation are worth nothing to the candidate unless it has the old key as well; to "
            "change that alone, reload before the upgrade",
        )


# --- what was built in --------------------------------------------------------------------------


def _modules(compared: Comparison) -> Iterator[Finding]:
    running, build, read = compared.running_build, compared.build, compared.running
    if read is not None:
        gone = [one for one in read.modules if one not in compared.candidate.modules]
        if gone:
            yield _lost(
                f"the configuration on disk no longer loads {_some(gone)}, which the running "
                "generation has loaded"
            )
    if running is None:
        return
    uses = {} if read is None else {one.option: one for one in read.uses}
    lost = lost_modules(running, build)
    if lost:
        yield _lost(
            "the new build lacks what the running one has: "
            + _some(_with_use(option, uses) for option in lost)
        )
    yield from _tls_library(running, build)
    yield from _built_in_paths(compared, running)


def _lost(detail: str) -> Finding:
    return Finding(guard=Guard.MODULES, detail=detail)


def _with_use(option: str, uses: Mapping[str, Use]) -> str:
    use = uses.get(option)
    return option if use is None else f"{option} (for {use.directive} in {use.place})"


def _tls_library(running: NginxBuild, build: NginxBuild) -> Iterator[Finding]:
    was, now = running.tls_library, build.tls_library
    if was and not now:
        yield _lost(f"the new build has no TLS library, the running one has {was}")
    elif was and now and was.partition(" ")[0] != now.partition(" ")[0]:
        yield _lost(f"the new build has another TLS library: {now}, and {was} runs")
    elif was and older_library(was, now):
        yield _lost(f"the new build has an older TLS library: {now}, and {was} runs")
    if running.tls_names and not build.tls_names and now:
        yield _lost("the new build cannot tell servers apart by the name that a client asks for")


_PATHS = (
    "--prefix", "--conf-path", "--error-log-path", "--http-log-path", "--pid-path", "--lock-path",
    "--modules-path", "--http-client-body-temp-path", "--http-proxy-temp-path",
    "--http-fastcgi-temp-path", "--http-uwsgi-temp-path", "--http-scgi-temp-path",
)  # fmt: skip


def _built_in_paths(compared: Comparison, running: NginxBuild) -> Iterator[Finding]:
    build = compared.build
    before, after = (running.user, running.group), (build.user, build.group)
    if not compared.candidate.user and before != after:
        yield _lost(
            f"the workers would run as {_identity(after)}, and not as {_identity(before)}: no user "
            "directive says so, and the builds have other defaults (--user, --group); add one"
        )
    changes = [
        f"{option} {running.option(option) or 'unset'} -> {build.option(option) or 'unset'}"
        for option in _PATHS
        if running.option(option) != build.option(option)
    ]
    if changes:
        yield _note(
            Guard.MODULES,
            f"the builds have other defaults: {', '.join(changes)}; they count where neither "
            "the configuration nor the command line says otherwise",
        )


def _identity(who: tuple[str, str | None]) -> str:
    user, group = who
    return user if group in (None, user) else f"{user}:{group}"


# --- words --------------------------------------------------------------------------------------


def _note(guard: Guard, detail: str) -> Finding:
    return Finding(guard=guard, detail=detail, severity=Severity.NOTE)


def _some(words: Iterable[str]) -> str:
    """The first few of them, and how many there are besides."""
    every = list(words)
    more = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _moment(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "a time beyond all calendars"


GUARDS: tuple[tuple[Guard, Callable[[Comparison], Iterator[Finding]]], ...] = (
    (Guard.REUSEPORT, _reuseport),
    (Guard.LISTENERS, _listeners),
    (Guard.MODULES, _modules),
    (Guard.CERTIFICATES, _certificates),
    (Guard.SESSION_TICKETS, _session_tickets),
    (Guard.QUIC, _quic),
    (Guard.SHARED_ZONES, _shared_zones),
)
