"""The supervisor's own configuration, from a TOML document to values that need no checking.

All or nothing: `parse_settings` returns settings that can be used as they are, or raises a
ConfigError about the first thing that is wrong. What depends on the machine (does a file exist,
is a port free) is not looked at here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from supervisor.core.access import Kind, Role, Who, parse_who, who_named
from supervisor.core.errors import ConfigError
from supervisor.core.guard_settings import DEFAULT_GUARDS, GuardSettings, parse_guards
from supervisor.core.model import OnForeignStop
from supervisor.core.probe_settings import ExecProbe, HttpProbe, ProbeSettings, TcpProbe
from supervisor.core.probe_settings import parse_probes as _parse_probes
from supervisor.core.settings_table import Table, unknown_key
from supervisor.core.trigger_settings import DEFAULT_TRIGGERS, TriggerSettings, parse_triggers
from supervisor.core.verdict_policy import OnInconclusive

__all__ = [
    "ControlSettings",
    "ExecProbe",
    "HttpProbe",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "NginxSettings",
    "OnForeignFailure",
    "OnForeignStop",
    "ProbeListenerSettings",
    "ProbeSettings",
    "ReloadSettings",
    "RestartSettings",
    "Settings",
    "StateSettings",
    "StopSettings",
    "SyslogSettings",
    "TcpProbe",
    "TriggerSettings",
    "UpgradeSettings",
    "nginx_argv",
    "parse_settings",
]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)
_FEWEST_PORTS, _MOST_PORTS = 2, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxSettings:
    """Which nginx, and what it is started with."""

    binary: str
    config: str
    prefix: str | None = None
    globals: str | None = None
    error_log: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inherit_variable: str = "NGINX"
    on_foreign_stop: OnForeignStop = OnForeignStop.RESTART


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Where the control socket is, its file's mode and group, and who has which role."""

    socket: str = "/run/nginx-supervisor/control.sock"
    mode: int = 0o600
    group: Who | None = None
    viewers: tuple[Who, ...] = ()
    operators: tuple[Who, ...] = ()
    admins: tuple[Who, ...] = ()

    @property
    def roles(self) -> Mapping[Role, tuple[Who, ...]]:
        """Who has which role besides root and the supervisor's own user."""
        return {
            Role.VIEWER: self.viewers,
            Role.OPERATOR: self.operators,
            Role.ADMIN: self.admins,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """Where the journal, the history and the versions are kept."""

    directory: str = "/var/lib/nginx-supervisor"
    keep_versions: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeListenerSettings:
    """The file that nginx includes, and the ports that may stand in it."""

    include_file: str = "/run/nginx-supervisor/probe.conf"
    first_port: int = 18931
    last_port: int = 18934


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSettings:
    """Seconds of the phases of an upgrade, and of the way back."""

    start_timeout: float = 10.0
    canary: float = 5.0
    soak: float = 30.0
    drain_timeout: float = 600.0
    shift_timeout: float = 5.0
    rollback_quit_timeout: float = 60.0
    rollback_term_timeout: float = 5.0
    min_samples: int = 1
    on_inconclusive: OnInconclusive = OnInconclusive.ROLLBACK


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSettings:
    """When nginx is started again by itself; see `supervisor.core.restart_policy.RestartPolicy`."""

    backoff_initial: float = 0.1
    backoff_max: float = 30.0
    crash_limit: int = 5
    crash_interval: float = 10.0
    start_limit: int = 10
    start_limit_interval: float = 60.0
    start_timeout: float = 30.0
    hold_listeners: bool = True
    hold_reuseport: bool = False
    hold_check: float = 1.0


class OnForeignFailure(Enum):
    """What to do where a configuration that somebody else has loaded does not serve."""

    REPORT = "report"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadSettings:
    """How long a reload is watched, and what follows where one of somebody else fails; seconds."""

    answer_within: float = 10.0
    guard: float = 5.0
    foreign_window: float = 5.0
    on_foreign_failure: OnForeignFailure = OnForeignFailure.REPORT


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings:
    """How long QUIT, TERM and KILL are each given; seconds."""

    quit_timeout: float = 30.0
    term_timeout: float = 5.0
    kill_timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogSettings:
    """A socket of the supervisor's own for `error_log syslog:server=unix:SOCKET`."""

    socket: str | None = None  # None: there is none
    mode: int = 0o600


class LogFormat(Enum):
    """How a log line looks."""

    JSON = "json"
    CONSOLE = "console"
    JOURNAL = "journal"  # fields, over the journal's own socket
    AUTO = "auto"  # journal where standard error is, console on a terminal, else json


class LogLevel(Enum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The supervisor's own log."""

    format: LogFormat = LogFormat.AUTO
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the file says, with defaults where it is silent."""

    nginx: NginxSettings
    control: ControlSettings = ControlSettings()
    state: StateSettings = StateSettings()
    probe_listener: ProbeListenerSettings = ProbeListenerSettings()
    upgrade: UpgradeSettings = UpgradeSettings()
    restart: RestartSettings = RestartSettings()
    reload: ReloadSettings = ReloadSettings()
    stop: StopSettings = StopSettings()
    triggers: TriggerSettings = DEFAULT_TRIGGERS
    guards: GuardSettings = DEFAULT_GUARDS
    syslog: SyslogSettings = SyslogSettings()
    log: LogSettings = LogSettings()
    probes: tuple[ProbeSettings, ...] = ()


_TABLES = frozenset(
    {
        "nginx", "control", "state", "probe_listener", "upgrade", "restart", "reload", "stop",
        "triggers", "guards", "syslog", "log",
    }
)  # fmt: skip


def parse_settings(table: Mapping[str, object]) -> Settings:
    """The settings in a parsed TOML document. Raises ConfigError."""
    known = _TABLES | {"probe"}
    for key in table:
        if key not in known:
            raise unknown_key(key, known, where="the configuration")
    tables = {name: _open_table(table, name) for name in _TABLES}
    settings = Settings(
        nginx=_parse_nginx(tables["nginx"]),
        control=_parse_control(tables["control"]),
        state=_parse_state(tables["state"]),
        probe_listener=_parse_probe_listener(tables["probe_listener"]),
        upgrade=_parse_upgrade(tables["upgrade"]),
        restart=_parse_restart(tables["restart"]),
        reload=_parse_reload(tables["reload"]),
        stop=_parse_stop(tables["stop"]),
        triggers=parse_triggers(tables["triggers"]),
        guards=parse_guards(tables["guards"]),
        syslog=_parse_syslog(tables["syslog"]),
        log=_parse_log(tables["log"]),
        probes=_parse_probes(table.get("probe", [])),
    )
    for one in tables.values():
        one.finish()
    _expect_enough_ports(tables["probe_listener"], settings)
    return settings


def nginx_argv(settings: NginxSettings) -> tuple[str, ...]:
    """The arguments after the binary, the same at every start, test and upgrade."""
    given = (
        ("-p", settings.prefix),
        ("-c", settings.config),
        ("-e", settings.error_log),
        ("-g", settings.globals),
    )
    return tuple(part for flag, value in given if value is not None for part in (flag, value))


def _open_table(document: Mapping[str, object], name: str) -> Table:
    entries = document.get(name, {})
    if not isinstance(entries, dict):
        raise ConfigError(f"cannot use {name}: it has to be a table, [{name}]")
    return Table(f"[{name}]", entries)


def _parse_nginx(table: Table) -> NginxSettings:
    prefix = table.optional_path("prefix")
    error_log = table.optional_text("error_log")
    if error_log not in (None, "stderr"):
        error_log = table.absolute_path("error_log")
    variable = table.optional_text("inherit_variable") or "NGINX"
    if not _VARIABLE.fullmatch(variable):
        raise table.error("inherit_variable", f"{variable!r} is not the name of a variable")
    environment = table.text_table("environment")
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise table.error("environment", f"{name!r} is not the name of a variable")
        if name == variable:
            raise table.error("environment", f"{name} is what hands sockets on; leave it out")
    return NginxSettings(
        binary=table.absolute_path("binary"),
        config=table.absolute_path("config"),
        prefix=prefix,
        globals=table.optional_text("globals"),
        error_log=error_log,
        environment=MappingProxyType(environment),
        inherit_variable=variable,
        on_foreign_stop=table.choice(
            "on_foreign_stop",
            OnForeignStop.RESTART,
            {one.value: one for one in OnForeignStop},
        ),
    )


def _parse_control(table: Table) -> ControlSettings:
    default = ControlSettings()
    return ControlSettings(
        socket=table.socket_path("socket", default.socket),
        mode=table.file_mode("mode", default.mode),
        group=_parse_group(table),
        viewers=_parse_who(table, "viewers"),
        operators=_parse_who(table, "operators"),
        admins=_parse_who(table, "admins"),
    )


def _parse_group(table: Table) -> Who | None:
    name = table.optional_text("group")
    if name is None:
        return None
    try:
        return who_named(Kind.GROUP, name)
    except ValueError as exc:
        raise table.error("group", str(exc)) from exc


def _parse_who(table: Table, key: str) -> tuple[Who, ...]:
    found: list[Who] = []
    for text in table.texts(key, default=()):
        try:
            found.append(parse_who(text))
        except ValueError as exc:
            raise table.error(key, str(exc)) from exc
    return tuple(found)


def _parse_state(table: Table) -> StateSettings:
    default = StateSettings()
    return StateSettings(
        directory=table.absolute_path("directory", default.directory),
        keep_versions=table.integer("keep_versions", default.keep_versions, least=1, most=1000),
    )


def _parse_probe_listener(table: Table) -> ProbeListenerSettings:
    default = ProbeListenerSettings()
    include_file = table.absolute_path("include_file", default.include_file)
    if include_file.endswith("/"):
        raise table.error("include_file", f"{include_file!r} is a folder; name a file in it")
    if not table.has("ports"):
        return ProbeListenerSettings(include_file=include_file)
    ports = table.text("ports")
    written = _PORTS.fullmatch(ports)
    if written is None:
        raise table.error("ports", f'{ports!r} is no range; write "18931-18934"')
    first, last = int(written[1]), int(written[2])
    if not 1 <= first <= last <= 65535:
        raise table.error("ports", f"{ports!r} is not an ascending range from 1 to 65535")
    if not _FEWEST_PORTS <= last - first + 1 <= _MOST_PORTS:
        raise table.error(
            "ports",
            f"{ports!r} has {last - first + 1} ports; {_FEWEST_PORTS} to {_MOST_PORTS} are "
            "needed, since two generations never use the same one",
        )
    return ProbeListenerSettings(include_file=include_file, first_port=first, last_port=last)


def _expect_enough_ports(table: Table, settings: Settings) -> None:
    """A candidate has a second port where a probe asks over https."""
    listener = settings.probe_listener
    count = listener.last_port - listener.first_port + 1
    secure = next(
        (one.name for one in settings.probes if isinstance(one, HttpProbe) and one.tls), None
    )
    if secure is not None and count < 2 * _FEWEST_PORTS:
        raise table.error(
            "ports",
            f"it has {count} ports, and with probe {secure}, which asks over https, two "
            f"generations need {2 * _FEWEST_PORTS}",
        )


def _parse_upgrade(table: Table) -> UpgradeSettings:
    default = UpgradeSettings()
    return UpgradeSettings(
        start_timeout=table.duration("start_timeout", default.start_timeout, positive=True),
        canary=table.duration("canary", default.canary),
        soak=table.duration("soak", default.soak),
        drain_timeout=table.duration("drain_timeout", default.drain_timeout),
        shift_timeout=table.duration("shift_timeout", default.shift_timeout, positive=True),
        rollback_quit_timeout=table.duration(
            "rollback_quit_timeout", default.rollback_quit_timeout
        ),
        rollback_term_timeout=table.duration(
            "rollback_term_timeout", default.rollback_term_timeout
        ),
        min_samples=table.integer("min_samples", default.min_samples, least=1, most=1000),
        on_inconclusive=table.choice(
            "on_inconclusive",
            default.on_inconclusive,
            {one.value: one for one in OnInconclusive},
        ),
    )


def _parse_restart(table: Table) -> RestartSettings:
    default = RestartSettings()
    settings = RestartSettings(
        backoff_initial=table.duration("backoff_initial", default.backoff_initial, positive=True),
        backoff_max=table.duration("backoff_max", default.backoff_max, positive=True),
        crash_limit=table.integer("crash_limit", default.crash_limit, least=0, most=1000),
        crash_interval=table.duration("crash_interval", default.crash_interval),
        start_limit=table.integer("start_limit", default.start_limit, least=0, most=1000),
        start_limit_interval=table.duration("start_limit_interval", default.start_limit_interval),
        start_timeout=table.duration("start_timeout", default.start_timeout, positive=True),
        hold_listeners=table.flag("hold_listeners", default=default.hold_listeners),
        hold_reuseport=table.flag("hold_reuseport", default=default.hold_reuseport),
        hold_check=table.duration("hold_check", default.hold_check, positive=True),
    )
    if settings.backoff_initial > settings.backoff_max:
        raise table.error("backoff_initial", "it is longer than backoff_max")
    return settings


def _parse_reload(table: Table) -> ReloadSettings:
    default = ReloadSettings()
    return ReloadSettings(
        answer_within=table.duration("answer_within", default.answer_within, positive=True),
        guard=table.duration("guard", default.guard),
        foreign_window=table.duration("foreign_window", default.foreign_window),
        on_foreign_failure=table.choice(
            "on_foreign_failure",
            default.on_foreign_failure,
            {one.value: one for one in OnForeignFailure},
        ),
    )


def _parse_stop(table: Table) -> StopSettings:
    default = StopSettings()
    return StopSettings(
        quit_timeout=table.duration("quit_timeout", default.quit_timeout),
        term_timeout=table.duration("term_timeout", default.term_timeout),
        kill_timeout=table.duration("kill_timeout", default.kill_timeout, positive=True),
    )


def _parse_syslog(table: Table) -> SyslogSettings:
    default = SyslogSettings()
    return SyslogSettings(
        socket=table.socket_path("socket") if table.has("socket") else None,
        mode=table.file_mode("mode", default.mode),
    )


def _parse_log(table: Table) -> LogSettings:
    default = LogSettings()
    return LogSettings(
        format=table.choice("format", default.format, {one.value: one for one in LogFormat}),
        level=table.choice("level", default.level, {one.value: one for one in LogLevel}),
    )
