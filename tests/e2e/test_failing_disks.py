"""Disks that are full, read-only or broken, and no descriptor left: nginx serves on."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO, EMFILE, ENOSPC, EROFS
from pathlib import Path

import pytest

from tests.e2e.harness import checks, processes, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.disk import Shim, build_shim, full, read_only, small_disk
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_cache import Build

LIGHT = {"new": 2, "new_rate": 60.0, "keepalive": 0, "idle": 0, "slow": 0, "timeout": 15.0}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@contextmanager
def shimmed(build: Build, library: Path, tmp_path: Path) -> Iterator[tuple[Supervised, Shim]]:
    """A supervisor with the shim, about to start; nothing may fail for a client."""
    with site.make(build) as one, supervised.on(one) as nginx:
        yield nginx, Shim(nginx, library, tmp_path)


@contextmanager
def under_load(nginx: Supervised) -> Iterator[None]:
    with Load(nginx.site.plan(**LIGHT)) as load:
        yield
        report = load.stop()
    assert report.failures == 0, report


def state(nginx: Supervised, name: str = "") -> Path:
    return nginx.site.folder / "state" / name


FAULTS = {
    "full": (("write", ENOSPC), "no_space"),
    "read-only": (("create", EROFS), "state_not_writable"),
    "no fsync": (("fsync", EIO), "disk_error"),
    "no write": (("write", EIO), "disk_error"),
    "no descriptor": (("create", EMFILE), "no_descriptors"),
}


@pytest.mark.parametrize("kind", ["full", "read-only", "no fsync", "no descriptor"])
def test_the_state_directory_fails(
    oldest: Build, newest: Build, library: Path, tmp_path: Path, kind: str
) -> None:
    """At a start nginx comes up all the same; an upgrade is refused; afterwards all is well."""
    (call, errno), reason = FAULTS[kind]
    with shimmed(oldest, library, tmp_path) as (nginx, shim):
        shim.inject((call, errno, state(nginx)))
        nginx.start()
        checks.assert_serves(nginx, oldest)
        said = ("state.not_written", "store.not_written")
        until("it is said", lambda: all(one in nginx.log_text() for one in said))
        with under_load(nginx):
            (master,) = nginx.masters()
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, reason), answer
            assert str(state(nginx)) in answer.last["detail"]
            assert nginx.masters()[0].pid == master.pid
            assert nginx.ctl("reload").code == 0
            shim.mend()
            answer = nginx.ctl("upgrade", newest.path)
            assert answer.code == 0, answer
            checks.assert_settled(nginx, newest, sha256(newest.path))
        # Also the refusal, and the reload, which had to wait.
        told = [(one["operation"], one["verdict"]) for one in nginx.history()]
        assert told == [
            ("upgrade", "refused"), ("reload", "committed"), ("upgrade", "committed"),
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "no fsync", "no write"])
def test_the_state_directory_fails_while_an_upgrade_is_held(
    oldest: Build, newest: Build, library: Path, tmp_path: Path, kind: str
) -> None:
    """Going forward needs the journal, going back does not; the verdict waits for the disk."""
    (call, errno), reason = FAULTS[kind]
    with shimmed(oldest, library, tmp_path) as (nginx, shim):
        nginx.start()
        with under_load(nginx):
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            shim.inject((call, errno, state(nginx)))
            nginx.ctl("promote")
            answer = nginx.end(client)
            if kind in ("full", "no write"):  # its journal is open, and its commit is not fsynced
                assert (answer.code, answer.reason) == (4, reason), answer
            assert answer.code in (0, 4), answer
            assert "not in the history yet" in answer.last["detail"], answer
            served = newest if answer.code == 0 else oldest
            checks.assert_settled(nginx, served, sha256(served.path))
            assert nginx.history() == []
            shim.mend()
            other = oldest if served is newest else newest
            assert nginx.ctl("upgrade", other.path).code == 0
            checks.assert_settled(nginx, other, sha256(other.path))
        assert [one["verdict"] for one in nginx.history()] == [
            answer.last["verdict"], "committed",
        ]  # fmt: skip


def test_only_the_verdict_cannot_be_written(
    oldest: Build, newest: Build, library: Path, tmp_path: Path
) -> None:
    """It stands, is told, and outlives the supervisor in its journal."""
    with shimmed(oldest, library, tmp_path) as (nginx, shim):
        nginx.start()
        shim.inject(("fsync", EIO, state(nginx, "history.jsonl")))
        answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        assert "not in the history yet" in answer.last["detail"], answer
        nginx.until_state("running")
        nginx.die()
        shim.mend()
        nginx.start()
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert [one["verdict"] for one in nginx.history()] == ["committed"]


def test_a_verdict_of_another_request_waits_in_the_journal(
    oldest: Build, newest: Build, library: Path, tmp_path: Path
) -> None:
    """It is no verdict of the upgrade that runs: a successor ends that as any other."""
    with shimmed(oldest, library, tmp_path) as (nginx, shim):
        nginx.start()
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        shim.inject(("fsync", EIO, state(nginx, "history.jsonl")))
        assert nginx.ctl("upgrade", oldest.path).reason == "upgrade_in_progress"
        nginx.die()
        nginx.end(client)
        shim.mend()
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        told = [(one["verdict"], one["reason"]) for one in nginx.history()]
        assert sorted(told) == [
            ("refused", "upgrade_in_progress"), ("rolled_back", "supervisor_died"),
        ]  # fmt: skip


# --- real file systems --------------------------------------------------------------------------


@as_root
def test_a_state_directory_that_fills_up(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, small_disk(one.folder / "state"), \
            supervised.running(one) as nginx, under_load(nginx):  # fmt: skip
        with full(state(nginx)):
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, "no_space"), answer
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        with full(state(nginx)):
            assert nginx.ctl("rollback").code == 0
            assert nginx.end(client).code == 4
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            nginx.die()
            nginx.start()
            checks.assert_serves(nginx, oldest)
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@as_root
def test_a_state_directory_that_becomes_read_only(oldest: Build, newest: Build) -> None:
    """Also for a supervisor that starts then, and for a crash."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx), read_only(state(nginx)):
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, "state_not_writable"), answer
            nginx.die()
            nginx.start()
            checks.assert_serves(nginx, oldest)
            os.kill(nginx.masters()[0].pid, signal.SIGKILL)
            until("a restart", lambda: nginx.look()["restarts"] == 1)
            nginx.until_state("running")
            checks.assert_serves(nginx, oldest)
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@as_root
def test_the_folder_of_the_pid_file_becomes_read_only(oldest: Build, newest: Build) -> None:
    """USR2 would break the master for good, since it cannot rename its pid file."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        (master,) = nginx.masters()
        with under_load(nginx), read_only(one.pid_path.parent):
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, "pid_file_not_writable"), answer
            assert str(one.pid_path.parent) in answer.last["detail"]
        assert "SIGUSR2" not in one.log_text()
        assert nginx.masters()[0].pid == master.pid
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@as_root
def test_the_folder_of_the_pid_file_becomes_read_only_while_held(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx):
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            with read_only(one.pid_path.parent):
                assert nginx.ctl("rollback").code == 0
                answer = nginx.end(client)
                checks.assert_serves(nginx, oldest)
        assert answer.code == 4, answer
        assert nginx.ctl("upgrade", newest.path).code == 0
        checks.assert_settled(nginx, newest, sha256(newest.path))


@as_root
def test_the_folder_of_the_binary_becomes_read_only(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one, supervised.running(one) as nginx, under_load(nginx):
        with read_only(one.binary.parent):
            answer = nginx.ctl("upgrade", newest.path)
            assert (answer.code, answer.reason) == (3, "binary_directory_read_only"), answer
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        with read_only(one.binary.parent):
            # The old generation serves; what a cold start would run is another matter, and said.
            answer = nginx.ctl("rollback")
            assert answer.code == 1, answer
            answer = nginx.end(client)
            assert (answer.code, answer.reason) == (1, "restore_failed"), answer
            assert str(one.binary.parent) in answer.last["detail"], answer
            checks.assert_serves(nginx, oldest)
            assert nginx.status()["state"] == "degraded"
        assert nginx.ctl("start").code == 0
        nginx.until_state("running")
        assert nginx.ctl("upgrade", oldest.path).code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@as_root
def test_the_folder_of_the_control_socket_is_read_only(oldest: Build) -> None:
    """No supervisor can start then; nginx is not touched, and the next one adopts it."""
    with site.make(oldest) as one:
        sockets = one.folder / "sockets"
        sockets.mkdir()
        settings = {"control": {"socket": str(sockets / "control.sock")}}
        with supervised.on(one, settings) as nginx:
            nginx.start()
            nginx.die()
            with read_only(sockets):
                nginx.launch()
                assert nginx.cradle.wait(nginx.pid) == 2
                assert str(sockets) in nginx.log_text()
                checks.assert_serves(nginx, oldest)
            nginx.start()
            assert nginx.masters()
            checks.assert_serves(nginx, oldest)
            assert nginx.stop() == 0


# --- no descriptor left -------------------------------------------------------------------------


@contextmanager
def without_descriptors(nginx: Supervised) -> Iterator[None]:
    """The supervisor can open nothing more but what it holds in reserve, and has said so."""
    before = resource.prlimit(nginx.pid, resource.RLIMIT_NOFILE)

    def is_said() -> bool:
        # Again and again: a probe's connection that is open now leaves a place when it is closed.
        used = {int(name) for name in os.listdir(f"/proc/{nginx.pid}/fd")}
        lowest = next(number for number in range(4096) if number not in used)
        limit, _ = resource.prlimit(nginx.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(nginx.pid, resource.RLIMIT_NOFILE, (min(lowest, limit), before[1]))
        return "supervisor.no_descriptors" in nginx.log_text()

    try:
        until("it is said", is_said, poll=0.005)
        yield
    finally:
        resource.prlimit(nginx.pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("dies", ["nobody", "a worker", "the candidate"])
def test_no_descriptor_is_left(oldest: Build, newest: Build, dies: str) -> None:
    """What the supervisor cannot ask says nothing against anybody; what happens is still seen."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        with under_load(nginx):
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
            new = nginx.masters()[-1]
            with without_descriptors(nginx):
                if dies == "a worker":
                    os.kill(min(one.pid for one in processes.children(new.pid)), signal.SIGKILL)
                elif dies == "the candidate":
                    os.kill(new.pid, signal.SIGKILL)
                if dies != "nobody":
                    until("the rollback", lambda: '"rolled_back"' in nginx.log_text())
            until("it is over", lambda: "supervisor.descriptors_back" in nginx.log_text())
            if dies == "nobody":
                assert nginx.in_phase("held")
                assert nginx.ctl("promote").code == 0
            answer = nginx.end(client)
            expected = {
                "nobody": (0, "healthy"), "a worker": (4, "worker_died"),
                "the candidate": (4, "candidate_exited"),
            }  # fmt: skip
            assert (answer.code, answer.reason) == expected[dies], answer
            served = newest if dies == "nobody" else oldest
            checks.assert_settled(nginx, served, sha256(served.path))
        assert "operation.bug" not in nginx.log_text()
