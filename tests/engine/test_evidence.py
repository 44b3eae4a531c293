"""Evidence with a prober and an nginx of paper, in virtual time: who is asked, and what follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from supervisor import evidence
from supervisor.core.actions import Watch
from supervisor.core.errors import OperationFailed
from supervisor.core.events import CandidateHealthy, Event, ProbeFailed, Triggered
from supervisor.core.observation import Observation, Outcome
from supervisor.core.probe_settings import (
    ExecProbe,
    OnFailure,
    ProbeSettings,
    TcpAddress,
    TcpProbe,
)
from supervisor.core.settings import UpgradeSettings
from supervisor.core.signals import LogLine, Severity
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.edges.linux import ExitStatus
from supervisor.edges.probe_listener import Sharing
from supervisor.edges.probes import Aim, Prober
from supervisor.evidence import GRACE, Evidence
from supervisor.operations.world import World
from supervisor.watch import Counted, WorkerExited

PASS, FAIL, UNSURE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
HOME = TcpProbe(name="home", address=TcpAddress("127.0.0.1", 80), timeout=3.0)
OTHER = replace(HOME, name="other", timeout=1.0)
COMMAND = ExecProbe(name="command", command=("/bin/true",))
OLD, NEW = 1, 2


@dataclass
class PaperProber:
    """Remembers what it is told, and answers those that are asked as a test has it."""

    aims: list[Aim | None] = field(default_factory=list)
    asked: list[set[str]] = field(default_factory=list)
    answer: Callable[[str], None] = lambda _: None

    def aim(self, aim: Aim) -> None:
        self.aims.append(aim)

    def pause(self) -> None:
        self.aims.append(None)

    def ask(self, names: Iterable[str]) -> None:
        self.asked.append(set(names))
        for name in sorted(names):
            self.answer(name)


class Scene:
    """An evidence, and everything around it."""

    def __init__(self, *probes: ProbeSettings) -> None:
        self.prober = PaperProber()
        self.posted: list[Event] = []
        self.told: list[Mapping[str, object]] = []
        self.why_not: dict[str, str] = {}
        self.sharing = Sharing.EXCLUSIVE
        brood = SimpleNamespace(accepting=frozenset({11}), workers=frozenset({11}), starting=())
        self.candidate = SimpleNamespace(
            id=NEW, master=SimpleNamespace(pid=9), program=SimpleNamespace(workers=1), ready=True,
            look=lambda: brood, brood=lambda: brood, workers={}, output=None,
        )  # fmt: skip
        self.run = SimpleNamespace(port=18931, tls_port=None, judged=False)
        listener = SimpleNamespace(
            why_not=lambda probe, *, tls: self.why_not.get(probe.name),
            exclusive_to=lambda *_: self.sharing,
        )
        self.world = SimpleNamespace(
            active=SimpleNamespace(id=OLD, master=SimpleNamespace(pid=8)),
            candidate=self.candidate, run=self.run, listener=listener, generations={},
            log=structlog.get_logger(), hear_signal=lambda _: None, settle_logs=lambda: None,
            settings=SimpleNamespace(
                upgrade=UpgradeSettings(), triggers=TriggerSettings()
            ),
        )  # fmt: skip
        self.evidence = Evidence(
            cast(World, self.world), probes, cast(Prober, self.prober),
            post=self.posted.append, progress=self.told.append,
        )  # fmt: skip
        self.evidence.aim(Watch.ACTIVE)

    def see(
        self, outcome: Outcome, *, probe: str = "home", generation: int | None = NEW, times: int = 1
    ) -> None:
        for _ in range(times):
            self.evidence.observe(
                Observation(
                    probe=probe, outcome=outcome, detail=f"{outcome.value} of {generation}",
                    latency=0.0, generation=generation,
                )
            )  # fmt: skip

    async def prepare(self, *outcomes: Outcome) -> None:
        """A baseline at which each probe that is asked answers so, PASS where nothing is left."""
        left = list(outcomes)
        async with trio.open_nursery() as nursery:
            self.prober.answer = lambda name: nursery.start_soon(
                self._reply, name, left.pop(0) if left else PASS
            )
            await self.evidence.baseline()
        self.prober.answer = lambda _: None

    async def _reply(self, name: str, outcome: Outcome) -> None:
        await trio.sleep(0.1)
        self.see(outcome, probe=name, generation=OLD)

    @property
    def last_aim(self) -> Aim:
        aim = self.prober.aims[-1]
        assert aim is not None
        return aim

    @property
    def state(self) -> dict[str, object]:
        return {str(one["name"]): one["state"] for one in self.evidence.report()}


async def failing(evidence: Evidence) -> OperationFailed:
    with pytest.raises(OperationFailed) as caught:
        await evidence.last_look()
    return caught.value


async def test_a_fault_in_a_trigger_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(evidence, "weigh", fail)
    scene = Scene(HOME)
    scene.evidence.aim(Watch.CANARY)
    line = LogLine(generation=NEW, pid=11, level=Severity.ALERT, text="text", at=0.0)
    with capture_logs() as told:
        scene.evidence.signal(line)
    assert [one["event"] for one in told] == ["operation.bug"]


# --- the baseline -------------------------------------------------------------------------------


async def test_before_an_upgrade_everybody_is_looked_at(autojump_clock: MockClock) -> None:
    """What the old generation uses is seen before its workers leave, however short the canary."""
    scene = Scene()
    old = SimpleNamespace(id=OLD, changed=trio.Event())
    scene.world.generations = [old]
    await scene.evidence.baseline()
    assert old.changed.is_set()


async def test_without_probes_nothing_takes_any_time(
    autojump_clock: MockClock,
) -> None:
    scene = Scene()
    began = trio.current_time()
    await scene.evidence.baseline()
    scene.evidence.aim(Watch.CANARY)
    assert scene.posted == [CandidateHealthy()]
    scene.evidence.aim(Watch.SOAK)
    await scene.evidence.last_look()
    assert trio.current_time() == began
    assert scene.evidence.not_observed == ""


@pytest.mark.parametrize(
    ("before", "answers", "judges", "rounds"),
    [
        ((PASS, PASS), (PASS,), True, 1),
        ((PASS, PASS), (FAIL,), True, 2),  # once is not enough to be told off
        ((PASS, PASS), (FAIL, FAIL), False, 2),
        ((PASS, PASS, FAIL), (PASS,), True, 1),
        ((PASS, PASS, FAIL, FAIL), (FAIL, FAIL), False, 2),
        ((), (PASS,), True, 1),
        ((FAIL, FAIL, FAIL), (), False, 0),
        ((FAIL, FAIL, FAIL, PASS), (), False, 0),
    ],
)
async def test_only_what_passes_just_before_the_upgrade_judges(
    autojump_clock: MockClock,
    before: tuple[Outcome, ...], answers: tuple[Outcome, ...], judges: bool, rounds: int,  # noqa: FBT001
) -> None:  # fmt: skip
    scene = Scene(HOME)
    for outcome in before:
        scene.see(outcome, generation=OLD)
    with capture_logs() as logs:
        await scene.prepare(*answers)
    assert [one for one in scene.prober.asked if one] == [{"home"}] * rounds
    cannot = [one["probe"] for one in logs if one["event"] == "probe.cannot_judge"]
    assert cannot == ([] if judges else ["home"])
    scene.evidence.aim(Watch.CANARY)
    scene.see(FAIL, times=3)
    assert bool([one for one in scene.posted if isinstance(one, Triggered)]) is judges


async def test_a_silent_probe_is_given_its_timeout(autojump_clock: MockClock) -> None:
    scene = Scene(HOME, OTHER)
    began = trio.current_time()
    scene.prober.answer = lambda name: (
        scene.see(PASS, probe=name, generation=OLD) if name == "other" else None
    )
    await trio.sleep(0.01)
    await scene.evidence.baseline()
    waited = trio.current_time() - began
    assert waited == pytest.approx(0.01 + 2 * (HOME.timeout + GRACE))


# --- the canary ---------------------------------------------------------------------------------


async def test_a_probe_of_another_block_neither_condemns_nor_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME, OTHER)
    await scene.prepare()
    scene.why_not = {"other": "another server block"}
    with capture_logs() as logs:
        scene.evidence.aim(Watch.CANARY)
    told = [(one["probe"], one["detail"]) for one in logs if one["event"] == "canary.not_asked"]
    assert told == [("other", "another server block")]
    assert scene.last_aim.not_asked == scene.why_not
    assert scene.last_aim.address == ("127.0.0.1", 18931)
    scene.see(FAIL, probe="other", times=5)
    scene.see(PASS, times=2)
    assert scene.posted == [CandidateHealthy()]
    scene.evidence.aim(Watch.SOAK)
    assert scene.evidence.not_observed == ""
    scene.see(FAIL, probe="other", times=3)
    assert isinstance(scene.posted[-1], Triggered)


async def test_a_canary_in_which_nobody_judged_was_not_observed(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME)
    await scene.prepare()
    scene.why_not = {"home": "another server block"}
    scene.evidence.aim(Watch.CANARY)
    assert scene.posted == [CandidateHealthy()]
    with capture_logs() as logs:
        scene.evidence.aim(Watch.SOAK)
    assert "canary.not_observed" in [one["event"] for one in logs]
    assert scene.evidence.not_observed == (
        "the canary was not observed (probe home: another server block)"
    )
    await scene.prepare()
    assert scene.evidence.not_observed == ""  # of the next upgrade nothing is known yet


@pytest.mark.parametrize("answer", [PASS, FAIL, UNSURE])
async def test_without_a_private_listener_an_answer_counts_and_is_not_waited_for(
    autojump_clock: MockClock, answer: Outcome
) -> None:
    scene = Scene(HOME, COMMAND)
    await scene.prepare()
    scene.run.port = None
    scene.evidence.aim(Watch.CANARY)
    assert scene.posted == [CandidateHealthy()]
    assert (scene.last_aim.address, scene.last_aim.sole) == (None, False)
    assert list(scene.last_aim.not_asked) == ["command"]
    scene.see(answer, generation=None if answer is UNSURE else NEW, times=3)
    triggers = [one.reason for one in scene.posted if isinstance(one, Triggered)]
    assert triggers == (["probe_failed"] if answer is FAIL else [])
    scene.evidence.aim(Watch.SOAK)
    assert bool(scene.evidence.not_observed) is (answer is UNSURE)
    assert scene.run.judged is (answer is not UNSURE)


async def test_a_listener_that_is_shared_ends_the_upgrade(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME)
    await scene.prepare()
    scene.sharing = Sharing.SHARED
    scene.evidence.aim(Watch.CANARY)
    (trigger,) = scene.posted
    assert isinstance(trigger, Triggered)
    assert trigger.reason == "probe_listener_shared"


# --- the last look ------------------------------------------------------------------------------


async def soaking(*probes: ProbeSettings) -> Scene:
    scene = Scene(*probes)
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    for probe in probes:
        scene.see(PASS, probe=probe.name, times=2)
    scene.evidence.aim(Watch.SOAK)
    return scene


async def test_the_last_look_waits_for_probes_that_have_not_answered_yet(
    autojump_clock: MockClock,
) -> None:
    scene = await soaking(HOME, OTHER)
    scene.see(PASS, probe="other")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.evidence.last_look)
        await trio.sleep(2)
        scene.see(PASS)
    assert trio.current_time() - began == 2
    scene.evidence.expect_good()
    scene.see(FAIL)
    with pytest.raises(OperationFailed):
        scene.evidence.expect_good()


@pytest.mark.parametrize(
    ("outcomes", "reason", "seconds"),
    [
        # Asked again, and nobody answers.
        ((FAIL,), "probe_failed", HOME.fall * (HOME.timeout + GRACE)),
        ((PASS, FAIL), "probe_failed", HOME.fall * (HOME.timeout + GRACE)),
        ((), "soak_inconclusive", HOME.timeout + GRACE),
    ],
)
async def test_the_last_look_is_against_a_commit(
    autojump_clock: MockClock,
    outcomes: tuple[Outcome, ...], reason: str, seconds: float,
) -> None:  # fmt: skip
    scene = await soaking(HOME)
    for outcome in outcomes:
        scene.see(outcome)
    began = trio.current_time()
    failure = await failing(scene.evidence)
    assert failure.reason == reason
    assert trio.current_time() - began == pytest.approx(seconds)
    assert scene.told == [{"event": "trigger", "reason": reason, "detail": failure.detail}]


async def test_one_failure_before_the_last_look_condemns_nobody(
    autojump_clock: MockClock,
) -> None:
    """The supervisor may have been stopped for a while, say: the probe is asked again."""
    scene = await soaking(HOME)
    scene.see(PASS)
    scene.see(FAIL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.evidence.last_look)
        await trio.sleep(HOME.timeout / 2)
        scene.see(PASS)
    scene.evidence.expect_good()


async def test_failures_in_the_last_look_condemn_as_at_any_time(
    autojump_clock: MockClock,
) -> None:
    scene = await soaking(HOME)
    scene.see(FAIL)
    failures: list[OperationFailed] = []

    async def look() -> None:
        failures.append(await failing(scene.evidence))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for _ in range(HOME.fall - 1):
            await trio.sleep(HOME.timeout / 2)
            scene.see(FAIL)
    (failure,) = failures
    assert f"failed {HOME.fall} times" in failure.detail


async def test_the_last_look_sees_what_happens_while_it_waits(
    autojump_clock: MockClock,
) -> None:
    scene = await soaking(HOME)
    nobody = SimpleNamespace(accepting=frozenset(), starting=frozenset())

    def count(at: float) -> None:
        sighting = Counted(generation=NEW, brood=cast(Any, nobody), master_stopped=False, at=at)
        scene.evidence.see(sighting)

    count(0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_no_workers, scene.evidence)
        await trio.sleep(1)
        count(1.0)


async def expect_no_workers(evidence: Evidence) -> None:
    assert (await failing(evidence)).reason == "no_workers"
    assert trio.current_time() <= 2


async def test_the_last_look_waits_until_the_end_of_a_worker_is_understood(
    autojump_clock: MockClock,
) -> None:
    scene = await soaking()
    began = trio.current_time()
    scene.evidence.see(
        WorkerExited(
            generation=NEW, pid=11, status=ExitStatus(code=None, signal=None), draining=False,
            at=began,
        )
    )  # fmt: skip
    await scene.evidence.last_look()  # nobody counts here: it is not waited for without end
    assert 0 < trio.current_time() - began < 1


def killed(generation: int = NEW) -> WorkerExited:
    status = ExitStatus(code=None, signal=9)
    return WorkerExited(generation=generation, pid=11, status=status, draining=False, at=0.0)


async def test_the_last_look_waits_for_news_of_a_worker_that_is_dead(
    autojump_clock: MockClock,
) -> None:
    scene = await soaking()
    scene.candidate.workers[11] = SimpleNamespace(alive=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_dead_worker, scene.evidence)
        await trio.sleep(0.01)
        del scene.candidate.workers[11]
        scene.evidence.see(killed())


async def expect_dead_worker(evidence: Evidence) -> None:
    assert (await failing(evidence)).reason == "worker_died"


async def test_the_last_look_waits_for_such_news_not_without_end(autojump_clock: MockClock) -> None:
    scene = await soaking()
    scene.candidate.workers[11] = SimpleNamespace(alive=False)
    began = trio.current_time()
    await scene.evidence.last_look()
    assert 0 < trio.current_time() - began < 1


@pytest.mark.parametrize("generation", [OLD, NEW])
async def test_a_worker_that_dies_just_before_the_canary_is_judged_in_it(
    autojump_clock: MockClock, generation: int
) -> None:
    scene = Scene(HOME)
    await scene.prepare()
    scene.evidence.see(killed(generation))
    scene.evidence.aim(Watch.CANARY)
    reasons = [each.reason for each in scene.posted if isinstance(each, Triggered)]
    assert reasons == (["worker_died"] if generation == NEW else [])


async def test_without_a_candidate_there_is_nothing_to_look_at() -> None:
    await Scene(HOME).evidence.last_look()


# --- the serving generation ---------------------------------------------------------------------

MENDED = replace(HOME, on_failure=OnFailure.RESTART, rise=2, fall=2)


def unwell(scene: Scene) -> list[int]:
    return [each.generation for each in scene.posted if isinstance(each, ProbeFailed)]


async def test_a_failing_probe_that_had_passed_is_told_again_and_again() -> None:
    scene = Scene(MENDED)
    scene.see(PASS, generation=OLD, times=2)
    scene.see(FAIL, generation=OLD)
    assert unwell(scene) == [], "one failure is not `fall`"
    scene.see(FAIL, generation=OLD, times=2)
    scene.see(UNSURE, generation=OLD)
    assert unwell(scene) == [OLD, OLD]
    first = next(each for each in scene.posted if isinstance(each, ProbeFailed))
    assert first.detail == f"probe home fails, which g1 had passed: {FAIL.value} of 1"
    scene.evidence.expect_new_passes()
    scene.see(FAIL, generation=OLD)
    assert unwell(scene) == [OLD, OLD], "it was acted on"


@pytest.mark.parametrize(
    "case", ["never up", "reported only", "another passed", "nobody's", "not at rest", "no active"]
)
async def test_a_failing_probe_that_restarts_nothing(case: str) -> None:
    reported = replace(MENDED, on_failure=OnFailure.REPORT)
    scene = Scene(reported if case == "reported only" else MENDED)
    passed = NEW if case == "another passed" else OLD
    scene.see(PASS, generation=passed, times=1 if case == "never up" else 2)
    if case == "not at rest":
        scene.evidence.aim(Watch.NOTHING)
    if case == "no active":
        scene.world.active = None
    scene.see(FAIL, generation=None if case == "nobody's" else OLD, times=5)
    assert unwell(scene) == []


# --- other settings -----------------------------------------------------------------------------


async def test_settings_wait_for_the_running_judge(autojump_clock: MockClock) -> None:
    scene = Scene(HOME)
    taken: list[str] = []
    assert scene.evidence.when_undisturbed(lambda: taken.append("at rest"))
    await scene.prepare()
    for watch in (Watch.CANARY, Watch.SOAK):
        scene.evidence.aim(watch)
        assert not scene.evidence.when_undisturbed(lambda watch=watch: taken.append(watch.value))
    assert taken == ["at rest"]
    scene.evidence.aim(Watch.ACTIVE)
    assert taken == ["at rest", "soak"]  # the newest settings alone
    scene.evidence.aim(Watch.ACTIVE)
    assert taken == ["at rest", "soak"]


async def test_a_probe_with_another_meaning_starts_afresh(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME, OTHER)
    await scene.prepare()
    for name in ("home", "other"):
        scene.see(PASS, probe=name, generation=OLD, times=2)
    assert scene.state == {"home": "up", "other": "up"}
    changed = replace(HOME, address=TcpAddress("127.0.0.1", 81))
    scene.evidence.reconfigure((changed, OTHER, COMMAND))
    assert scene.state == {"home": "unknown", "other": "up", "command": "unknown"}
    scene.see(PASS, probe="gone")  # of the settings before: heard by nobody
    scene.evidence.aim(Watch.CANARY)
    scene.see(FAIL, probe="home", times=3)
    assert scene.posted == []  # it did not pass before the upgrade, as it is now
    scene.see(PASS, probe="other", times=2)
    assert scene.posted == [CandidateHealthy()]


# --- over the replacement of the supervisor --------------------------------------------------


def carried(before: Scene, *probes: ProbeSettings) -> Scene:
    """The same nginx, seen from the program that comes after."""
    after = Scene(*probes)
    data = json.loads(json.dumps(before.evidence.to_data(), allow_nan=False))
    after.evidence.from_data(data, at=trio.current_time())
    return after


async def test_rows_and_the_judge_go_on_in_another_program(autojump_clock: MockClock) -> None:
    scene = await soaking(HOME, OTHER)
    scene.see(PASS, probe="other")
    scene.see(FAIL, times=HOME.fall - 1)
    after = carried(scene, HOME, OTHER)
    assert after.evidence.to_data() == scene.evidence.to_data()
    assert after.evidence.report() == scene.evidence.report()
    assert after.last_aim.generation == NEW
    assert after.last_aim.address is None
    after.see(FAIL)
    assert [type(one) for one in after.posted] == [Triggered]
    assert "failed 3 times" in str(after.posted)


async def test_a_canary_goes_on_with_the_probes_that_could_judge_it(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME, OTHER)
    scene.why_not = {"other": "it asks another block"}
    await scene.prepare()
    scene.evidence.aim(Watch.CANARY)
    scene.see(PASS)
    # What the new program cannot know: it has not read the configuration that was tested.
    after = carried(scene, HOME, OTHER)
    assert after.last_aim.address == ("127.0.0.1", 18931)
    assert after.last_aim.not_asked == {"other": "it asks another block"}
    assert after.posted == []
    after.see(PASS)
    assert [type(one) for one in after.posted] == [CandidateHealthy]


async def test_probes_that_are_new_by_then_begin_anew(autojump_clock: MockClock) -> None:
    scene = await soaking(HOME)
    scene.see(FAIL, times=HOME.fall - 1)
    after = carried(scene, OTHER)
    assert after.state == {"other": "unknown"}
    after.see(FAIL, probe="other", times=9)
    assert after.posted == []  # it did not pass before the upgrade
    resting = Scene(HOME)
    resting.see(PASS, generation=OLD, times=2)
    assert carried(resting, HOME).state == {"home": "up"}


async def test_what_had_passed_may_fail_in_another_program_at_once() -> None:
    scene = Scene(MENDED)
    scene.see(PASS, generation=OLD, times=2)
    after = carried(scene, MENDED)
    after.see(FAIL, generation=OLD, times=MENDED.fall)
    assert unwell(after) == [OLD]


async def test_what_is_no_evidence_is_not_taken(autojump_clock: MockClock) -> None:
    scene = await soaking(HOME)
    data = json.loads(json.dumps(scene.evidence.to_data()))
    del data["judge"]["health"]
    with pytest.raises(KeyError):
        Scene(HOME).evidence.from_data(data, at=0.0)


async def test_what_was_seen_of_a_candidate_is_told_once_for_each_window(
    autojump_clock: MockClock,
) -> None:
    scene = Scene(HOME)
    await scene.prepare()
    with capture_logs() as told:
        scene.evidence.aim(Watch.CANARY)
        scene.see(PASS, times=3)
        scene.evidence.aim(Watch.SOAK)
        scene.see(PASS)
        await scene.evidence.last_look()
        scene.evidence.aim(Watch.ACTIVE)
    seen = [one for one in told if one["event"] == "candidate.observed"]
    assert [(one["window"], one["generation"]) for one in seen] == [
        ("canary", "g2"),
        ("soak", "g2"),
    ]
    assert seen[0]["detail"].startswith("probe home was heard 3 times, at last: pass of 2; ")
    assert seen[1]["detail"].startswith("probe home was heard 1 times")
