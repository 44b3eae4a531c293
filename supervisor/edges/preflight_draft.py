"""What preflight is asked, what it finds out, and the shape of a check."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.config_read import NOTHING_READ, ConfigRead
from supervisor.core.guard_settings import DEFAULT_GUARDS, GuardSettings
from supervisor.core.guards import Finding
from supervisor.core.nginx_config import NginxConfig
from supervisor.core.nginx_version import NginxBuild
from supervisor.edges.mapped_libraries import Outdated
from supervisor.edges.pidfile import ProcessIdentity
from supervisor.edges.placing import Staged
from supervisor.edges.sockets import HeldSockets
from supervisor.edges.store import StoredVersion, VersionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be upgraded to: an offered binary, a stored version, or what is on disk now."""

    binary: Path | None = None
    version_id: str | None = None
    trust: bool = False  # the offered binary's folders are not looked at
    if_changed: bool = False  # only where a file of what runs is another by now


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where nginx stands and how it is run; from the settings."""

    destination: Path  # nginx.binary
    arguments: tuple[str, ...]  # all after argv[0], the same at every start
    environment: Mapping[str, str]  # as configured
    prefix: str | None
    globals: str | None
    probe_include: Path | None  # its listeners come and go with upgrades
    announce: Callable[[], None]  # on record: files of the candidate are about to be on disk
    uid: int
    start_timeout: float = math.inf  # seconds in which a candidate has to be ready
    guards: GuardSettings = DEFAULT_GUARDS
    tell: Callable[[Finding], None] = lambda _: None  # at once, since a later check may refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """The generation that serves."""

    master: ProcessIdentity
    workers: tuple[int, ...]
    pid_path: Path
    version_id: str | None
    env: tuple[str, ...]  # the `env` directives that it read: what USR2 passes on
    read: ConfigRead | None = None  # the configuration that it runs; None: not known
    since: float | None = None  # Unix seconds: that is not younger than this
    build: NginxBuild | None = None  # asked from its own executable where it is not known


@dataclass(slots=True, kw_only=True)
class Draft:
    """What the checks have found out so far; a later one may rely on the fields of earlier ones."""

    request: Request
    installation: Installation
    active: Active
    store: VersionStore
    source: Path | None = None
    stored: StoredVersion | None = None
    staged: Staged | None = None
    running: NginxBuild | None = None
    build: NginxBuild | None = None
    config: NginxConfig | None = None
    dump: str = ""
    read: ConfigRead = NOTHING_READ
    held: HeldSockets | None = None
    changed: tuple[Outdated, ...] = ()  # files of what runs that are others on disk
    warnings: list[Finding] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)  # newest last; they block

    @property
    def ready_stored(self) -> StoredVersion:
        """The stored version, in the checks after the one that stores it."""
        assert self.stored is not None
        return self.stored

    @property
    def ready_build(self) -> NginxBuild:
        """The candidate's build, in the checks after -V."""
        assert self.build is not None
        return self.build

    @property
    def ready_staged(self) -> Staged:
        """The staged copy, in the checks after the one that makes it."""
        assert self.staged is not None
        return self.staged

    @property
    def ready_config(self) -> NginxConfig:
        """The candidate's configuration, in the checks after -T."""
        assert self.config is not None
        return self.config


@dataclass(frozen=True, slots=True, kw_only=True)
class NoChange:
    """The version that runs already was offered with `if_changed`; nothing is to be done."""

    version: str
    version_id: str


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table: its name in timings and logs, and what it does."""

    name: str
    run: Callable[[Draft], Awaitable[NoChange | None]]
