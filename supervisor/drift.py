"""What differs between the nginx that runs and the files on disk, and who has put those there.

Asked of /proc, of the version store and of the package manager, which takes some hundredths of a
second; so the answer is kept for as long as no file, package or process has become another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from supervisor.core.errors import Refusal
from supervisor.edges import packages
from supervisor.edges.generation import Generation
from supervisor.edges.mapped_libraries import Outdated, mapped_libraries
from supervisor.edges.outdated import outdated
from supervisor.edges.packages import Package
from supervisor.operations.world import World

LIMIT = 2.0
"""Seconds that a status waits for this; the older answer does then, and the look goes on."""

_LOOKS = 2
"""The one that is under way may have begun before the last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer. `changed`: what a new start would find another one; None: nothing runs."""

    changed: tuple[Outdated, ...] | None = None
    package: Package | None = None
    placed_by: str | None = None  # supervisor, package; None: not known, or somebody else


class Drift:
    """Looks when it is asked, and only where something has changed since."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: tuple[object, ...] | None = None
        self._paths: tuple[str, ...] = ()
        self._over: trio.Event | None = None  # of the look that is under way
        self.found = Found()

    async def look(self) -> Found:
        """What is so now; at once where nothing has changed. Never raises."""
        with trio.move_on_after(LIMIT):
            for _ in range(_LOOKS):
                if self._signature() == self._seen:
                    break
                if self._over is None:
                    self._over = trio.Event()
                    # Not in the task of whoever asks: a look that takes longer than anybody waits
                    # would never be kept, and each status would wait for another one.
                    trio.lowlevel.spawn_system_task(self._look_and_tell, self._over)
                await self._over.wait()
        return self.found

    async def _look_and_tell(self, over: trio.Event) -> None:
        try:
            await self._look()
        except Exception as exc:  # noqa: BLE001 - what status tells besides is no reason to end
            self._world.log.warning("drift.not_known", detail=f"{type(exc).__name__}: {exc}")
        finally:
            self._over = None
            over.set()

    async def _look(self) -> None:
        active = self._world.active
        binary = Path(self._world.settings.nginx.binary)
        changed, self._paths = await trio.to_thread.run_sync(
            self._changed, binary, active, abandon_on_cancel=True
        )
        seen = self._signature()  # of what was looked at, or older
        package = await packages.owner_of(binary)
        ours = await trio.to_thread.run_sync(self._world.store.has_placed, binary)
        placed_by = None
        if package is not None and package.intact:
            placed_by = "package"
        elif ours:
            placed_by = "supervisor"
        self.found = Found(changed=changed, package=package, placed_by=placed_by)
        self._seen = seen

    def _changed(
        self, binary: Path, active: Generation | None
    ) -> tuple[tuple[Outdated, ...] | None, tuple[str, ...]]:
        if active is None or not active.alive:
            return None, ()
        runs = None
        with suppress(Refusal):
            runs = self._world.store.get(active.program.stored or "")
        pids = (active.master.pid, *sorted(active.workers))
        libraries = {one.path for pid in pids[:1] for one in mapped_libraries(pid)}
        modules = set() if runs is None else set(runs.modules)
        return outdated(binary, runs, pids), tuple(sorted(libraries | modules))

    def _signature(self) -> tuple[object, ...]:
        """Another one as soon as the answer may be another: some stat(2) calls, no file is read."""
        active = self._world.active
        binary = self._world.settings.nginx.binary
        runs = None
        if active is not None:
            runs = (active.id, active.alive, active.program.stored)
        return (runs, packages.signature(), *_identities((binary, *self._paths)))


def _identities(paths: Iterable[str]) -> Iterable[tuple[int, ...]]:
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            yield ()
        else:
            yield found.st_ino, found.st_mtime_ns, found.st_ctime_ns
