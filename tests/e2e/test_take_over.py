"""`adopt --take-over`: a master of the supervisor's own in the place of whatever nginx serves."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from supervisor.edges import procfs
from tests.e2e.harness import checks, site, supervised, unfinished
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tests.e2e.test_adoption import by_hand
from tests.e2e.test_held import NEW, ask, held
from tools.load import Load
from tools.nginx_cache import Build


def take_over(nginx: Supervised) -> Answer:
    return nginx.ctl("adopt", "--take-over")


def is_ours(nginx: Supervised, pid: int) -> bool:
    stat = procfs.read_stat(pid)
    return stat is not None and stat.parent == nginx.pid


@pytest.mark.parametrize("how", ["daemon", "foreground", "reuseport"])
def test_one_that_somebody_else_started(oldest: Build, newest: Build, how: str) -> None:
    """In the foreground it refuses USR2: it could never be upgraded without a restart."""
    options = Options(
        daemon="off" if how == "foreground" else "on", unix=True, reuseport=how == "reuseport"
    )
    with site.make(oldest, options) as one, supervised.on(one) as nginx:
        old = by_hand(nginx)
        inode = one.unix_path.stat().st_ino
        nginx.start()
        assert not is_ours(nginx, old)
        with (
            Load(one.plan(**NEW)) as load,
            Load(one.plan(**NEW, address=str(one.unix_path))) as unix,
        ):
            answer = take_over(nginx)
            assert (answer.code, answer.reason) == (0, "taken_over"), answer
            assert f"from {old}" in answer.last["detail"]
            nginx.until_state("running")
            (master,) = nginx.masters()
            assert is_ours(nginx, master.pid)
            assert nginx.look()["restarts"] == 0
            assert nginx.ctl("upgrade", newest.path).code == 0
            nginx.until_state("running")
            assert nginx.ctl("rollback").code == 0
            nginx.until_state("running")
            for report in (load.stop(), unix.stop()):
                assert report.failures == 0, report
        assert one.unix_path.stat().st_ino == inode
        assert "bind()" not in one.log_text()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_parenthood_comes_back_after_a_death_of_the_supervisor(
    oldest: Build, newest: Build
) -> None:
    """Two supervisors later the exit of the master is told with its signal, as a child's is."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        nginx.die()
        nginx.start()
        with Load(one.plan(**NEW)) as load:
            assert take_over(nginx).code == 0
            again = take_over(nginx)
            assert (again.code, again.reason) in (
                (0, "taken_over"),
                (3, "previous_generation_draining"),
            ), again
            nginx.until_state("running")
            assert take_over(nginx).code == 0
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == 0, report
        (master,) = nginx.masters()
        os.kill(master.pid, signal.SIGSEGV)
        until("the restart", lambda: nginx.look()["restarts"] == 1, poll=0.02)
        assert f"master {master.pid} of g" in nginx.log_text()
        assert "signal 11" in nginx.log_text()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_connections_of_the_old_workers_are_finished(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        by_hand(nginx)
        nginx.start()
        with unfinished.request(one.port) as client:
            assert take_over(nginx).code == 0
            assert nginx.look()["state"] == "draining"
            assert " 200 " in client.finish()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_configuration_that_is_broken_or_drops_a_socket_changes_nothing(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on", unix=True)) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)
        nginx.start()
        text = one.config.read_text()
        for changed, reason in (
            ("broken;", "config_rejected"),
            (text.replace(f"listen unix:{one.unix_path};", ""), "unix_listener_dropped"),
            (text.replace("worker_processes 2;", "worker_processes 2; user nobody9;"), None),
        ):
            one.config.write_text(changed)
            answer = take_over(nginx)
            assert answer.code == 3, answer
            assert reason in (None, answer.reason), answer
            assert [seen.pid for seen in nginx.masters()] == [pid]
            assert " 200 " in ask(str(one.unix_path))
        one.config.write_text(text)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_new_master_that_does_not_come_up_leaves_the_old_one(oldest: Build) -> None:
    """Found only when it starts: its workers cannot initialise (fatal code 2)."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)
        nginx.start()
        text = one.config.read_text()
        one.config.write_text(f"working_directory {one.folder}/nowhere;\n{text}")
        with Load(one.plan(**NEW)) as load:
            answer = take_over(nginx)
            assert answer.code == 3, answer
            assert load.stop().failures == 0
        assert [seen.pid for seen in nginx.masters()] == [pid]
        one.config.write_text(text)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert take_over(nginx).code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_it_changes_no_version(oldest: Build, newest: Build) -> None:
    """A package has replaced the file on disk: what runs is put back, the other one is kept."""
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        by_hand(nginx)
        nginx.start()
        put(newest.path, one.binary)
        answer = take_over(nginx)
        assert answer.code == 0, answer
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        stored = answer.last["detail"].split("nginxctl upgrade ")[1].rstrip(")")
        assert nginx.ctl("upgrade", stored).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@pytest.mark.parametrize("take", [False, True], ids=["adopt", "take-over"])
def test_after_a_stop_somebody_starts_nginx_by_hand(oldest: Build, *, take: bool) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.running(one) as nginx:
        words = ["adopt", "--take-over"] if take else ["adopt"]
        ours = nginx.ctl("adopt")
        assert (ours.code, ours.last["verdict"]) == (0, "done"), ours
        assert nginx.ctl("stop").code == 0
        nothing = nginx.ctl(*words)
        assert (nothing.code, nothing.reason) == (3, "nothing_to_adopt"), nothing
        assert nginx.nginx() == []
        pid = by_hand(nginx)
        assert nginx.ctl(*words).code == 0
        nginx.until_state("running")
        assert ([seen.pid for seen in nginx.masters()] == [pid]) is not take
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        until("held", lambda: held(nginx)["count"] == 1, poll=0.02)


def test_somebody_else_is_upgrading_it(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        pid = by_hand(nginx)
        nginx.start()
        os.kill(pid, signal.SIGUSR2)
        until("two masters", lambda: len(nginx.masters()) == 2)
        answer = take_over(nginx)
        assert (answer.code, answer.reason) == (3, "foreign_upgrade"), answer
        os.kill(next(s.pid for s in nginx.masters() if s.pid != pid), signal.SIGQUIT)
        until("one master", lambda: len(nginx.masters()) == 1)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_stop_in_the_middle_of_it(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        by_hand(nginx)
        nginx.start()
        asked = nginx.begin("adopt", "--take-over")
        assert nginx.ctl("stop", "--now").code == 0
        nginx.end(asked)
        nginx.until_state("stopped")
        assert nginx.nginx() == []
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


DIES = """
import os, signal, sys
from supervisor.daemon import main
from supervisor.operations import start
start._prove_ready = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


def die_while_the_new_master_starts(nginx: Supervised, config: str | None = None) -> None:
    """A supervisor begins a take-over, to this `config`, and dies; the next one is to come."""
    program, nginx.program = nginx.program, [sys.executable, "-c", DIES]
    nginx.start()
    if config is not None:
        nginx.site.config.write_text(config)
    nginx.end(nginx.begin("adopt", "--take-over"))
    assert nginx.cradle.wait(nginx.pid) == -signal.SIGKILL
    nginx.program = program


def test_the_supervisor_dies_in_it(oldest: Build) -> None:
    """The intermediate of the launch lives on; the next supervisor ends it, and finishes."""
    with site.make(oldest, Options(daemon="off", unix=True)) as one, supervised.on(one) as nginx:
        old = by_hand(nginx)
        inode = one.unix_path.stat().st_ino
        with (
            Load(one.plan(**NEW)) as load,
            Load(one.plan(**NEW, address=str(one.unix_path))) as unix,
        ):
            die_while_the_new_master_starts(nginx)
            nginx.start()
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            for report in (load.stop(), unix.stop()):
                assert report.failures == 0, report
        assert nginx.masters()[0].pid != old
        assert one.unix_path.stat().st_ino == inode
        assert nginx.ctl("upgrade", "--dry-run").code == 0


def test_the_supervisor_dies_in_one_that_fails(oldest: Build) -> None:
    """The new master stands without workers, and has written its pid into another file."""
    with site.make(oldest, Options(daemon="on", unix=True)) as one, supervised.on(one) as nginx:
        old = by_hand(nginx)
        text = one.config.read_text()
        with Load(one.plan(**NEW)) as load:
            other = text.replace(str(one.pid_path), f"{one.folder}/other.pid")
            broken = f"working_directory {one.folder}/nowhere;\n{other}"
            die_while_the_new_master_starts(nginx, broken)
            nginx.start()
            one.config.write_text(text)
            assert [seen.pid for seen in nginx.masters()] == [old]
            assert nginx.ctl("reload").code == 0
            assert load.stop().failures == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert not (one.folder / "other.pid").exists()
        assert " 200 " in ask(str(one.unix_path))


def test_one_that_fails_leaves_no_pid_file_in_another_place(oldest: Build) -> None:
    with site.make(oldest, Options(daemon="on")) as one, supervised.on(one) as nginx:
        old = by_hand(nginx)
        nginx.start()
        text = one.config.read_text()
        other = text.replace(str(one.pid_path), f"{one.folder}/other.pid")
        one.config.write_text(f"working_directory {one.folder}/nowhere;\n{other}")
        assert take_over(nginx).code == 3
        assert [seen.pid for seen in nginx.masters()] == [old]
        assert not (one.folder / "other.pid").exists()
        one.config.write_text(other)
        assert take_over(nginx).code == 0
        nginx.until_state("running")
        assert not one.pid_path.exists()
        assert (one.folder / "other.pid").read_text() == f"{nginx.masters()[0].pid}\n"
