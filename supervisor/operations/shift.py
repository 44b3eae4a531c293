"""The two steps forward: WINCH to the old master, and later QUIT to it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges.generation import Generation
from supervisor.edges.pulse import Pulse
from supervisor.operations.pidfiles import settle_pid_file
from supervisor.operations.world import POLL, World

WINCH_LIMIT = 5.0
"""Seconds within which the old workers must begin to leave."""

NUDGE_EVERY = 0.1
"""Seconds for which a master may seem not to act before it is woken, and between two wakings."""


async def shift(world: World) -> None:
    """Take the old generation out of service; return when only the candidate accepts.

    Raises OperationFailed when the old workers do not leave, or when the candidate was lost
    meanwhile: nginx does not revive the old workers when its child died just before WINCH.
    """
    run, old, candidate = world.run, world.active, world.candidate
    assert run is not None
    if old is None or candidate is None:
        raise OperationFailed("candidate_exited", "cannot shift: a generation is gone")
    run.winch_workers = old.look().all_but_masters
    if old.alive:
        old.master.send(signal.SIGWINCH)
    else:
        old.signal_workers(signal.SIGQUIT)
    nudge = Nudge()
    limit = world.settings.upgrade.shift_timeout
    with trio.move_on_after(limit), Pulse(POLL) as pulse:
        # A worker's new title has no event.
        while accepts(old):
            nudge.when_due(old)
            await pulse.tick()
        _expect_workers(candidate)
        return
    raise OperationFailed(
        "winch_ignored",
        f"the old workers did not begin to leave within {limit:g} s of WINCH to {old.master.pid};"
        " nginx ignores it when something else started it in the foreground (`daemon off`):"
        " nginxctl adopt --take-over makes it one that can be upgraded",
    )


class Nudge:
    """Wakes a master that has been told something and does not act on it.

    A turn of nginx's loop may end before it has acted on all that it was told (after HUP it goes
    back to sleep with a WINCH, or workers to be started, left over), and then only the next signal
    makes it go on (ngx_process_cycle.c, ngx_master_process_cycle). SIGIO is that signal: it wakes
    a master and means nothing to it.
    """

    def __init__(self) -> None:
        self._last = trio.current_time()

    def when_due(self, generation: Generation) -> None:
        """Wake the master where the last time is long enough ago."""
        now = trio.current_time()
        if now - self._last >= NUDGE_EVERY:
            self._last = now
            generation.master.send(signal.SIGIO)


def accepts(generation: Generation) -> bool:
    """A worker accepts, or is about to: one that somebody else's HUP has just made counts too."""
    brood = generation.look()
    return bool(brood.accepting | brood.starting)


def _expect_workers(candidate: Generation) -> None:
    if not candidate.alive:
        raise OperationFailed("candidate_exited", "the candidate's master is gone")
    if not candidate.look().accepting:
        raise OperationFailed("no_workers", "no worker of the candidate accepts any more")


async def commit(world: World, expect_good: Callable[[], None]) -> None:
    """Look at the candidate a last time, then QUIT the old master: the point of no return.

    Raises OperationFailed, and nothing was sent, when the candidate does not hold up, or when
    `expect_good` raises it. Cancelling has no effect between the last look and the signal: there
    is no checkpoint.
    """
    run, old, candidate = world.run, world.active, world.candidate
    assert run is not None
    if candidate is None:
        raise OperationFailed("candidate_exited", "cannot commit: the candidate is gone")
    if run.usr2_sent and run.installed and run.stored is not None:
        await run.settled.wait()
        if run.not_settled is not None:
            raise OperationFailed(run.not_settled.reason, run.not_settled.detail)
    await settle_pid_file(world, candidate)
    _expect_workers(candidate)
    expect_good()
    if candidate.master.stopped:
        raise OperationFailed("candidate_stopped", "the candidate's master is stopped (SIGSTOP)")
    if old is not None:
        old.told_to_stop = True
        run.quit_sent = True
        if not old.master.send(signal.SIGQUIT):
            old.signal_workers(signal.SIGQUIT)
