"""Who is told, beside the judge of an upgrade, what is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from supervisor.core.observation import Observation
from supervisor.watch import Sighting


class Listener(Protocol):
    """Somebody who wants to know."""

    def observe(self, seen: Observation) -> None:
        """One result of one probe."""
        ...

    def see(self, sighting: Sighting) -> None:
        """A worker's exit, or a count of workers."""
        ...

    def aimed(self) -> None:
        """Something else is looked at from now on."""
        ...


class Audience:
    """All listeners; each is told everything, for as long as its block lasts."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    @contextmanager
    def told(self, listener: Listener) -> Iterator[None]:
        """`listener` is among them."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def observe(self, seen: Observation) -> None:
        """See Listener."""
        for one in list(self._listeners):
            one.observe(seen)

    def see(self, sighting: Sighting) -> None:
        """See Listener."""
        for one in list(self._listeners):
            one.see(sighting)

    def aimed(self) -> None:
        """See Listener."""
        for one in list(self._listeners):
            one.aimed()
