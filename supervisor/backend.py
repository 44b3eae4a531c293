"""What the control socket asks of the supervisor: snapshots, and operations of the engine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from supervisor import snapshot
from supervisor.advice import advice_on
from supervisor.core.commands import Adopt, Command, Detach, Restart, SelfUpgrade
from supervisor.core.diagnosis_own_unit import KILLS_NGINX
from supervisor.core.errors import OperationFailed, Refusal, SupervisorError
from supervisor.core.model import Phase
from supervisor.doctor import Doctor, reply_of
from supervisor.drift import Drift
from supervisor.edges.config_file import load_settings
from supervisor.edges.disk_binary import DiskBinaryCache
from supervisor.edges.journal import History
from supervisor.edges.log_tap import LogTap
from supervisor.edges.systemd_units import is_booted, own_unit, unit_seen
from supervisor.edges.upgradable import objection
from supervisor.operations.adoption import open_claimed
from supervisor.operations.facts import read_facts, settings_argv
from supervisor.operations.world import World
from supervisor.waiters import Reply, refusal

if TYPE_CHECKING:
    from supervisor.edges.peers import Peer
    from supervisor.effects import NginxEffects
    from supervisor.engine import Engine
    from supervisor.evidence import Evidence
    from supervisor.succession import Succession


_AT_REST_WITHOUT_NGINX = (Phase.BACKOFF, Phase.STOPPED, Phase.DEGRADED)


class Backend:
    """Implements `ControlBackend`."""

    def __init__(
        self,
        *,
        config: Path,
        world: World,
        engine: Engine,
        effects: NginxEffects,
        evidence: Evidence,
        history: History,
        tap: LogTap,
        error_logs: Callable[[], Mapping[str, object]] | None = None,
        succession: Succession | None = None,
        started: str | None = None,
    ) -> None:
        self.succession = succession
        self.started = started
        self.replaced: str | None = None
        self._config = config
        self._world = world
        self._engine = engine
        self._effects = effects
        self._evidence = evidence
        self._history = history
        self._tap = tap
        self._error_logs = error_logs
        self._doctor = Doctor(world)
        self._disk = DiskBinaryCache(world.settings.nginx.binary)
        self._drift = Drift(world)

    async def freshen(self) -> None:
        """See ControlBackend."""
        await self._drift.look()

    def status(self) -> dict[str, object]:
        """See ControlBackend."""
        return snapshot.status(
            state=self._engine.state,
            generations=list(self._world.generations),
            disk=self._disk.look(),
            config_matches=self._world.config_matches(),
            held=self._world.held.report(),
            probes=self._evidence.report(),
            restarts=max(0, self._effects.starts - 1),
            last_verdict=self._effects.last_verdict,
            upgrade=self._running_upgrade(),
            next_start=self._engine.next_start(),
            drain_left=self._effects.drain_left(),
            started=self.started,
            replaced=self.replaced,
            error_logs=None if self._error_logs is None else self._error_logs(),
            drift=self._drift.found,
        )

    def _running_upgrade(self) -> dict[str, object]:
        run = self._world.run
        whole, phase = self._engine.elapsed()
        return {
            "from_version": None if run is None else run.from_version,
            "to_version": None if run is None else run.to_version,
            "elapsed_s": round(whole, 3),
            "phase_elapsed_s": round(phase, 3),
            **self._evidence.lookout.observed.report(),
        }

    @asynccontextmanager
    async def submit(
        self, command: Command | SelfUpgrade, peer: Peer
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Reply]]:
        """See ControlBackend."""
        del peer  # every caller that gets here may do everything
        if isinstance(command, SelfUpgrade):
            assert self.succession is not None
            async with self.succession.submit(command) as replies:
                yield replies
            return
        objection = await self._objection(command)
        if objection is None and isinstance(command, Adopt) and command.take_over:
            # What nobody has adopted yet is adopted first.
            objection = await self._adopt_first()
        if objection is None:
            async with self._engine.submit(command) as replies:
                yield replies
            return
        send, receive = trio.open_memory_channel[Reply](1)
        async with receive:
            operation = type(command).__name__.lower()
            send.send_nowait(refusal(operation, objection.reason, objection.detail))
            send.close()
            yield receive

    async def _adopt_first(self) -> SupervisorError | None:
        """Have a living nginx adopted where none is; why that failed."""
        if self._world.active is not None:
            return None
        last: Reply = {}
        async with self._engine.submit(Adopt()) as replies:
            async for reply in replies:
                last = reply
        if last.get("verdict") == "done":
            return None
        return OperationFailed(str(last.get("reason")), str(last.get("detail")))

    def resume(
        self, number: int | None, undelivered: Sequence[Mapping[str, object]]
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Reply]]:
        """See ControlBackend."""
        return self._engine.waiters.resume(number, undelivered)

    async def _objection(self, command: Command) -> SupervisorError | None:
        """Why the command would do harm, or nothing; the machine knows only processes of ours."""
        if isinstance(command, Detach):
            return detachable() or await killed_with_us()
        if isinstance(command, Adopt):
            return await self._nothing_to_adopt()
        return await self._restart_would_fail(command)

    async def _nothing_to_adopt(self) -> SupervisorError | None:
        """Nothing is started where there is nothing to adopt."""
        world = self._world
        if world.active is not None or self._engine.state.phase not in _AT_REST_WITHOUT_NGINX:
            return None
        path = world.pid_path
        process = open_claimed(world, Path(path)) if path else None
        if process is None:
            return Refusal(
                "nothing_to_adopt",
                f"cannot adopt: the pid file {path or '(unknown)'} names no living master of this "
                "nginx; nginxctl start starts one",
            )
        process.close()
        return None

    async def _restart_would_fail(self, command: Command) -> SupervisorError | None:
        """Why nginx would not come up again: it is not stopped then.

        A file on disk that cannot be run is none: the last good one is put back.
        """
        active = self._world.active
        if not isinstance(command, Restart) or active is None or not active.alive:
            return None
        if self._engine.state.upgrade is not None:
            return None  # it is refused, and no test may run between two masters
        objections: list[SupervisorError] = []
        for binary in (self._world.settings.nginx.binary, f"/proc/{active.master.pid}/exe"):
            try:
                await read_facts(self._world, binary, settings_argv(self._world))
            except SupervisorError as exc:
                objections.append(exc)
            else:
                return None
        # In terms of the file that people know, where that says so as well.
        return next((one for one in objections if one.reason == "config_rejected"), None)

    async def history(self, limit: int | None) -> Sequence[Mapping[str, object]]:
        """See ControlBackend."""
        return await trio.to_thread.run_sync(self._history.entries, limit)

    def versions(self) -> Sequence[Mapping[str, object]]:
        """See ControlBackend."""
        active = self._world.active
        running = None if active is None else active.program.stored
        on_disk = self._disk.look().sha256
        return [
            {
                "id": one.id,
                "version": one.version or "",
                "sha256": one.sha256,
                "binary": str(one.binary),
                "modules": sorted(one.modules),
                "stored": one.stored_at,
                "active": one.id == running,
                "on_disk": one.sha256 == on_disk,
                "good": one.good,
            }
            for one in self._world.store.versions()
        ]

    async def check(self) -> dict[str, object]:
        """See ControlBackend."""
        findings = [await self._check_own(), await self._check_nginx()]
        findings += [
            {"name": "advice", "ok": True, "reason": one.reason, "detail": one.detail}
            for one in await advice_on(self._world)
        ]
        active = self._world.active
        if active is not None and active.alive and self._engine.state.phase is Phase.IDLE:
            refusal = objection(active.master.pid, Path(self._world.settings.nginx.binary))
            if refusal is not None:
                told = {"name": "advice", "reason": refusal.reason, "detail": refusal.detail}
                findings.append({**told, "ok": True})
        return {"ok": all(one["ok"] for one in findings), "findings": findings}

    async def health(self) -> dict[str, object]:
        """See ControlBackend."""
        await self._engine.goes_round()
        generations = list(self._world.generations)
        ready = any(one.brood().accepting for one in generations)
        state, _, detail = snapshot.condition(self._engine.state, self._world.active, generations)
        probes = self._evidence.report()
        return {
            "ready": ready,
            "state": state,
            "detail": detail or None,
            "probes_down": [str(one["name"]) for one in probes if one["state"] == "down"],
        }

    async def doctor(self) -> dict[str, object]:
        """See ControlBackend."""
        phase = self._engine.state.phase
        at_rest = (Phase.IDLE, Phase.DRAINING, *_AT_REST_WITHOUT_NGINX)
        busy = "" if phase in at_rest else f"the supervisor is busy ({phase.value})"
        probes = [(str(one["name"]), str(one["state"])) for one in self._evidence.report()]
        return reply_of(await self._doctor.examine(busy=busy, probes=probes))

    async def _check_own(self) -> dict[str, object]:
        try:
            await trio.to_thread.run_sync(load_settings, self._config)
        except SupervisorError as exc:
            return _finding("supervisor configuration", exc)
        return _finding("supervisor configuration", None)

    async def _check_nginx(self) -> dict[str, object]:
        try:
            await read_facts(
                self._world, self._world.settings.nginx.binary, settings_argv(self._world)
            )
        except SupervisorError as exc:
            return _finding("nginx configuration", exc)
        return _finding("nginx configuration", None)

    def log_events(
        self, *, new: bool = False
    ) -> AbstractAsyncContextManager[
        tuple[Sequence[Mapping[str, object]], trio.MemoryReceiveChannel[dict[str, object]]]
    ]:
        """See ControlBackend."""
        return self._tap.follow(new=new)


def detachable() -> SupervisorError | None:
    """Why nginx could not be left serving."""
    if os.getpid() != 1:
        return None
    return Refusal(
        "pid_1",
        "cannot detach: the supervisor is PID 1 of its container, and its end is nginx's; "
        "nginxctl self-upgrade replaces the supervisor by another one",
    )


async def killed_with_us() -> SupervisorError | None:
    """Why systemd would end nginx with the supervisor, as it does by default (systemd.kill(5))."""
    unit = own_unit(os.getpid()) if is_booted() else ""
    seen = await unit_seen(unit) if unit else None
    mode = "" if seen is None else seen.properties.get("KillMode", "")
    if seen is None or mode not in KILLS_NGINX:
        return None
    if seen.properties.get("MainPID") != str(os.getpid()):
        return None  # some unit's process, as in a terminal: nobody ends nginx with it
    return Refusal(
        "kill_mode",
        f"cannot detach: {unit} has KillMode={mode}, with which systemd ends nginx when the "
        "supervisor ends; set KillMode=process, then systemctl daemon-reload",
    )


def _finding(name: str, problem: SupervisorError | None) -> dict[str, object]:
    if problem is None:
        return {"name": name, "ok": True, "reason": None, "detail": None}
    return {"name": name, "ok": False, "reason": problem.reason, "detail": problem.detail}
