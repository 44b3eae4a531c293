"""Every fault at every phase in which it can occur is rolled back, and leaves nothing behind.

The table names them. `kind` and `knobs` make a candidate that goes wrong by itself
(tests/nginx/README.md); `act` does something from outside once the phase is reached. A fault of the
public listeners alone (`where="inherited"`) is one that the canary cannot see and the soak must.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.harness import checks, processes, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tests.e2e.harness.victims import Points
from tools.nginx_builds import candidate
from tools.nginx_cache import Build


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row: what goes wrong, in which phase it is noticed, and the reason of the verdict."""

    fault: str
    phase: str
    or_in: str | None = None  # the phase beside it, where it is a race which of the two notices
    reason: str | tuple[str, ...]  # several where it is a race which is noticed first
    kind: str = "good"
    knobs: Mapping[str, int | str] = field(default_factory=dict)
    act: str | None = None
    canary: str | None = None  # instead of the phase's own
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout: str = "2s"  # of the probe; short where that is what has to pass

    @property
    def phases(self) -> tuple[str | None, ...]:
        """Where it may be noticed: a delay may be over early, if the machine is very busy."""
        earlier = ORDER[: ORDER.index(self.phase)] if "delay_ms" in self.knobs else ()
        return (self.phase, self.or_in, *earlier)

    def candidate_of(self, build: Build) -> Path:
        """The binary that goes wrong."""
        return candidate(build, self.kind, into=None, **self.knobs)

    def __str__(self) -> str:
        return f"{self.phase}-{self.fault.replace(' ', '_')}"


# The delays count from the candidate's start. The soak is reached after about half a second, so 3 s
# fall into it even on a busy machine; the canary of the rows for the canary lasts far longer.
LATER = {"delay_ms": 3000}
SOON = {"delay_ms": 700}
# After the canary of the rows for the shift, which lasts as long as the old master is stopped.
IN_SHIFT = {"delay_ms": 3000}
STILL = "stop_old_master_in_canary"

TABLE = (
    Fault(fault="500s", phase="canary", kind="status_500", reason="probe_failed"),
    Fault(fault="500s later", phase="canary", kind="status_500", knobs=SOON, reason="probe_failed"),
    Fault(
        fault="500s", phase="soaking", kind="status_500", knobs={"where": "inherited"},
        reason="probe_failed",
    ),
    Fault(fault="500s later", phase="soaking", kind="status_500", knobs=LATER,
          reason="probe_failed"),
    Fault(fault="500s", phase="shifting", kind="status_500", knobs=IN_SHIFT, act=STILL,
          reason="probe_failed"),
    Fault(fault="500s", phase="held", kind="status_500", knobs=LATER, reason="probe_failed"),
    Fault(fault="500s of one worker", phase="canary", kind="status_500",
          knobs={"one_worker": 1}, canary="500ms", settings={"start_timeout": "2s"},
          reason=("worker_failing", "probe_failed", "canary_inconclusive")),
    Fault(fault="wrong body", phase="canary", kind="wrong_body", reason="probe_failed"),
    Fault(
        fault="wrong body", phase="soaking", kind="wrong_body", knobs={"where": "inherited"},
        reason="probe_failed",
    ),
    Fault(fault="wrong body", phase="shifting", kind="wrong_body", knobs=IN_SHIFT, act=STILL,
          reason="probe_failed"),
    Fault(fault="wrong body", phase="held", kind="wrong_body", knobs=LATER, reason="probe_failed"),
    Fault(
        fault="connection refused", phase="canary", kind="refuse_new_listeners",
        reason="probe_failed",
    ),
    Fault(fault="connections reset", phase="canary", kind="reset_connections",
          reason="probe_failed"),
    Fault(
        fault="connections reset", phase="soaking", kind="reset_connections",
        knobs={"where": "inherited"}, reason="probe_failed",
    ),
    Fault(fault="connections reset", phase="shifting", kind="reset_connections", knobs=IN_SHIFT,
          act=STILL, reason="probe_failed"),
    Fault(fault="connections reset", phase="held", kind="reset_connections", knobs=LATER,
          reason="probe_failed"),
    Fault(fault="no answers", phase="canary", kind="silent_listeners", reason="probe_failed",
          timeout="500ms"),
    Fault(
        fault="no answers", phase="soaking", kind="silent_listeners",
        knobs={"where": "inherited"}, reason="probe_failed", timeout="500ms",
    ),
    Fault(fault="workers hang", phase="canary", kind="hang_workers", knobs=SOON,
          reason="probe_failed", timeout="500ms"),
    Fault(
        fault="workers hang", phase="spawning", kind="hang_workers", reason="start_timeout",
        settings={"start_timeout": "1500ms"},
    ),
    Fault(fault="workers hang", phase="soaking", kind="hang_workers", knobs=LATER,
          reason="probe_failed", timeout="500ms"),
    Fault(fault="workers hang", phase="held", kind="hang_workers", knobs=LATER,
          reason="probe_failed", timeout="500ms"),
    Fault(fault="master exits at once", phase="spawning", kind="exit_at_once",
          reason="candidate_exited"),
    Fault(fault="master exits later", phase="canary", kind="exit_later", knobs=SOON,
          reason="candidate_exited"),
    Fault(fault="master exits later", phase="shifting", kind="exit_later", knobs=IN_SHIFT,
          act=STILL, reason="candidate_exited"),
    Fault(fault="master exits later", phase="soaking", kind="exit_later", knobs=LATER,
          reason="candidate_exited"),
    Fault(fault="master exits later", phase="held", kind="exit_later", knobs=LATER,
          reason="candidate_exited"),
    Fault(fault="master killed", phase="canary", act="kill_candidate", reason="candidate_exited"),
    Fault(fault="master killed before WINCH is seen", phase="shifting",
          or_in="soaking", act="kill_candidate_while_shifting", reason="candidate_exited"),
    Fault(fault="master killed", phase="soaking", act="kill_candidate", reason="candidate_exited"),
    Fault(fault="master killed", phase="committing", or_in="soaking",
          act="kill_candidate_as_the_soak_ends", reason="candidate_exited"),
    Fault(fault="master killed", phase="held", act="kill_candidate", reason="candidate_exited"),
    Fault(
        fault="hangs before its pid file", phase="spawning", kind="hang", reason="start_timeout",
        settings={"start_timeout": "1500ms"},
    ),
    Fault(fault="master stops", phase="canary", kind="stop_after", knobs=SOON,
          reason="candidate_stopped"),
    Fault(fault="master stops", phase="shifting", kind="stop_after", knobs=IN_SHIFT, act=STILL,
          reason="candidate_stopped"),
    Fault(fault="master stops", phase="soaking", kind="stop_after", knobs=LATER,
          reason="candidate_stopped"),
    Fault(fault="master stopped", phase="spawning", kind="slow_start", act="stop_new_child",
          reason="start_timeout", settings={"start_timeout": "1500ms"}),
    Fault(fault="master stopped", phase="canary", act="stop_candidate",
          reason="candidate_stopped"),
    Fault(fault="master stopped", phase="soaking", act="stop_candidate",
          reason="candidate_stopped"),
    Fault(fault="master stopped", phase="committing", or_in="soaking",
          act="stop_candidate_as_the_soak_ends", reason="candidate_stopped"),
    Fault(fault="master stopped", phase="held", act="stop_candidate", reason="candidate_stopped"),
    Fault(fault="workers fatal", phase="spawning", kind="workers_fatal",
          reason=("worker_fatal", "no_workers")),
    Fault(fault="workers crash in a loop", phase="spawning", kind="workers_crash",
          knobs={"delay_ms": 0}, reason="worker_died"),
    Fault(fault="workers crash in a loop", phase="canary", kind="workers_crash",
          reason="worker_died"),
    Fault(fault="one worker crashes at once", phase="canary", kind="worker_crash_once",
          reason="worker_died"),
    Fault(fault="workers crash in a loop", phase="shifting", kind="workers_crash",
          knobs=IN_SHIFT, act=STILL, reason="worker_died"),
    Fault(fault="workers crash in a loop", phase="soaking", kind="workers_crash", knobs=LATER,
          reason="worker_died"),
    Fault(fault="workers killed", phase="committing", or_in="soaking",
          act="kill_workers_as_the_soak_ends",
          reason=("worker_died", "no_workers", "candidate_stopped")),
    Fault(fault="workers crash in a loop", phase="held", kind="workers_crash", knobs=LATER,
          reason="worker_died"),
    Fault(fault="one worker crashes", phase="canary", kind="worker_crash_once", knobs=SOON,
          reason="worker_died"),
    Fault(fault="one worker crashes", phase="soaking", kind="worker_crash_once", knobs=LATER,
          reason="worker_died"),
    Fault(fault="workers exit in a loop", phase="canary", kind="workers_exit", knobs=SOON,
          reason="workers_respawning"),
    Fault(fault="workers exit in a loop", phase="soaking", kind="workers_exit", knobs=LATER,
          reason="workers_respawning"),
    Fault(fault="new listener busy", phase="spawning", act="busy_listener",
          reason="candidate_exited"),
    # Bad on the public listeners alone, good throughout, bad throughout: whatever the answers that
    # were heard on the private port, nobody knows whose they were.
    Fault(
        fault="foreign reload before USR2", phase="canary", kind="status_500",
        knobs={"where": "inherited"}, act="reload_before_usr2",
        reason="probe_listener_shared",
    ),
    Fault(
        fault="foreign reload before USR2 of a good one", phase="canary",
        act="reload_before_usr2", reason="probe_listener_shared",
    ),
    Fault(
        fault="foreign reload before USR2 of a bad one", phase="canary", kind="status_500",
        act="reload_before_usr2", reason="probe_listener_shared",
    ),
    Fault(fault="rollback while WINCH is pending", phase="shifting",
          act="roll_back_while_shifting", reason="operator"),
    Fault(fault="rollback of a deaf master", phase="held", kind="deaf_master", act="roll_back",
          reason="operator"),
    Fault(fault="rollback of a deaf master", phase="canary", kind="deaf_master", act="roll_back",
          reason="operator"),
    Fault(fault="rollback of a spinning master", phase="held", kind="spin_master",
          act="roll_back", reason="operator"),
)  # fmt: skip

PHASE_ARGUMENTS = {
    "spawning": (),
    "canary": ("--canary", "30s"),
    "shifting": ("--canary", "500ms"),
    "soaking": ("--canary", "200ms", "--soak", "60s"),
    "committing": ("--canary", "200ms", "--soak", "1s"),
    "held": ("--canary", "200ms", "--hold"),
}
ORDER = ("spawning", "canary", "shifting", "soaking", "held", "committing")
ROLLBACK = {"rollback_quit_timeout": "1s", "rollback_term_timeout": "500ms"}


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_rollback(oldest: Build, newest: Build, row: Fault) -> None:
    upgrade = {**ROLLBACK, **row.settings}
    with site.make(oldest) as one, supervised.on(one, {"upgrade": upgrade}) as nginx:
        nginx.settings["probe"] = [probe(one, timeout=row.timeout)]
        if row.act in AT_A_POINT:
            Points(nginx)
        nginx.start()
        include = one.include.read_text() if one.include.exists() else None
        with ACTS[row.act](nginx, row) if row.act else nothing():
            arguments = ("--canary", row.canary) if row.canary else PHASE_ARGUMENTS[row.phase]
            asked = nginx.begin("upgrade", row.candidate_of(newest), *arguments)
        answer = nginx.end(asked)
        assert_verdict(answer, row)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert (one.include.read_text() if one.include.exists() else None) == include
        assert nginx.history()[-1]["upgrade_id"] == answer.last["upgrade_id"]


# The faults that the table has to have, each at every phase in which it can occur.
# No probe asks before the canary or after the soak. "Refused" is for the private listener alone:
# the public sockets listen in the kernel from before, whatever the candidate does. Workers are
# fatal, and a new listener is busy, only in the start; a private listener is opened only there.
OBSERVED = {"canary", "shifting", "soaking", "held"}
DEMANDED = {
    "500s": OBSERVED,
    "wrong body": OBSERVED,
    "connection refused": {"canary"},
    "connections reset": OBSERVED,
    "master exits at once": {"spawning"},
    "master exits later": OBSERVED,
    "master killed": {"canary", "soaking", "held", "committing"},
    "hangs before its pid file": {"spawning"},
    "master stopped": {"spawning", "canary", "soaking", "held", "committing"},
    "workers fatal": {"spawning"},
    "workers crash in a loop": {"spawning", *OBSERVED},
    "workers killed": {"committing"},
    "new listener busy": {"spawning"},
    "foreign reload before USR2": {"canary"},
}


def test_the_table_is_complete(capfd: pytest.CaptureFixture[str]) -> None:
    rows = {(row.fault, row.phase) for row in TABLE}
    assert len(rows) == len(TABLE), "a row is there twice"
    demanded = {(fault, phase) for fault, phases in DEMANDED.items() for phase in phases}
    assert demanded <= rows, demanded - rows
    with capfd.disabled():
        # Not print(): under xdist only the terminal's own file is shown.
        os.write(2, f"\nrollback matrix: {len(rows)} combinations of fault and phase\n".encode())


def assert_verdict(answer: Answer, row: Fault) -> None:
    assert answer.code == 4, answer
    assert answer.last["verdict"] == "rolled_back", answer
    reasons = (row.reason,) if isinstance(row.reason, str) else row.reason
    assert answer.reason in reasons, answer
    phases = list(answer.last["phases"])
    assert phases[-1] == "rolling_back", answer
    assert phases[-2] in row.phases, answer


# --- acts: context managers around the beginning of the upgrade; what is after `yield` is done
# --- once nginxctl was started


Act = Callable[[Supervised, Fault], AbstractContextManager[None]]


@contextmanager
def nothing() -> Iterator[None]:
    yield


def candidate_master(nginx: Supervised) -> int:
    """The youngest of the two masters."""
    masters = nginx.masters()
    assert len(masters) == 2, masters
    return masters[-1].pid


@contextmanager
def kill_candidate(nginx: Supervised, row: Fault) -> Iterator[None]:
    yield
    nginx.until_phase(row.phase)
    os.kill(candidate_master(nginx), signal.SIGKILL)


@contextmanager
def stop_candidate(nginx: Supervised, row: Fault) -> Iterator[None]:
    yield
    nginx.until_phase(row.phase)
    os.kill(candidate_master(nginx), signal.SIGSTOP)


@contextmanager
def stop_new_child(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The new master, as soon as it is there: it has no title yet."""
    del row
    (old,) = nginx.masters()
    known = {one.pid for one in processes.children(old.pid)}
    yield
    born: list[Seen] = []

    def found() -> bool:
        born[:] = [one for one in processes.children(old.pid) if one.pid not in known]
        return bool(born)

    until("a new master", found, poll=0.0)
    kill(born[0].pid, signal.SIGSTOP)


@contextmanager
def as_the_soak_ends(nginx: Supervised) -> Iterator[Points]:
    """The supervisor sees what is done after `wait` at the moment at which it would commit."""
    points = Points(nginx)
    points.arm("state.soaking")
    yield points
    time.sleep(1.5)  # the soak is over by then
    points.go_on()


@contextmanager
def kill_candidate_as_the_soak_ends(nginx: Supervised, row: Fault) -> Iterator[None]:
    del row
    with as_the_soak_ends(nginx) as points:
        yield
        points.wait()
        os.kill(candidate_master(nginx), signal.SIGKILL)


@contextmanager
def stop_candidate_as_the_soak_ends(nginx: Supervised, row: Fault) -> Iterator[None]:
    del row
    with as_the_soak_ends(nginx) as points:
        yield
        points.wait()
        os.kill(candidate_master(nginx), signal.SIGSTOP)


@contextmanager
def kill_workers_as_the_soak_ends(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The master is stopped beside them, so that none comes again."""
    del row
    with as_the_soak_ends(nginx) as points:
        yield
        points.wait()
        master = candidate_master(nginx)
        os.kill(master, signal.SIGSTOP)
        for worker in processes.children(master):
            os.kill(worker.pid, signal.SIGKILL)


@contextmanager
def roll_back(nginx: Supervised, row: Fault) -> Iterator[None]:
    yield
    nginx.until_phase(row.phase)
    answer = nginx.ctl("rollback")
    assert answer.code == 0, answer


@contextmanager
def stop_old_master_in_canary(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The shift then lasts until the candidate goes wrong; the rollback continues this master."""
    del row
    (old,) = nginx.masters()
    points = Points(nginx)
    points.arm("state.canary")
    yield
    points.wait()
    os.kill(old.pid, signal.SIGSTOP)
    points.go_on()


@contextmanager
def kill_candidate_while_shifting(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The old master then sees WINCH and its child's death at once, and revives no worker."""
    (old,) = nginx.masters()
    with stop_old_master_in_canary(nginx, row):
        yield
    nginx.until_phase("shifting")
    os.kill(candidate_master(nginx), signal.SIGKILL)
    os.kill(old.pid, signal.SIGCONT)


@contextmanager
def roll_back_while_shifting(nginx: Supervised, row: Fault) -> Iterator[None]:
    """A HUP sent now would be seen together with the WINCH, and all workers would leave."""
    with stop_old_master_in_canary(nginx, row):
        yield
    nginx.until_phase("shifting")
    answer = nginx.ctl("rollback")  # continues the old master by itself
    assert answer.code == 0, answer


@contextmanager
def busy_listener(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The new configuration listens where someone else does, who came after preflight looked."""
    del row
    one = nginx.site
    text = one.config.read_text()
    listen = f"listen 127.0.0.1:{one.spare_port};"
    one.config.write_text(text.replace("server {", f"server {{\n        {listen}", 1))
    points = Points(nginx)
    points.arm("include.after")
    with socket.socket() as foreign:
        yield
        # Preflight looks for itself whether the port is free; USR2 comes later.
        points.wait()
        foreign.bind(("127.0.0.1", one.spare_port))
        foreign.listen()
        points.go_on()
        until("a verdict", lambda: bool(nginx.history()), poll=0.05)
    one.config.write_text(text)


@contextmanager
def reload_before_usr2(nginx: Supervised, row: Fault) -> Iterator[None]:
    """The old generation opens the candidate's private listener too, and answers there with 200.

    The supervisor is stopped between its write and USR2, so that the reload is in time.
    """
    del row
    one = nginx.site
    old = nginx.masters()[0].pid
    workers = {each.pid for each in nginx.nginx() if each.is_worker}
    points = Points(nginx)
    points.arm("include.after")
    yield
    points.wait()
    assert not one.oldbin_path.exists(), "the supervisor was stopped too late"
    subprocess.run([*one.argv, "-s", "reload"], check=True, capture_output=True)
    until(
        "reloaded",
        lambda: not workers & {each.pid for each in nginx.nginx() if each.is_accepting},
    )
    assert [each.pid for each in nginx.masters()] == [old]
    points.go_on()


ACTS: Mapping[str, Act] = {
    act.__name__: act
    for act in (
        kill_candidate,
        stop_candidate,
        stop_new_child,
        stop_old_master_in_canary,
        kill_candidate_as_the_soak_ends,
        stop_candidate_as_the_soak_ends,
        kill_workers_as_the_soak_ends,
        roll_back,
        kill_candidate_while_shifting,
        roll_back_while_shifting,
        busy_listener,
        reload_before_usr2,
    )
}

AT_A_POINT = {
    act.__name__
    for act in (
        stop_old_master_in_canary,
        kill_candidate_as_the_soak_ends,
        stop_candidate_as_the_soak_ends,
        kill_workers_as_the_soak_ends,
        kill_candidate_while_shifting,
        roll_back_while_shifting,
        busy_listener,
        reload_before_usr2,
    )
}
"""These stop the supervisor at one of the points of harness/paused.py."""
