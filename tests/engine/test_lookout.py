"""The patrol within an upgrade: who is asked besides, what condemns, and what is remembered."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock

from supervisor.core.actions import Watch
from supervisor.core.events import CandidateHealthy, Triggered
from supervisor.core.observation import Attribution, Observation, Outcome
from supervisor.core.probe_settings import HttpProbe, TcpAddress
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.edges.probes import Beside
from supervisor.lookout import PAUSE
from tests.engine.test_evidence import HOME, NEW, Scene

PASS, FAIL = Outcome.PASS, Outcome.FAIL
PAGE = HttpProbe(
    name="page", url="http://127.0.0.1/", address=TcpAddress("127.0.0.1", 80), target="/",
    host="127.0.0.1", timeout=2.0,
)  # fmt: skip
WORKERS = frozenset({11, 12})


def scene_with(*probes: HttpProbe) -> Scene:
    scene = Scene(*probes)
    brood = SimpleNamespace(accepting=WORKERS, workers=WORKERS, starting=())
    scene.candidate.look = scene.candidate.brood = lambda: brood
    return scene


def answer(pid: int | None, outcome: Outcome = PASS) -> Observation:
    by = None if pid is None else Attribution.SOCKET_OWNER
    return Observation(
        probe="page", outcome=outcome, detail="status 500", latency=0.0, generation=NEW,
        worker_pid=pid, attribution=Attribution.PRIVATE_LISTENER, worker_by=by,
    )  # fmt: skip


def beside(scene: Scene) -> Beside:
    found = scene.last_aim.beside
    assert found is not None
    return found


async def test_each_worker_is_asked_in_canary_and_soak(autojump_clock: MockClock) -> None:
    quick = replace(PAGE, name="quick", timeout=1.0)
    scene = scene_with(PAGE, quick)
    await scene.prepare()
    for watch in (Watch.CANARY, Watch.SOAK):
        scene.evidence.aim(watch)
        asked = beside(scene)
        assert (asked.probe, asked.pause()) == ("quick", PAUSE)
        assert (asked.aim.address, asked.aim.cover) == (("127.0.0.1", 18931), frozenset())
        assert asked.wants_more()
        for pid in WORKERS:
            asked.report(answer(pid))
        assert not asked.wants_more()
        asked.begin()
        assert asked.wants_more()
    assert scene.last_aim.address is None  # in the soak the probes ask as configured
    assert scene.evidence.lookout.observed.report() == {
        "canary_observed": True, "attribution": ["private_listener", "socket_owner"],
        "coverage": {"answered": 2, "workers": 2},
    }  # fmt: skip


@pytest.mark.parametrize("why", ["no port", "off", "no http", "not asked", "failed before"])
async def test_there_is_no_patrol_where_it_would_prove_nothing(
    autojump_clock: MockClock, why: str
) -> None:
    scene = Scene(HOME) if why == "no http" else scene_with(PAGE)
    if why == "no port":
        scene.run.port = None
    elif why == "off":
        scene.world.settings.triggers = TriggerSettings(patrol=False)
    elif why == "not asked":
        scene.why_not["page"] = "it is another block's"
    await scene.prepare(*([FAIL] * 4 if why == "failed before" else []))
    for watch in (Watch.CANARY, Watch.SOAK):
        scene.evidence.aim(watch)
        assert scene.last_aim.beside is None


@pytest.mark.parametrize("watch", [Watch.CANARY, Watch.SOAK])
async def test_a_bad_worker_condemns(autojump_clock: MockClock, watch: Watch) -> None:
    scene = scene_with(PAGE)
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    scene.evidence.aim(watch)
    for _ in range(PAGE.fall):
        beside(scene).report(answer(12))
        beside(scene).report(answer(11, FAIL))
        await trio.sleep(PAGE.interval)
    (found,) = [one for one in scene.posted if isinstance(one, Triggered)]
    assert found.reason == "worker_failing"
    (told,) = [one for one in scene.told if one.get("event") == "trigger"]
    assert told["attribution"] == ["private_listener", "socket_owner"]


async def test_a_canary_lasts_until_each_worker_was_asked(autojump_clock: MockClock) -> None:
    scene = scene_with(PAGE)
    scene.candidate.program = SimpleNamespace(workers=2)
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    scene.see(PASS, probe="page", times=PAGE.rise)
    assert CandidateHealthy() not in scene.posted
    told = scene.evidence.to_data()
    beside(scene).report(answer(11))
    assert CandidateHealthy() not in scene.posted
    beside(scene).report(answer(12, FAIL))
    beside(scene).report(answer(12))
    assert scene.posted == [CandidateHealthy()]
    again = scene_with(PAGE)
    again.candidate.program = SimpleNamespace(workers=2)
    again.evidence.from_data(told, at=trio.current_time())
    assert again.evidence.lacking == "not every worker has been asked yet"
    again.evidence.aim(Watch.ACTIVE)
    assert not again.evidence.lacking  # there is no candidate any more


async def test_what_comes_after_the_judgement_is_nobodys(autojump_clock: MockClock) -> None:
    scene = scene_with(PAGE)
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    late = beside(scene)
    scene.evidence.aim(Watch.ACTIVE)
    late.report(answer(11))
    assert scene.evidence.lookout.observed.report()["coverage"] == {"answered": 0, "workers": 2}


async def test_what_was_seen_outlives_the_supervisor(autojump_clock: MockClock) -> None:
    scene = scene_with(PAGE)
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    beside(scene).report(answer(11))
    data = json.loads(json.dumps(scene.evidence.to_data()))
    after = scene_with(PAGE)
    after.evidence.from_data(data, at=trio.current_time())
    told = scene.evidence.lookout.observed.report()
    assert after.evidence.lookout.observed.report() == told
    assert told["coverage"] == {"answered": 1, "workers": 2}
    assert beside(after).wants_more()
