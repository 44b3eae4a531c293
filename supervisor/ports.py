"""What the engine needs of the world, so that it can be driven without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from supervisor.core import actions, commands, events
from supervisor.core.model import State
from supervisor.waiters import Reply


class Effects(Protocol):
    """What the engine needs done; implemented by `supervisor.effects`, faked in tests."""

    async def operate(self, run: actions.Run, state: State) -> events.Succeeded:
        """Carry out a long operation. Raises SupervisorError; cancelled on a change of phase."""
        ...

    async def record(self, before: State, after: State) -> None:
        """Put a transition of an upgrade in the journal: a successor of this process finds it.

        Fsynced where a power cut must not take it: before the preflight, which changes files, and
        before the spawning, which sends the first signal. Raises SupervisorError.
        """
        ...

    def begin(self, state: State) -> None:
        """An upgrade was accepted."""
        ...

    def aim(self, watch: actions.Watch) -> None:
        """Aim the probes."""
        ...

    async def pronounce(self, verdict: Mapping[str, object]) -> Reply:
        """Put a verdict on disk, close the upgrade's journal; the verdict as it is told."""
        ...

    async def reload(self, command: commands.Reload, tell: Callable[[Reply], None]) -> Reply:
        """Reload the active generation, telling each step; the verdict, which is on disk.

        Raises Refusal where nothing was changed.
        """
        ...

    def reopen(self) -> str:
        """Have every living master reopen its logs; what was done. Raises Refusal if none is."""
        ...

    async def retire(self, generation: int) -> None:
        """Return when `generation` is gone."""
        ...

    def lacking(self) -> str:
        """What the candidate lacks to be proved healthy, for people; may be empty."""
        ...

    def hasten(self) -> None:
        """End the drains that run."""
        ...

    async def let_go(self, *, asked: bool) -> str:
        """Hold nothing of nginx, so that it can be left alone; what is left, for people.

        `asked` says whether somebody waits for that. Never raises.
        """
        ...

    def settled(self, state: State) -> None:
        """The state has changed; publish it (service manager, roles of generations)."""
        ...
