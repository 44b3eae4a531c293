"""What else of a configuration matters to whoever looks after it: told by `nginxctl doctor`.

Read from the same dump as the facts of `nginx_config`, but without regard to where a directive
stands: of these each is worth knowing wherever it is. Never raises; odd text is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from supervisor.core.nginx_config import _split
from supervisor.core.nginx_syntax import Directive, parse

DEFAULT_CONNECTIONS = 512
LEVELS = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")
"""Of nginx's error log, each containing those after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLog:
    """One `error_log` directive."""

    target: str
    level: str = "error"
    file: str = ""
    line: int = 0

    @property
    def hides(self) -> tuple[str, ...]:
        """The levels that condemn a candidate and that never get there."""
        known = LEVELS.index(self.level) if self.level in LEVELS else 0
        return tuple(one for one in ("emerg", "alert", "crit") if LEVELS.index(one) < known)


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxDetails:
    """See the module."""

    main_file: str = ""
    worker_connections: int = DEFAULT_CONNECTIONS
    worker_rlimit_nofile: int | None = None
    pid_headers: tuple[str, ...] = ()  # as written: `add_header NAME $pid`
    passes_websockets: bool = False
    proxies: bool = False
    quic: bool = False
    error_logs: tuple[ErrorLog, ...] = ()
    machine_code: tuple[str, ...] = ()  # directives whose module makes some at run time


def details_of(dump: str) -> NginxDetails:
    """The details in a `nginx -T` dump."""
    files = _split(dump)
    connections, limit = DEFAULT_CONNECTIONS, None
    headers: list[str] = []
    logs: list[ErrorLog] = []
    machine_code: list[str] = []
    websockets = proxies = quic = False
    for file, text in files.items():
        for directive in _flat(parse(text)[0]):
            match (directive.name, *directive.arguments):
                case ("worker_connections", number) if number.isdecimal():
                    connections = int(number)
                case ("worker_rlimit_nofile", number) if number.isdecimal():
                    limit = int(number)
                case ("add_header", name, "$pid", *_):
                    headers.append(name)
                case ("proxy_set_header", name, value) if name.lower() == "upgrade" and value:
                    websockets = True
                case (("proxy_pass" | "grpc_pass" | "fastcgi_pass" | "uwsgi_pass"), *_):
                    proxies = True
                case ("listen", *options) if "quic" in options:
                    quic = True
                case ("pcre_jit", "on"):
                    machine_code.append("pcre_jit")
                case (name, *_) if name.startswith("lua_") or "_by_lua" in name:
                    machine_code.append(name)
                case ("error_log", target, *rest):
                    level = rest[0] if rest else "error"
                    logs.append(
                        ErrorLog(target=target, level=level, file=file, line=directive.line)
                    )
    return NginxDetails(
        main_file=next(iter(files), ""), worker_connections=connections, worker_rlimit_nofile=limit,
        pid_headers=tuple(dict.fromkeys(headers)), passes_websockets=websockets, proxies=proxies,
        quic=quic, error_logs=tuple(logs), machine_code=tuple(dict.fromkeys(machine_code)),
    )  # fmt: skip


def _flat(directives: Iterable[Directive]) -> Iterator[Directive]:
    for directive in directives:
        yield directive
        if directive.block is not None:
            yield from _flat(directive.block)
