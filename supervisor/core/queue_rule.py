"""A listener of the candidate at which connections wait, and nobody accepts them.

Theory
------
A healthy server has connections waiting only while all of its workers are busy, and accepts some
of them then, so that the queue shrinks now and then. A queue that is never empty and never
shrinks, for `stalled_for`, while the workers have time to spare, is one that nobody serves. Of
workers that wait for a processor nobody can say that they have time: on an overloaded host
nothing is said.

Several sockets at one address (reuseport) have a worker each. Which worker that is cannot be told,
so none of them may be busy. Workers that have used up their connections (worker_connections) accept
nothing for a while: that many descriptors, in each of them, say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from supervisor.core.case import Case, Trigger
from supervisor.core.rows import LEAST, awake_share, current, lately
from supervisor.core.signals import ProcessKind, Queue
from supervisor.core.usage_settings import UsageSettings

SPARE = 0.8
"""The part of the time that workers are awake at most, where they have time to spare."""
BUSY = 0.9
"""The same of each worker, where one socket is one worker's."""
FULL = 500
"""Descriptors from which on a worker may have used up its connections: the default is 512."""


def accept_queue_stalled(case: Case, settings: UsageSettings) -> Trigger | None:
    """Connections wait at one of the candidate's listeners, although its workers have time."""
    if not settings.stalled_for:
        return None
    queues = case.seen.queues(case.candidate)
    stuck = {
        key: samples
        for key, row in queues.items()
        if case.at - row[-1].at <= settings.stalled_for  # else that socket is gone
        and (samples := lately(row, settings.stalled_for))
        and _is_stuck(samples)
    }
    if not stuck:
        return None
    shares = _shares(case, settings)
    if not shares or _are_full(case):
        return None
    before = set() if case.reference is None else _stuck_before(case, case.reference)
    for (address, _), samples in sorted(stuck.items()):
        mean = sum(shares) / len(shares)
        busy = max(shares) >= BUSY if samples[-1].siblings else mean >= SPARE
        if busy or address in before:
            continue
        first, last = samples[0], samples[-1]
        return Trigger(
            reason="accept_queue_stalled",
            detail=f"{last.waiting} connections wait at {address} and nobody accepts them: not one "
            f"less for {last.at - first.at:.0f} s, while the candidate's workers are busy "
            f"{mean:.0%} of the time",
        )
    return None


def _is_stuck(samples: Sequence[Queue]) -> bool:
    waiting = [one.waiting for one in samples]
    return waiting[0] > 0 and all(a <= b for a, b in pairwise(waiting))


def _shares(case: Case, settings: UsageSettings) -> list[float]:
    """How busy each worker is; empty where that is not known of all, or a disk is waited for."""
    shares = []
    states: Counter[str] = Counter()
    for row in current(case.seen.progress(case.candidate), ProcessKind.WORKER):
        samples = lately(row, settings.stalled_for)
        share = awake_share(samples)
        if share is None:
            return []
        shares.append(share)
        states.update(one.state for one in samples)
    return [] if states["D"] > states.total() / 2 else shares


def _are_full(case: Case) -> bool:
    rows = current(case.seen.usage(case.candidate), ProcessKind.WORKER)
    return bool(rows) and all((row[-1].descriptors or 0) >= FULL for row in rows)


def _stuck_before(case: Case, reference: int) -> set[str]:
    """Addresses at which connections waited for the old generation in the same way."""
    return {
        address
        for (address, _), row in case.seen.queues(reference).items()
        if len(row) >= LEAST and _is_stuck(row[-LEAST:])
    }
