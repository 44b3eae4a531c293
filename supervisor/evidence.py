"""Turns what is seen into what the machine must know: healthy, or a trigger with its reason.

Owns the aim of the probes and the judge of the running upgrade. Decisions are in
`supervisor.core.policy`; here observations and sightings are brought to them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from supervisor.core.actions import Watch
from supervisor.core.events import CandidateHealthy, Event, Triggered
from supervisor.core.observation import Observation
from supervisor.core.policy import Criterion, Health, HealthState, Judge
from supervisor.core.probe_settings import can_ask_candidate
from supervisor.edges.generation import Generation
from supervisor.edges.linux import UNKNOWN_EXIT
from supervisor.edges.probe_listener import Sharing
from supervisor.edges.probes import Aim, Prober
from supervisor.operations.world import World
from supervisor.watch import Counted, Sighting, WorkerExited

if TYPE_CHECKING:
    from supervisor.core.settings import ProbeSettings


_CANDIDATES_OWN = (Sharing.EXCLUSIVE, Sharing.NOBODY)

BASELINE_GRACE = 0.25
"""Seconds beyond the longest timeout after which a silent probe counts as not passing."""


class Evidence:
    """Everything that is seen arrives here, in the one thread of the supervisor."""

    def __init__(
        self,
        world: World,
        probes: tuple[ProbeSettings, ...],
        prober: Prober,
        post: Callable[[Event], None],
        progress: Callable[[dict[str, object]], None],
    ) -> None:
        self._world = world
        self._probes = {probe.name: probe for probe in probes}
        self._prober = prober
        self._post = post
        self._progress = progress
        self._watch = Watch.NOTHING
        self._judge: Judge | None = None
        self._up_before: frozenset[str] = frozenset()
        self.lacking = ""  # what the last candidate lacked to be healthy, for the verdict's text
        self._heard = trio.Event()
        self._told_empty = False
        self._told_healthy = False
        self._told_trigger = False
        self._health: dict[str, Health] = {}
        self._since: dict[str, str] = {}
        self._detail: dict[str, str] = {}
        self._generation: dict[str, int | None] = {}
        self._forget()

    # --- aiming -----------------------------------------------------------------------------

    def aim(self, watch: Watch) -> None:
        """Look at something else from now on; a fresh round of probes starts at once."""
        self._watch = watch
        if self._judge is not None:
            self.lacking = self._judge.lacking
        if watch is Watch.CANARY:
            self._begin_canary()
        elif watch is Watch.SOAK:
            self._begin_soak()
        elif watch is Watch.ACTIVE:
            self._judge = None
            active = self._world.active
            if active is not None:
                self._prober.aim(Aim(generation=active.id))
        else:
            self._judge = None
            self._prober.pause()
            self._forget()

    def _forget(self) -> None:
        """What was seen is of an nginx that is gone: `status` must not show it as news."""
        self._health = {name: Health() for name in self._probes}
        self._since = dict.fromkeys(self._probes, "")
        self._detail = dict.fromkeys(self._probes, "")
        self._generation = dict.fromkeys(self._probes)

    def reconfigure(self, probes: tuple[ProbeSettings, ...]) -> None:
        """Other probes from now on; the judge of a running upgrade keeps the ones that it has."""
        self._probes = {probe.name: probe for probe in probes}
        self._health = {name: self._health.get(name, Health()) for name in self._probes}
        self._since = {name: self._since.get(name, "") for name in self._probes}
        self._detail = {name: self._detail.get(name, "") for name in self._probes}
        self._generation = {name: self._generation.get(name) for name in self._probes}

    async def baseline(self) -> None:
        """Remember which probes pass before the upgrade: only those can condemn the candidate.

        A probe that nobody has heard of yet is given its timeout to say something.
        """
        longest = max((one.timeout for one in self._probes.values()), default=0.0)
        with trio.move_on_after(longest + BASELINE_GRACE):
            while any(one == Health() for one in self._health.values()):
                self._heard = trio.Event()
                await self._heard.wait()
        self._up_before = frozenset(
            name
            for name, health in self._health.items()
            if health.state is HealthState.UP
            or (health.state is HealthState.UNKNOWN and health.passes)
        )

    def _begin_canary(self) -> None:
        candidate, old, run = self._world.candidate, self._world.active, self._world.run
        assert candidate is not None
        assert run is not None
        self._told_healthy = self._told_trigger = False
        port = run.port
        sharing = Sharing.ABSENT if port is None else self._sharing(port, candidate, old)
        if sharing is Sharing.SHARED:
            self._told_trigger = True
            detail = (
                f"the private probe listener on port {port} is open in both generations: nginx was "
                "reloaded by someone else while the upgrade began; try again"
            )
            self._post(Triggered(reason="probe_listener_shared", detail=detail))
        if port is None:
            # Nobody can tell whose answer an answer on the public address would be: the canary
            # is not observed, and the probes count from the shift on.
            self._prober.pause()
            self._world.log.warning("canary.not_observed", generation=f"g{candidate.id}")
            self._judge = self._judge_of(candidate, Watch.CANARY, probing=False)
            self._conclude()
            return
        self._judge = self._judge_of(candidate, Watch.CANARY, probing=True)
        self._prober.aim(
            Aim(
                generation=candidate.id,
                address=("127.0.0.1", port),
                owner=lambda local, peer: self._world.listener.connection_owner(
                    local, peer, candidate.look().workers
                ),
                exclusive=lambda: self._sharing(port, candidate, old) in _CANDIDATES_OWN,
                cover=candidate.look().accepting,
                workers=lambda: candidate.brood().workers,
            )
        )
        self._conclude()

    def _sharing(self, port: int, candidate: Generation, old: Generation | None) -> Sharing:
        return self._world.listener.exclusive_to(
            port, candidate.master.pid, None if old is None else old.master.pid
        )

    def _judge_of(self, candidate: Generation, window: Watch, *, probing: bool) -> Judge:
        """A judge with new rows; the workers that accept now are its first count.

        A command that cannot be told where the candidate listens would ask the old generation as
        well in the canary: there it does not count.
        """
        criteria = [
            Criterion(name=name, rise=one.rise, fall=one.fall, up_before=name in self._up_before)
            for name, one in self._probes.items()
            if probing and (window is Watch.SOAK or can_ask_candidate(one))
        ]
        judge = Judge(
            candidate=candidate.id, criteria=criteria, expected_workers=candidate.program.workers
        )
        judge.census(candidate.look().accepting, at=trio.current_time())
        return judge

    def _begin_soak(self) -> None:
        candidate = self._world.candidate
        if candidate is None:
            return
        self._judge = self._judge_of(candidate, Watch.SOAK, probing=True)
        self._prober.aim(Aim(generation=candidate.id, workers=lambda: candidate.brood().workers))

    # --- seeing -----------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """One result of one probe."""
        probe = self._probes.get(seen.probe)
        if probe is None:
            return  # it is of a configuration that was replaced
        before = self._health[seen.probe]
        after = before.observe(seen.outcome, rise=probe.rise, fall=probe.fall)
        self._health[seen.probe] = after
        self._heard.set()
        self._detail[seen.probe] = seen.detail
        self._generation[seen.probe] = seen.generation
        if after.state is not before.state:
            self._since[seen.probe] = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._tell_change(seen, after.state)
        if self._judge is not None:
            self._judge.observe(seen)
            self._conclude()

    def _tell_change(self, seen: Observation, state: HealthState) -> None:
        tell = self._world.log.warning if state is HealthState.DOWN else self._world.log.info
        generation = None if seen.generation is None else f"g{seen.generation}"
        tell(
            "probe.state_changed", probe=seen.probe, to_state=state.value, generation=generation,
            detail=seen.detail,
        )  # fmt: skip

    def see(self, sighting: Sighting) -> None:
        """A worker's exit, or a count of workers."""
        if isinstance(sighting, WorkerExited):
            self._see_exit(sighting)
        elif self._watch is Watch.ACTIVE:
            self._see_active(sighting)
        candidate = self._world.candidate
        if self._judge is None or candidate is None or sighting.generation != candidate.id:
            return
        if isinstance(sighting, WorkerExited):
            self._judge.worker_exited(
                sighting.pid,
                code=sighting.status.code,
                signal=sighting.status.signal,
                draining=sighting.draining,
                at=sighting.at,
            )
        elif candidate.ready:
            brood = sighting.brood
            self._judge.census(brood.accepting, at=sighting.at, starting=len(brood.starting))
            self._see_stopped(sighting)
        self._conclude()

    def _see_active(self, count: Counted) -> None:
        """Say loudly, once, when the serving generation has nobody who accepts."""
        active = self._world.active
        if active is None or active.id != count.generation or active.told_to_stop:
            return
        empty = not count.brood.accepting and not count.brood.starting
        if empty and not self._told_empty:
            self._world.log.error("generation.no_workers", generation=f"g{active.id}")
        self._told_empty = empty

    def _see_exit(self, gone: WorkerExited) -> None:
        generation = self._world.generations.get(gone.generation)
        expected = gone.draining or (generation is not None and generation.told_to_stop)
        tell = self._world.log.info
        if not expected and not gone.status.orderly and gone.status != UNKNOWN_EXIT:
            tell = self._world.log.warning
        tell(
            "worker.exited", generation=f"g{gone.generation}", pid=gone.pid,
            detail=str(gone.status), draining=gone.draining,
        )  # fmt: skip

    def _see_stopped(self, count: Counted) -> None:
        if count.master_stopped and not self._told_trigger:
            self._told_trigger = True
            detail = "the candidate's master is stopped (SIGSTOP): it could not react to anything"
            self._post(Triggered(reason="candidate_stopped", detail=detail))

    def _conclude(self) -> None:
        judge, run = self._judge, self._world.run
        if judge is None or run is None:
            return
        run.judged = run.judged or judge.judged
        if judge.trigger is not None and not self._told_trigger:
            self._told_trigger = True
            trigger = judge.trigger
            self._progress({"event": "trigger", "reason": trigger.reason, "detail": trigger.detail})
            self._post(Triggered(reason=trigger.reason, detail=trigger.detail))
        if self._watch is Watch.CANARY and judge.healthy and not self._told_healthy:
            self._told_healthy = True
            self._post(CandidateHealthy())

    # --- telling ----------------------------------------------------------------------------

    def report(self) -> list[dict[str, object]]:
        """The probes as `status` shows them."""
        return [
            {
                "name": name,
                "type": probe.type,
                "state": self._health[name].state.value,
                "generation": None
                if self._generation[name] is None
                else f"g{self._generation[name]}",
                "since": self._since[name] or None,
                "detail": self._detail[name] or None,
            }
            for name, probe in self._probes.items()
        ]
