"""The matrix: somebody is hit at one exact point of what the supervisor does, and nothing is lost.

After each run some generation serves with the right number of workers; the upgrade has one verdict
at most, and a right one; pid file, oldbin file and the binary on disk agree with it; no process is
left over, dead or alive, and no descriptor in the supervisor; and the next upgrade works. A light
load runs all the time, and loses no more than the fault itself has to cost.

The table is in harness/cases.py, what is right for each case in harness/matrix_rules.py. `make
test` runs a third, chosen by `--matrix-seed`, and `make matrix` all; the end has the count.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from subprocess import Popen
from typing import Any

from tests.e2e.harness import checks, matrix_tally, site, supervised, victims
from tests.e2e.harness.cases import Case, Scenario, Victim
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.matrix_rules import (
    NONE,
    ROLLED_BACK,
    causes,
    cost_of,
    is_past_return,
    verdicts,
)
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.harness.victims import Points
from tools.load import Load, Report
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

PATIENT = {
    "upgrade": {
        "canary": "100ms", "soak": "100ms", "start_timeout": "20s", "shift_timeout": "20s",
        "rollback_quit_timeout": "20s", "rollback_term_timeout": "5s", "drain_timeout": "20s",
    },
    "stop": {"quit_timeout": "20s", "term_timeout": "5s"},
}  # fmt: skip
"""Nothing of it passes: whoever is not dead reacts, however busy the machine is."""

QUICK = {
    "upgrade": {
        "canary": "100ms", "soak": "100ms", "start_timeout": "4s", "shift_timeout": "2s",
        "rollback_quit_timeout": "1s", "rollback_term_timeout": "500ms", "drain_timeout": "3s",
    },
    "stop": {"quit_timeout": "2s", "term_timeout": "1s"},
}  # fmt: skip
"""Where somebody was stopped, these have to pass."""

LIGHT = {
    "new": 2, "new_rate": 60.0, "keepalive": 1, "keepalive_rate": 20.0, "idle": 0, "slow": 0,
    "timeout": 20.0,
}  # fmt: skip

ONE_START = {"restart": {"start_limit": 1}}

MOST_CUT = 6
"""Requests of three clients that were under way when workers were ended, once or in two goes."""

CODES = {"committed": 0, "rolled_back": 4, "refused": 3}
CUT_OFF = 6


@dataclass(slots=True)
class Run:
    """One run: the supervisor, where it stops, and who waits for what."""

    case: Case
    nginx: Supervised
    points: Points
    old: Build
    new: Build
    first: Seen | None = None  # the master that serves before anything is done
    asked: Popen[str] | None = None  # for the upgrade
    also: list[Popen[str]] = field(default_factory=list)  # for something else
    clients: ExitStack = field(default_factory=ExitStack)
    connections: ExitStack = field(default_factory=ExitStack)
    mend: Callable[[], None] = lambda: None  # what was spoilt on purpose

    def begin(self, *arguments: object) -> Popen[str]:
        """Start nginxctl; it is ended with the run, if it has not ended by then."""
        asked = self.nginx.begin(*map(str, arguments))
        self.clients.callback(end_client, asked)
        return asked

    def upgrade(self, *arguments: object) -> None:
        self.asked = self.begin("upgrade", *arguments)

    def hold(self) -> None:
        self.upgrade(self.new.path, "--hold")
        self.nginx.until_phase("held")


def test_matrix(
    oldest: Build, newest: Build, matrix_case: Case, record_property: Callable[[str, object], None]
) -> None:
    case = matrix_case
    settings = dict(QUICK if case.signal == "STOP" else PATIENT)
    settings |= ONE_START if case.scenario is Scenario.DEGRADED else {}
    with site.make(oldest) as one, supervised.on(one, settings) as nginx:
        if case.signal == "STOP":
            nginx.settings["probe"] = [probe(one, timeout="500ms")]
        run = Run(case, nginx, Points(nginx), oldest, newest)
        nginx.start()
        (run.first,) = nginx.masters()
        files = victims.fewest_open_files(nginx.pid)
        with run.clients, Load(one.plan(**LIGHT)) as load:
            with held_back(run), run.connections:
                PREPARE.get(case.scenario, nothing)(run)
                reach_the_point(run)
                strike(run)
                run.points.disarm()
            come_back(run)
            served = settled(run)
            victims.assert_nothing_leaked(nginx, files)
            next_upgrade(run, served)
            report = load.stop()
        victims.assert_nothing_leaked(nginx, files)
        record_property(matrix_tally.PROPERTY, matrix_tally.note(report, cost_of(case)))
        assert_lost(report, case)


def end_client(asked: Popen[str]) -> None:
    if asked.poll() is None:
        asked.kill()
    if asked.stdout is not None and not asked.stdout.closed:
        asked.communicate()


# --- to the point ------------------------------------------------------------------------------


def nothing(run: Run) -> None:
    del run


def hold(run: Run) -> None:
    """Only the candidate accepts by then: it has a connection to wait for when it is told to go."""
    run.hold()
    if run.case.point == "SIGQUIT.after":
        run.connections.enter_context(victims.held_connection(run.nginx.site.port))


def die_held(run: Run) -> None:
    hold(run)
    run.nginx.die()
    hang_up(run)


def die_with_quit_sent(run: Run) -> None:
    run.points.arm("SIGQUIT.after")
    run.upgrade(run.new.path)
    run.points.wait()
    run.nginx.die()
    hang_up(run)


def break_configuration(run: Run) -> None:
    config = run.nginx.site.config
    text = config.read_text()
    config.write_text("broken")
    run.mend = lambda: config.write_text(text) and None


def upgrade(run: Run) -> None:
    run.upgrade(run.new.path)


def upgrade_held(run: Run) -> None:
    run.upgrade(run.new.path, "--hold")


def upgrade_bad(run: Run) -> None:
    run.upgrade(candidate(run.new, "status_500"), "--canary", "30s")


def roll_back(run: Run) -> None:
    run.also.append(run.begin("rollback"))


def stop(run: Run) -> None:
    run.also.append(run.begin("stop"))


def take_over(run: Run) -> None:
    run.also.append(run.begin("adopt", "--take-over"))


def replace(run: Run) -> None:
    run.also.append(run.begin("self-upgrade", "--now"))


def crash_master(run: Run) -> None:
    (master,) = run.nginx.masters()
    kill(master.pid, signal.SIGKILL)


def crash_all(run: Run) -> None:
    """All at once, as the supervisor sees it."""
    kill(run.nginx.pid, signal.SIGSTOP)
    while living := run.nginx.nginx():
        for one in living:
            kill(one.pid, signal.SIGKILL)
    kill(run.nginx.pid, signal.SIGCONT)


def launch(run: Run) -> None:
    run.nginx.launch()


Act = Callable[[Run], None]

PREPARE: dict[Scenario, Act] = {
    Scenario.ROLLBACK: hold,
    Scenario.REPLACED_HELD: hold,
    Scenario.RECOVER: die_held,
    Scenario.RECOVER_COMMITTED: die_with_quit_sent,
    Scenario.BACKOFF: break_configuration,
}

BEGIN: dict[Scenario, Act] = {
    Scenario.UPGRADE: upgrade,
    Scenario.HELD: upgrade_held,
    Scenario.ROLLBACK: roll_back,
    Scenario.REJECTED: upgrade_bad,
    Scenario.CRASH_MASTER: crash_master,
    Scenario.CRASH_ALL: crash_all,
    Scenario.BACKOFF: crash_master,
    Scenario.RECOVER: launch,
    Scenario.RECOVER_COMMITTED: launch,
    Scenario.STOP: stop,
    Scenario.DEGRADED: crash_master,
    Scenario.TAKE_OVER: take_over,
    Scenario.REPLACED: replace,
    Scenario.REPLACED_HELD: replace,
}


def reach_the_point(run: Run) -> None:
    """Begin what the case is about; the supervisor stops at the point."""
    if run.case.scenario is Scenario.REST:
        return
    run.points.arm(run.case.point, run.case.number)
    BEGIN[run.case.scenario](run)
    run.points.wait()


@contextmanager
def held_back(run: Run) -> Iterator[None]:
    """The old generation has a connection to wait for, where it is to be hit while it leaves."""
    case = run.case
    leaves = case.point == "SIGWINCH.after" or is_past_return(case)
    if case.scenario is not Scenario.RECOVER_COMMITTED and not (
        case.scenario is Scenario.UPGRADE and leaves
    ):
        yield
        return
    with victims.held_connection(run.nginx.site.port):
        yield


# --- the fault ---------------------------------------------------------------------------------


def strike(run: Run) -> None:
    """Hit the victim while the supervisor stands still, then let it go on."""
    case, nginx = run.case, run.nginx
    if case.victim is Victim.SUPERVISOR:
        strike_supervisor(run)
        return
    assert run.first is not None
    hit = victims.find(nginx, case.victim, run.first)
    assert hit, "there is no such victim at this point"
    victims.hit(hit, case)
    run.mend()
    if case.scenario is not Scenario.REST:
        run.points.go_on()
    if case.signal == "STOP":
        victims.continue_when_decided(hit, run.asked)


def strike_supervisor(run: Run) -> None:
    nginx, number = run.nginx, signal.Signals[f"SIG{run.case.signal}"]
    run.mend()
    kill(nginx.pid, number)
    if number == signal.SIGSTOP:
        victims.let_time_pass()
    if number != signal.SIGKILL:
        kill(nginx.pid, signal.SIGCONT)  # a stopped process takes nothing else
    if number == signal.SIGSTOP:
        return
    status = nginx.cradle.wait(nginx.pid)
    assert status == (0 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert nginx.nginx() == []


def come_back(run: Run) -> None:
    """Everyone has an answer, and a supervisor runs that has nothing left to do."""
    nginx = run.nginx
    held = (Scenario.HELD, Scenario.REPLACED_HELD)
    if run.case.scenario in held and run.asked is not None and is_alive(nginx):
        try:
            run.asked.wait(victims.STOPPED)
        except subprocess.TimeoutExpired:
            nginx.ctl("promote")  # refused where it is being rolled back at this moment
    if is_alive(nginx):
        answer(run)
    else:
        hang_up(run)
        run.points.disarm()
        nginx.start()
    if nginx.look()["state"] == {Scenario.STOP: "stopped", Scenario.DEGRADED: "degraded"}.get(
        run.case.scenario
    ):
        assert nginx.ctl("start").code == 0
    nginx.until_state("running")


def is_alive(nginx: Supervised) -> bool:
    return nginx.cradle.status(nginx.pid) is None


def answer(run: Run) -> None:
    """The client's exit code says what the history says."""
    for one in run.also:
        run.nginx.end(one)
    if run.asked is None or run.case.scenario in (Scenario.RECOVER, Scenario.RECOVER_COMMITTED):
        return
    told = run.nginx.end(run.asked)
    assert told.code == CODES.get(told.last["verdict"]), told


def hang_up(run: Run) -> None:
    """The supervisor has ended under its clients: they had their answer before, or were cut off."""
    for one in run.also:
        run.nginx.end(one)
    if run.asked is not None:
        told = run.nginx.end(run.asked)
        assert told.code == CUT_OFF or told.code == CODES.get(told.last["verdict"]), told


# --- what is true afterwards -------------------------------------------------------------------


def settled(run: Run) -> Build:
    """The verdict is a right one, and everything agrees with it; the build that serves."""
    history = [one for one in run.nginx.history() if one["operation"] != "incident"]
    assert len(history) <= 1, history
    verdict = history[0]["verdict"] if history else NONE
    assert verdict in verdicts(run.case), (verdict, history)
    served = served_after(run, run.nginx.history())
    assert_all(run.nginx, served)
    if verdict == ROLLED_BACK:
        # The candidate's private listener must not come back with the next reload.
        include = run.nginx.site.include
        assert not include.exists() or "listen" not in include.read_text()
    return served


def served_after(run: Run, history: list[dict[str, Any]]) -> Build:
    """Who has to serve by what the history says."""
    if not history:
        return run.old
    last = history[-1]
    wanted = last["from_version"]
    if last["verdict"] == "committed" or last["operation"] == "incident":
        wanted = last["to_version"]
    return {one.version: one for one in (run.old, run.new)}[wanted]


def assert_all(nginx: Supervised, build: Build) -> None:
    """One generation of `build`, right files, and the supervisor says the same."""
    checks.assert_one_generation(nginx)
    assert checks.served_versions(nginx.site.plan(), number=4) == {build.version}
    checks.assert_pid_file_right(nginx)
    assert sha256(nginx.site.binary) == sha256(build.path)
    nginx.until_state("running")
    status = nginx.look()
    assert status["upgrade"] is None, status
    assert status["binary_on_disk"]["matches_active"] is True, status
    (generation,) = status["generations"]
    assert (generation["role"], generation["version"]) == ("active", build.version), status
    assert [generation["master_pid"]] == [one.pid for one in nginx.masters()]
    accepting = [one["pid"] for one in generation["workers"] if one["state"] == "accepting"]
    assert sorted(accepting) == sorted(one.pid for one in nginx.nginx() if one.is_worker)
    victims.assert_no_zombies(nginx)


def next_upgrade(run: Run, served: Build) -> None:
    """It is as if nothing had been."""
    other = run.new if served is run.old else run.old
    told = run.nginx.ctl("upgrade", other.path)
    assert (told.code, told.reason) == (0, "healthy"), told
    run.nginx.until_state("running")
    assert_all(run.nginx, other)


def assert_lost(report: Report, case: Case) -> None:
    for kind in report.kinds.values():
        assert set(kind.failed) <= causes(case), report
    cut = report.count("reset") + report.count("truncated")
    assert cut <= MOST_CUT, report
