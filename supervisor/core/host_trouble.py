"""Was it the host that was slow? Whoever waits for a CPU cannot answer, and is not to be blamed.

The kernel counts for each process how long it was runnable and did not run (run_delay, the second
number of /proc/PID/schedstat). Measured on two CPUs with 4, 16 and 48 busy processes beside nginx:
of every look at a healthy nginx that took more than 50 ms, up to 0.9 s, all but 0.3 ms was spent
so, by the supervisor or by the worker that it had asked. A worker that hangs, sleeps or is stopped
is not runnable: of a look that timed out after 0.5 s, 0.5 s was left unexplained.

So a failure by time alone is excused where, without the waiting, it would have been well in time:
within `max_latency`, or, of a timeout, within half of it. A timer that fired late, for which
neither our waiting nor our own work accounts, tells that the supervisor itself was stopped. Nothing
is excused where the generation that was asked has used half of all the CPU time that there was:
then it is the load itself. An excused look proves nothing: it is inconclusive, and never a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT_SHARE = 0.5
"""Of a timeout: who would have answered in as much of it without waiting is not blamed."""
OWN_LOAD = 0.5
"""Of the CPU time that all CPUs had: who has used as much is the trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the kernel counted during one look; seconds."""

    took: float  # from its begin to its end, without what was our own doing
    timeout: float  # when its timer was to end it
    waited: float  # of the supervisor's, runnable and not running
    worked: float  # of the supervisor's, running
    server_waited: float  # by the worker that was asked; where nobody knows it, the longest of any
    server_worked: float  # by all processes of the generation together
    cpus: int


def host_trouble(load: Load, *, fair: float) -> str | None:
    """Why a look that failed by time proves nothing, for people; None: it does.

    `fair` is the time within which it would have been well.
    """
    if load.server_worked >= OWN_LOAD * load.cpus * load.took:
        return None
    stopped = load.took - load.timeout - load.waited - load.worked
    if stopped >= TIMEOUT_SHARE * load.timeout:
        return f"host overloaded: the supervisor itself did not run for {stopped:.2f} s"
    if load.took - load.waited - load.server_waited >= fair:
        return None
    return (
        f"host overloaded: of {load.took:.2f} s the supervisor waited {load.waited:.2f} s for a "
        f"CPU, and nginx {load.server_waited:.2f} s"
    )
