"""SIGHUP to the supervisor: read its own configuration again, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from supervisor.core.errors import ConfigError, Refusal
from supervisor.core.events import RulesChanged
from supervisor.core.model import Rules
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.settings import Settings, UpgradeSettings
from supervisor.core.verdict_policy import VerdictPolicy
from supervisor.edges.config_file import load_settings
from supervisor.edges.control_gate import Gate
from supervisor.edges.probe_listener import ProbeListener
from supervisor.edges.probes import Prober
from supervisor.evidence import Evidence
from supervisor.operations.world import World

_FIXED: tuple[tuple[str, Callable[[Settings], object]], ...] = (
    ("nginx.binary", lambda one: one.nginx.binary),
    ("nginx.config", lambda one: one.nginx.config),
    ("nginx.prefix", lambda one: one.nginx.prefix),
    ("nginx.globals", lambda one: one.nginx.globals),
    ("nginx.error_log", lambda one: one.nginx.error_log),
    ("nginx.inherit_variable", lambda one: one.nginx.inherit_variable),
    ("control.socket", lambda one: one.control.socket),
    ("[state]", lambda one: one.state),
    ("[syslog]", lambda one: one.syslog),
    ("[log]", lambda one: one.log),
)
"""What a running master or this process was started with: it cannot change under either."""
_OF_THE_PROCESS = ("control.socket", "[syslog]", "[log]")
"""Those of them that are free for a program that takes this one's place."""


def rules_of(settings: Settings) -> Rules:
    """What the machine needs to know of the settings."""
    return Rules(
        policy=policy_of(settings.upgrade),
        on_foreign_stop=settings.nginx.on_foreign_stop,
    )


def policy_of(upgrade: UpgradeSettings) -> VerdictPolicy:
    """How a candidate is judged, as the settings have it."""
    return VerdictPolicy(
        come_up=upgrade.start_timeout,
        canary=upgrade.canary,
        soak=upgrade.soak,
        min_samples=upgrade.min_samples,
        on_inconclusive=upgrade.on_inconclusive,
    )


def restart_policy_of(settings: Settings) -> RestartPolicy:
    """A restart policy that has seen nothing yet."""
    restart = settings.restart
    return RestartPolicy(
        backoff_initial=restart.backoff_initial,
        backoff_max=restart.backoff_max,
        crash_limit=restart.crash_limit,
        crash_interval=restart.crash_interval,
        start_limit=restart.start_limit,
        start_limit_interval=restart.start_limit_interval,
    )


async def reconfigure(
    path: Path, world: World, evidence: Evidence, prober: Prober, gate: Gate
) -> str | None:
    """The settings on disk are in force, or those from before are; why so, which the log says too.

    Windows of an upgrade that runs stay as they were when it was accepted, and while a candidate
    is being judged, the probes do too.
    """
    try:
        settings = await trio.to_thread.run_sync(load_settings, path)
        _expect_same(world.settings, settings)
        _expect_same_listener(world, settings)
    except ConfigError as exc:
        world.log.warning("settings.rejected", path=str(path), detail=exc.detail)
        return exc.detail
    if settings.probe_listener != world.settings.probe_listener:
        world.listener = ProbeListener(settings.probe_listener)
    world.settings = settings
    world.held.configure(
        enabled=settings.restart.hold_listeners, with_reuseport=settings.restart.hold_reuseport
    )
    world.background(partial(gate.take, settings.control))  # names may take long to look up
    world.post(RulesChanged(rules=rules_of(settings), restarts=restart_policy_of(settings)))

    def take_probes() -> None:
        evidence.reconfigure(settings.probes)
        prober.reconfigure(settings.probes)

    at_once = evidence.when_undisturbed(take_probes)
    probes = "at once" if at_once else "after the verdict"
    world.log.info("settings.changed", path=str(path), probes=probes)
    return None


def _expect_same_listener(world: World, after: Settings) -> None:
    """A running upgrade goes back to the file that it wrote."""
    if world.run is not None and world.settings.probe_listener != after.probe_listener:
        raise ConfigError(
            "cannot change [probe_listener] while an upgrade runs: send SIGHUP again after its "
            "verdict; nothing of the file was taken over"
        )


async def expect_replaceable(path: Path, world: World) -> None:
    """Raise Refusal where the settings on disk are not for the nginx that runs, or cannot be read.

    A supervisor that starts with them would look for it, and for its records, in the wrong places.
    """
    try:
        settings = await trio.to_thread.run_sync(load_settings, path)
        _expect_same(world.settings, settings, but=_OF_THE_PROCESS)
        _expect_same_listener(world, settings)
    except ConfigError as exc:
        raise Refusal(
            "settings_fixed", f"cannot replace the supervisor: {exc.detail} ({path})"
        ) from exc


def _expect_same(before: Settings, after: Settings, but: tuple[str, ...] = ()) -> None:
    changed = [name for name, value in _FIXED if name not in but and value(before) != value(after)]
    if changed:
        raise ConfigError(
            f"cannot change {', '.join(changed)} while nginx runs: restart the supervisor for "
            "that; nothing of the file was taken over"
        )
