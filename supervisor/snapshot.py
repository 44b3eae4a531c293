"""What `status` tells, as the reply of the interface; computed from what is known, at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata

from supervisor.core.model import UPGRADING, Phase, State, public_state
from supervisor.edges import procfs
from supervisor.edges.disk_binary import DiskBinary
from supervisor.edges.generation import Generation, Role
from supervisor.edges.resources import resources_of

_ORDER = {Role.ACTIVE: 0, Role.CANDIDATE: 1, Role.RETIRING: 2}


def status(
    *,
    state: State,
    generations: Sequence[Generation],
    disk: DiskBinary,
    config_matches: bool | None,
    probes: Sequence[Mapping[str, object]],
    restarts: int,
    last_verdict: Mapping[str, object] | None,
    upgrade: Mapping[str, object],
    next_start: float | None,
) -> dict[str, object]:
    """The reply of Status: the active generation first, orphans of a dead master as retiring.

    `upgrade` is what the running upgrade has besides its id, phase and candidate; `next_start` is
    in how many seconds nginx is started again.
    """
    shown = sorted(generations, key=lambda one: (_ORDER[one.role], one.id))
    active = next((one for one in shown if one.role is Role.ACTIVE), None)
    told, reason, detail = _condition(state, active, next_start)
    return {
        "state": told,
        "reason": reason,
        "detail": detail,
        "upgrade": _upgrade(state, shown, upgrade),
        "generations": [_generation(one) for one in shown],
        "binary_on_disk": {
            "path": disk.path,
            "version": disk.version,
            "sha256": disk.sha256,
            "matches_active": None
            if active is None or disk.sha256 is None
            else disk.sha256 == active.program.sha256,
        },
        "config_matches_active": config_matches,
        # Duplicates of the listeners are not kept yet.
        "held_listeners": {"available": False, "count": 0, "addresses": []},
        "probes": list(probes),
        "restarts": restarts,
        "last_verdict": None if last_verdict is None else dict(last_verdict),
        "supervisor_pid": os.getpid(),
        "supervisor_version": version(),
    }


def version() -> str:
    """This program's own version."""
    return metadata.version("nginx-supervisor")


def _condition(
    state: State, active: Generation | None, next_start: float | None
) -> tuple[str, str | None, str | None]:
    """State, reason and detail; a master at rest without workers is degraded whoever did that."""
    at_rest = state.phase in (Phase.IDLE, Phase.DRAINING)
    if at_rest and active is not None and not active.brood().accepting:
        detail = (
            f"the master {active.master.pid} has no worker that accepts connections; nginxctl "
            "reload brings them back where the configuration is good"
        )
        return "degraded", "no_workers", detail
    detail = state.detail
    if next_start is not None:
        again = f"nginx is started again in {next_start:.1f} s (nginxctl start: now)"
        detail = f"{detail}; {again}" if detail else again
    return public_state(state), _reason(state), detail or None


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


def _worker(pid: int, brood: procfs.Brood) -> dict[str, object]:
    state = "accepting" if pid in brood.accepting else "draining"
    return {"pid": pid, "state": state, "resources": resources_of(pid)}
