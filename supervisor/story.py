"""Which upgrade, or which reload, the events of the log belong to.

Much of what happens in an upgrade is logged by parts that do not know of it: a probe that goes
down, a worker that leaves, a pid file that is repaired. Here each event that passes gets the id of
what was under way, and the phase that it was in, so that one filter shows the whole story.

The story of an upgrade ends when the generation that it replaced has left.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from supervisor.edges.generation import Role

if TYPE_CHECKING:
    from supervisor.operations.world import World

Event = MutableMapping[str, Any]

_SAYS_ITSELF = frozenset({"upgrade.state_changed", "upgrade.verdict", "upgrade.requested"})


class Story:
    """A structlog processor; does nothing before `tell_of`. Any thread may log."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._phase: Callable[[], str] = str

    def tell_of(self, world: World, phase: Callable[[], str]) -> None:
        """Take what is under way from `world`; `phase` is that of an upgrade that runs."""
        self._world, self._phase = world, phase

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        """Add `upgrade_id` and `phase` where they are known; never raises, never blocks."""
        world = self._world
        if world is None:
            return event
        run = world.run
        if run is not None and not _is_chatter(event):
            its_own = event.setdefault("upgrade_id", run.id) == run.id
            if its_own and event.get("event") not in _SAYS_ITSELF:
                event.setdefault("phase", self._phase())
        elif world.reload_id is not None and not _is_chatter(event):
            event.setdefault("upgrade_id", world.reload_id)
        elif world.committed_id is not None and self._is_of_drain(world, event):
            event.setdefault("upgrade_id", world.committed_id)
        return event

    @staticmethod
    def _is_of_drain(world: World, event: Event) -> bool:
        """By a generation that leaves, or the end of the drain itself."""
        if event.get("event") == "supervisor.state_changed":
            return bool(event.get("from_state") == "draining")
        label = str(event.get("generation") or "").removeprefix("g")
        found = world.generations.get(int(label)) if label.isdigit() else None
        return found is not None and found.role is Role.RETIRING


def _is_chatter(event: Event) -> bool:
    """What nginx writes to its standard output may be an access log; a message has its process."""
    return event.get("event") == "nginx.output" and not event.get("generation")
