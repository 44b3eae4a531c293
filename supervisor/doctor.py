"""Looks at a site for `nginxctl doctor`: collects what `core.diagnosis` draws its conclusions from.

Nothing is changed and nothing is sent. nginx is asked for its configuration once (`-T`, by the
binary that runs), never while an upgrade is under way: in the gap between two masters that would
make an empty pid file. Only one look at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio

from supervisor.core.diagnosis import ConfigSeen, Diagnosis, HostSeen, Level, NginxSeen, Site
from supervisor.core.diagnosis_evidence import diagnose
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.nginx_config import effective, parse_globals
from supervisor.core.nginx_details import details_of
from supervisor.core.unit_file import UnitsSeen
from supervisor.edges import (
    host_features,
    pidfile,
    procfs,
    socket_owners,
    sockets,
    systemd_units,
)
from supervisor.edges.generation import Generation
from supervisor.edges.nginx_binary import dump_config
from supervisor.edges.pidfile import ProcessIdentity
from supervisor.edges.probe_listener import blocks_of
from supervisor.edges.upgradable import objection
from supervisor.operations.facts import environment, program_of, settings_argv
from supervisor.operations.world import World
from supervisor.snapshot import version

NGINX_LIMIT = 15.0
"""Seconds for nginx to tell its configuration."""
_MASTER_TITLE = b": master process"


class Doctor:
    """Examines one nginx, one look after the other."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._one = trio.Lock()

    async def examine(
        self, *, busy: str, probes: Sequence[tuple[str, str]]
    ) -> tuple[Diagnosis, ...]:
        """All findings; `busy` is why nginx is not to be asked now, empty where it may be."""
        async with self._one:
            config, refusal = await self._config(busy)
            active = self._world.active
            seen = None
            if active is not None and active.alive and not busy:
                seen = await trio.to_thread.run_sync(self._nginx, active, active.brood())
            site = Site(
                settings=self._world.settings,
                nginx=seen,
                host=await trio.to_thread.run_sync(self._host),
                config=config,
                refused="" if refusal is None else refusal.detail,
                busy=busy,
                probes=tuple(probes),
                units=await self._units(),
            )
        return diagnose(site)

    async def _config(self, busy: str) -> tuple[ConfigSeen | None, SupervisorError | None]:
        if busy:
            return None, None
        world, active = self._world, self._world.active
        binary, env = world.settings.nginx.binary, environment(world)
        if active is not None and active.alive:
            binary = program_of(world, active.master.pid)
            env = environment(world, active.program.environment)
        try:
            with trio.fail_after(NGINX_LIMIT):
                config, dump = await dump_config(Path(binary), settings_argv(world), env)
        except trio.TooSlowError:
            detail = f"nginx did not tell its configuration within {NGINX_LIMIT:g} s"
            return None, Refusal("config_test_timeout", detail)
        except SupervisorError as exc:
            return None, exc
        finally:
            if world.pid_path:  # what `-T` leaves where there was none
                with trio.CancelScope(shield=True), suppress(SupervisorError):
                    await trio.to_thread.run_sync(pidfile.remove_empty, Path(world.pid_path))
        config = effective(config, parse_globals(world.settings.nginx.globals or ""))
        workers = config.expected_workers(online_cpus=os.sysconf("SC_NPROCESSORS_ONLN"))
        seen = ConfigSeen(
            config=config, details=details_of(dump), blocks=blocks_of(dump), workers=workers
        )
        return seen, None

    async def _units(self) -> UnitsSeen:
        """The distribution's unit of this nginx, and the one that the supervisor runs in."""
        if not systemd_units.is_booted():
            return UnitsSeen(without="no systemd manages this machine or container")
        own = systemd_units.own_unit(os.getpid())
        ours = await systemd_units.unit_seen(own) if own else None
        if ours is None:
            return UnitsSeen(without="this supervisor runs in no service of systemd")
        program = Path(self._world.settings.nginx.binary).name
        names = list(dict.fromkeys((f"{program}.service", "nginx.service")))
        for name in names:
            theirs = await systemd_units.unit_seen(name) if name != own else None
            if theirs is not None:
                active = self._world.active
                running = systemd_units.limits_of(active.master.pid) if active is not None else {}
                return UnitsSeen(theirs=theirs, ours=ours, running=running)
        return UnitsSeen(ours=ours, without=f"systemd has no {' or '.join(names)} beside {own}")

    # --- in a thread ------------------------------------------------------------------------

    def _nginx(self, active: Generation, brood: procfs.Brood) -> NginxSeen:
        world, pid = self._world, active.master.pid
        refused = objection(pid, Path(world.settings.nginx.binary))
        why_not = "" if refused is None else refused.detail
        if masters := procfs.brood_of(procfs.children(pid)).masters:
            why_not = why_not or f"process {min(masters)} is a new master of it: an upgrade runs"
        path = Path(active.program.pid_path or world.pid_path)
        held = sockets.held_by(pid)
        counts = () if held is None else tuple(held.counts.items())
        some = next(iter(sorted(brood.accepting)), pid)
        return NginxSeen(
            generation=f"g{active.id}",
            version=active.program.version,
            pid=pid,
            workers=len(brood.accepting),
            why_not_upgradable=why_not,
            pid_file=str(path),
            pid_file_problem=_pid_file_problem(path, active),
            oldbin_master=_oldbin_master(path, pid),
            needed_bytes=sockets.proportional_memory((pid, *brood.workers)),
            available_bytes=sockets.available_memory(),
            reuseport_counts=tuple(
                (f"[{host}]:{port}" if ":" in host else f"{host}:{port}", count)
                for (_, host, port, _), count in counts
            ),
            files_limit=host_features.files_limit(some),
            descriptors=host_features.open_descriptors(brood.accepting),
            stored=_is_stored(world, active),
        )

    def _host(self) -> HostSeen:
        world, settings = self._world, self._world.settings
        ephemeral, listener = host_features.ephemeral_ports(), settings.probe_listener
        span = set(range(listener.first_port, listener.last_port + 1))
        if span <= host_features.reserved_ports():
            ephemeral = None  # no connection gets one of them
        free: tuple[int, ...] = ()
        with suppress(SupervisorError):  # no descriptor is left to try with
            free = world.listener.free_ports()
        held = world.held.report()
        include = Path(listener.include_file).parent
        state = Path(settings.state.directory)
        return HostSeen(
            kernel=os.uname().release,
            supervisor=version(),
            inet_diag=socket_owners.has_diag(),
            pidfd_getfd=host_features.has_pidfd_getfd(),
            exit_info=host_features.tells_exit_of_strangers(),
            ephemeral=ephemeral,
            free_ports=free,
            include_folder_problem=host_features.folder_problem(include, "the probe listener"),
            state_problem=host_features.folder_problem(state, "the state"),
            held=(held["available"] is True, int(str(held["count"]))),
            executable_memory=host_features.has_executable_memory(),
        )


def reply_of(found: Sequence[Diagnosis]) -> dict[str, object]:
    """The reply of Doctor."""
    return {
        "ok": all(one.level is not Level.PROBLEM for one in found),
        "findings": [
            {
                "topic": one.topic, "name": one.name, "level": one.level.value, "seen": one.seen,
                "advice": one.advice or None, "lines": list(one.lines),
            }
            for one in found
        ],
    }  # fmt: skip


def _pid_file_problem(path: Path, active: Generation) -> str:
    master = ProcessIdentity(pid=active.master.pid, start_ticks=active.master.start)
    try:
        pidfile.require(path, master)
    except SupervisorError as exc:
        return exc.detail
    return host_features.folder_problem(path.parent, f"the pid file {path}")


def _oldbin_master(path: Path, master: int) -> int | None:
    pid = pidfile.read_claim(pidfile.oldbin_path(path)).pid
    if pid is None or pid == master or not procfs.is_alive(pid):
        return None
    return pid if _MASTER_TITLE in procfs.title(pid) else None


def _is_stored(world: World, active: Generation) -> bool:
    if active.program.stored is None:
        return False
    try:
        world.store.verify(active.program.stored)
    except SupervisorError:
        return False
    return True
