"""The line that `systemctl status` shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core.model import Goal, Phase, Rules, State, Upgrade
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.service_status import is_ending, may_serve, service_status

VERSIONS = {1: "1.22.1", 2: "1.26.3"}
IDLE = State(rules=Rules(), restarts=RestartPolicy(), phase=Phase.IDLE, active=1)
UPGRADE = Upgrade(id="u1", canary=1.0, soak=1.0)
RUNS = replace(IDLE, upgrade=UPGRADE)


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (IDLE, "running: g1 nginx 1.22.1 (idle)"),
        (replace(IDLE, reloading=True), "running: g1 nginx 1.22.1 (reloading)"),
        (replace(IDLE, phase=Phase.STARTING, active=None), "starting: (starting)"),
        (replace(IDLE, active=7), "running: g7 (idle)"),
        (replace(RUNS, phase=Phase.PREFLIGHT), "upgrading: g1 nginx 1.22.1 (preflight)"),
        (
            replace(RUNS, phase=Phase.CANARY, candidate=2),
            "upgrading: g1 nginx 1.22.1 -> g2 nginx 1.26.3 (canary)",
        ),
        (
            replace(
                RUNS, phase=Phase.HELD, candidate=2, upgrade=replace(UPGRADE, waits=True)
            ),
            "upgrading: g1 nginx 1.22.1 -> g2 nginx 1.26.3 (held); "
            "waits for nginxctl promote or rollback",
        ),
        (
            replace(
                RUNS, phase=Phase.ROLLING_BACK, candidate=2,
                upgrade=replace(UPGRADE, reason="probe_failed"),
            ),
            "upgrading: g1 nginx 1.22.1 <- g2 nginx 1.26.3 (rolling_back); probe_failed",
        ),
        (
            replace(IDLE, phase=Phase.DRAINING, active=2, retiring=frozenset({1, 9})),
            "draining: g2 nginx 1.26.3, connections of g1 nginx 1.22.1 finish (draining)",
        ),
        (
            replace(IDLE, phase=Phase.DRAINING, active=2, retiring=frozenset({9})),
            "draining: g2 nginx 1.26.3 (draining)",
        ),
        (
            replace(IDLE, phase=Phase.BACKOFF, active=None, reason="start_failed"),
            "backoff: (backoff); start_failed",
        ),
        (
            replace(IDLE, phase=Phase.STOPPING, goal=Goal.EXIT, reason="stopping"),
            "draining: g1 nginx 1.22.1 (stopping)",
        ),
        (
            replace(IDLE, phase=Phase.STOPPED, active=None, reason="foreign_stop"),
            "stopped: (stopped); foreign_stop",
        ),
    ],
)  # fmt: skip
def test_the_line(state: State, line: str) -> None:
    assert service_status(state, VERSIONS) == line


def test_what_is_seen_and_what_is_to_be_said_besides() -> None:
    line = service_status(
        IDLE, VERSIONS, told="degraded", reason="no_workers", note="the configuration is rejected"
    )
    assert line == "degraded: g1 nginx 1.22.1 (idle); no_workers; the configuration is rejected"


def test_when_a_worker_that_accepts_means_that_the_service_is_up() -> None:
    down = {Phase.STARTING, Phase.STOPPING, Phase.STOPPED}
    assert {one for one in Phase if not may_serve(replace(IDLE, phase=one))} == down


def test_when_the_supervisor_ends() -> None:
    stopping = replace(IDLE, phase=Phase.STOPPING, goal=Goal.EXIT)
    assert is_ending(stopping)
    assert is_ending(replace(stopping, phase=Phase.STOPPED))
    assert not is_ending(replace(stopping, phase=Phase.COMMITTING))
    assert not is_ending(replace(stopping, goal=Goal.STOP))
    assert is_ending(replace(stopping, goal=Goal.RUN, phase=Phase.CANARY, leaving=True))
