"""Narratives of the machine: after each event the whole state and all actions are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core import commands
from supervisor.core.actions import Action, Aim, Operation, Pronounce, Run, Settle, Watch
from supervisor.core.events import Event, MasterExited, Requested
from supervisor.core.machine import step
from supervisor.core.model import Phase, Rules, State, Upgrade, Verdict
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import VerdictPolicy

RULES = Rules(policy=VerdictPolicy(come_up=10.0, canary=5.0, soak=30.0))
FRESH = State(rules=RULES, restarts=RestartPolicy())
IDLE = replace(FRESH, phase=Phase.IDLE, active=1, served=True)
UPGRADE = Upgrade(id="u1", canary=5.0, soak=30.0)
CANDIDATE = 2

UNDERWAY: dict[Phase, State] = {
    phase: replace(
        IDLE,
        phase=phase,
        upgrade=UPGRADE,
        candidate=None if phase is Phase.PREFLIGHT else CANDIDATE,
    )
    for phase in (
        Phase.PREFLIGHT,
        Phase.SPAWNING,
        Phase.CANARY,
        Phase.SHIFTING,
        Phase.SOAKING,
        Phase.HELD,
        Phase.COMMITTING,
    )
} | {
    Phase.ROLLING_BACK: replace(
        IDLE,
        phase=Phase.ROLLING_BACK,
        candidate=CANDIDATE,
        upgrade=replace(UPGRADE, reason="probe_failed", detail="home"),
        reason="probe_failed",
        detail="home",
    )
}
DRAINING = replace(IDLE, phase=Phase.DRAINING, active=2, retiring=frozenset({1}), rescuable=True)

NOTHING, ON_ACTIVE = Aim(Watch.NOTHING), Aim(Watch.ACTIVE)
ROLL_BACK = Run(operation=Operation.ROLL_BACK)
STARTED = Settle(ok=True, reason="started", detail="nginx serves")
HEALTHY = Pronounce(
    verdict=Verdict.COMMITTED, reason="healthy", detail="the candidate serves alone"
)


def of(*phases: Phase) -> list[pytest.param]:
    return [pytest.param(UNDERWAY[phase], id=phase.value) for phase in phases]


FORWARD = of(Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD)


class Story:
    """A machine that is told one event after the other."""

    def __init__(self, state: State) -> None:
        self.state = state

    def tell(self, event: Event, *actions: Action, **changes: Any) -> None:
        """`event` leads to exactly `actions`, and to the state before with `changes`."""
        expected = replace(self.state, **changes)
        self.state, did = step(self.state, event)
        assert did == actions
        assert self.state == expected

    def ignores(self, event: Event) -> None:
        """`event` changes nothing."""
        self.tell(event)


def asked(command: commands.Command, request: int = 7, upgrade_id: str = "") -> Requested:
    return Requested(request=request, command=command, upgrade_id=upgrade_id)


def exited(generation: int, *, orderly: bool = False, at: float = 100.0) -> MasterExited:
    return MasterExited(
        generation=generation, orderly=orderly, detail=f"master of g{generation}", at=at
    )
