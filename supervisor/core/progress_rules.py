"""A candidate whose processes do not get on: they spin, hang, or hear nothing any more.

Theory
------
A healthy worker is either asleep in its event loop, or awake because there is something to do. A
worker is *awake* while it runs or waits for a processor: so a busy worker on an overloaded host is
awake all of the time, and never looks as if it slept.

Spinning: awake nearly all of the time, for `worker_cpu_for`, and nothing gets done. Busy workers
of healthy sites are awake all the time too, one alone where one client keeps it busy. But each
request is at least a write to the client, and most often one to a log. So one that spins is a
thread that neither reads nor writes, or next to never, and far less for its time than the old
generation's workers over their whole lives and the candidate's other workers, where those have had
anything to do. Where one of the old generation was awake all the time, this is a site on which
workers are. A worker that spins between requests and answers them all the same cannot be told from
one whose requests are costly.

Stalled: asleep for `stalled_for`, without having been given a processor once, and either outside
of the event loop (in another function of the kernel than one that waits for events), or while
something is ready at its epoll instance. Where a worker of the old generation slept in the same
function, this is how nginx waits here. A process that waits for a disk (D) is the host's doing.

A master sleeps in sigsuspend() whenever it has nothing to do, and takes no signal elsewhere.
Reading a large configuration again takes a processor for a while: as long as the start of that
master at least.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.case import Case, Trigger
from supervisor.core.rows import awake_share, current, lately
from supervisor.core.signals import ProcessKind, Progress
from supervisor.core.usage_settings import UsageSettings

AWAKE = 0.95
"""The part of the time that a process has to be awake to be spinning."""
WORSE = 20
"""How many times less a worker has to get done than the others do for the same time."""
IDLE_CALLS = 0.5
"""Reads and writes for a second awake that are next to none."""
ENOUGH = 0.2
"""Seconds awake after which it can be told what a worker gets done."""
PARSES = 3
"""How many times as long as its start a master may be busy."""
ASLEEP = 0.02
"""The part of the time that a process may have been awake and be asleep."""

_WAITS_FOR_EVENTS = ("epoll", "ep_poll", "poll", "select")
_WAITS_FOR_SIGNALS = "sigsuspend"


def worker_spinning(case: Case, settings: UsageSettings) -> Trigger | None:
    """A worker that is awake all the time and gets nothing done."""
    if not settings.worker_cpu_for:
        return None
    rows = current(case.seen.progress(case.candidate), ProcessKind.WORKER)
    windows = [samples for row in rows if (samples := lately(row, settings.worker_cpu_for))]
    hot = [one for one in windows if (awake_share(one) or 0.0) >= AWAKE]
    if not hot or any(map(_was_always_awake, _before(case, ProcessKind.WORKER))):
        return None
    done = _work_before(case), _work_of([one for one in windows if one not in hot])
    known = [one for one in done if one is not None]
    for samples in hot:
        calls, awake = _calls(samples), _awake(samples)
        if calls is None:
            continue
        if calls / awake <= min([IDLE_CALLS, *(one / WORSE for one in known)]):
            first, last = samples[0], samples[-1]
            return Trigger(
                reason="worker_spinning",
                detail=f"worker {last.pid} of the candidate has not slept for "
                f"{last.at - first.at:.0f} s and got nothing done: {calls} reads and writes in "
                f"{awake:.1f} s of work ({_compared(known)})",
            )
    return None


def worker_stalled(case: Case, settings: UsageSettings) -> Trigger | None:
    """A worker that hangs outside of its event loop, or does not fetch what is ready for it."""
    if not settings.stalled_for:
        return None
    rows = current(case.seen.progress(case.candidate), ProcessKind.WORKER)
    windows = [lately(row, settings.stalled_for) for row in rows]
    suspects = [one for one in windows if _hangs(one, usual=frozenset())]
    if not suspects:
        return None
    before = _before(case, ProcessKind.WORKER)
    if any(_hangs(lately(row, settings.stalled_for), usual=frozenset()) for row in before):
        return None
    usual = frozenset(one.place for row in before for one in row if one.state == "S")
    for samples in suspects:
        why = _hangs(samples, usual=usual)
        if why:
            first, last = samples[0], samples[-1]
            return Trigger(
                reason="worker_stalled",
                detail=f"worker {last.pid} of the candidate has not come back to its event loop "
                f"for {last.at - first.at:.0f} s: {why}",
            )
    return None


def master_burns_cpu(case: Case, settings: UsageSettings) -> Trigger | None:
    """A master that works all the time; one that has nothing to do sleeps."""
    if not settings.master_cpu_for:
        return None
    if any(map(_was_always_awake, _before(case, ProcessKind.MASTER))):
        return None
    for row in current(case.seen.progress(case.candidate), ProcessKind.MASTER):
        busy = max(settings.master_cpu_for, PARSES * (row[0].awake or 0.0))
        samples = lately(row, busy)
        if (awake_share(samples) or 0.0) >= AWAKE:
            return Trigger(
                reason="master_burns_cpu",
                detail=f"the candidate's master {row[-1].pid} has used a CPU for "
                f"{samples[-1].at - samples[0].at:.0f} s; an idle master uses none",
            )
    return None


def candidate_deaf(case: Case, settings: UsageSettings) -> Trigger | None:
    """A master that takes no signal any more, or has no handler for some."""
    if not settings.deaf_for:
        return None
    before = [one for row in _before(case, ProcessKind.MASTER) for one in row]
    usual = frozenset(one.place for one in before)
    known = {signal for one in before for signal in one.deaf_to.split()}
    rows = case.seen.progress(case.candidate)

    def acts(since: float) -> bool:
        """It has started a worker: in each reload it sleeps elsewhere for 100 ms."""
        return any(row[-1].at - row[-1].age > since for row in rows.values())

    for row in current(rows, ProcessKind.MASTER):
        samples = lately(row, settings.deaf_for)
        pid = row[-1].pid
        if samples and all(_is_outside(one, usual) for one in samples) and not acts(samples[0].at):
            return Trigger(
                reason="candidate_deaf",
                detail=f"the candidate's master {pid} takes no signal: for "
                f"{samples[-1].at - samples[0].at:.0f} s it has not come back to where it waits "
                f"for them ({samples[-1].place or 'QUIT is blocked'})",
            )
        lacking = [set(one.deaf_to.split()) - known for one in samples]
        deaf_to = set.intersection(*lacking) if lacking else set()
        if deaf_to:
            return Trigger(
                reason="candidate_deaf",
                detail=f"the candidate's master {pid} has no handler for "
                f"{', '.join(sorted(deaf_to))}: it could not be told anything by that",
            )
    return None


def _before(case: Case, kind: ProcessKind) -> list[Sequence[Progress]]:
    if case.reference is None:
        return []
    rows = case.seen.progress(case.reference).values()
    return [row for row in rows if row[-1].kind is kind]


def _was_always_awake(row: Sequence[Progress]) -> bool:
    """Over its whole life, or while it was looked at."""
    last = row[-1]
    lifelong = last.awake is not None and last.awake >= AWAKE * max(last.age, ENOUGH)
    return lifelong or (awake_share(lately(row, ENOUGH)) or 0.0) >= AWAKE


def _awake(samples: Sequence[Progress]) -> float:
    first, last = samples[0], samples[-1]
    return (last.awake or 0.0) - (first.awake or 0.0)


def _calls(samples: Sequence[Progress]) -> int | None:
    """Reads and writes; None: unknown, also where it was another thread that was busier before."""
    first, last = samples[0].calls, samples[-1].calls
    return None if first is None or last is None or last < first else last - first


def _work_of(windows: list[Sequence[Progress]]) -> float | None:
    """Reads and writes for a second awake; None where they were not awake long enough to tell."""
    told = [(calls, _awake(one)) for one in windows if (calls := _calls(one)) is not None]
    awake = sum(seconds for _, seconds in told)
    return sum(calls for calls, _ in told) / awake if awake >= ENOUGH else None


def _work_before(case: Case) -> float | None:
    """The same of the old generation's workers, over their whole lives."""
    lives = [
        (row[-1].calls, row[-1].awake)
        for row in _before(case, ProcessKind.WORKER)
        if row[-1].calls is not None and row[-1].awake is not None
    ]
    awake = sum(seconds or 0.0 for _, seconds in lives)
    return sum(calls or 0 for calls, _ in lives) / awake if awake >= ENOUGH else None


def _compared(known: Sequence[float]) -> str:
    if not known:
        return "no other worker had anything to do"
    return f"others did {min(known):.0f} for each second of work"


def _hangs(samples: Sequence[Progress], *, usual: frozenset[str]) -> str:
    """Why it is no healthy sleep; empty where it is one, or none, or nobody can tell."""
    if not samples:
        return ""
    first, last = samples[0], samples[-1]
    share = awake_share(samples)
    if first.turns is None or first.turns != last.turns or share is None or share > ASLEEP:
        return ""
    if all(one.state == "T" for one in samples):
        return "it is stopped by a signal"
    if any(one.state != "S" for one in samples):
        return ""
    if all(one.unfetched for one in samples):
        return "something is ready at its epoll instance, and it does not fetch it"
    places = {one.place for one in samples}
    if len(places) == 1 and not places & usual and _is_hanging_place(last.place):
        return f"it sleeps in {last.place}"
    return ""


def _is_hanging_place(place: str) -> bool:
    return bool(place) and not any(word in place for word in _WAITS_FOR_EVENTS)


def _is_outside(one: Progress, usual: frozenset[str]) -> bool:
    """A master that is asleep and would not wake up for a signal that is for its loop."""
    if one.state == "R":
        return False
    if one.blocked:
        return True
    return bool(one.place) and _WAITS_FOR_SIGNALS not in one.place and one.place not in usual
