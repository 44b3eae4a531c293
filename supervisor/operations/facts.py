"""What a binary says about itself and about the configuration that it would run."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from supervisor.core.config_read import ConfigRead, read_of
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.nginx_config import (
    NginxConfig,
    effective,
    folders_of,
    parse_globals,
    under_prefix,
)
from supervisor.core.nginx_version import NginxBuild
from supervisor.core.settings import nginx_argv
from supervisor.edges import procfs
from supervisor.edges.env_directives import env_directives
from supervisor.edges.generation import Generation, Program
from supervisor.edges.nginx_binary import dump_config, upgrade_environment, version_of
from supervisor.edges.old_files import with_old_files
from supervisor.edges.pidfile import remove_empty
from supervisor.edges.tls_files import identified_in_time
from supervisor.operations.keeping import loaded_modules, secure
from supervisor.operations.world import EnvSeen, FactsSeen, World, files_identity, files_signature

_NO_FILE = re.compile(r"stderr$|syslog:|memory:|/dev/null$")
"""Where an error log goes that is no file."""

_RACY = 50_000_000
"""Nanoseconds: a file that was changed this shortly before, or while nginx read it, may be changed
again within the same tick of the clock that its times are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A build together with the configuration on disk, as nginx -V and -T tell."""

    build: NginxBuild
    config: NginxConfig
    files: tuple[str, ...]  # the configuration's, without the one that we write
    signature: tuple[tuple[int, ...], ...]  # of these files
    pid_path: str
    workers: int
    read: ConfigRead | None = None  # with the files of TLS as they were then
    error_logs: tuple[str, ...] = ()  # the files, absolute
    took: float = 0.0  # seconds that nginx has read it for

    @property
    def modules(self) -> dict[str, Path]:
        """Every file that the configuration loads: the name that it uses, and where that is."""
        return {path: Path(path) for path in self.module_paths}

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Absolute paths of the dynamic modules."""
        return tuple(under_prefix(path, self.build.prefix) for path in self.config.load_modules)

    def refresh(self, program: Program) -> Program:
        """`program` with this configuration."""
        same = (program.config_files, program.config_signature) == (self.files, self.signature)
        return replace(
            program, workers=self.workers, pid_path=self.pid_path,
            config_files=self.files, environment=self.config.env,
            config_signature=self.signature, read=self.read, error_logs=self.error_logs,
            config_copy=program.config_copy if same else None,
        )  # fmt: skip


def environment(world: World, directives: tuple[str, ...] = ()) -> dict[str, str]:
    """Exactly what USR2 would pass on with these `env` directives, so that generations agree."""
    return upgrade_environment(directives, world.settings.nginx.environment)


def passed_on(before: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """Of the `env` directives `now`, what USR2 has something for after a start with `before`.

    nginx hands on no variable that it was not started with, whatever it has read since
    (ngx_set_environment looks into the environment of its own start).
    """
    had = {directive.partition("=")[0] for directive in before}
    return tuple(one for one in now if "=" in one or one in had)


def settings_argv(world: World) -> tuple[str, ...]:
    """The arguments after the binary, the same for every run of it."""
    return nginx_argv(world.settings.nginx)


async def read_facts(
    world: World, binary: str, argv: tuple[str, ...], directives: tuple[str, ...] | None = None
) -> Facts:
    """Run -V and -T, with the environment of these `env` directives, or of the configuration's own.

    -T tests as -t does: raises Refusal `config_rejected` and what else the binary edge raises.
    """
    if directives is not None:
        return await _read(world, binary, argv, environment(world, directives))
    given = environment(world, await _env_directives(world))
    facts = await _read(world, binary, argv, given)
    needed = environment(world, facts.config.env)
    if needed != given:
        facts = await _read(world, binary, argv, needed)
    files = _with_folders(facts.files)
    world.env_seen = EnvSeen(
        files=files, signature=files_signature(files), directives=facts.config.env
    )
    return facts


async def facts_on_disk(world: World) -> Facts:
    """`read_facts` of what is on disk; nginx is not asked again where nothing has changed since.

    A crash start must not take longer than it has to: the two runs of nginx take longer than its
    start. What has changed is told by the identities, sizes and times of all the files.
    """
    seen = facts_unchanged(world)
    if seen is not None:
        # Certificates are no part of the signature: nginx reads them now, as they are now.
        read = seen.facts.read
        return replace(seen.facts, read=read and await identified_in_time(read))
    world.facts_seen = None
    binary, argv = world.settings.nginx.binary, settings_argv(world)
    asked = _how_asked(world)
    before, began = files_identity((binary,)), time.time_ns()
    facts = await read_facts(world, binary, argv)
    folders = _folders(world, facts.config)
    if folders is None or files_identity((binary,)) != before:
        return facts
    files = (binary, *facts.module_paths, *facts.files, *folders)
    identity = files_identity(files)
    if max(changed for *_, changed in identity) < began - _RACY:
        world.facts_seen = FactsSeen(facts=facts, asked=asked, files=files, signature=identity)
    return facts


def _folders(world: World, config: NginxConfig) -> list[str] | None:
    """Where a new file may become part of `config`; None where that cannot be told.

    Not where only the probe listener's file comes and goes, by a pattern of its own.
    """
    folders = folders_of(config)
    if folders is None:
        return None
    place, name = os.path.split(world.settings.probe_listener.include_file)
    patterns = [one for one in config.include_patterns if os.path.dirname(one) == place]
    if all(os.path.basename(one)[:1] == name[:1] for one in patterns):
        folders -= {place}
    return sorted(folders)


def facts_unchanged(world: World) -> FactsSeen | None:
    """What nginx told, where nothing that it depends on has changed since."""
    seen = world.facts_seen
    if seen is None or seen.asked != _how_asked(world):
        return None
    return seen if files_identity(seen.files) == seen.signature else None


def _how_asked(world: World) -> tuple[object, ...]:
    nginx = world.settings.nginx
    return (nginx.binary, settings_argv(world), dict(nginx.environment), _online_cpus())


def _online_cpus() -> int:
    return os.sysconf("SC_NPROCESSORS_ONLN")


async def _env_directives(world: World) -> tuple[str, ...]:
    """What the configuration on disk passes on, before nginx was asked."""
    seen = world.env_seen
    if seen is not None and files_signature(seen.files) == seen.signature:
        return seen.directives
    nginx = world.settings.nginx
    found = await trio.to_thread.run_sync(env_directives, Path(nginx.config))
    return parse_globals(nginx.globals or "").env + found


def _with_folders(files: tuple[str, ...]) -> tuple[str, ...]:
    """A new file in one of the folders may be included by a pattern."""
    return (*files, *sorted({os.path.dirname(path) for path in files}))


async def _read(
    world: World,
    binary: str,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    old_files: Mapping[str, Path] | None = None,
) -> Facts:
    settings = world.settings.nginx
    build = (await version_of(Path(binary), env)).at_prefix(settings.prefix)
    program, arguments = Path(binary), argv
    if old_files:
        program, arguments = with_old_files((binary, *argv), old_files)
    began = trio.current_time()
    config, dump = await dump_config(program, arguments, env)
    took = trio.current_time() - began
    config = effective(config, parse_globals(settings.globals or ""))
    noted = await trio.to_thread.run_sync(read_of, dump, config)
    read = await identified_in_time(noted)
    facts = facts_of(world, build, config, read)
    await trio.to_thread.run_sync(remove_empty, Path(facts.pid_path))
    return replace(facts, took=took)


async def facts_of_running(world: World, running: Generation) -> Facts | None:
    """The configuration on disk as `running` will find it when it is told to read it again.

    Asked of the program that it runs, with its environment, and with the dynamic modules that it
    has loaded: those are not opened again, whatever a package manager has put on disk meanwhile.
    Raises as `read_facts` does; None where only the running master itself can tell.
    """
    pid = running.master.pid
    env = environment(world, running.program.environment)
    binary = program_of(world, pid)
    replaced: dict[str, Path] = {}
    try:
        replaced = await _replaced_modules(world, running)
        old_files = await _copies(world, running, replaced) if replaced else {}
        return await _read(world, binary, settings_argv(world), env, old_files)
    except Refusal as exc:
        if not (replaced and _says_nothing(exc, replaced)):
            raise _of_running(exc, pid) from exc
        world.log.warning("reload.not_tested", reason=exc.reason, detail=exc.detail)
        return None


def _says_nothing(refusal: Refusal, replaced: Mapping[str, Path]) -> bool:
    """The test has failed by itself: without the modules that the running master has loaded."""
    if refusal.reason == "module_mismatch":
        return any(path in refusal.detail for path in replaced)
    if refusal.reason == "config_rejected":  # nginx has not come so far as to say why
        return "[emerg]" not in refusal.detail
    return refusal.reason.startswith("binary_") and sys.executable in refusal.detail


def program_of(world: World, pid: int) -> str:
    """A path that leads to what `pid` runs; the configured one where that is the same file."""
    binary = world.settings.nginx.binary
    running = procfs.executable(pid)
    if running is None:
        return binary
    try:
        on_disk = os.stat(binary)
    except OSError:
        return f"/proc/{pid}/exe"
    return binary if running == (on_disk.st_dev, on_disk.st_ino) else f"/proc/{pid}/exe"


async def _replaced_modules(world: World, running: Generation) -> dict[str, Path]:
    """The modules that `running` has loaded from files that are not on disk any more.

    By the path that nginx knows them by.
    """
    loaded = await loaded_modules(world, running)
    return {path: where for path, where in loaded.items() if where != Path(path)}


async def _copies(
    world: World, running: Generation, replaced: Mapping[str, Path]
) -> dict[str, Path]:
    """Copies of these modules: the stored ones. None where they are not, and cannot be, stored."""
    try:
        version = await secure(world, running)
    except SupervisorError as exc:
        world.log.warning("store.not_written", reason=exc.reason, detail=exc.detail)
        return {}
    return {path: version.module(path) for path in replaced if path in version.modules}


def _of_running(refusal: Refusal, pid: int) -> Refusal:
    told = refusal.detail.replace(f"/proc/{pid}/exe", f"the program of process {pid}")
    return Refusal(refusal.reason, told.replace(sys.executable, f"the program of process {pid}"))


def facts_of(
    world: World, build: NginxBuild, config: NginxConfig, read: ConfigRead | None
) -> Facts:
    """The facts that follow from a build and the configuration that it would run."""
    prefix = world.settings.nginx.prefix
    placed = build.at_prefix(prefix)
    ours = world.settings.probe_listener.include_file
    files = tuple(path for path in config.files if path != ours)
    return Facts(
        build=build,
        config=config,
        files=files,
        signature=files_signature(files),
        pid_path=under_prefix(config.pid or placed.pid_path, placed.prefix),
        workers=config.expected_workers(online_cpus=_online_cpus()),
        read=read,
        error_logs=_error_logs(config, placed, world.settings.nginx.error_log),
    )


def _error_logs(config: NginxConfig, build: NginxBuild, given: str | None) -> tuple[str, ...]:
    """The files that errors go to: the one until the configuration is read (`-e`), and its own."""
    named = (given or build.error_log_path, *config.error_logs)
    paths = [under_prefix(one, build.prefix) for one in named if not _NO_FILE.match(one)]
    return tuple(dict.fromkeys(paths))
