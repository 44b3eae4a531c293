"""What a supervisor must know of an nginx configuration, read from the dump of `nginx -T`.

The dump is every file's raw text under a heading `# configuration file PATH:`, in the order of
first reading. Includes are not resolved in it: a file may belong to the main context, to `http` or
to a `server`, and only the place of its `include` says which. So the first file is interpreted, and
each `include` is followed among the dumped files with the same globbing as nginx's, in the context
where it stands. Text that cannot be understood never raises: the facts keep their defaults and
`problems`
says what was wrong, since nginx itself has accepted that text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Literal

from supervisor.core.nginx_listen import DEFAULT_PORT, Listen, implied_listen, parse_listen
from supervisor.core.nginx_syntax import Directive, parse

_HEADING = re.compile(r"^# configuration file (/.*):\n", re.MULTILINE)
_GLOB = re.compile(r"[*?\[]")
_TIME = re.compile(r"(\d+)\s*(ms|s|m|h|d|w|M|y)?\s*")
_TIME_UNIT = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "M": 2592000.0,
    "y": 31536000.0,
}
_DEEPEST_INCLUDE = 32
_SECTIONS = frozenset({"http", "stream", "mail"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxConfig:
    """The facts of one configuration; paths are as written, see `under_prefix`."""

    files: tuple[str, ...] = ()
    worker_processes: int | Literal["auto"] = 1
    daemon: bool = True
    master_process: bool = True
    pid: str | None = None
    user: tuple[str, str | None] | None = None
    load_modules: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # NAME or NAME=value
    listens: tuple[Listen, ...] = ()
    worker_shutdown_timeout: float | None = None  # seconds
    error_logs: tuple[str, ...] = ()  # the first argument of each, in whatever context
    lock_file: str | None = None
    include_patterns: tuple[str, ...] = ()  # absolute, of includes in main, http and server blocks
    problems: tuple[str, ...] = field(default=(), compare=False)

    def expected_workers(self, *, online_cpus: int) -> int:
        """How many worker processes a master starts; `auto` means one for each online CPU."""
        return online_cpus if self.worker_processes == "auto" else self.worker_processes


def parse_dump(text: str, *, implied_port: int = DEFAULT_PORT) -> NginxConfig:
    """The facts of a `nginx -T` dump. Never raises; see `problems`.

    `implied_port` is where an http server without `listen` listens: 80, or 8000 when the master
    does not run as root.
    """
    files = _split(text)
    reading = _Reading(files, implied_port=implied_port)
    if files:
        reading.main(next(iter(files)))
    else:
        reading.problems.append("the dump has no configuration file in it")
    return replace(reading.config, problems=tuple(reading.problems))


def parse_globals(text: str) -> NginxConfig:
    """The facts of an `nginx -g` argument: directives of the main context."""
    reading = _Reading({"-g": text}, implied_port=DEFAULT_PORT)
    reading.main("-g")
    return replace(reading.config, files=(), problems=tuple(reading.problems))


def effective(config: NginxConfig, from_globals: NginxConfig) -> NginxConfig:
    """`config` with what `-g` adds; none conflicts, as nginx refuses a directive in both."""
    changes: dict[str, object] = {}
    for each in fields(NginxConfig):
        added = getattr(from_globals, each.name)
        present = getattr(config, each.name)
        if isinstance(added, tuple) and isinstance(present, tuple) and each.name != "user":
            changes[each.name] = added + present
        elif added != each.default:
            changes[each.name] = added
    return replace(config, **changes)  # type: ignore[arg-type]  # the class's own values


def under_prefix(path: str, prefix: str) -> str:
    """An absolute path as nginx resolves `pid`, `load_module`, `error_log`: against its prefix."""
    return posixpath.normpath(posixpath.join(prefix, path))


def folders_of(config: NginxConfig) -> frozenset[str] | None:
    """The folders in which a new file may become part of `config` by its name.

    None where that cannot be told by looking at a few folders: a pattern may name folders too.
    """
    folders = {posixpath.dirname(path) for path in (*config.files, *config.include_patterns)}
    return None if any(_GLOB.search(one) for one in folders) else frozenset(folders)


def parse_time(text: str) -> float | None:
    """Seconds of nginx's time syntax (`10s`, `1m 30s`, `500ms`, `5`); None if it is none."""
    position, total = 0, 0.0
    while position < len(text):
        match = _TIME.match(text, position)
        if match is None:
            return None
        total += int(match[1]) * _TIME_UNIT[match[2] or "s"]
        position = match.end()
    return total if text else None


def _split(text: str) -> dict[str, str]:
    pieces = _HEADING.split(text)
    # [before, path, text, path, text ...]; a file is dumped once however often it is included.
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _error_logs(directives: Iterable[Directive]) -> Iterator[str]:
    """Where these write errors; a server block, or a location, may have a log of its own."""
    for directive in directives:
        if directive.block is not None:
            yield from _error_logs(directive.block)
        elif directive.name == "error_log" and directive.arguments:
            yield directive.arguments[0]


def _matches(path: str, pattern: str) -> bool:
    """glob(3): `*` and `?` stay within one component and match no leading dot."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(
        fnmatchcase(name, wanted) and not (name.startswith(".") and not wanted.startswith("."))
        for name, wanted in zip(names, patterns, strict=True)
    )


class _Reading:
    """Collects the facts while walking from the first file through its includes."""

    def __init__(self, files: dict[str, str], *, implied_port: int) -> None:
        self.config = NginxConfig(files=tuple(files))
        self.problems: list[str] = []
        self._texts = files
        self._parsed: dict[str, tuple[Directive, ...]] = {}
        self._implied_port = implied_port
        self._conf_prefix = posixpath.dirname(next(iter(files), ""))

    def main(self, path: str) -> None:
        """Interprets `path` in the main context."""
        for directive, file in self._expand(self._directives(path), path):
            if directive.name in _SECTIONS and directive.block is not None:
                self._section(directive.name, directive.block, file)
            elif not _MAIN.get(directive.name, _not_ours)(self, directive.arguments):
                self._odd(directive, file)
        logs = (one for name in self._texts for one in _error_logs(self._directives(name)))
        self.change(error_logs=tuple(dict.fromkeys(logs)))

    def change(self, **facts: object) -> bool:
        """Keeps facts; True, so that a handler can end with it."""
        self.config = replace(self.config, **facts)  # type: ignore[arg-type]  # by handlers
        return True

    def _directives(self, path: str) -> tuple[Directive, ...]:
        if path not in self._parsed:
            self._parsed[path], problems = parse(self._texts[path])
            self.problems += [f"{path}: {problem}" for problem in problems]
        return self._parsed[path]

    def _expand(
        self, directives: Iterable[Directive], file: str, around: tuple[str, ...] = ()
    ) -> Iterator[tuple[Directive, str]]:
        """The directives, each include replaced by the included file's, and where each stands.

        A file that includes itself, through others too, is read once: nginx refuses it, and read
        again and again it would take for ever.
        """
        for directive in directives:
            if directive.name != "include" or directive.block is not None:
                yield directive, file
            elif len(around) >= _DEEPEST_INCLUDE or len(directive.arguments) != 1:
                self._odd(directive, file)
            else:
                within = (*around, file)
                for path in self._included(directive, file):
                    if path in within:
                        self._odd(directive, file)
                    else:
                        yield from self._expand(self._directives(path), path, within)

    def _included(self, directive: Directive, file: str) -> list[str]:
        pattern = posixpath.join(self._conf_prefix, directive.arguments[0])
        if _GLOB.search(pattern):  # no match is no error to nginx
            if pattern not in self.config.include_patterns:
                self.change(include_patterns=(*self.config.include_patterns, pattern))
            return sorted(path for path in self._texts if _matches(path, pattern))
        if pattern not in self._texts:
            self._odd(directive, file)
            return []
        return [pattern]

    def _section(self, section: str, block: tuple[Directive, ...], file: str) -> None:
        for directive, place in self._expand(block, file):
            if directive.name == "server" and directive.block is not None:
                self._server(section, directive.block, place, directive.line)

    def _server(self, section: str, block: tuple[Directive, ...], file: str, line: int) -> None:
        found: list[Listen] = []
        uses_tls = False
        for directive, place in self._expand(block, file):
            if directive.name == "listen":
                listens = parse_listen(
                    directive.arguments, section=section, file=place, line=directive.line
                )
                found += listens
                if not listens:
                    self._odd(directive, place)
            elif directive.name == "ssl":
                uses_tls = directive.arguments == ("on",)
        if not found and section == "http":
            found.append(implied_listen(port=self._implied_port, file=file, line=line))
        if uses_tls:
            found = [replace(listen, ssl=True) for listen in found]
        self.change(listens=self.config.listens + tuple(found))

    def _odd(self, directive: Directive, file: str) -> None:
        text = " ".join((directive.name, *directive.arguments))
        self.problems.append(f"{file}: line {directive.line}: cannot understand: {text}")


_Handler = Callable[[_Reading, tuple[str, ...]], bool]
"""Takes one directive's arguments; False where it cannot understand them."""


def _not_ours(reading: _Reading, arguments: tuple[str, ...]) -> bool:
    del reading, arguments
    return True


def _flag(name: str) -> _Handler:
    def handle(reading: _Reading, arguments: tuple[str, ...]) -> bool:
        word = arguments[0].lower() if len(arguments) == 1 else ""
        return word in ("on", "off") and reading.change(**{name: word == "on"})

    return handle


def _text(name: str) -> _Handler:
    def handle(reading: _Reading, arguments: tuple[str, ...]) -> bool:
        return len(arguments) == 1 and reading.change(**{name: arguments[0]})

    return handle


def _collected(name: str) -> _Handler:
    def handle(reading: _Reading, arguments: tuple[str, ...]) -> bool:
        present: tuple[str, ...] = getattr(reading.config, name)
        return bool(arguments) and reading.change(**{name: (*present, arguments[0])})

    return handle


def _worker_processes(reading: _Reading, arguments: tuple[str, ...]) -> bool:
    if arguments == ("auto",):
        return reading.change(worker_processes="auto")
    if len(arguments) == 1 and re.fullmatch(r"[0-9]{1,6}", arguments[0]):
        return reading.change(worker_processes=int(arguments[0]))
    return False


def _user(reading: _Reading, arguments: tuple[str, ...]) -> bool:
    match arguments:
        case (name,):
            return reading.change(user=(name, None))
        case (name, group):
            return reading.change(user=(name, group))
    return False


def _worker_shutdown_timeout(reading: _Reading, arguments: tuple[str, ...]) -> bool:
    seconds = parse_time(arguments[0]) if len(arguments) == 1 else None
    return seconds is not None and reading.change(worker_shutdown_timeout=seconds)


_MAIN: dict[str, _Handler] = {
    "worker_processes": _worker_processes,
    "daemon": _flag("daemon"),
    "master_process": _flag("master_process"),
    "pid": _text("pid"),
    "user": _user,
    "load_module": _collected("load_modules"),
    "env": _collected("env"),
    "worker_shutdown_timeout": _worker_shutdown_timeout,
    "lock_file": _text("lock_file"),
}
