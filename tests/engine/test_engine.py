"""The engine: one owner of the state, operations one at a time, everyone answered once."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.errors import Refusal
from supervisor.core.events import (
    CandidateHealthy,
    Failed,
    InterruptedUpgrade,
    MasterExited,
    Succeeded,
    TimerFired,
    Triggered,
)
from supervisor.core.model import Timer, public_state
from supervisor.engine import _Posted
from supervisor.waiters import _REPLY_BUFFER
from tests.engine.conftest import Client, Running, engine_with
from tests.fakes import FakeEffects, Held, failed

PASSED = Succeeded(generation=2)
BAD = Triggered(reason="probe_failed", detail="home")
FULL = Refusal("no_space", "cannot write the journal: no space left; make room")


def goes_well(effects: FakeEffects, *upto: Operation) -> None:
    answers = {Operation.PREFLIGHT: PASSED}
    for operation in upto:
        effects.expect(operation, answers.get(operation, Succeeded()))


ALL = (Operation.PREFLIGHT, Operation.SPAWN, Operation.SHIFT, Operation.COMMIT)


async def upgrading(running: Running, until: str) -> Client:
    """An upgrade that has come to the phase `until`."""
    client = running.ask(commands.Upgrade())
    await running.quiet()
    while running.phase != until:
        if running.phase == "canary":
            running.engine.post(CandidateHealthy())
        await trio.sleep(1)
    return client


# --- an upgrade ----------------------------------------------------------------------------


async def test_a_clean_upgrade(autojump_clock: MockClock, effects: FakeEffects) -> None:
    goes_well(effects, *ALL)
    drain = Held()
    effects.expect("retire", drain)
    async with engine_with(effects) as running:
        client = await upgrading(running, "draining")
        verdict = await client.verdict()
        assert verdict["verdict"] == "committed"
        assert verdict["operation"] == "upgrade"
        assert verdict["upgrade_id"] == "u1"
        assert client.events() == [
            "accepted", "preflight", "spawning", "canary", "shifting", "soaking", "committing",
            "verdict",
        ]  # fmt: skip
        assert effects.history == [{k: v for k, v in verdict.items() if k != "operation"}]
        drain.release.set()
        await running.quiet()
        assert running.phase == "idle"
        assert running.armed() == 0


async def test_the_phases_sum_to_the_time_that_it_took(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    slow = Held(PASSED)
    effects.expect(Operation.PREFLIGHT, slow)
    goes_well(effects, *ALL[1:])
    effects.expect("retire", Succeeded())
    async with engine_with(effects, canary=5.0, soak=30.0) as running:
        client = running.ask(commands.Upgrade())
        await trio.sleep(2)
        slow.release.set()
        await running.quiet()
        running.engine.post(CandidateHealthy())
        verdict = await client.verdict()
    phases = verdict["phases"]
    assert isinstance(phases, dict)
    assert set(phases) == {
        "preflight", "spawning", "canary", "shifting", "soaking", "committing"
    }  # fmt: skip
    assert phases["preflight"] == pytest.approx(2)
    assert phases["canary"] == pytest.approx(5)
    assert phases["soaking"] == pytest.approx(30)
    assert verdict["elapsed_s"] == pytest.approx(37)
    assert verdict["elapsed_s"] == pytest.approx(sum(phases.values()))


async def test_a_stop_counts_into_the_upgrade_that_it_ends(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, Operation.PREFLIGHT, Operation.SPAWN)
    stopping = Held()
    effects.expect(Operation.STOP, stopping)
    async with engine_with(effects) as running:
        client = await upgrading(running, "canary")
        stop = running.ask(commands.Stop())
        await trio.sleep(3)
        stopping.release.set()
        verdict = await client.verdict()
        assert verdict["verdict"] == "rolled_back"
        phases = verdict["phases"]
        assert isinstance(phases, dict)
        assert phases["rolling_back"] == pytest.approx(3)
        assert verdict["elapsed_s"] == pytest.approx(sum(phases.values()))
        assert (await stop.verdict())["reason"] == "stopped"
        assert running.phase == "stopped"


async def test_intent_is_recorded_before_the_act(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, *ALL)
    effects.expect("retire", Succeeded())
    async with engine_with(effects, canary=0.0, soak=0.0) as running:
        client = running.ask(commands.Upgrade())
        await running.quiet()
        await running.tell(CandidateHealthy())
        await client.verdict()
    told = [
        call[:1] if call[0] not in ("record", "pronounce") else call
        for call in effects.calls
        if call[0] not in ("settled", "aim")
    ]
    assert told == [
        ("recover",),
        ("record", "idle", "preflight"), ("begin",), ("preflight",),
        ("record", "preflight", "spawning"), ("spawn",),
        ("record", "spawning", "canary"),
        ("record", "canary", "shifting"), ("shift",),
        ("record", "shifting", "soaking"),
        ("record", "soaking", "committing"), ("commit",),
        ("record", "committing", "draining"), ("pronounce", "committed", "healthy"), ("retire",),
    ]  # fmt: skip


async def test_an_interrupted_upgrade_ends_in_a_verdict(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    left = InterruptedUpgrade(upgrade_id="u0", candidate=2, detail="died in soaking")
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects, Succeeded(generation=1, interrupted=left)) as running:
        assert running.phase == "idle"
    assert [one["reason"] for one in effects.history] == ["supervisor_died"]


# --- one operation at a time ---------------------------------------------------------------


async def test_an_operation_is_over_before_the_next_begins(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    spawning = Held(cleanup=4.0)
    goes_well(effects, Operation.PREFLIGHT)
    effects.expect(Operation.SPAWN, spawning)
    back = Held()
    effects.expect(Operation.ROLL_BACK, back)
    async with engine_with(effects) as running:
        running.ask(commands.Upgrade())
        await spawning.started.wait()
        asked_at = trio.current_time()
        running.engine.post(BAD)
        await back.started.wait()
        assert spawning.cancelled
        assert spawning.over_at == pytest.approx(asked_at + 4)
        assert trio.current_time() >= asked_at + 4
        assert ("record", "spawning", "rolling_back") in effects.calls
        back.release.set()
        await running.quiet()
        assert running.phase == "idle"


async def test_what_a_cancelled_operation_still_says_is_dropped(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    spawning = Held(deaf=True)
    goes_well(effects, Operation.PREFLIGHT)
    effects.expect(Operation.SPAWN, spawning)
    back = Held(failed("rollback_failed"))
    effects.expect(Operation.ROLL_BACK, back)
    async with engine_with(effects) as running:
        running.ask(commands.Upgrade())
        await spawning.started.wait()
        await running.tell(BAD)
        assert spawning.cancelled
        assert running.phase == "rolling_back"
        back.release.set()
        await running.quiet()
        assert running.phase == "degraded"


async def test_an_answer_in_the_queue_is_dropped_when_its_operation_is_replaced(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    """The same phase, another operation: `stop --now` replaces the stop that runs."""
    patient, insisting = Held(), Held()
    effects.expect(Operation.STOP, patient, insisting)
    async with engine_with(effects) as running:
        first = running.ask(commands.Stop())
        await patient.started.wait()
        engine = running.engine
        async with engine.submit(commands.Stop(now=True)) as replies:
            # In this order in the queue: the request, then what the first stop had to say.
            said = Failed(reason="stop_failed", detail="a process survived TERM")
            engine._send.send_nowait(_Posted(said, operation=engine._operation_number))
            await insisting.started.wait()
            await running.quiet()
            assert patient.cancelled
            assert running.phase == "stopping"
            insisting.release.set()
            assert (await first.verdict())["verdict"] == "done"
            assert [one["event"] async for one in replies] == ["accepted", "verdict"]


async def test_a_fault_in_an_operation_rolls_back(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, Operation.PREFLIGHT)
    effects.expect(Operation.SPAWN, ZeroDivisionError("oops"))
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        verdict = await running.ask(commands.Upgrade()).verdict()
        assert verdict["verdict"] == "rolled_back"
        assert verdict["reason"] == "internal_error"
        assert "operation.bug" in running.logged()


# --- timers --------------------------------------------------------------------------------


async def test_timers_end_with_their_phase(autojump_clock: MockClock, effects: FakeEffects) -> None:
    goes_well(effects, Operation.PREFLIGHT, Operation.SPAWN)
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        client = await upgrading(running, "canary")
        assert running.armed() == 2
        await running.tell(BAD)
        assert (await client.verdict())["verdict"] == "rolled_back"
        assert running.phase == "idle"
        assert running.armed() == 0
        assert running.engine._nursery is not None
        assert not running.engine._nursery.child_tasks
        await trio.sleep(100)
        assert running.phase == "idle"


async def test_a_timer_that_fired_in_an_earlier_phase_is_not_heard(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    """It may be in the queue already when the phase changes."""
    goes_well(effects, *ALL[:3])
    async with engine_with(effects) as running:
        await upgrading(running, "soaking")
        engine = running.engine
        late = _Posted(TimerFired(Timer.SOAK), phase=engine._phase_number - 1)
        engine._send.send_nowait(late)
        await running.quiet()
        assert running.phase == "soaking"
        assert running.armed() == 1


async def test_a_start_that_fails_is_tried_again_later(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    effects.expect(Operation.START, failed("config_rejected"), Succeeded(generation=2))
    async with engine_with(effects) as running:
        await running.tell(
            MasterExited(generation=1, orderly=False, detail="gone", at=trio.current_time())
        )
        assert running.phase == "backoff"
        assert running.armed() == 1
        began = trio.current_time()
        while running.phase != "idle":
            await trio.sleep(0.01)
        assert trio.current_time() - began == pytest.approx(0.1, abs=0.02)
        assert running.armed() == 0
        assert "supervisor.incident" in running.logged()


async def test_those_who_ask_while_nginx_is_down_hear_when_it_is_tried_again(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    effects.expect(Operation.START, failed("start_failed", "bind()"), failed("start_failed"))
    async with engine_with(effects) as running:
        assert running.engine.next_start() is None
        await running.tell(
            MasterExited(generation=1, orderly=False, detail="gone", at=trio.current_time())
        )
        assert running.phase == "backoff"
        assert running.engine.next_start() == pytest.approx(0.1, abs=0.02)
        refused = await running.ask(commands.Upgrade()).verdict()
        assert refused["reason"] == "not_running"
        assert "start_failed: bind()" in str(refused["detail"])
        assert str(refused["detail"]).endswith("nginxctl start does that now (else in 0.1 s)")
        start = await running.ask(commands.Start()).verdict()
        assert start["verdict"] == "failed"
        assert start["detail"] == "it failed; the supervisor tries again in 0.1 s"
        assert running.phase == "backoff"


async def test_reopening_where_nothing_lives_is_refused(
    autojump_clock: MockClock, effects: FakeEffects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise Refusal("not_running", "cannot reopen the logs: no nginx runs")

    async with engine_with(effects) as running:
        monkeypatch.setattr(effects, "reopen", nobody)
        verdict = await running.ask(commands.Reopen()).verdict()
        assert (verdict["verdict"], verdict["reason"]) == ("refused", "not_running")


# --- the disk is full ----------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "begun", "never"), [
    ("spawning", (Operation.PREFLIGHT,), "spawn"),
    ("shifting", (Operation.PREFLIGHT, Operation.SPAWN), "shift"),
    ("committing", (Operation.PREFLIGHT, Operation.SPAWN, Operation.SHIFT), "commit"),
])  # fmt: skip
async def test_what_is_not_recorded_is_not_done(
    autojump_clock: MockClock,
    effects: FakeEffects,
    phase: str,
    begun: tuple[Operation, ...],
    never: str,
) -> None:
    *before, last = begun
    goes_well(effects, *before)
    step = Held(PASSED if last is Operation.PREFLIGHT else Succeeded())
    effects.expect(last, step)
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        client = running.ask(commands.Upgrade())
        while not step.started.is_set():
            running.engine.post(CandidateHealthy())
            await trio.sleep(1)
        if phase == "spawning":
            effects.unwritable = FULL
        step.release.set()
        await running.quiet()
        effects.unwritable = FULL
        if phase == "shifting":
            running.engine.post(CandidateHealthy())
        verdict = await client.verdict()
        assert verdict["verdict"] == "rolled_back"
        assert verdict["reason"] == "no_space"
        assert "this verdict is not in the history" in str(verdict["detail"])
        assert running.phase == "idle"
        assert never not in effects.names()
        assert "roll_back" in effects.names()
        assert effects.history == []
        assert {"journal.not_written", "verdict.not_recorded"} <= set(running.logged())


async def test_a_full_disk_refuses_an_upgrade(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    async with engine_with(effects) as running:
        effects.unwritable = FULL
        verdict = await running.ask(commands.Upgrade()).verdict()
        assert verdict["verdict"] == "refused"
        assert verdict["reason"] == "no_space"
        assert running.phase == "idle"


# --- those who ask -------------------------------------------------------------------------


async def test_a_client_that_hangs_up_cancels_nothing(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, *ALL)
    effects.expect("retire", Succeeded())
    async with engine_with(effects) as running:
        client = await upgrading(running, "canary")
        client.hang_up()
        await running.quiet()
        assert running.phase == "canary"
        running.engine.post(CandidateHealthy())
        while running.phase != "idle":
            await trio.sleep(1)
    assert [one["verdict"] for one in effects.history] == ["committed"]


async def test_a_client_that_does_not_read_holds_nobody_up_and_still_gets_the_verdict(
    autojump_clock: MockClock,
    effects: FakeEffects,
) -> None:
    goes_well(effects, *ALL)
    effects.expect("retire", Succeeded())
    async with engine_with(effects, canary=0.0) as running:
        async with running.engine.submit(commands.Upgrade()) as replies:
            await running.quiet()
            for number in range(3 * _REPLY_BUFFER):
                running.engine.progress({"event": "observation", "number": number})
            running.engine.post(CandidateHealthy())
            while running.phase != "idle":
                await trio.sleep(1)
            told = [reply async for reply in replies]
        assert len(told) == _REPLY_BUFFER
        assert told[-1]["verdict"] == "committed"


async def test_a_second_upgrade_is_refused_with_a_verdict_of_its_own(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, Operation.PREFLIGHT, Operation.SPAWN)
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        first = await upgrading(running, "canary")
        verdict = await running.ask(commands.Upgrade()).verdict()
        assert verdict["verdict"] == "refused"
        assert verdict["reason"] == "upgrade_in_progress"
        assert verdict["upgrade_id"] == "u2"
        assert "u1 is in canary" in str(verdict["detail"])
        assert effects.history[0]["upgrade_id"] == "u2"
        assert running.phase == "canary"
        back = running.ask(commands.Rollback())
        assert (await back.verdict())["verdict"] == "rolled_back"
        assert (await first.verdict())["verdict"] == "rolled_back"
        assert (await back.verdict())["operation"] == "rollback"
    assert [one["verdict"] for one in effects.history] == ["refused", "rolled_back"]


async def test_the_state_can_be_read_at_any_time(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    """A snapshot: nobody waits for an operation, nor for one that takes long to cancel."""
    goes_well(effects, Operation.PREFLIGHT)
    spawning = Held(cleanup=60.0)
    effects.expect(Operation.SPAWN, spawning)
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        running.ask(commands.Upgrade())
        await spawning.started.wait()
        now = trio.current_time()
        assert public_state(running.engine.state) == "upgrading"
        reopened = await running.ask(commands.Reopen()).verdict()
        assert reopened["reason"] == "reopened"
        running.engine.post(BAD)
        await running.quiet()
        assert public_state(running.engine.state) == "upgrading"
        assert trio.current_time() == now
        while running.phase != "idle":
            await trio.sleep(1)
        assert trio.current_time() >= now + 60


async def test_who_follows_an_upgrade_gets_its_verdict(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    goes_well(effects, *ALL)
    drain = Held()
    effects.expect("retire", drain)
    async with engine_with(effects) as running:
        client = await upgrading(running, "soaking")
        promote = running.ask(commands.Promote())
        assert (await promote.verdict())["verdict"] == "committed"
        assert (await promote.verdict())["operation"] == "promote"
        assert (await client.verdict())["verdict"] == "committed"
        hasten = running.ask(commands.Drain())
        await running.quiet()
        assert ("hasten",) in effects.calls
        assert not hasten.ended.is_set()
        drain.release.set()
        assert (await hasten.verdict())["reason"] == "drained"


async def test_a_cancelled_preflight(autojump_clock: MockClock, effects: FakeEffects) -> None:
    effects.expect(Operation.PREFLIGHT, Held())
    async with engine_with(effects) as running:
        client = running.ask(commands.Upgrade())
        await running.quiet()
        back = running.ask(commands.Rollback())
        assert (await back.verdict())["verdict"] == "done"
        assert (await client.verdict())["reason"] == "cancelled_by_operator"


# --- reload, drain -------------------------------------------------------------------------


async def test_a_reload_runs_beside_everything_else(
    autojump_clock: MockClock, effects: FakeEffects
) -> None:
    slow = Held(Succeeded(note="2 workers"))
    effects.expect("reload", slow)
    async with engine_with(effects) as running:
        client = running.ask(commands.Reload())
        await slow.started.wait()
        again = await running.ask(commands.Reload()).verdict()
        assert (again["verdict"], again["reason"]) == ("refused", "reload_in_progress")
        assert again["upgrade_id"] is None
        slow.release.set()
        assert await client.verdict() == {
            "event": "verdict", "operation": "reload", "verdict": "committed",
            "reason": "reloaded", "detail": "2 workers", "judged": True, "elapsed_s": 1.5,
            "phases": {"shifting": 1.5},
        }  # fmt: skip
        assert client.events() == ["accepted", "shifting", "verdict"]
        assert ("reload", commands.Reload()) in effects.calls
        await running.quiet()
        assert not running.engine.state.reloading


@pytest.mark.parametrize(("error", "verdict", "reason"), [
    (Refusal("config_rejected", "line 3"), "refused", "config_rejected"),  # no HUP was sent
    (failed("reload_ignored"), "failed", "reload_ignored"),
    (ZeroDivisionError("oops"), "failed", "internal_error"),
])  # fmt: skip
async def test_a_reload_that_fails(
    autojump_clock: MockClock, effects: FakeEffects, error: Exception, verdict: str, reason: str
) -> None:
    effects.expect("reload", error)
    async with engine_with(effects) as running:
        told = await running.ask(commands.Reload()).verdict()
        assert (told["verdict"], told["reason"]) == (verdict, reason)
        await running.quiet()
        assert not running.engine.state.reloading


@pytest.mark.parametrize("error", [failed("stop_failed"), ZeroDivisionError("oops")])
async def test_a_generation_that_cannot_be_ended_is_reported_and_let_go(
    autojump_clock: MockClock, effects: FakeEffects, error: Exception
) -> None:
    effects.expect("retire", error)
    first = Succeeded(generation=2, retiring=frozenset({1}))
    async with engine_with(effects, first) as running:
        assert running.phase == "idle"
        assert {"generation.stuck", "operation.bug"} & set(running.logged())
