"""The table of the matrix: who is hit, by what, at which point of what the supervisor does.

A point is one of `paused.py`, with the number of the time at which it is reached; `AT_REST` is the
idle supervisor, which reaches no point. Every state of the machine is there with all signals, and
the two halves of each action with those that can make a difference.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Scenario(Enum):
    """What the supervisor is about when it is stopped."""

    UPGRADE = "upgrade"  # of a good binary, to its end
    HELD = "held"  # the same, held until it is promoted
    ROLLBACK = "rollback"  # an operator takes a held one back
    REJECTED = "rejected"  # the candidate answers 500 in its canary
    CRASH_MASTER = "crash_master"  # the master alone was killed, its workers serve on
    CRASH_ALL = "crash_all"  # nothing of nginx is left
    BACKOFF = "backoff"  # the master was killed, and its configuration is broken
    RECOVER = "recover"  # a successor finds an upgrade that was held
    RECOVER_COMMITTED = "recover_committed"  # a successor finds QUIT sent, and no verdict
    STOP = "stop"  # nginxctl stop
    DEGRADED = "degraded"  # the master was killed, and the start limit is reached
    TAKE_OVER = "take_over"  # of the master that serves, by one of our own
    REPLACED = "replaced"  # the supervisor replaces itself
    REPLACED_HELD = "replaced_held"  # the same while an upgrade is held
    REST = "rest"  # nothing


class Victim(Enum):
    """Who is hit."""

    SUPERVISOR = "supervisor"
    OLD_MASTER = "old_master"
    NEW_MASTER = "new_master"
    OLD_WORKERS = "old_workers"
    NEW_WORKERS = "new_workers"
    OLD_WORKER = "one_old_worker"
    NEW_WORKER = "one_new_worker"


S, OM, NM = Victim.SUPERVISOR, Victim.OLD_MASTER, Victim.NEW_MASTER
OW, NW, O1, N1 = Victim.OLD_WORKERS, Victim.NEW_WORKERS, Victim.OLD_WORKER, Victim.NEW_WORKER

ALL = ("KILL", "STOP", "SEGV", "TERM")
KILL = ("KILL",)
HARD = ("KILL", "STOP", "TERM")
AT_REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run."""

    scenario: Scenario
    point: str
    number: int
    victim: Victim
    signal: str

    def __str__(self) -> str:
        where = self.point if self.number == 1 else f"{self.point}{self.number}"
        return f"{self.scenario.value}-{where}-{self.victim.value}-{self.signal}"


@dataclass(frozen=True, slots=True)
class Row:
    """Cases at the same points."""

    scenario: Scenario
    points: str  # several with spaces between; `NAME*3` is the third time, `NAME*1-3` each of three
    victims: Sequence[Victim]
    signals: Sequence[str]

    def cases(self) -> Iterator[Case]:
        for point in self.points.split():
            name, _, times = point.partition("*")
            first, _, last = (times or "1").partition("-")
            for number in range(int(first), int(last or first) + 1):
                for victim in self.victims:
                    for signal in self.signals:
                        yield Case(
                            scenario=self.scenario, point=name, number=number, victim=victim,
                            signal=signal,
                        )  # fmt: skip


EARLY = (S, OM, OW, O1)  # there is no candidate yet
BOTH = (S, OM, NM, OW, NW, O1, N1)
LATE = (S, OM, NM, NW, N1)  # the old master stands by without workers
NEW = (S, NM, NW, N1)

U, H, R, E = Scenario.UPGRADE, Scenario.HELD, Scenario.ROLLBACK, Scenario.REJECTED
CM, CA, B = Scenario.CRASH_MASTER, Scenario.CRASH_ALL, Scenario.BACKOFF
D, T, Q, QH = Scenario.DEGRADED, Scenario.TAKE_OVER, Scenario.REPLACED, Scenario.REPLACED_HELD
V, VC, X, IDLE = Scenario.RECOVER, Scenario.RECOVER_COMMITTED, Scenario.STOP, Scenario.REST

JOURNAL = "journal.before*1-6 journal.after*1-6 journal.written*1-2"

ROWS = (
    Row(IDLE, AT_REST, EARLY, ALL),
    # Forward: every state ...
    Row(U, "state.preflight state.spawning", EARLY, ALL),
    Row(U, "state.canary state.shifting", BOTH, ALL),
    Row(U, "state.soaking state.committing", LATE, ALL),
    Row(H, "state.held", LATE, ALL),
    Row(U, "state.draining", (*LATE, OW), ALL),
    # ... every record ...
    Row(U, JOURNAL, (S,), KILL),
    Row(U, "masters.before*1-2 masters.after*1-2", (S,), KILL),
    Row(U, "history.before history.written history.after closed.before closed.after",
        (S, OM, NM), KILL),
    # ... and between the halves of each action.
    Row(U, "stage.before stage.written stage.after include.before include.after", (S, OM), KILL),
    Row(U, "install.before install.after", (S, OM, O1), KILL),
    Row(U, "SIGUSR2.before SIGUSR2.after", EARLY, KILL),
    Row(U, "SIGUSR2.before SIGUSR2.after", (OM,), ("STOP", "TERM")),
    Row(U, "join.after", (S, OM, NM, OW), KILL),
    Row(U, "join.after", (NM,), ("STOP", "SEGV", "TERM")),
    Row(U, "ready.after", BOTH, KILL),
    Row(U, "SIGWINCH.before SIGWINCH.after", BOTH, KILL),
    Row(U, "SIGWINCH.before SIGWINCH.after", (OM, NM, OW), ("STOP", "TERM")),
    Row(U, "leaving.before", LATE, KILL),
    Row(U, "SIGQUIT.before SIGQUIT.after", LATE, KILL),
    Row(U, "SIGQUIT.before SIGQUIT.after", (OM, NM), ("STOP", "TERM")),
    # Back from the soak.
    Row(R, "state.rolling_back", LATE, ALL),
    Row(R, "journal.before journal.after", (S,), KILL),
    Row(R, "SIGHUP.before SIGHUP.after", LATE, KILL),
    Row(R, "SIGHUP.before SIGHUP.after", (OM, NM), ("STOP", "TERM")),
    Row(R, "SIGQUIT.before SIGQUIT.after", BOTH, KILL),
    Row(R, "SIGQUIT.before SIGQUIT.after", (OM, NM), ("STOP", "TERM")),
    Row(R, "include_back.before include_back.after stage.before stage.after rename.before "
        "rename.after", (S, OM, OW), KILL),
    Row(R, "history.before history.after closed.before closed.after", (S, OM), KILL),
    # Back from the canary.
    Row(E, "state.rolling_back", BOTH, KILL),
    Row(E, "SIGQUIT.before", (S, OM, NM, OW, NW), KILL),
    Row(E, "SIGQUIT.after", (S, OM, OW), KILL),
    Row(E, "stage.after*2 rename.after*2 history.before history.after", (S, OM), KILL),
    # Starting after a crash.
    Row(CM, "state.starting", (S, OW, O1), ALL),
    Row(CM, "launch.before", (S, OW, O1), KILL),
    Row(CM, "launch.after", (S, NM, OW), KILL),
    Row(CM, "ready.after launched.after join.after", (S, NM, NW, OW), KILL),
    Row(CM, "SIGQUIT.before SIGQUIT.after", (S, NM, NW), KILL),
    Row(CA, "state.starting", (S,), ALL),
    Row(CA, "launch.before", (S,), KILL),
    Row(CA, "launch.after", (S, NM), HARD),
    Row(CA, "ready.after launched.before launched.after join.after", NEW, KILL),
    Row(B, "state.backoff", (S, OW, O1), ALL),
    # A successor that dies as well, or what it finds.
    Row(V, "join.after*1-2", (S, OM, NM), KILL),
    Row(V, "state.rolling_back", LATE, KILL),
    Row(V, "journal.before journal.after", (S,), KILL),
    Row(V, "SIGHUP.before SIGHUP.after SIGQUIT.before SIGQUIT.after", (S, OM, NM), KILL),
    Row(V, "stage.after rename.after history.before history.after closed.after", (S, OM), KILL),
    Row(VC, "join.after*1-2 history.before history.after closed.after", (S, NM), KILL),
    Row(D, "state.degraded", (S, OW, O1), ALL),
    # Another master, another supervisor.
    Row(T, "state.taking_over", EARLY, ALL),
    Row(T, "launch.before", EARLY, KILL),
    Row(T, "launch.after ready.after launched.after join.after SIGKILL.before", BOTH, KILL),
    Row(T, "SIGKILL.after", (S, NM, OW, NW), KILL),
    Row(T, "SIGQUIT.before SIGQUIT.after", (S, NM, OW, NW), KILL),
    Row(Q, "execve.before inherit.before inherit.after", EARLY, KILL),
    Row(QH, "execve.before inherit.before inherit.after", LATE, KILL),
    # Stopping.
    Row(X, "state.stopping SIGQUIT.before SIGQUIT.after state.stopped", (S,), ALL),
)  # fmt: skip

CASES = tuple(case for row in ROWS for case in row.cases())

SEED = 1


def third(seed: int, among: Iterable[Case] = CASES) -> list[Case]:
    """A third of the matrix, the same for the same seed, in the order of the table.

    Of each point about a third, so that every one of them is there in most seeds.
    """
    cases = list(among)
    dice = random.Random(seed)
    by_point: dict[tuple[Scenario, str, int], list[Case]] = {}
    for case in cases:
        by_point.setdefault((case.scenario, case.point, case.number), []).append(case)
    shuffled = [case for group in by_point.values() for case in dice.sample(group, len(group))]
    chosen = set(shuffled[dice.randrange(3) :: 3])
    return [case for case in cases if case in chosen]
