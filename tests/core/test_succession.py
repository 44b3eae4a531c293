"""When the supervisor may be replaced, and that the machine's state survives it whole."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from supervisor.core.commands import Reload
from supervisor.core.events import MasterExited
from supervisor.core.judge import SETTLE, Criterion, Judge
from supervisor.core.model import Goal, Phase, Rules, State, Upgrade
from supervisor.core.observation import Observation, Outcome
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.succession import Moment, rule, state_from_data, state_to_data
from supervisor.core.verdict_policy import VerdictPolicy

FRESH = State(rules=Rules(), restarts=RestartPolicy())
UPGRADE = Upgrade(id="u1", canary=1.0, soak=2.0)


def of(phase: Phase, *, hold: bool = False) -> State:
    upgrading = phase not in AT_REST and phase not in (Phase.STARTING, Phase.STOPPING)
    return replace(FRESH, phase=phase, upgrade=replace(UPGRADE, hold=hold) if upgrading else None)


AT_REST = {Phase.IDLE, Phase.DRAINING, Phase.BACKOFF, Phase.STOPPED, Phase.DEGRADED}
WAITING = {Phase.CANARY, Phase.SOAKING, Phase.HELD}


@pytest.mark.parametrize("phase", Phase)
def test_the_moment_by_phase(phase: Phase) -> None:
    state = of(phase)
    by_default = Moment.NOW if phase in AT_REST else Moment.LATER
    assert rule(state, now=False).moment is by_default
    at_once = Moment.NOW if phase in AT_REST | WAITING else Moment.LATER
    ruling = rule(state, now=True)
    assert ruling.moment is at_once
    assert bool(ruling.detail) is (at_once is Moment.LATER)


def test_what_is_held_is_not_waited_for_unless_it_is_decided() -> None:
    for phase in (Phase.PREFLIGHT, Phase.SOAKING, Phase.HELD):
        ruling = rule(of(phase, hold=True), now=False)
        assert (ruling.moment, ruling.reason) == (Moment.NEVER, "upgrade_held")
        assert "--now" in ruling.detail
        assert rule(of(phase, hold=True), now=True).moment is not Moment.NEVER
    for phase in (Phase.COMMITTING, Phase.ROLLING_BACK):
        assert rule(of(phase, hold=True), now=False).moment is Moment.LATER


def test_not_while_it_ends_nor_beside_a_reload() -> None:
    ending = replace(FRESH, phase=Phase.STOPPING, goal=Goal.EXIT)
    assert rule(ending, now=True).reason == "stopping"
    assert rule(replace(FRESH, phase=Phase.CANARY, leaving=True), now=True).reason == "stopping"
    assert rule(replace(of(Phase.IDLE), reloading=True), now=True).moment is Moment.LATER


def test_a_state_goes_along_whole() -> None:
    state = State(
        rules=Rules(policy=VerdictPolicy(canary=7.0)),
        restarts=RestartPolicy(
            crash_limit=9, starts=(90.0, 101.0), crashes=(95.0,), last_delay=0.4
        ),
        phase=Phase.SOAKING,
        goal=Goal.RESTART,
        active=1,
        candidate=2,
        retiring=frozenset({3, 4}),
        upgrade=replace(UPGRADE, hold=True, healthy=True, canary_elapsed=True, reason="operator"),
        reason="operator",
        detail="why",
        served=True,
        rescuable=True,
        waiting=((5, Reload()), (6, Reload())),
    )
    data = json.loads(json.dumps(state_to_data(state, at=100.0), allow_nan=False))
    rules, limits = Rules(policy=VerdictPolicy(canary=8.0)), RestartPolicy(crash_limit=1)
    again = state_from_data(data, rules=rules, restarts=limits, at=1100.0)
    expected = RestartPolicy(
        crash_limit=1, starts=(1090.0, 1101.0), crashes=(1095.0,), last_delay=0.4
    )
    assert again == replace(state, rules=rules, restarts=expected)
    assert state_from_data(
        state_to_data(FRESH, at=0.0), rules=FRESH.rules, restarts=FRESH.restarts, at=0.0
    ) == replace(FRESH)


def test_no_field_of_the_state_is_forgotten() -> None:
    """What is not handed over is empty whenever the supervisor is replaced, or is the settings'."""
    told = set(state_to_data(FRESH, at=0.0))
    assert told - {"starts", "crashes", "last_delay"} == {one.name for one in fields(State)} - {
        "rules", "restarts", "reloading", "exits", "leaving",
    }  # fmt: skip
    noted = MasterExited(generation=1, orderly=True, detail="", at=0.0)
    assert "exits" not in state_to_data(replace(FRESH, exits=(noted,)), at=0.0)


# --- the judge -------------------------------------------------------------------------------


def judge() -> Judge:
    criteria = [
        Criterion(name="a", rise=2, fall=3, up_before=True),
        Criterion(name="b", rise=1, fall=2, up_before=True),
    ]
    return Judge(candidate=2, criteria=criteria, expected_workers=2)


def seen(name: str, outcome: Outcome, worker: int | None = None) -> Observation:
    return Observation(
        probe=name, outcome=outcome, detail=f"{outcome.value}!", latency=0.0, generation=2,
        worker_pid=worker,
    )  # fmt: skip


def carried(before: Judge, *, at: float, later: float, into: Judge | None = None) -> Judge:
    after = judge() if into is None else into
    after.recall(json.loads(json.dumps(before.memory(at=at))), at=later)
    return after


def test_rows_of_passes_and_failures_go_on() -> None:
    before = judge()
    before.census(frozenset({10, 11}), at=0.0)
    before.observe(seen("a", Outcome.PASS, 10))
    before.observe(seen("a", Outcome.FAIL, 11))
    before.observe(seen("a", Outcome.FAIL, 11))
    after = carried(before, at=1.0, later=500.0)
    assert after.memory(at=500.0) == before.memory(at=1.0)
    assert after.judged
    assert after.unheard == {"b"}
    assert after.doubted == {"a"}
    assert after.missing_workers == {11}
    assert after.lacking == before.lacking
    after.observe(seen("a", Outcome.FAIL, 11))
    assert after.trigger is not None
    assert after.trigger.detail == "probe a failed 3 times: fail!"


def test_ends_that_are_not_understood_yet_are_still_to_be_understood() -> None:
    before = judge()
    before.census(frozenset({10, 11}), at=0.0)
    before.worker_exited(10, code=1, signal=None, draining=False, at=0.5)
    before.worker_exited(11, code=None, signal=None, draining=False, at=1.0)
    before.census(frozenset(), at=1.0)
    after = carried(before, at=1.0, later=100.0)
    assert after.memory(at=100.0) == before.memory(at=1.0)
    after.census(frozenset(), at=100.0 + SETTLE)
    assert after.trigger is not None
    assert after.trigger.reason == "worker_died"


def test_of_a_probe_that_is_not_configured_any_more_nothing_is_taken_over() -> None:
    before = judge()
    before.observe(seen("b", Outcome.FAIL))
    other = Judge(candidate=2, criteria=[Criterion(name="c", rise=1, fall=1, up_before=True)])
    after = carried(before, at=0.0, later=0.0, into=other)
    assert after.unheard == {"c"}
    assert not after.doubted
