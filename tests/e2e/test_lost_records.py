"""What tells a supervisor whom it had is lost, wrong or was never there; nginx serves on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import checks, processes, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.test_adoption import LIGHT, by_hand
from tests.e2e.test_deaths import events, told
from tools.load import Load
from tools.nginx_cache import Build


def masters_of(nginx: Supervised) -> Path:
    """The record of masters, once it is written."""
    path = nginx.site.folder / "state" / "masters.json"
    until("a record of masters", path.exists)
    return path


@pytest.mark.parametrize("record", ["none", "garbage", "another boot"])
def test_a_pid_file_that_is_gone(oldest: Build, newest: Build, record: str) -> None:
    """With the record unusable as well only the unit's own cgroup tells whom there is."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        if record == "none":
            by_hand(nginx)
        else:
            nginx.start()
            path = masters_of(nginx)
            nginx.die()
            content = json.loads(path.read_text())
            content["masters"][0]["boot_id"] = "of another boot"
            path.write_text("{garbage" if record == "garbage" else json.dumps(content))
        (master,) = nginx.masters()
        one.pid_path.unlink()
        with Load(one.plan(**LIGHT)) as load:
            nginx.start()
            assert nginx.status()["state"] == "running"
            assert [seen.pid for seen in nginx.masters()] == [master.pid]
            answer = nginx.ctl("upgrade", newest.path)
            assert answer.code == 0, answer
            nginx.until_state("running")
            assert load.stop().failures == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_no_record_and_a_broken_configuration(oldest: Build, newest: Build) -> None:
    """Its title tells all the same that it was started with the file that is broken now."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        nginx.die()
        shutil.rmtree(one.folder / "state")
        one.pid_path.unlink()
        text = one.config.read_text()
        one.config.write_text("broken")
        with Load(one.plan(**LIGHT)) as load:
            nginx.start()
            assert [seen.pid for seen in nginx.masters()] == [master.pid]
            refused = nginx.ctl("upgrade", newest.path)
            assert refused.code == 3, refused
            one.config.write_text(text)
            assert nginx.ctl("reload").code == 0
            assert nginx.ctl("upgrade", newest.path).code == 0
            nginx.until_state("running")
            assert load.stop().failures == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_workers_whose_master_died_before_anybody_knew_it(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        master = by_hand(nginx)
        with Load(one.plan(**LIGHT)) as load:
            kill(master, signal.SIGKILL)
            until("orphans", lambda: processes.look(master) is None)
            nginx.start()
            nginx.until_state("running")
            assert load.stop().failures == 0
        assert "generation.orphans_adopted" in events(nginx)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("phase", ["canary", "held"])
def test_an_upgrade_whose_masters_are_on_no_record(
    oldest: Build, newest: Build, phase: str
) -> None:
    """The journal knows of it; who is who is told by what each runs and whose child it is."""
    arguments = {"canary": ("--canary", "60s"), "held": ("--hold",)}[phase]
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(**LIGHT)) as load:
            client = nginx.begin("upgrade", newest.path, *arguments)
            nginx.until_phase(phase)
            nginx.die()
            nginx.end(client)
            masters_of(nginx).unlink()
            nginx.start()
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            assert load.stop().failures == 0
        assert told(nginx) == [("rolled_back", "supervisor_died")]
        assert nginx.ctl("upgrade", newest.path).code == 0


@pytest.mark.parametrize("kept", ["new", "old"])
def test_everything_is_lost_in_the_middle_of_an_upgrade(
    oldest: Build, newest: Build, kept: str
) -> None:
    """Or somebody upgrades by hand: nothing that serves is ended, and a person decides."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with Load(one.plan(**LIGHT)) as load:
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            nginx.die()
            nginx.end(client)
            shutil.rmtree(one.folder / "state")
            nginx.start()
            old, new = nginx.masters()
            status = nginx.until_state("upgrading")
            assert status["reason"] == "foreign_upgrade"
            assert status["generations"][0]["master_pid"] == old.pid
            refused = nginx.ctl("upgrade", oldest.path)
            assert (refused.code, refused.reason) == (3, "foreign_upgrade"), refused
            os.kill(old.pid if kept == "new" else new.pid, signal.SIGQUIT)
            stays = new if kept == "new" else old
            until("one master", lambda: [each.pid for each in nginx.masters()] == [stays.pid])
            until("it alone is told", lambda: len(nginx.look()["generations"]) == 1, poll=0.02)
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == 0, report
        status = nginx.status()
        assert status["generations"][0]["master_pid"] == stays.pid
        assert status["detail"] is None
        checks.assert_serves(nginx, newest if kept == "new" else oldest)
        checks.assert_one_generation(nginx)
        checks.assert_pid_file_right(nginx)
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_a_drain_whose_masters_are_on_no_record(oldest: Build, newest: Build) -> None:
    with (
        site.make(oldest) as one,
        supervised.running(one) as nginx,
        unfinished.request(one.port) as begun,
        Load(one.plan(**LIGHT)) as load,
    ):
        assert nginx.ctl("upgrade", newest.path).code == 0
        assert nginx.status()["state"] == "draining"
        nginx.die()
        masters_of(nginx).unlink()
        nginx.start()
        status = nginx.status()
        roles = [(each["role"], each["version"]) for each in status["generations"]]
        assert roles == [("active", newest.version), ("retiring", oldest.version)]
        assert status["state"] == "draining"
        assert " 200 " in begun.finish()
        assert load.stop().failures == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


def test_both_generations_are_stopped_where_no_record_knows_them(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        nginx.die()
        nginx.end(client)
        shutil.rmtree(one.folder / "state")
        nginx.start()
        nginx.until_state("upgrading")
        assert nginx.ctl("stop").code == 0
        assert nginx.nginx() == []
