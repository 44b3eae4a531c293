"""Prepare an upgrade: the checks, the private probe listener, and what the candidate will be."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from supervisor.core import commands
from supervisor.core.errors import Refusal
from supervisor.core.events import Succeeded
from supervisor.core.guards import Finding, Severity
from supervisor.core.model import Phase
from supervisor.core.nginx_config import effective, parse_globals
from supervisor.edges.generation import Generation, Program
from supervisor.edges.nginx_binary import dump_config
from supervisor.edges.pidfile import ProcessIdentity
from supervisor.edges.preflight import Active, Installation, NoChange, Plan, Request, preflight
from supervisor.edges.store import StoredVersion
from supervisor.operations.facts import (
    Facts,
    environment,
    facts_of,
    passed_on,
    settings_argv,
)
from supervisor.operations.keeping import secure
from supervisor.operations.pidfiles import restore_lost_pid_file
from supervisor.operations.reading import workers_since
from supervisor.operations.unrecorded import expect_no_bystander
from supervisor.operations.world import UpgradeRun, World


async def prepare(world: World, command: commands.Command) -> Succeeded:
    """Return when nothing speaks against the upgrade, or there is nothing to do.

    Raises Refusal with the reason and the remedy; nothing is then different from before.
    Cancelling undoes what was done.
    """
    run, active = world.run, world.active
    assert run is not None
    if active is None:
        raise Refusal("not_running", "cannot upgrade: nginx does not run; nginxctl start")
    expect_no_bystander(world)
    request = await _request(world, command, active)
    await restore_lost_pid_file(world, active)
    run.previous = await _secure_active(world, active)
    plan = await preflight(
        request, installation=_installation(world, run), active=_active(world, active),
        store=world.store,
    )  # fmt: skip
    if isinstance(plan, NoChange):
        run.to_version = plan.version
        return Succeeded(nothing_to_do=True, note=f"{plan.version} runs already; nothing changed")
    run.plan, run.stored, run.to_version = plan, plan.stored, plan.build.version
    run.changed = [one.to_data() for one in plan.changed]
    if isinstance(command, commands.Upgrade) and command.dry_run:
        was = active.program.version
        note = f"would upgrade from {was} to {plan.build.version}; nothing was changed"
        return Succeeded(nothing_to_do=True, dry_run=True, note=note)
    if world.settings.probes:
        facts = await _open_probe_listener(world, run, plan, active)
    else:  # nobody would ask there
        facts = facts_of(world, plan.build, plan.config, plan.read)
    program = Program(
        version=plan.build.version, sha256=plan.stored.sha256,
        path=world.settings.nginx.binary, stored=plan.stored.id,
    )  # fmt: skip
    run.program = replace(
        facts.refresh(program),
        environment=passed_on(active.program.environment, facts.config.env),
    )
    world.lock(run.program.pid_path)
    run.candidate_id = world.generations.reserve()
    return Succeeded(generation=run.candidate_id)


async def _request(world: World, command: commands.Command, active: Generation) -> Request:
    if isinstance(command, commands.Upgrade):
        binary = None if command.binary is None else Path(command.binary)
        return Request(binary=binary, trust=command.trust, if_changed=command.if_changed)
    assert isinstance(command, commands.Rollback)
    wanted = await trio.to_thread.run_sync(_version_back, world, command, active)
    return Request(version_id=wanted.id)


def _version_back(world: World, command: commands.Rollback, active: Generation) -> StoredVersion:
    if command.to is not None:
        return world.store.find(world.version_of_upgrade(command.to) or command.to)
    previous = world.store.previous_good(active.program.stored or "")
    if previous is None:
        raise Refusal(
            "no_previous_version",
            "cannot roll back: no other version that was good is in the store; see nginxctl "
            "versions, or give a binary to nginxctl upgrade",
        )
    return previous


async def _secure_active(world: World, active: Generation) -> str:
    """What runs is in the store, unharmed, so that a rollback can put it back; its id there.

    Raises Refusal where it cannot be stored.
    """
    return (await secure(world, active)).id


def _note(world: World, run: UpgradeRun) -> None:
    """On record before it is done: a successor undoes it."""
    record = {"upgrade_id": run.id, "phase": Phase.PREFLIGHT.value, **run.known()}
    world.journal.append(record)


def _installation(world: World, run: UpgradeRun) -> Installation:
    nginx = world.settings.nginx

    def announce() -> None:
        run.placing = True
        _note(world, run)

    return Installation(
        destination=Path(nginx.binary),
        arguments=settings_argv(world),
        environment=nginx.environment,
        prefix=nginx.prefix,
        globals=nginx.globals,
        probe_include=Path(world.settings.probe_listener.include_file),
        announce=announce,
        uid=os.geteuid(),
        start_timeout=world.settings.upgrade.start_timeout,
        guards=world.settings.guards,
        tell=partial(_tell, world, run),
    )


def _tell(world: World, run: UpgradeRun, found: Finding) -> None:
    """In the log, to whoever waits, and kept for the verdict."""
    told = found.to_data()
    run.warnings.append(told)
    is_warning = found.severity is Severity.WARNING
    log = world.log.warning if is_warning else world.log.info
    log("preflight.warning" if is_warning else "preflight.note", upgrade_id=run.id, **told)
    world.progress({"event": "warning", "upgrade_id": run.id, **told})


def _active(world: World, active: Generation) -> Active:
    return Active(
        master=ProcessIdentity(pid=active.master.pid, start_ticks=active.master.start),
        workers=tuple(sorted(active.look().workers)),
        pid_path=Path(active.program.pid_path or world.pid_path),
        version_id=active.program.stored,
        env=active.program.environment,
        read=active.program.read,
        since=workers_since(active),
    )


async def _open_probe_listener(
    world: World, run: UpgradeRun, plan: Plan, active: Generation
) -> Facts:
    """Write the candidate's private listener and have the candidate's binary test it.

    Written last, so that a reload from outside has little time to open it in the old generation
    as well; whether one did is checked with each answer. A site whose configuration does not
    include the file is upgraded without: its canary is then not observed.
    """
    listener = world.listener
    run.include_text = await trio.to_thread.run_sync(listener.text)
    await trio.to_thread.run_sync(listener.learn, plan.dump)
    try:
        ports = await trio.to_thread.run_sync(listener.choose_ports, world.settings.probes)
        run.include_written = True
        await trio.to_thread.run_sync(_note, world, run)
        await trio.to_thread.run_sync(listener.write, ports)
    except Refusal as exc:
        run.include_written = False
        world.log.warning("probe_listener.unavailable", reason=exc.reason, detail=exc.detail)
        return facts_of(world, plan.build, plan.config, plan.read)
    handed_on = environment(world, active.program.environment)
    test = partial(dump_config, plan.staged.path, settings_argv(world), handed_on)
    try:
        try:
            tested, dump = await test()
        except Refusal as exc:
            if ports.tls is None:
                raise
            # The certificates may be those of another block, the default server of the address.
            world.log.warning("probe_listener.without_tls", detail=exc.detail)
            ports = listener.without_tls(ports, exc.detail)
            await trio.to_thread.run_sync(listener.write, ports)
            tested, dump = await test()
    except Refusal as exc:
        raise Refusal(
            "probe_listener_rejected",
            "cannot give the candidate a private probe listener: nginx rejects the configuration "
            f"with {world.settings.probe_listener.include_file} in it (include it in exactly one "
            f"server block): {exc.detail}",
        ) from exc
    config = effective(tested, parse_globals(world.settings.nginx.globals or ""))
    if world.settings.probe_listener.include_file in config.files:
        run.port, run.tls_port = ports.plain, ports.tls
        await trio.to_thread.run_sync(listener.learn, dump)
    else:
        await trio.to_thread.run_sync(partial(world.listener.restore, run.include_text))
        run.include_written = False
        world.log.warning(
            "probe_listener.not_included",
            detail=f"no server block includes {world.settings.probe_listener.include_file}; the "
            "canary cannot be observed, and probes count from the shift on",
        )
    return facts_of(world, plan.build, config, replace(plan.read, listens=config.listens))
