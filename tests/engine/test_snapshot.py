"""What `status` says of a state: never better than what can be seen of the processes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor import snapshot
from supervisor.core.model import Goal, Phase, State, Upgrade
from supervisor.edges.disk_binary import DiskBinary
from supervisor.edges.generation import Role
from supervisor.edges.procfs import Brood
from supervisor.verdicts import was_begun
from tests.engine.conftest import FRESH

HELD = {"available": True, "count": 0, "addresses": []}
HELD_THEN = "after the soak it is held, for nginxctl promote or nginxctl rollback"
NOBODY: frozenset[int] = frozenset()
PROGRAM = SimpleNamespace(version="1.22.1", path="/usr/sbin/nginx", sha256="ab")
NO_BINARY = DiskBinary(path="/usr/sbin/nginx", sha256=None, version=None)
NO_PID = 2**22 + 1  # above what the kernel gives out, so nothing is read of a stranger


def generation(number: int, role: Role, *, accepting: int = 0, draining: int = 0) -> Any:
    pids = range(NO_PID, NO_PID + accepting + draining)
    brood = Brood(
        accepting=frozenset(pids[:accepting]), draining=frozenset(pids[accepting:]),
        starting=NOBODY, cache=NOBODY, masters=NOBODY,
    )  # fmt: skip
    master = SimpleNamespace(pid=NO_PID)
    return SimpleNamespace(
        id=number, role=role, program=PROGRAM, master=master, alive=True, brood=lambda: brood,
        foreign=None, bystander=False,
    )  # fmt: skip


def status(
    state: State,
    *generations: Any,
    next_start: float | None = None,
    spent: float | None = None,
    drain_left: float | None = None,
    held: int = 0,
) -> dict[str, object]:
    return snapshot.status(
        state=state, generations=generations, disk=NO_BINARY,
        config_matches=True, held={**HELD, "count": held}, probes=[], restarts=0, last_verdict=None,
        upgrade={} if spent is None else {"phase_elapsed_s": spent},
        next_start=next_start, drain_left=drain_left,
    )  # fmt: skip


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.DRAINING])
def test_degraded_where_nobody_accepts(phase: Phase) -> None:
    """Also while an old generation drains: its workers serve what they have and take no more."""
    state = replace(FRESH, phase=phase, active=2, retiring=frozenset({1}))
    old = generation(1, Role.RETIRING, draining=2)
    bad = status(state, old, generation(2, Role.ACTIVE))
    assert (bad["state"], bad["reason"]) == ("degraded", "no_workers")
    assert "nginxctl reload" in str(bad["detail"])
    good = status(state, old, generation(2, Role.ACTIVE, accepting=1))
    assert good["state"] == ("running" if phase is Phase.IDLE else "draining")
    assert good["reason"] == (None if phase is Phase.IDLE else "previous_generation_draining")


def test_backoff_tells_why_nginx_is_down_and_when_it_is_tried_next() -> None:
    state = replace(FRESH, phase=Phase.BACKOFF, reason="start_failed", detail="bind() failed")
    told = status(state, next_start=3.21)
    assert (told["state"], told["reason"]) == ("backoff", "start_failed")
    again = "nginx is started again in 3.2 s (nginxctl start: now)"
    assert told["detail"] == f"bind() failed; clients are refused; {again}"
    waiting = status(state, next_start=3.21, held=2)
    assert waiting["detail"] == (
        f"bind() failed; new connections wait in the held listeners; {again}"
    )
    orphans = generation(1, Role.RETIRING, accepting=1)
    assert status(state, orphans, next_start=3.21)["detail"] == f"bind() failed; {again}"


def test_what_clients_see_of_one_that_was_given_up() -> None:
    state = replace(FRESH, phase=Phase.DEGRADED, reason="start_limit", detail="given up")
    assert status(state)["detail"] == "given up; clients are refused"
    assert status(state, generation(1, Role.RETIRING, accepting=1))["detail"] == "given up"


@pytest.mark.parametrize(
    ("phase", "hold", "spent", "told"),
    [
        (Phase.PREFLIGHT, False, 0.1, None),
        (Phase.SPAWNING, False, 0.1, "the candidate has to be ready in 9.9 s"),
        (Phase.CANARY, False, 1.0, "the canary ends in 4.0 s at the earliest, 14.0 s at most"),
        (Phase.CANARY, False, 6.0, "the canary waits for evidence, 9.0 s at most"),
        (Phase.SHIFTING, True, 0.1, HELD_THEN),
        (Phase.SOAKING, True, 10.0, f"the soak ends in 20.0 s; {HELD_THEN}"),
        (Phase.SOAKING, False, 31.0, "the soak ends in 0.0 s"),
        (Phase.HELD, True, 31.0, None),
        (Phase.COMMITTING, True, 0.1, None),
        (Phase.ROLLING_BACK, True, 0.1, None),
    ],
)
def test_how_long_a_phase_may_take_and_what_comes_then(
    phase: Phase,
    hold: bool,  # noqa: FBT001
    spent: float,
    told: str | None,
) -> None:
    upgrade = Upgrade(id="u1", canary=5, soak=30, hold=hold)
    assert status(replace(FRESH, phase=phase, upgrade=upgrade), spent=spent)["detail"] == told


def test_how_long_old_connections_may_take() -> None:
    state = replace(FRESH, phase=Phase.DRAINING, active=2, retiring=frozenset({1}))
    new = generation(2, Role.ACTIVE, accepting=1)
    assert status(state, new, drain_left=26.4)["detail"] == (
        "old connections end in 26 s at the latest; nginxctl drain --now"
    )
    assert status(state, new)["detail"] is None


@pytest.mark.parametrize(
    ("goal", "told"),
    [
        (Goal.STOP, "nginx takes no new connections"),
        (Goal.EXIT, "nginx takes no new connections"),
        (Goal.RESTART, "nginx takes no new connections until it is started again"),
    ],
)
def test_one_that_stops_is_told_from_one_that_drains(goal: Goal, told: str) -> None:
    upgrade = Upgrade(id="u1", canary=5, soak=30, hold=True)
    state = replace(FRESH, phase=Phase.STOPPING, goal=goal, reason="stopping", upgrade=upgrade)
    found = status(state, generation(1, Role.ACTIVE, draining=1), spent=3.0, drain_left=3.0)
    assert (found["state"], found["reason"], found["detail"]) == ("draining", "stopping", told)
    candidate_first = status(state, generation(1, Role.ACTIVE, accepting=1), spent=3.0)
    assert candidate_first["detail"] is None


def test_the_active_generation_comes_first() -> None:
    state = replace(FRESH, phase=Phase.CANARY, upgrade=Upgrade(id="u1", canary=1, soak=1))
    old, new = generation(1, Role.ACTIVE, accepting=1), generation(2, Role.CANDIDATE, accepting=1)
    told = status(state, new, old)
    assert [one["id"] for one in told["generations"]] == ["g1", "g2"]  # type: ignore[attr-defined]
    assert told["state"] == "upgrading"
    assert told["upgrade"] == {
        "id": "u1", "phase": "canary", "candidate": "g2", "inconclusive": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "begun"),
    [
        ({"verdict": "committed", "phases": {"preflight": 0.1}}, True),
        ({"verdict": "rolled_back", "operation": "incident"}, True),
        ({"verdict": "refused", "reason": "config_rejected", "phases": {"preflight": 0.1}}, True),
        ({"verdict": "refused", "reason": "upgrade_in_progress", "phases": {}}, False),
        ({"verdict": "refused", "reason": "not_running"}, False),
    ],
)
def test_a_refusal_at_once_is_no_last_verdict(verdict: dict[str, object], begun: bool) -> None:  # noqa: FBT001
    assert was_begun(verdict) is begun
