"""What a binary says about itself and about the configuration that it would run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from supervisor.core.nginx_config import NginxConfig, effective, parse_globals, under_prefix
from supervisor.core.nginx_version import NginxBuild
from supervisor.core.settings import nginx_argv
from supervisor.edges.generation import Program
from supervisor.edges.nginx_binary import dump_config, upgrade_environment, version_of
from supervisor.edges.pidfile import remove_empty
from supervisor.operations.world import World, files_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A build together with the configuration on disk, as nginx -V and -T tell."""

    build: NginxBuild
    config: NginxConfig
    files: tuple[str, ...]  # the configuration's, without the one that we write
    signature: tuple[tuple[int, ...], ...]  # of these files
    pid_path: str
    workers: int

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
        return replace(
            program, workers=self.workers, pid_path=self.pid_path,
            config_files=self.files, environment=self.config.env,
            config_signature=self.signature,
        )  # fmt: skip


def environment(world: World, directives: tuple[str, ...] = ()) -> dict[str, str]:
    """Exactly what USR2 would pass on with these `env` directives, so that generations agree."""
    return upgrade_environment(directives, world.settings.nginx.environment)


def settings_argv(world: World) -> tuple[str, ...]:
    """The arguments after the binary, the same for every run of it."""
    return nginx_argv(world.settings.nginx)


async def read_facts(
    world: World, binary: str, argv: tuple[str, ...], directives: tuple[str, ...] = ()
) -> Facts:
    """Run -V and -T, with the environment of these `env` directives.

    -T tests as -t does: raises Refusal `config_rejected` and what else the binary edge raises.
    """
    settings = world.settings.nginx
    bare = environment(world, directives)
    build = (await version_of(Path(binary), bare)).at_prefix(settings.prefix)
    config, _ = await dump_config(Path(binary), argv, bare)
    config = effective(config, parse_globals(settings.globals or ""))
    facts = facts_of(world, build, config)
    await trio.to_thread.run_sync(remove_empty, Path(facts.pid_path))
    return facts


def facts_of(world: World, build: NginxBuild, config: NginxConfig) -> Facts:
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
        workers=config.expected_workers(online_cpus=os.sysconf("SC_NPROCESSORS_ONLN")),
    )
