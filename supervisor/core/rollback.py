"""How to return to the old generation, one step at a time, by what is seen.

Theory
------
nginx does part of a rollback by itself: when the new master is gone, the old one renames its pid
file back and, if it had been told WINCH, starts its workers again. Signals coalesce, and the
order in which one loop turn of the master handles them is fixed (reap, HUP, WINCH). Three races
follow (ngx_process_cycle.c):

A. WINCH and HUP pending together: HUP starts workers, then the WINCH that is still pending ends
   all of them at the next signal. So HUP is sent only after WINCH was seen to be consumed.
B. SIGCHLD of the new master and HUP pending together: HUP is then a true reload. So with a dead
   candidate no HUP is sent until nginx had time to revive its workers by itself.
C. The new master dies just before WINCH arrives: nothing is revived. So when no worker appears,
   HUP is sent after all.

HUP while the new master lives adds a set of workers each time, whether or not others run; it is
sent once, and a surplus is removed by a true reload at the end.

Some of it is visible only afterwards. A master that is busy takes note of its child's death late;
one that was left with "not accepting" by an earlier repair starts a set too many when its child
dies; a true reload sleeps 100 ms in the middle, and workers that are owed besides come after that.
So nothing is called done before nginx has had the time to show what it does by itself.

`next_step` is pure: it sees a `View` and returns the one thing to do now. The driver carries it
out, looks again and asks again. So it is the same procedure whether it starts from the canary,
from the soak, after a supervisor died in the middle, or after nginx did half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to wait before the next harsher means; seconds."""

    winch: float = 2.0  # for the old workers to begin to leave
    self_revive: float = 1.0  # for nginx to restart the old workers by itself
    turn: float = 0.05  # for the old master to act on the end of the candidate that it has reaped
    reload: float = 0.3  # for a true reload to show all of its effects
    revive: float = 5.0  # for the old workers to be back after HUP
    react: float = 2.0  # for the candidate to do what QUIT or the end of its workers means
    drain: float = 60.0  # for the candidate's connections to end
    term: float = 5.0  # for the candidate to end after TERM
    kill: float = 5.0  # for the kernel to end it after KILL


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen now, and how long ago (seconds, None for never) each thing was done."""

    old_alive: bool
    old_accepting: int
    old_expected: int
    old_starting: int = 0  # forked, and not yet accepting
    old_unshifted: int = 0  # accept still, of those that it had when WINCH was sent
    winch_sent: bool  # to the old master
    winch_consumed: bool  # every worker that it had then is leaving or gone
    candidate_alive: bool
    candidate_stopped: bool  # by SIGSTOP: state T
    candidate_ready: bool  # its handlers were set and workers came up, at some time
    candidate_accepting: int
    candidate_workers: int  # all that live, accepting or leaving, orphans as well
    candidate_alone_for: float | None = None  # since its master had no worker left
    waited: float  # since the rollback began
    candidate_gone_for: float | None = None
    candidate_reaped_for: float | None = math.inf  # since its parent has taken note of that
    hups: int = 0
    hup_ago: float | None = None
    quit_ago: float | None = None  # QUIT to the candidate's master
    workers_quit_ago: float | None = None  # QUIT to its workers directly
    term_ago: float | None = None
    kill_ago: float | None = None
    reloaded: bool = False  # the true reload at the end was sent
    relaunches: int = 0  # how often the old version was started afresh
    hasten: bool = False  # an operator does not want to wait for connections


class Step(Enum):
    """The one thing to do now."""

    WAIT = "wait"
    HUP_OLD = "hup_old"
    RELAUNCH_OLD = "relaunch_old"
    QUIT_CANDIDATE = "quit_candidate"
    QUIT_WORKERS = "quit_workers"
    TERM_CANDIDATE = "term_candidate"
    KILL_CANDIDATE = "kill_candidate"
    KILL_WORKERS = "kill_workers"
    TERM_WORKERS = "term_workers"
    RELOAD_OLD = "reload_old"
    DONE = "done"
    GIVE_UP = "give_up"


MOST_HUPS = 3
"""One is the rule; the others repair what race A or a failed fork left behind."""
MOST_RELAUNCHES = 3
"""Who killed the old master may not be done: what was started in its place is killed as well."""


def next_step(view: View, limits: Limits) -> Step:
    """The one thing to do now; WAIT means look again when something has changed."""
    if not view.old_alive:
        return Step.RELAUNCH_OLD if view.relaunches < MOST_RELAUNCHES else Step.GIVE_UP
    serving = _bring_old_back(view, limits)
    if serving is not Step.DONE:
        return serving
    if view.candidate_alive:
        return _end_candidate(view, limits)
    if view.candidate_workers:
        return _end_orphans(view, limits)
    return _settle(view, limits)


def _bring_old_back(view: View, limits: Limits) -> Step:
    """DONE once the old generation accepts with all its workers (or with some, at the limit)."""
    pending = view.winch_sent and not view.winch_consumed
    if pending and view.waited < (limits.winch if view.candidate_alive else limits.revive):
        return Step.WAIT  # race A
    if view.old_accepting >= view.old_expected:
        return Step.DONE
    if view.old_unshifted >= view.old_expected:
        return Step.DONE  # nginx ignores WINCH where it was started in the foreground
    if not view.winch_sent and view.old_accepting and view.waited < limits.self_revive:
        return Step.WAIT  # a worker that died is respawned by its master
    if not view.winch_sent and view.old_accepting:
        return Step.DONE
    if view.hup_ago is None:
        return Step.WAIT if _nginx_may_revive(view, limits) else Step.HUP_OLD
    if view.hup_ago < limits.revive:
        return Step.WAIT
    if view.old_accepting:
        return Step.DONE
    return Step.HUP_OLD if view.hups < MOST_HUPS else Step.GIVE_UP


def _nginx_may_revive(view: View, limits: Limits) -> bool:
    """The candidate is dead, and the old master may restart its workers by itself: race B."""
    gone = view.candidate_gone_for
    if view.candidate_alive or gone is None:
        return False
    reaped = view.candidate_reaped_for
    return gone < limits.revive if reaped is None else min(gone, reaped) < limits.self_revive


def _settle(view: View, limits: Limits) -> Step:
    """DONE once nginx has shown everything that it does by itself; a surplus is reloaded away."""
    if view.candidate_gone_for is not None and not _end_is_digested(view, limits):
        return Step.WAIT
    hup = view.hup_ago
    if view.old_starting and (view.waited if hup is None else hup) < limits.revive:
        return Step.WAIT
    surplus = view.old_accepting + view.old_unshifted > view.old_expected
    if surplus and not view.reloaded:
        return Step.RELOAD_OLD
    return Step.WAIT if surplus and (hup or 0) < limits.revive else Step.DONE


def _end_is_digested(view: View, limits: Limits) -> bool:
    """The old master has taken note of the candidate's end and done all that it does then."""
    gone, reaped = view.candidate_gone_for or 0, view.candidate_reaped_for
    if reaped is None:
        return gone >= limits.revive
    seen = min(gone, reaped)
    if _may_be_a_reload(view, gone):
        return min(seen, view.hup_ago or 0) >= limits.reload
    return seen >= limits.turn


def _may_be_a_reload(view: View, gone: float) -> bool:
    """HUP and the candidate's end may have come to the old master together, or the end first.

    That cannot be where HUP was sent to a master whose candidate lived, and QUIT or KILL only
    after it had done its work.
    """
    if view.hup_ago is None:
        return False
    told = [ago for ago in (view.quit_ago, view.kill_ago) if ago is not None and ago > gone]
    return not told or view.hup_ago < max(told)


def _end_candidate(view: View, limits: Limits) -> Step:
    """QUIT, and from there to harsher means; a master that does not react loses its workers first.

    KILL comes before QUIT had a chance only where there is nothing to lose: a candidate that
    never had workers has no connections, and its signals may still be blocked.
    """
    if view.kill_ago is not None:
        return Step.WAIT if view.kill_ago < limits.kill else Step.GIVE_UP
    if not view.candidate_ready and not view.candidate_workers:
        return Step.KILL_CANDIDATE
    if view.candidate_stopped or view.workers_quit_ago is not None:
        return _end_hung_candidate(view, limits)
    if view.quit_ago is None:
        return Step.QUIT_CANDIDATE
    if view.candidate_accepting and view.quit_ago >= limits.react:
        return _end_hung_candidate(view, limits)
    alone = view.candidate_alone_for
    if alone is not None and min(alone, view.quit_ago) >= limits.react:
        return Step.KILL_CANDIDATE
    if view.quit_ago < limits.drain and not view.hasten:
        return Step.WAIT
    if view.term_ago is None:
        return Step.TERM_CANDIDATE
    return Step.WAIT if view.term_ago < limits.term else Step.KILL_CANDIDATE


def _end_hung_candidate(view: View, limits: Limits) -> Step:
    """Its workers leave by QUIT sent to them; then KILL the master, which must never be CONTinued.

    While it is stopped it cannot respawn them. A spinning master that runs again would respawn
    the full set, so it is killed as soon as its workers no longer accept.
    """
    if view.workers_quit_ago is None:
        return Step.QUIT_WORKERS if view.candidate_workers else Step.KILL_CANDIDATE
    if view.candidate_accepting and view.workers_quit_ago < limits.react:
        return Step.WAIT
    return Step.KILL_CANDIDATE


def _end_orphans(view: View, limits: Limits) -> Step:
    """Workers without a master: QUIT, TERM, KILL, each with its own deadline."""
    told = view.workers_quit_ago
    if told is None or _forked_since(view, told):
        return Step.QUIT_WORKERS
    stuck = view.candidate_accepting and told >= limits.react
    if told < limits.drain and not view.hasten and not stuck:
        return Step.WAIT
    if view.term_ago is None or view.term_ago > told:
        return Step.TERM_WORKERS
    if view.term_ago < limits.term:
        return Step.WAIT
    if view.kill_ago is None or view.kill_ago >= view.term_ago:
        return Step.KILL_WORKERS
    return Step.WAIT if view.kill_ago < limits.kill else Step.GIVE_UP


def _forked_since(view: View, told: float) -> bool:
    """A master that lived on may have replaced the workers that were told to leave."""
    return bool(view.candidate_accepting) and told > (view.candidate_gone_for or 0)
