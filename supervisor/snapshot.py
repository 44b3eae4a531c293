"""What `status` tells, as the reply of the interface; computed from what is known, at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from supervisor.core.model import UPGRADING, Goal, Phase, State, public_state
from supervisor.drift import Found
from supervisor.edges import procfs
from supervisor.edges.disk_binary import DiskBinary
from supervisor.edges.generation import Generation, Role
from supervisor.edges.resources import resources_of
from supervisor.edges.upgradable import objection
from supervisor.operations.foreign import foreign_text
from supervisor.operations.unrecorded import why_beside

_ORDER = {Role.ACTIVE: 0, Role.CANDIDATE: 1, Role.RETIRING: 2}


def status(
    *,
    state: State,
    generations: Sequence[Generation],
    disk: DiskBinary,
    config_matches: bool | None,
    held: Mapping[str, object],
    probes: Sequence[Mapping[str, object]],
    restarts: int,
    last_verdict: Mapping[str, object] | None,
    upgrade: Mapping[str, object],
    next_start: float | None,
    drain_left: float | None = None,
    started: str | None = None,
    replaced: str | None = None,
    error_logs: Mapping[str, object] | None = None,
    drift: Found | None = None,
) -> dict[str, object]:
    """The reply of Status: the active generation first, orphans of a dead master as retiring.

    `upgrade` is what the running upgrade has besides its id, phase and candidate; `next_start` is
    in how many seconds nginx is started again, `drain_left` how many seconds the connections of
    the previous generation have at most.
    """
    shown = sorted(generations, key=lambda one: (_ORDER[one.role], one.id))
    active = next((one for one in shown if one.role is Role.ACTIVE), None)
    told, reason, detail = condition(state, active, shown)
    prospect = _prospect(state, upgrade.get("phase_elapsed_s"), next_start, drain_left)
    if not any(one.brood().accepting for one in shown):
        prospect = _unserved(state, prospect, held["count"])
    return {
        "state": told,
        "reason": reason,
        "detail": "; ".join(filter(None, (detail, prospect))) or None,
        "upgrade": _upgrade(state, shown, upgrade),
        "generations": [
            {**_generation(one), "upgradable": _upgradable(state, one, disk.path)} for one in shown
        ],
        "binary_on_disk": {
            "path": disk.path,
            "version": disk.version,
            "sha256": disk.sha256,
            "matches_active": None
            if active is None or disk.sha256 is None
            else disk.sha256 == active.program.sha256,
            "placed_by": None if drift is None else drift.placed_by,
            "package": None if drift is None or drift.package is None else drift.package.to_data(),
        },
        "changed": None
        if drift is None or drift.changed is None
        else [one.to_data() for one in drift.changed],
        "config_matches_active": config_matches,
        "held_listeners": dict(held),
        "probes": list(probes),
        "error_logs": None if error_logs is None else dict(error_logs),
        "restarts": restarts,
        "last_verdict": None if last_verdict is None else dict(last_verdict),
        "supervisor_pid": os.getpid(),
        "supervisor_version": version(),
        "supervisor_started": started,
        "supervisor_replaced": replaced,
    }


@cache
def version() -> str:
    """This program's own version; asked first when it starts, later the files are another's."""
    return metadata.version("nginx-supervisor")


def condition(
    state: State, active: Generation | None, shown: Sequence[Generation]
) -> tuple[str, str | None, str]:
    """State, reason and detail; a master at rest without workers is degraded whoever did that."""
    at_rest = state.phase in (Phase.IDLE, Phase.DRAINING)
    foreign = None if active is None or not at_rest else active.foreign
    if active is not None and foreign is not None and foreign.alive:
        # Both generations live, as in an upgrade of ours; whoever waits for `running` goes on.
        text = foreign_text(active.master.pid, foreign.pid)
        if active.brood().accepting or procfs.brood_of(procfs.children(foreign.pid)).accepting:
            return "upgrading", "foreign_upgrade", text
        return "degraded", "no_workers", f"no worker of either accepts connections: {text}"
    if at_rest and active is not None and not active.brood().accepting:
        detail = (
            f"the master {active.master.pid} has no worker that accepts connections; nginxctl "
            "reload brings them back where the configuration is good"
        )
        return "degraded", "no_workers", detail
    beside = [why_beside(one, active) for one in shown if one.bystander and one.alive]
    detail = "; ".join(filter(None, (state.detail, *beside)))
    return public_state(state), _reason(state), detail


def _prospect(
    state: State, spent: object, next_start: float | None, drain_left: float | None
) -> str | None:
    """How long this may still take, and what comes then, as far as it is known."""
    if next_start is not None:
        return f"nginx is started again in {next_start:.1f} s (nginxctl start: now)"
    if state.phase is Phase.DRAINING and drain_left is not None:
        return f"old connections end in {drain_left:.0f} s at the latest; nginxctl drain --now"
    if state.phase in UPGRADING and isinstance(spent, int | float):
        return "; ".join(filter(None, (_time_left(state, spent), _to_be_held(state)))) or None
    return None


def _unserved(state: State, prospect: str | None, held: object) -> str | None:
    """What clients see while no worker accepts."""
    if state.phase is Phase.STOPPING:
        again = " until it is started again" if state.goal is Goal.RESTART else ""
        return f"nginx takes no new connections{again}"
    seen = None
    if state.phase in (Phase.BACKOFF, Phase.STARTING):
        seen = "new connections wait in the held listeners" if held else "clients are refused"
    elif state.phase is Phase.DEGRADED and not held:
        seen = "clients are refused"
    return "; ".join(filter(None, (seen, prospect))) or None


def _time_left(state: State, spent: float) -> str | None:
    """Of the phases that have a limit of their own; `spent` is how long this one is on."""
    upgrade = state.upgrade
    if upgrade is None:
        return None
    limit = state.rules.policy.come_up
    match state.phase:
        case Phase.SPAWNING:
            return f"the candidate has to be ready in {_left(limit, spent)}"
        case Phase.CANARY if upgrade.waits:
            return f"the canary proved nothing: {upgrade.doubt}"
        case Phase.CANARY:
            most = f"{_left(upgrade.canary + limit, spent)} at most"
            if spent < upgrade.canary:
                return f"the canary ends in {_left(upgrade.canary, spent)} at the earliest, {most}"
            return f"the canary waits for evidence, {most}"
        case Phase.SOAKING:
            return f"the soak ends in {_left(upgrade.soak, spent)}"
        case _:
            return None


def _left(whole: float, spent: float) -> str:
    return f"{max(0.0, whole - spent):.1f} s"


def _to_be_held(state: State) -> str | None:
    decided = (Phase.HELD, Phase.COMMITTING, Phase.ROLLING_BACK)
    if state.upgrade is None or not state.upgrade.hold or state.phase in decided:
        return None
    return "after the soak it is held, for nginxctl promote or nginxctl rollback"


def _reason(state: State) -> str | None:
    if state.reason is not None or state.phase is Phase.IDLE:
        return state.reason
    return "previous_generation_draining" if state.phase is Phase.DRAINING else state.phase.value


def _upgrade(
    state: State, shown: Sequence[Generation], more: Mapping[str, object]
) -> dict[str, object] | None:
    if state.upgrade is None or state.phase not in UPGRADING:
        return None
    candidate = next((one for one in shown if one.role is Role.CANDIDATE), None)
    return {
        "id": state.upgrade.id,
        "phase": state.phase.value,
        "candidate": None if candidate is None else f"g{candidate.id}",
        "inconclusive": state.upgrade.doubt or None,
        **more,
    }


def _generation(one: Generation) -> dict[str, object]:
    brood = one.brood()
    master_lives = one.alive
    return {
        "id": f"g{one.id}",
        "role": one.role.value,
        "version": one.program.version,
        "binary": one.program.path,
        "sha256": one.program.sha256,
        "master_pid": one.master.pid if master_lives else None,
        "master_resources": resources_of(one.master.pid) if master_lives else None,
        "workers": [_worker(pid, brood) for pid in sorted(brood.workers)],
    }


def _upgradable(state: State, one: Generation, binary: str) -> dict[str, object] | None:
    """Whether the active master would take USR2 now; None where that is not the question."""
    if state.phase is not Phase.IDLE or one.role is not Role.ACTIVE or not one.alive:
        return None
    if one.foreign is not None and one.foreign.alive:
        text = foreign_text(one.master.pid, one.foreign.pid)
        return {"ok": False, "reason": "foreign_upgrade", "detail": text}
    refusal = objection(one.master.pid, Path(binary))
    if refusal is None:
        return {"ok": True, "reason": None, "detail": None}
    return {"ok": False, "reason": refusal.reason, "detail": refusal.detail}


def _worker(pid: int, brood: procfs.Brood) -> dict[str, object]:
    state = "accepting" if pid in brood.accepting else "draining"
    return {"pid": pid, "state": state, "resources": resources_of(pid)}
