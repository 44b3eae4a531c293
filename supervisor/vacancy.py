"""Nobody accepts: say so loudly, once, and have the serving master start its workers again."""

from __future__ import annotations

import math
from collections.abc import Callable

from supervisor.edges import procfs
from supervisor.operations.world import World
from supervisor.watch import Counted

EMPTY_LIMIT = 0.5
"""Seconds without a worker after which nginx is not expected to start any by itself."""
REVIVE_EVERY = 10.0
"""Seconds between two reloads that are to bring workers back."""


class Vacancy:
    """Looks at the counts of the serving generation's workers."""

    def __init__(self, world: World, revive: Callable[[], None]) -> None:
        self._world = world
        self._revive = revive
        self._empty_since: float | None = None
        self._revived_at = -math.inf

    def see(self, count: Counted) -> None:
        """WINCH to the only master ends its workers, and then only HUP brings them back."""
        active = self._world.active
        if active is None or active.id != count.generation or active.told_to_stop:
            return
        brood = count.brood
        elsewhere = any(procfs.brood_of(procfs.children(pid)).accepting for pid in brood.masters)
        if brood.accepting or brood.starting or elsewhere or active.quitting:
            self._empty_since = None
            return
        now = count.at
        if self._empty_since is None:
            self._empty_since = now
            detail = (
                f"nobody accepts connections: somebody has sent WINCH to the master "
                f"{active.master.pid}, or its workers cannot start; it is told to start them again"
            )
            self._world.log.error(
                "generation.no_workers", generation=f"g{active.id}", detail=detail
            )
        elif now - self._empty_since >= EMPTY_LIMIT and now - self._revived_at >= REVIVE_EVERY:
            self._revived_at = now
            self._revive()
