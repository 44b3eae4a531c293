"""Runs all probes, all the time, and says of each result which generation it speaks of.

What the probes are aimed at changes with the phase of an upgrade. An answer is attributed by what
the kernel says (the socket that answered, the worker that holds it), never by what was intended;
what cannot be attributed is INCONCLUSIVE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import assert_never

import structlog
import trio

from supervisor.core.host_trouble import host_trouble
from supervisor.core.observation import Attribution, Observation, Outcome, bounded_detail
from supervisor.core.probe_settings import (
    Address,
    ExecProbe,
    HttpProbe,
    ProbeSettings,
    TcpAddress,
    TcpProbe,
)
from supervisor.edges.exec_probe import Identity, check_exec
from supervisor.edges.host_load import LoadMeter
from supervisor.edges.http_probe import check_http
from supervisor.edges.owner_finding import Owner
from supervisor.edges.probe_finding import (
    Finding,
    Progress,
    cause_of,
    connect,
    outcome_of,
    trace,
    within,
)

_log = structlog.get_logger()

SHARED = "probe_listener_shared"
"""How the detail of an answer begins that came over a listener that is not private."""

_NOTHING: Mapping[str, str] = MappingProxyType({})

AGAIN = 0.01
"""Seconds until a probe that is to prove something at once asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What the probes are aimed at, and how their answers are attributed to `generation`.

    The callables run in the supervisor's own thread and must not block (`owner` may wait).
    """

    generation: int
    address: tuple[str, int] | None = None
    """Where http and tcp probes connect to instead; Host and path stay. None: as configured."""
    tls_address: tuple[str, int] | None = None
    """The same for https; None: no such probe is asked there, and `not_asked` says so."""
    owner: Owner | None = None
    """The worker of `generation` that holds the other end of a connection."""
    exclusive: Callable[[], bool] | None = None
    """Asked right after each answer: can it only have come from `generation`?"""
    cover: frozenset[int] = frozenset()
    """The workers that are to answer at least once; asked for at once, not at the interval."""
    sole: bool = True
    """Nobody else accepts new connections: what cannot be traced is this generation's."""
    workers: Callable[[], Collection[int]] | None = None
    """The workers of `generation` now: what a response header names has to be among them."""
    processes: Callable[[], Iterable[int]] | None = None
    """The processes of `generation` that are known, to tell whether they waited for a CPU."""
    not_asked: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """The probes whose answers say nothing about `generation`, and why; they ask as configured."""
    beside: Beside | None = None
    """Whom to ask besides, on fresh connections of no probe's row."""
    prove_within: float = math.inf
    """Seconds in which each probe is to show how `generation` is. A finite time makes one that
    passes ask again at once, up to `rise` passes in a row, and one that fails often enough for
    `fall` failures in a row."""


LANES = 4
"""Connections of a patrol at once: one worker that hangs must not make it wait for the others."""
GAP = 0.01
"""Seconds between two connections of a lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A patrol: one probe asks again and again in rounds, and has its answers told elsewhere."""

    aim: Aim
    probe: str
    report: Callable[[Observation], None]
    begin: Callable[[], None]  # a round
    wants_more: Callable[[], bool]  # in this round
    pause: Callable[[], float]  # seconds until the next round


@dataclass(slots=True)
class _Round:
    """One aim, and the workers that have not answered since."""

    aim: Aim
    missing: set[int] = field(default_factory=set)
    attempts_left: int = 0
    passes: dict[str, int] = field(default_factory=dict)  # in a row, by probe

    def asks(self, probe: ProbeSettings) -> bool:
        """Whether the probe's answers are to say something about the generation."""
        return probe.name not in self.aim.not_asked

    def address(self, probe: HttpProbe | TcpProbe) -> Address:
        """Where the probe connects to."""
        secure = isinstance(probe, HttpProbe) and probe.tls is not None
        instead = self.aim.tls_address if secure else self.aim.address
        if instead is None or not self.asks(probe):
            return probe.address
        return TcpAddress(*instead)

    def proves(self, probe: ProbeSettings, outcome: Outcome) -> bool:
        """Whether one more pass is wanted at once."""
        if outcome is Outcome.INCONCLUSIVE:
            return False
        passed = outcome is Outcome.PASS
        self.passes[probe.name] = self.passes.get(probe.name, 0) + 1 if passed else 0
        return self.hurries and passed and self.passes[probe.name] < probe.rise

    @property
    def hurries(self) -> bool:
        """Whether the interval of a probe is not to decide how long this takes."""
        return self.aim.prove_within < math.inf

    def interval(self, probe: ProbeSettings, outcome: Outcome) -> float:
        """Seconds from this look of the probe to the next."""
        if outcome is not Outcome.FAIL or not self.asks(probe):
            return probe.interval
        return min(probe.interval, self.aim.prove_within / (probe.fall + 1))

    def cover(self, workers: Collection[int]) -> None:
        """Ask for these from now on."""
        if set(workers) - self.missing:
            self.attempts_left = _attempts(len(workers))
        self.missing = set(workers)

    def known(self, pid: int) -> bool:
        """Whether a worker that an answer names is this generation's."""
        workers = self.aim.workers
        return pid in (workers() if workers is not None else self.aim.cover)


def _attempts(workers: int) -> int:
    """Enough for chance to find each of them (coupon collector), four times over."""
    return math.ceil(4 * workers * math.log(workers)) + 16 if workers else 0


class Prober:
    """Runs the probes of one configuration; `run` is its one task."""

    def __init__(
        self,
        probes: Iterable[ProbeSettings],
        *,
        report: Callable[[Observation], None],
        worker_identity: Callable[[], tuple[int, int] | None],
    ) -> None:
        self._probes = tuple(probes)
        self._report = report
        self._worker_identity = worker_identity
        self._round: _Round | None = None
        self._changed = trio.Event()
        self._wanted: dict[str, trio.Event] = {}  # of the probes that wait for their interval

    def aim(self, aim: Aim) -> None:
        """Look at something else: probes that run are broken off, a fresh round starts at once."""
        self._round = _Round(aim)
        self._round.cover(aim.cover)
        self._changed.set()

    def reconfigure(self, probes: Iterable[ProbeSettings]) -> None:
        """Run these probes from now on, aimed as before."""
        self._probes = tuple(probes)
        self._changed.set()

    def pause(self) -> None:
        """Nothing serves: break off the probes that run, report nothing until the next aim."""
        self._round = None
        self._changed.set()

    def cover(self, workers: frozenset[int]) -> None:
        """Ask for these workers from now on, without a new round."""
        if self._round is not None:
            self._round.cover(workers)

    def ask(self, names: Iterable[str]) -> None:
        """These probes ask now, not at their interval; one that is asking already is left alone."""
        for name in names:
            if name in self._wanted:
                self._wanted[name].set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe for ever, each probe at its interval and never beside itself.

        Cancelling closes every connection and ends every command.
        """
        task_status.started()
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                if self._round is not None:
                    for probe in self._probes:
                        nursery.start_soon(self._repeat, probe, self._round)
                    beside = self._round.aim.beside
                    if beside is not None:
                        nursery.start_soon(self._patrol, beside)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _repeat(self, probe: ProbeSettings, current: _Round) -> None:
        due = trio.current_time()
        while True:
            pause: float | None = 0.0
            while pause is not None:
                await trio.sleep(pause)
                observation = await self._observe(probe, current)
                if current is self._round:  # else it is of before the aim that holds by now
                    self._report(observation)
                pause = self._pause(probe, observation.outcome, current)
            interval = current.interval(probe, observation.outcome)
            due = max(due + interval, trio.current_time())
            self._wanted[probe.name] = wanted = trio.Event()
            with trio.move_on_at(due):
                await wanted.wait()

    async def _patrol(self, beside: Beside) -> None:
        probe = next((one for one in self._probes if one.name == beside.probe), None)
        if probe is None:
            return

        async def lane() -> None:
            while beside.wants_more():
                beside.report(await self._observe(probe, _Round(beside.aim)))
                await trio.sleep(GAP)

        while True:
            beside.begin()
            async with trio.open_nursery() as nursery:
                for _ in range(LANES):
                    nursery.start_soon(lane)
            await trio.sleep(beside.pause())

    def _pause(self, probe: ProbeSettings, outcome: Outcome, current: _Round) -> float | None:
        """Seconds until the probe asks again ahead of its interval; None: it does not.

        A failure never brings the next one at once: `fall` failures take their time.
        """
        proves = current.proves(probe, outcome)
        if outcome is Outcome.FAIL or not current.asks(probe):
            return None
        if self._covers(probe, outcome, current):
            return 0.0 if outcome is Outcome.PASS else AGAIN
        return AGAIN if proves else None

    async def _observe(self, probe: ProbeSettings, current: _Round) -> Observation:
        """One look; a bug of ours proves nothing about nginx and must not end the probing."""
        processes = current.aim.processes
        meter = LoadMeter(processes() if processes is not None else ())
        try:
            found = _excused(probe, await self._look(probe, current), meter)
        except Exception as exc:  # noqa: BLE001 - see above
            _log.exception("probe.bug", probe=probe.name)
            detail = bounded_detail(f"a fault in the supervisor: {type(exc).__name__}: {exc}")
            return Observation(
                probe=probe.name, outcome=Outcome.INCONCLUSIVE, detail=detail, latency=0.0,
                generation=None,
            )  # fmt: skip
        return self._attribute(probe, found, current)

    def _covers(self, probe: ProbeSettings, outcome: Outcome, current: _Round) -> bool:
        """Whether to connect again at once, in the hope of meeting another worker."""
        if outcome is Outcome.INCONCLUSIVE and current.aim.sole:
            return False  # that did not depend on who accepted it
        asked = [one for one in self._probes if current.asks(one)]
        by_http = any(isinstance(one, HttpProbe) for one in asked)
        if not isinstance(probe, HttpProbe if by_http else TcpProbe):
            return False
        if current.aim.owner is None or not current.missing or current.attempts_left <= 0:
            return False
        current.attempts_left -= 1
        return True

    async def _look(self, probe: ProbeSettings, current: _Round) -> Finding:
        aim = current.aim
        match probe:
            case HttpProbe():
                return await check_http(
                    probe, current.address(probe), aim.owner, known=current.known
                )
            case TcpProbe():
                return await _check_tcp(probe, current.address(probe), aim.owner)
            case ExecProbe():
                worker = self._worker_identity()
                identity = None if worker is None else Identity(*worker)
                environment = {}
                if aim.address is not None:
                    environment["PROBE_ADDRESS"] = "{}:{}".format(*aim.address)
                if aim.tls_address is not None:
                    environment["PROBE_TLS_ADDRESS"] = "{}:{}".format(*aim.tls_address)
                return await check_exec(probe, identity, environment)
            case _ as never:
                assert_never(never)

    def _attribute(self, probe: ProbeSettings, found: Finding, current: _Round) -> Observation:
        aim = current.aim
        worker, outcome, detail = found.worker_pid, found.outcome, found.detail
        if not current.asks(probe):
            outcome, detail = Outcome.INCONCLUSIVE, f"{aim.not_asked[probe.name]} ({detail})"
        elif aim.exclusive is not None and not aim.exclusive():
            outcome, detail = Outcome.INCONCLUSIVE, f"{SHARED} ({detail})"
        elif worker is None and not aim.sole:
            outcome, detail = Outcome.INCONCLUSIVE, f"nobody can tell whose answer it is ({detail})"
        attributed = outcome is not Outcome.INCONCLUSIVE
        if attributed and worker is not None and outcome is Outcome.PASS:
            current.missing.discard(worker)
        return Observation(
            probe=probe.name,
            outcome=outcome,
            detail=bounded_detail(detail),
            latency=found.latency,
            generation=aim.generation if attributed else None,
            worker_pid=worker if attributed else None,
            attribution=_generation_by(found, aim) if attributed else None,
            worker_by=found.worker_by if attributed else None,
        )


def _generation_by(found: Finding, aim: Aim) -> Attribution | None:
    """The best way in which it is known that `aim.generation` has answered."""
    if aim.exclusive is not None:
        return Attribution.PRIVATE_LISTENER
    return found.worker_by or Attribution.SOLE_GENERATION


def _excused(probe: ProbeSettings, found: Finding, meter: LoadMeter) -> Finding:
    """What was found; inconclusive where it came too late since the host is overloaded."""
    if found.outcome is not Outcome.FAIL or found.fair is None:
        return found
    load = meter.load(timeout=probe.timeout, asked=found.worker_pid, aside=found.aside)
    why = host_trouble(load, fair=found.fair)
    if why is None:
        return found
    return replace(found, outcome=Outcome.INCONCLUSIVE, detail=f"{why} ({found.detail})")


async def _check_tcp(probe: TcpProbe, address: Address, owner: Owner | None) -> Finding:
    """Connect once. Never raises; cancelling closes the connection."""

    async def open_and_close(progress: Progress) -> Finding:
        progress.began = trio.current_time()
        try:
            stream = await connect(address)
        except OSError as exc:
            return progress.finding(outcome_of(exc), f"cannot connect: {cause_of(exc)}")
        took = progress.elapsed
        async with stream:
            worker = await trace(stream, owner, progress, patient=True)
        return Finding(
            outcome=Outcome.PASS, detail="connected", latency=took, worker_pid=worker,
            worker_by=None if worker is None else Attribution.SOCKET_OWNER,
        )  # fmt: skip

    return await within(probe.timeout, open_and_close)
