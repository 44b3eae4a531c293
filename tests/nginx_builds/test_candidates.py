"""Each bad candidate, on the oldest and the newest build: healthy cold, and bad in its own way.

Every test starts the candidate itself by hand first, where it must serve like any nginx, and then
upgrades to it, where it must misbehave as tests/nginx/README.md says.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.nginx_builds.site import FILE, Answer, Site, is_alive, stat, until
from tools.nginx_builds import COMPILED, MADE, Build, BuildsError, builds, candidate
from tools.nginx_cache import reported_version

OK = Answer(200, b"ok\n")
# How long to look on to be sure that something does not happen.
A_WHILE = 0.3
DELAY_MS = 150
# Enough for what has to be seen before the candidate goes wrong.
LATER_MS = 2000

pytestmark = pytest.mark.e2e
both = pytest.mark.parametrize("build", [builds()[0], builds()[-1]], ids=str)


def cold_start(site: Site, build: Build, kind: str, **knobs: int | str) -> None:
    """Starts the candidate by hand: it passes its tests and serves."""
    binary = candidate(build, kind, **knobs)
    assert reported_version(binary) == build.version
    with socket.create_server(("127.0.0.1", site.public)) as inherited:
        fd = inherited.fileno()
        for arguments in (["-t"], ["-tq"], ["-qc", str(site.configuration), "-T"], ["-V"]):
            subprocess.run(
                [binary, *site.arguments, *arguments],
                env={"NGINX": f"{fd};"},
                pass_fds=[fd],
                check=True,
                capture_output=True,
                timeout=60,
            )
    site.start(binary)
    assert site.get(site.public) == OK


def upgrade(site: Site, build: Build, kind: str, **knobs: int | str) -> int:
    """Starts the candidate by hand, then upgrades to it; the new master's pid."""
    cold_start(site, build, kind, **knobs)
    return site.upgrade()


def shift(site: Site, new: int) -> None:
    """Has the new workers alone accept."""
    site.until_ready(new)
    os.kill(site.old, signal.SIGWINCH)
    until(lambda: site.children(site.old) == [new])


def cpu_ticks(pid: int) -> int:
    """The processor time of all threads so far, in user mode."""
    return int(stat(pid)[11])


@both
def test_good(site: Site, build: Build) -> None:
    new = upgrade(site, build, "good")
    shift(site, new)
    assert site.get(site.public) == OK
    assert site.get(site.private) == OK
    assert site.get(site.private, "/file") == Answer(200, FILE)


@both
def test_exit_at_once(site: Site, build: Build) -> None:
    new = upgrade(site, build, "exit_at_once", code=7)
    until(lambda: f"new binary process {new} exited with code 7" in site.log())
    site.until_rolled_back(new)


@both
def test_exit_later_leaves_orphans_that_accept(site: Site, build: Build) -> None:
    new = upgrade(site, build, "exit_later", delay_ms=LATER_MS, code=7)
    site.until_ready(new)
    workers = site.children(new)
    until(lambda: f"new binary process {new} exited with code 7" in site.log())
    site.until_rolled_back(new)
    assert all(is_alive(pid) for pid in workers)
    assert site.get(site.private) == OK


@both
def test_hang(site: Site, build: Build) -> None:
    new = upgrade(site, build, "hang")
    os.kill(new, signal.SIGTERM)
    time.sleep(A_WHILE)
    assert is_alive(new)
    assert site.pid() is None
    os.kill(new, signal.SIGKILL)
    site.until_rolled_back(new)


@both
def test_slow_start(site: Site, build: Build) -> None:
    began = time.monotonic()
    new = upgrade(site, build, "slow_start", delay_ms=400)
    site.until_ready(new)
    assert time.monotonic() - began > 0.4
    assert site.get(site.private) == OK


@both
def test_stop_after(site: Site, build: Build) -> None:
    new = upgrade(site, build, "stop_after", delay_ms=DELAY_MS)
    shift(site, new)
    until(lambda: stat(new)[0] == "T")
    assert site.get(site.public) == OK


@both
def test_spin_master(site: Site, build: Build) -> None:
    new = upgrade(site, build, "spin_master", delay_ms=DELAY_MS)
    site.until_ready(new)
    before = naps(new)
    until(lambda: naps(new) > before + 50)
    os.kill(new, signal.SIGTERM)
    # After the # stands the thread's id, and 0 in a build without threads.
    until(lambda: re.search(rf"{new}#\d+: signal 15 \(SIGTERM\) received", site.log()))
    time.sleep(A_WHILE)
    assert is_alive(new)
    assert len(site.children(new)) == 2


@both
def test_spin_master_burns(site: Site, build: Build) -> None:
    new = upgrade(site, build, "spin_master", delay_ms=DELAY_MS, burns=1)
    site.until_ready(new)
    until(lambda: cpu_ticks(new) > 20)
    assert site.get(site.private) == OK


def naps(pid: int) -> int:
    """How often it went to sleep: a master that waits for signals does so once for each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


@both
@pytest.mark.parametrize("obeys_term", [0, 1])
def test_deaf_master(site: Site, build: Build, obeys_term: int) -> None:
    new = upgrade(site, build, "deaf_master", obeys_term=obeys_term)
    site.until_ready(new)
    for deaf_to in (signal.SIGQUIT, signal.SIGWINCH):
        os.kill(new, deaf_to)
    time.sleep(A_WHILE)
    assert site.pid() == new
    worker = site.children(new)[0]
    os.kill(worker, signal.SIGQUIT)
    until(lambda: not is_alive(worker))
    os.kill(new, signal.SIGTERM)
    if obeys_term:
        site.until_rolled_back(new)
    else:
        time.sleep(A_WHILE)
        assert is_alive(new)


@both
def test_workers_fatal(site: Site, build: Build) -> None:
    new = upgrade(site, build, "workers_fatal")
    until(lambda: site.log().count("exited with fatal code 2 and cannot be respawned") == 2)
    assert site.pid() == new
    assert site.children(new) == []
    assert site.get(site.public) == OK


@both
def test_workers_exit(site: Site, build: Build) -> None:
    new = upgrade(site, build, "workers_exit", code=3)
    until(lambda: site.log().count("exited with code 3") >= 6)
    assert site.pid() == new


@both
def test_workers_crash(site: Site, build: Build) -> None:
    new = upgrade(site, build, "workers_crash")
    until(lambda: site.log().count("exited on signal 11") >= 6)
    assert site.pid() == new
    assert not list(site.folder.glob("core*"))


@both
def test_worker_crash_once(site: Site, build: Build) -> None:
    new = upgrade(site, build, "worker_crash_once", signal=6)
    until(lambda: "exited on signal 6" in site.log())
    site.until_ready(new)
    time.sleep(A_WHILE)
    assert site.log().count("exited on signal") == 1
    assert len(site.children(new)) == 2
    assert site.get(site.private) == OK


@both
def test_leaky_workers(site: Site, build: Build) -> None:
    new = upgrade(site, build, "leaky_workers", mb_per_second=100, limit_mb=30)
    site.until_ready(new)

    def resident_mb() -> float:
        pages = Path(f"/proc/{site.children(new)[0]}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    until(lambda: resident_mb() > 30)
    time.sleep(A_WHILE)
    assert resident_mb() < 60
    assert site.get(site.private) == OK


@both
def test_leaky_descriptors(site: Site, build: Build) -> None:
    new = upgrade(site, build, "leaky_descriptors", per_second=500, limit=100)
    site.until_ready(new)
    workers = site.children(new)
    until(lambda: all(len(os.listdir(f"/proc/{pid}/fd")) > 100 for pid in workers))
    assert site.get(site.private) == OK


@both
def test_burn_cpu(site: Site, build: Build) -> None:
    new = upgrade(site, build, "burn_cpu")
    site.until_ready(new)
    until(lambda: sorted(cpu_ticks(pid) > 10 for pid in site.children(new)) == [False, True])
    assert site.get(site.private) == OK
    os.kill(new, signal.SIGQUIT)
    site.until_rolled_back(new)


@both
def test_cache_manager_crash(site: Site, build: Build) -> None:
    cold_start(site, build, "cache_manager_crash", every_ms=30)
    cached = f"sendfile on; proxy_cache_path {site.folder}/cache keys_zone=z:1m;"
    text = site.configuration.read_text().replace("sendfile on;", cached)
    site.configuration.write_text(text)
    new = site.upgrade()
    died = r"cache manager process \d+ exited on signal 11"
    until(lambda: len(re.findall(died, site.log())) >= 3)
    assert not re.search(r"(worker|cache loader) process \d+ exited on", site.log())
    assert site.pid() == new
    assert site.get(site.private) == OK


@both
def test_workers_leave(site: Site, build: Build) -> None:
    new = upgrade(site, build, "workers_leave", every_ms=100)
    until(lambda: site.log().count("exited with code 0") >= 4)
    assert "signal 11" not in site.log()
    assert site.pid() == new


@both
def test_alerting(site: Site, build: Build) -> None:
    new = upgrade(site, build, "alerting")
    site.until_ready(new)
    workers = site.children(new)
    until(lambda: all(f"[alert] {pid}#{pid}: bad candidate" in site.log() for pid in workers))
    assert site.get(site.private) == OK


@both
def test_hang_workers(site: Site, build: Build) -> None:
    new = upgrade(site, build, "hang_workers")
    site.until_ready(new)
    with pytest.raises(TimeoutError):
        site.get(site.private, timeout=A_WHILE)
    worker = site.children(new)[0]
    os.kill(worker, signal.SIGTERM)
    time.sleep(A_WHILE)
    assert is_alive(worker)


@both
def test_hang_workers_later(site: Site, build: Build) -> None:
    new = upgrade(site, build, "hang_workers", delay_ms=LATER_MS)
    site.until_ready(new)
    assert site.get(site.private) == OK

    def hangs() -> bool:
        try:
            site.get(site.private, timeout=A_WHILE)
        except TimeoutError:
            return True
        return False

    until(hangs)


@both
def test_hang_one_worker(site: Site, build: Build) -> None:
    new = upgrade(site, build, "hang_one_worker", delay_ms=DELAY_MS)
    site.until_ready(new)
    # Each worker has a queue of its own: connections are spread over both, and one answers no more.
    answers = set()

    def both_seen() -> bool:
        try:
            answers.add(site.get(site.private, timeout=A_WHILE).status)
        except TimeoutError:
            answers.add(0)
        return answers == {200, 0}

    until(both_seen)


@both
def test_silent_listeners(site: Site, build: Build) -> None:
    new = upgrade(site, build, "silent_listeners", where="new")
    shift(site, new)
    with pytest.raises(TimeoutError):
        site.get(site.private, timeout=A_WHILE)
    assert site.get(site.public) == OK
    os.kill(new, signal.SIGQUIT)
    site.until_rolled_back(new)


@both
def test_refuse_new_listeners(site: Site, build: Build) -> None:
    new = upgrade(site, build, "refuse_new_listeners")
    shift(site, new)
    with pytest.raises(ConnectionRefusedError):
        site.get(site.private)
    assert site.get(site.public) == OK
    assert "accept" not in site.log().replace("stop accepting", "")


@both
@pytest.mark.parametrize("where", ["new", "inherited"])
def test_reset_connections(site: Site, build: Build, where: str) -> None:
    new = upgrade(site, build, "reset_connections", where=where)
    shift(site, new)
    bad, good = (site.private, site.public) if where == "new" else (site.public, site.private)
    with pytest.raises(ConnectionResetError):
        site.get(bad)
    assert site.get(good) == OK


@both
@pytest.mark.parametrize("where", ["everywhere", "new", "inherited"])
def test_status_500(site: Site, build: Build, where: str) -> None:
    new = upgrade(site, build, "status_500", where=where)
    shift(site, new)
    for port, listener in ((site.private, "new"), (site.public, "inherited")):
        bad = where in {"everywhere", listener}
        assert site.get(port).status == (500 if bad else 200)
        assert site.get(port, "/file") == Answer(500 if bad else 200, FILE)


@both
def test_status_500_later(site: Site, build: Build) -> None:
    new = upgrade(site, build, "status_500", delay_ms=LATER_MS)
    shift(site, new)
    assert site.get(site.private) == OK
    until(lambda: site.get(site.private).status == 500)


@both
def test_wrong_body(site: Site, build: Build) -> None:
    new = upgrade(site, build, "wrong_body")
    shift(site, new)
    assert site.get(site.public) == Answer(200, b"wro")
    # Twice: a body that the configuration holds must not be changed in place.
    assert site.get(site.public) == Answer(200, b"wro")
    answer = site.get(site.public, "/file")
    assert answer == Answer(200, (b"wrong " * len(FILE))[: len(FILE)])


@both
def test_always_misbehaves_in_a_cold_start_too(site: Site, build: Build) -> None:
    binary = candidate(build, "exit_at_once", always=1, code=5)
    assert subprocess.run([binary, "-v"], capture_output=True).returncode == 0
    assert subprocess.run([binary, *site.arguments]).returncode == 5


@both
@pytest.mark.needs("twin", "stub_status")
def test_without_stub_status(site: Site, build: Build) -> None:
    text = site.configuration.read_text().replace(
        "location / {", "location /s { stub_status; }\n{}"
    )
    site.configuration.write_text(text.replace("{}", "location / {"))
    assert subprocess.run([build.path, "-t", *site.arguments], capture_output=True).returncode == 0
    refused = subprocess.run(
        [candidate(build, "without_stub_status"), "-t", *site.arguments],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert 'unknown directive "stub_status"' in refused.stderr


@pytest.mark.parametrize("kind", sorted({*MADE} - {"without_stub_status", "wrapper"}))
def test_made_candidates_do_not_run_as_nginx(kind: str) -> None:
    with pytest.raises(BuildsError):
        reported_version(candidate(builds()[-1], kind))


def test_wrapper_runs_nginx() -> None:
    assert reported_version(candidate(builds()[-1], "wrapper")) == builds()[-1].version


@pytest.mark.parametrize("kind", sorted({*COMPILED}))
def test_each_kind_has_a_test_and_a_line_in_the_table(kind: str) -> None:
    tests = Path(__file__).parent.parent
    # Those that need TLS, a backend or a cache are tested on the site that has it.
    elsewhere = tests / "e2e" / "test_misbehaving_candidates.py"
    assert f'"{kind}"' in Path(__file__).read_text() + elsewhere.read_text()
    table = tests / "nginx" / "README.md"
    assert f"| `{kind}` |" in table.read_text()
