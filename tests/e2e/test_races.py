"""The races of nginx's own signals, driven one by one, and a supervisor that stands still.

One turn of a master's loop handles what has come together in a fixed order: children that have
ended, then HUP, then WINCH (ngx_process_cycle.c). A master that is stopped collects what is sent to
it; so each race is made on purpose, around the supervisor's own signals, by a supervisor that is
stopped at the very point (harness/paused.py).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.harness import checks, processes, site, supervised, unfinished, victims
from tests.e2e.harness.bare import until
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.harness.victims import Points
from tools.load import Load
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 20.0}
QUICK = {"upgrade": {"canary": "100ms", "soak": "100ms", "rollback_quit_timeout": "2s"}}

STANDS_STILL = 3.0
"""Seconds for which the supervisor is stopped."""


@dataclass(slots=True)
class Race:
    """The supervisor at a point, with both generations under it."""

    nginx: Supervised
    points: Points
    old: Seen
    new: Seen

    def stop_old(self) -> None:
        """What is sent to the old master from now on is handled in one turn."""
        os.kill(self.old.pid, signal.SIGSTOP)
        until("stopped", lambda: victims.is_stopped(self.old))

    def continue_old(self) -> None:
        os.kill(self.old.pid, signal.SIGCONT)

    def kill_new(self) -> None:
        os.kill(self.new.pid, signal.SIGKILL)
        until("its end", lambda: not victims.is_alive(self.new))


@contextmanager
def racing(oldest: Build) -> Iterator[tuple[Supervised, Points]]:
    with site.make(oldest) as one, supervised.on(one, QUICK) as nginx:
        points = Points(nginx)
        nginx.start()
        with Load(one.plan(**LIGHT)) as load:
            yield nginx, points
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            report = load.stop()
        assert report.failures == 0, report
        verdicts = [each["verdict"] for each in nginx.history()]
        assert verdicts == ["rolled_back"]


def at(nginx: Supervised, points: Points) -> Race:
    points.wait()
    old, new = nginx.masters()
    return Race(nginx, points, old, new)


def until_reaped(race: Race) -> None:
    """The old master has taken note of the new one's end: it has put its pid file back."""
    path = race.nginx.site.pid_path
    until("the pid file", lambda: path.exists() and path.read_text().strip() == str(race.old.pid))


def test_race_a_winch_and_hup_come_together(oldest: Build, newest: Build) -> None:
    """HUP is handled first, and the WINCH that is left over would end all of the workers."""
    with racing(oldest) as (nginx, points):
        points.arm("SIGWINCH.before")
        asked = nginx.begin("upgrade", newest.path, "--hold")
        race = at(nginx, points)
        race.stop_old()
        points.arm("SIGWINCH.after")
        points.go_on()
        points.wait()
        os.kill(race.old.pid, signal.SIGHUP)  # somebody else's
        race.continue_old()
        until("HUP was handled", lambda: len(workers(race.old)) > 2)
        points.go_on()
        nginx.until_phase("held")
        until("nobody accepts", lambda: not any(one.is_accepting for one in workers(race.old)))
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(asked).code == 4


def workers(master: Seen) -> list[Seen]:
    return [one for one in processes.children(master.pid) if one.is_worker]


def test_race_a_an_operator_rolls_back_while_winch_is_pending(oldest: Build, newest: Build) -> None:
    with racing(oldest) as (nginx, points):
        points.arm("SIGWINCH.before")
        asked = nginx.begin("upgrade", newest.path)
        race = at(nginx, points)
        race.stop_old()
        points.go_on()
        nginx.until_phase("shifting")
        assert nginx.ctl("rollback").code == 0  # continues the old master by itself
        assert nginx.end(asked).code == 4


@pytest.mark.parametrize("configuration", ["good", "broken"])
def test_race_b_hup_and_the_candidates_end_come_together(
    oldest: Build, newest: Build, configuration: str
) -> None:
    """HUP is then a true reload: of a broken configuration nothing starts, else two sets do."""
    with racing(oldest) as (nginx, points):
        config = nginx.site.config
        text = config.read_text()
        asked = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        points.arm("SIGHUP.before")
        back = nginx.begin("rollback")
        race = at(nginx, points)
        race.stop_old()
        points.arm("SIGHUP.after")
        points.go_on()
        points.wait()
        if configuration == "broken":
            config.write_text("broken")
        race.kill_new()
        race.continue_old()
        until_reaped(race)
        if configuration == "broken":
            until("the reload failed", lambda: "[emerg]" in nginx.site.log_text())
            config.write_text(text)
        points.go_on()
        assert nginx.end(back).code == 0
        assert nginx.end(asked).code == 4


@pytest.mark.parametrize("when", ["before", "together"])
def test_race_c_the_candidate_dies_before_winch_arrives(
    oldest: Build, newest: Build, when: str
) -> None:
    """Nothing is revived: nginx had workers when its child died, and then they are told to go."""
    with racing(oldest) as (nginx, points):
        points.arm("SIGWINCH.before")
        asked = nginx.begin("upgrade", newest.path)
        race = at(nginx, points)
        if when == "together":
            race.stop_old()
        race.kill_new()
        if when == "before":
            until_reaped(race)
        points.arm("SIGWINCH.after")
        points.go_on()
        points.wait()
        if when == "together":
            race.continue_old()
        until("nobody accepts", lambda: not any(one.is_accepting for one in workers(race.old)))
        points.go_on()
        assert nginx.end(asked).code == 4


# --- a supervisor that stands still ------------------------------------------------------------


@pytest.mark.parametrize("phase", ["idle", "canary", "held", "draining"])
def test_the_supervisor_stands_still_for_seconds(oldest: Build, newest: Build, phase: str) -> None:
    settings = {"upgrade": {"canary": "500ms", "soak": "500ms"}}
    with site.make(oldest) as one, supervised.on(one, settings) as nginx:
        points = Points(nginx)
        nginx.start()
        with Load(one.plan(slow=0, timeout=20.0)) as load, unfinished.request(one.port):
            asked = None
            if phase == "idle":
                os.kill(nginx.pid, signal.SIGSTOP)
            else:
                points.arm(f"state.{phase}")
                hold = ["--hold"] if phase == "held" else []
                asked = nginx.begin("upgrade", newest.path, *hold)
                points.wait()
            victims.let_time_pass(STANDS_STILL)
            points.go_on()
            if phase == "held":
                assert nginx.ctl("promote").code == 0
            if asked is not None:
                assert nginx.end(asked).code == 0
            report = load.stop()
        assert report.failures == 0, report
        serves = oldest if phase == "idle" else newest
        checks.assert_settled(nginx, serves, sha256(serves.path))
