"""A supervisor and an nginx that are nobody special, on ports above 1024."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.edges import procfs
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.site import Options, put, sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Load
from tools.nginx_cache import Build

NOBODY = 65534

AS_NOBODY = """
import ctypes, os, sys
# The interpreter may lie in a home that nobody else may enter: all is imported while it may be.
import encodings.ascii, encodings.idna, encodings.latin_1
from supervisor import snapshot
from supervisor.daemon import main
snapshot.version()
sys.executable = os.environ.pop("PYTHON")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an exec
sys.exit(main(sys.argv[1:]))
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def give(path: Path) -> None:
    """All of it is nobody's."""
    os.chown(path, NOBODY, NOBODY)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(os.path.join(folder, name), NOBODY, NOBODY)


@contextmanager
def as_nobody(
    build: Build, options: Options | None = None, *, python: str = "/nowhere"
) -> Iterator[Supervised]:
    """A site that nobody owns and serves; what root must not have done is looked for at the end."""
    with site.make(build, options) as one, supervised.on(one) as nginx:
        give(one.folder)
        nginx.program = [sys.executable, "-c", AS_NOBODY]
        # A measured process could not leave its figures.
        nginx.environment = {"PYTHON": python, "COVERAGE_PROCESS_START": ""}
        nginx.environment |= {name: "" for name in os.environ if name.startswith("COVERAGE")}
        (one.folder / "notify.sock").chmod(0o777)
        nginx.start()
        yield nginx
        for pid in (nginx.pid, *(seen.pid for seen in nginx.nginx())):
            assert procfs.identity(pid) == (NOBODY, NOBODY)


def offered(nginx: Supervised, binary: Path) -> Path:
    """A copy that nobody may read and nobody else may change."""
    folder = nginx.site.folder / "offered"
    folder.mkdir(exist_ok=True)
    path = put(binary, folder / "nginx")
    give(folder)
    return path


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        kill(pid, signal.SIGKILL)


def test_an_upgrade_a_rollback_and_a_stop(oldest: Build, newest: Build) -> None:
    with as_nobody(oldest, Options(unix=True)) as nginx:
        one = nginx.site
        with Load(one.plan()) as load:
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            for die in (False, True):
                upgrade = nginx.begin("upgrade", offered(nginx, newest.path), "--hold")
                nginx.until_phase("held")
                if die:
                    kill_all([nginx.masters()[-1].pid])
                else:
                    assert nginx.ctl("rollback").code == 0
                assert nginx.end(upgrade).code == 4
                checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            answer = nginx.ctl("upgrade", offered(nginx, newest.path))
            assert answer.code == 0, answer
            nginx.until_state("running")
            checks.assert_settled(nginx, newest, sha256(newest.path))
            back = nginx.ctl("rollback")
            assert back.code == 0, back
            nginx.until_state("running")
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            assert load.stop().failures == 0
        assert nginx.ctl("stop").code == 0
        assert nginx.nginx() == []
        assert not one.pid_path.exists()
        assert nginx.ctl("start").code == 0
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


@pytest.mark.parametrize("workers_too", [False, True], ids=["master", "all"])
def test_a_crash(oldest: Build, *, workers_too: bool) -> None:
    with as_nobody(oldest) as nginx:
        victims = [one.pid for one in (nginx.nginx() if workers_too else nginx.masters())]
        kill_all(victims)
        until("another master", lambda: {one.pid for one in nginx.masters()} - set(victims))
        nginx.until_state("running")
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_a_supervisor_that_dies(oldest: Build, newest: Build) -> None:
    with as_nobody(oldest) as nginx:
        master = nginx.masters()[0].pid
        nginx.die()
        nginx.start()
        assert nginx.masters()[0].pid == master
        kill_all([master])
        until("another master", lambda: {one.pid for one in nginx.masters()} - {master})
        nginx.until_state("running")
        answer = nginx.ctl("upgrade", offered(nginx, newest.path))
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


@pytest.mark.needs("marker")
@pytest.mark.parametrize("python", ["/usr/bin/python3", "/nowhere"], ids=["view", "no-view"])
def test_a_reload_after_a_package_has_arrived(oldest: Build, newest: Build, python: str) -> None:
    """The modules that the running nginx has loaded are shown to the test, where that can be."""
    if python != "/nowhere" and not Path(python).exists():
        python = "/nowhere"
    with as_nobody(oldest, Options(module=True), python=python) as nginx:
        one = nginx.site
        one.install(newest)
        give(one.folder)
        one.configure(Options(module=True, workers=3))
        answer = nginx.ctl("reload")
        assert answer.code == 0, answer
        checks.assert_serves(nginx, oldest)
        checks.assert_one_generation(nginx)
        tested = "reload.not_tested" not in nginx.log_text()
        assert tested == (python != "/nowhere")
        if tested:
            one.config.write_text(f"no_such_directive on;\n{one.config.read_text()}")
            answer = nginx.ctl("reload")
            assert answer.reason == "config_rejected"
            assert "no_such_directive" in answer.last["detail"]


def test_a_crash_of_everything_and_a_take_over(oldest: Build) -> None:
    """Descriptors may be duplicated between processes of the same user, without any capability."""
    with as_nobody(oldest, Options(unix=True)) as nginx:
        one = nginx.site
        until("held", lambda: nginx.look()["held_listeners"]["count"] == 2, poll=0.02)
        load = Load(one.plan(new=4, new_rate=100.0, keepalive=0, idle=0, slow=0, timeout=20.0))
        with load:
            kill_all([seen.pid for seen in sorted(nginx.nginx(), key=lambda s: not s.is_master)])
            until("the restart", lambda: nginx.look()["restarts"] == 1, poll=0.02)
            checks.assert_settled(nginx, oldest, sha256(oldest.path))
            report = load.lap()
            assert report.failures == report.count("reset") + report.count("truncated") <= 4, report
            nginx.die()
            nginx.start()
            assert nginx.ctl("adopt", "--take-over").code == 0
            nginx.until_state("running")
            report = load.stop()
        assert report.failures == 0, report
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
