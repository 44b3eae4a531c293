"""The machine under events in any order: what must hold whatever happens, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.core import commands
from supervisor.core.actions import (
    Action,
    Arm,
    Attach,
    BeginUpgrade,
    Complete,
    Exit,
    HastenDrain,
    LetGo,
    Operation,
    Pronounce,
    Refuse,
    ReloadActive,
    ReopenLogs,
    Retire,
    Run,
    Settle,
)
from supervisor.core.events import (
    CandidateHealthy,
    Event,
    Failed,
    GenerationGone,
    InterruptedUpgrade,
    LeaveRequested,
    MasterExited,
    ProbeFailed,
    ReloadEnded,
    Requested,
    RulesChanged,
    Succeeded,
    TerminateRequested,
    TimerFired,
    Triggered,
)
from supervisor.core.machine import step
from supervisor.core.model import (
    UPGRADING,
    Goal,
    OnForeignStop,
    Phase,
    Rules,
    State,
    Timer,
    Verdict,
)
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.verdict_policy import OnInconclusive, VerdictPolicy

ON_THE_WAY = (
    Phase.IDLE, Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD,
    Phase.COMMITTING, Phase.DRAINING,
)  # fmt: skip
OF_UPGRADE = frozenset(
    {Operation.PREFLIGHT, Operation.SPAWN, Operation.SHIFT, Operation.COMMIT, Operation.ROLL_BACK}
)
FOLLOW_A_VERDICT = (commands.Promote, commands.Rollback, commands.Drain)
COMMANDS = st.one_of(
    st.builds(commands.Upgrade, hold=st.booleans(), canary=st.sampled_from([None, 0.0])),
    st.builds(commands.Stop, now=st.booleans()),
    st.builds(commands.Adopt, take_over=st.booleans()),
    st.sampled_from(
        [
            commands.Promote(), commands.Rollback(), commands.Reload(), commands.Reopen(),
            commands.Drain(), commands.Start(), commands.Restart(), commands.Detach(),
        ]
    ),
)  # fmt: skip
RULES = st.builds(
    Rules,
    on_foreign_stop=st.sampled_from(OnForeignStop),
    policy=st.builds(
        VerdictPolicy,
        canary=st.sampled_from([0.0, 5.0]),
        on_inconclusive=st.sampled_from(OnInconclusive),
    ),
)
POLICIES = st.builds(RestartPolicy, start_limit=st.integers(0, 4), crash_limit=st.integers(0, 3))


class Supervised(RuleBasedStateMachine):
    """A world around the machine: processes, timers, operations, and people who wait.

    It is the engine as `supervisor.engine` is: what an operation or a timer of an earlier phase
    says is not heard. The generations are true ones: what was brought up lives until it dies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.clock = 0.0
        self.generations = count(1)
        self.living: set[int] = set()
        self.retired: set[int] = set()
        self.operation: Run | None = None
        self.timers: set[Timer] = set()
        self.unanswered: dict[int, commands.Command] = {}
        self.for_verdict: set[int] = set()
        self.for_settlement: set[int] = set()
        self.reloads = 0  # that run now
        self.upgrade: str | None = None  # without a verdict
        self.verdicts: dict[str, int] = {}
        self.proved: set[str] = set()  # what the running upgrade has passed
        self.promoted = False
        self.quit_sent = False
        self.exit_code: int | None = None
        self.state: State

    @initialize(rules=RULES, restarts=POLICIES)
    def begin(self, rules: Rules, restarts: RestartPolicy) -> None:
        self.state = State(rules=rules, restarts=restarts)
        self.operation = Run(operation=Operation.RECOVER)

    @precondition(lambda self: self.exit_code is not None)
    @rule(rules=RULES, restarts=POLICIES)
    def another_supervisor_begins(self, rules: Rules, restarts: RestartPolicy) -> None:
        self.exit_code, self.reloads, self.quit_sent = None, 0, False
        self.living.clear()
        self.retired.clear()
        self.verdicts.clear()
        self.begin(rules, restarts)

    @rule(until=st.sampled_from(ON_THE_WAY), data=st.data())
    def things_go_well(self, until: Phase, data: st.DataObject) -> None:
        """The straight way, so that the late phases are seen often."""
        for _ in range(12):
            phase = self.state.phase
            if self.exit_code is not None or phase is until:
                return
            if self.operation is not None:
                self.succeed(SUCCESSES[self.operation.operation](self, data))
            elif phase is Phase.IDLE:
                self.ask(commands.Upgrade(hold=data.draw(st.booleans())))
            elif phase is Phase.CANARY and not self.proved & {"healthy"}:
                self.tell(CandidateHealthy())
            elif self.timers:
                self.a_timer_fires(data)
            elif phase is Phase.HELD:
                self.ask(commands.Promote())
            elif self.retired:
                self.a_drain_ends(data)
            else:
                self.ask(commands.Start())

    # --- the world's rules ---

    @rule(command=COMMANDS)
    def somebody_asks(self, command: commands.Command) -> None:
        self.ask(command)

    @rule(command=st.sampled_from([commands.Upgrade(), commands.Start(), commands.Reload()]))
    def somebody_asks_for_work(self, command: commands.Command) -> None:
        self.ask(command)

    @precondition(lambda self: self.state.phase in (Phase.SOAKING, Phase.HELD))
    @rule()
    def somebody_promotes(self) -> None:
        self.ask(commands.Promote())

    def ask(self, command: commands.Command) -> None:
        if self.exit_code is not None:
            return
        number = next(self.numbers)
        self.unanswered[number] = command
        self.tell(Requested(request=number, command=command, upgrade_id=f"u{number}"))

    @precondition(lambda self: self.state.phase in (Phase.COMMITTING, Phase.STOPPING))
    @rule()
    def somebody_terminates_at_a_bad_moment(self) -> None:
        self.tell(TerminateRequested())

    @precondition(lambda self: self.state.phase in (Phase.STOPPED, Phase.DEGRADED))
    @rule()
    def somebody_terminates(self) -> None:
        self.tell(TerminateRequested())

    @precondition(lambda self: self.state.phase in UPGRADING or self.operation is not None)
    @rule(luck=st.integers(0, 3))
    def its_unit_is_restarted(self, luck: int) -> None:
        if not luck:  # it is the beginning of the end
            self.tell(LeaveRequested())

    @precondition(lambda self: self.operation is not None)
    @rule(data=st.data())
    def the_operation_succeeds(self, data: st.DataObject) -> None:
        assert self.operation is not None
        answer = SUCCESSES[self.operation.operation](self, data)
        if answer.generation in self.living and data.draw(st.integers(0, 4)) == 0:
            self.dies(answer.generation)  # after the operation's last look
        self.succeed(answer)

    def succeed(self, answer: Succeeded) -> None:
        self.operation = None
        self.tell(answer)

    @precondition(lambda self: self.operation is not None)
    @rule(luck=st.integers(0, 3))
    def the_operation_fails(self, luck: int = 0) -> None:
        if luck and not self.state.served:
            return  # it would end the supervisor
        self.operation = None
        self.tell(Failed(reason="failed", detail="it failed", at=self.clock))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def a_timer_fires(self, data: st.DataObject) -> None:
        timer = data.draw(st.sampled_from(sorted(self.timers, key=lambda one: one.value)))
        self.timers.discard(timer)
        self.tell(TimerFired(timer))

    @precondition(lambda self: self.state.candidate in self.living)
    @rule()
    def the_candidate_is_healthy(self) -> None:
        self.tell(CandidateHealthy())

    @rule()
    def the_evidence_speaks(self) -> None:
        self.tell(Triggered(reason="probe_failed", detail="home"))

    @precondition(lambda self: self.state.active in self.living)
    @rule()
    def the_active_generation_is_unwell(self) -> None:
        self.tell(ProbeFailed(generation=self.state.active, detail="home", at=self.clock))

    @precondition(lambda self: self.state.retiring)
    @rule()
    def somebody_hastens_the_drain(self) -> None:
        self.ask(commands.Drain())

    @precondition(lambda self: self.living)
    @rule(data=st.data(), orderly=st.booleans())
    def a_master_exits(self, data: st.DataObject, *, orderly: bool) -> None:
        self.dies(data.draw(st.sampled_from(sorted(self.living))), orderly=orderly)

    def dies(self, generation: int, *, orderly: bool = False) -> None:
        self.living.discard(generation)
        self.tell(
            MasterExited(generation=generation, orderly=orderly, detail="gone", at=self.clock)
        )

    @precondition(lambda self: self.retired)
    @rule(data=st.data())
    def a_drain_ends(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.retired)))
        self.retired.discard(gone)
        if gone in self.living:
            self.dies(gone, orderly=True)
        self.tell(GenerationGone(generation=gone))

    @precondition(lambda self: self.reloads)
    @rule()
    def a_reload_ends(self) -> None:
        self.reloads -= 1
        self.tell(ReloadEnded())

    @rule(rules=RULES)
    def the_settings_change(self, rules: Rules) -> None:
        self.tell(RulesChanged(rules=rules, restarts=self.state.restarts))

    @rule(seconds=st.sampled_from([0.1, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    # --- what the machine is told, and what it wants ---

    def tell(self, event: Event) -> None:
        if self.exit_code is not None:
            return
        before = self.state
        self.state, wanted = step(before, event)
        self.check_event(before, event)
        if self.state.phase is not before.phase:
            self.timers.clear()
            self.operation = None
        for action in wanted:
            self.carry_out(action)

    def check_event(self, before: State, event: Event) -> None:
        """The evidence, as it was when the machine could act on it."""
        if isinstance(event, CandidateHealthy) and before.phase is Phase.CANARY:
            self.proved.add("healthy")
        if isinstance(event, TimerFired):
            self.proved.add(event.timer.value)
        if isinstance(event, Requested) and isinstance(event.command, commands.Promote):
            self.promoted = before.phase in (Phase.SOAKING, Phase.HELD) or self.promoted
            if before.phase is Phase.CANARY and before.upgrade and before.upgrade.waits:
                self.proved |= {"healthy", "canary"}  # a person says so
        limit = isinstance(event, TimerFired) and event.timer is Timer.CANARY_LIMIT
        if limit and before.rules.policy.on_inconclusive is OnInconclusive.COMMIT:
            self.proved |= {"healthy", "canary"}  # the policy says so

    def carry_out(self, action: Action) -> None:
        match action:
            case Run():
                self.run(action)
            case Arm(timer=timer, seconds=seconds):
                assert seconds >= 0
                assert timer not in self.timers
                self.timers.add(timer)
            case BeginUpgrade(request):
                assert self.upgrade is None, "two upgrades at once"
                assert self.state.upgrade is not None
                self.begin_upgrade(self.state.upgrade.id)
                self.for_verdict.add(request)
            case Attach(request):
                self.attach(request)
            case Refuse(request=request) | Complete(request=request) | ReopenLogs(request):
                self.answer(request)
            case LetGo(request):
                self.let_go(request)
            case ReloadActive(request):
                assert self.state.active is not None
                self.reloads += 1
                assert self.reloads == 1, "two reloads at once"
                self.answer(request)  # by its task, when it ends
            case Settle():
                self.settle()
            case Pronounce(verdict=verdict):
                self.pronounce(verdict)
            case Retire(generation=generation):
                assert generation in self.state.retiring or self.state.phase is Phase.STOPPING
                self.retired.add(generation)
            case HastenDrain():
                assert self.retired or self.upgrade is not None
            case Exit(code):
                self.exit_code = code
            case _:
                pass

    def run(self, run: Run) -> None:
        if run.operation in OF_UPGRADE:
            assert self.upgrade is not None, f"{run.operation} after the verdict"
            assert not self.quit_sent, "the point of no return was passed"
        if run.operation is Operation.COMMIT:
            assert {"healthy", "canary"} <= self.proved
            assert self.promoted or "soak" in self.proved
            if self.state.upgrade is not None and self.state.upgrade.hold:
                assert self.promoted
        self.operation = run

    def let_go(self, request: int | None) -> None:
        """Nothing is half done when nginx is left alone."""
        assert self.upgrade is None
        assert self.operation is None
        assert not self.reloads
        if request is not None:
            assert self.state.active in self.living
            self.answer(request)

    def begin_upgrade(self, number: str) -> None:
        assert number not in self.verdicts
        self.upgrade, self.quit_sent, self.promoted = number, False, False
        self.proved.clear()

    def attach(self, request: int) -> None:
        follows = isinstance(self.unanswered[request], FOLLOW_A_VERDICT)
        if self.state.upgrade is not None and follows:
            self.for_verdict.add(request)
        else:
            self.for_settlement.add(request)

    def answer(self, request: int) -> None:
        assert request in self.unanswered, "answered twice, or never asked"
        del self.unanswered[request]
        assert request not in self.for_verdict | self.for_settlement, "it waits for something else"

    def settle(self) -> None:
        waiting, self.for_settlement = self.for_settlement, set()
        for request in waiting:
            self.answer(request)

    def pronounce(self, verdict: Verdict) -> None:
        assert self.upgrade is not None, "a verdict of nothing"
        self.verdicts[self.upgrade] = self.verdicts.get(self.upgrade, 0) + 1
        assert self.verdicts[self.upgrade] == 1, "two verdicts"
        if self.quit_sent:
            assert verdict is Verdict.COMMITTED
        self.upgrade = None
        waiting, self.for_verdict = self.for_verdict, set()
        for request in waiting:
            self.answer(request)

    def bring_up(self) -> int:
        number = next(self.generations)
        self.living.add(number)
        return number

    # --- what always holds ---

    @invariant()
    def an_upgrade_is_in_its_phases_until_its_verdict(self) -> None:
        state = self.state
        assert (state.upgrade is None) == (self.upgrade is None)
        if state.upgrade is not None:
            assert state.upgrade.id == self.upgrade
            assert state.phase in UPGRADING or state.phase is Phase.STOPPING
        elif self.upgrade is None:
            assert state.phase not in UPGRADING

    @invariant()
    def something_serves_or_the_phase_says_otherwise(self) -> None:
        """A dead active one is only ever so while an operation or a person is asked to help."""
        if self.exit_code is not None:
            return  # nginx was left to itself
        if self.state.phase in (Phase.IDLE, Phase.DRAINING):
            assert self.state.active in self.living
        if self.state.phase in (Phase.PREFLIGHT, Phase.SPAWNING, Phase.CANARY, Phase.SHIFTING):
            assert self.state.active in self.living
        if self.state.phase in (Phase.CANARY, Phase.SHIFTING, Phase.SOAKING, Phase.HELD):
            assert self.state.candidate in self.living
        if self.state.phase is not Phase.IDLE:
            return
        assert self.state.reason is None
        assert not self.state.retiring

    @invariant()
    def a_phase_that_waits_has_something_to_wait_for(self) -> None:
        if self.exit_code is not None:
            return
        phase = self.state.phase
        if phase in RUNNING:
            assert self.operation is not None or not self.has_begun(), phase
        if phase in (Phase.SOAKING, Phase.BACKOFF):
            assert self.timers
        if phase is Phase.DRAINING:
            assert self.state.retiring <= self.retired
        if phase in (Phase.IDLE, Phase.STOPPED, Phase.DEGRADED, Phase.HELD):
            assert not self.timers
            assert self.operation is None

    def has_begun(self) -> bool:
        return hasattr(self, "state")

    @invariant()
    def what_an_operator_wants_is_under_way(self) -> None:
        if self.state.goal is not Goal.RUN:
            assert self.state.phase in (
                Phase.COMMITTING, Phase.STOPPING, Phase.STOPPED, Phase.DEGRADED
            )  # fmt: skip

    @invariant()
    def nobody_is_forgotten(self) -> None:
        waiting = {request for request, _ in self.state.waiting}
        assert self.unanswered.keys() == self.for_verdict | self.for_settlement | waiting
        if self.exit_code is None:
            assert bool(self.reloads) == self.state.reloading
        phase = self.state.phase
        if phase in (Phase.IDLE, Phase.STOPPED, Phase.DEGRADED) or self.exit_code is not None:
            assert not self.unanswered
        if self.upgrade is None:
            assert not self.for_verdict
            assert not waiting

    def teardown(self) -> None:
        """Left alone, everything comes to an end, and then nobody waits any more."""
        if not hasattr(self, "state"):
            return
        for _ in range(40):
            if self.operation is not None:
                self.the_operation_fails()
            elif self.timers:
                timer = self.timers.pop()
                self.tell(TimerFired(timer))
            elif self.state.phase is Phase.HELD or (
                self.state.upgrade is not None and self.state.upgrade.waits
            ):
                self.ask(commands.Rollback())
            elif self.retired:
                gone = self.retired.pop()
                self.living.discard(gone)
                self.tell(GenerationGone(generation=gone))
            elif self.reloads:
                self.a_reload_ends()
            self.nobody_is_forgotten()
            self.clock += 1000.0
            if self.exit_code is not None:
                return
            if self.state.phase is Phase.BACKOFF and self.state.restarts.start_limit == 0:
                return  # it goes on for ever, as it was told to
        resting = (Phase.IDLE, Phase.STOPPED, Phase.DEGRADED, Phase.BACKOFF, Phase.STARTING)
        assert self.state.phase in resting


RUNNING = frozenset(
    {
        Phase.STARTING, Phase.STOPPING, Phase.PREFLIGHT, Phase.SPAWNING, Phase.SHIFTING,
        Phase.COMMITTING, Phase.ROLLING_BACK, Phase.TAKING_OVER,
    }
)  # fmt: skip


def _started(world: Supervised, _data: st.DataObject) -> Succeeded:
    return Succeeded(generation=world.bring_up())


def _recovered(world: Supervised, data: st.DataObject) -> Succeeded:
    """Adopted, perhaps with an upgrade that a dead supervisor left."""
    how = data.draw(st.sampled_from(["started", "adopted", "interrupted", "committed"]))
    if how == "started":
        return _started(world, data)
    old, new = world.bring_up(), world.bring_up()
    if how == "adopted":
        return Succeeded(generation=new, retiring=frozenset({old}))
    left = InterruptedUpgrade(
        upgrade_id="u0", candidate=new, detail="died", committed=how == "committed"
    )
    world.begin_upgrade("u0")
    if how == "committed":
        return Succeeded(generation=new, retiring=frozenset({old}), interrupted=left)
    return Succeeded(generation=old, interrupted=left)


def _passed(world: Supervised, data: st.DataObject) -> Succeeded:
    if data.draw(st.integers(0, 4)) == 0:
        return Succeeded(nothing_to_do=True, dry_run=data.draw(st.booleans()))
    return Succeeded(generation=next(world.generations))


def _spawned(world: Supervised, _data: st.DataObject) -> Succeeded:
    assert world.state.candidate is not None
    world.living.add(world.state.candidate)
    return Succeeded()


def _committed(world: Supervised, _data: st.DataObject) -> Succeeded:
    world.quit_sent = True
    return Succeeded(at=world.clock)


def _rolled_back(world: Supervised, data: st.DataObject) -> Succeeded:
    """The candidate is gone; the old one serves, or a fresh start of its version."""
    state = world.state
    world.living.discard(state.candidate or 0)
    just_died = any(one.generation == state.active for one in state.exits)
    if state.active in world.living or (just_died and data.draw(st.booleans())):
        return Succeeded()
    return Succeeded(generation=world.bring_up())


def _taken_over(world: Supervised, _data: st.DataObject) -> Succeeded:
    """The old master is killed by the operation itself; its workers drain."""
    old = world.state.active
    assert old is not None
    if old in world.living:
        world.dies(old)
    return Succeeded(generation=world.bring_up(), retiring=frozenset({old}))


def _stopped(world: Supervised, _data: st.DataObject) -> Succeeded:
    world.living.clear()
    return Succeeded()


SUCCESSES: dict[Operation, Callable[[Supervised, st.DataObject], Succeeded]] = {
    Operation.RECOVER: _recovered,
    Operation.START: _started,
    Operation.RESCUE: _started,
    Operation.PREFLIGHT: _passed,
    Operation.SPAWN: _spawned,
    Operation.SHIFT: lambda _world, _data: Succeeded(),
    Operation.COMMIT: _committed,
    Operation.ROLL_BACK: _rolled_back,
    Operation.STOP: _stopped,
    Operation.TAKE_OVER: _taken_over,
}

TestSupervised = Supervised.TestCase
TestSupervised.settings = settings(
    max_examples=400, stateful_step_count=60, deadline=None, derandomize=True, database=None
)
