from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges import procfs
from supervisor.edges.capture import Capture
from supervisor.edges.held import HeldListeners
from supervisor.edges.launch import Launch, find_leftovers
from supervisor.edges.linux import ExitStatus
from tests.edges.launched_nginx import LIMIT, Site, launch, site_of, subreaper, until
from tools.nginx_builds import builds
from tools.nginx_cache import Build

each_build = pytest.mark.parametrize("build", builds(), ids=[one.version for one in builds()])
each_old_build = pytest.mark.parametrize(
    "build", builds()[:-1], ids=[one.version for one in builds()[:-1]]
)
SLEEP = ("/bin/sleep", "60")


@pytest.fixture
def output() -> Iterator[Capture]:
    made = Capture.create()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _adopting() -> Iterator[None]:
    with subreaper():
        yield


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED)


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1], 8 if field == "Umask" else 16)
    raise AssertionError(field)


async def test_what_the_new_process_gets(output: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the supervisor")
    monkeypatch.chdir("/tmp")
    before = os.umask(0o077)
    with open(os.devnull) as leaking, socket.create_server(("127.0.0.1", 0)) as held:
        os.set_inheritable(leaking.fileno(), True)
        async with await Launch.begin(
            SLEEP, {"TZ": "UTC"}, output=output, inherit_variable="ANGIE",
            listeners=[held.fileno()],
        ) as launching:  # fmt: skip
            assert launching.master is not None
            pid = launching.master.pid
            await until("exec", lambda: procfs.title(pid) == b"/bin/sleep 60")
            raw = Path(f"/proc/{pid}/environ").read_bytes()
            assert sorted(raw.strip(b"\0").split(b"\0")) == [
                f"ANGIE={held.fileno()};".encode(), b"SPARE=" + b"X" * 300, b"TZ=UTC"
            ]  # fmt: skip
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            fds = {int(one): os.readlink(f"/proc/{pid}/fd/{one}") for one in _fds(pid)}
            assert set(fds) == {0, 1, 2, held.fileno()}
            assert fds[0] == "/dev/null"
            assert output.stdout is not None
            assert fds[1] == os.readlink(f"/proc/self/fd/{output.stdout.fd}")
            assert fds[2] == os.readlink(f"/proc/self/fd/{output.fd}") != fds[1]
            assert _status(pid, "Umask") == 0o022
            assert _status(pid, "SigBlk") == 0
            stat = procfs.read_stat(pid)
            assert stat is not None
            assert stat.session != os.getsid(0)
            assert not launching.failed
        os.umask(before)
        await until("adopted", lambda: procfs.read_stat(pid).parent == os.getpid())  # type: ignore[union-attr]  # it lives
        launching.master.close()
        _end(pid)


def _fds(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


async def test_nothing_but_the_process_is_left(output: Capture) -> None:
    files = _fds(os.getpid())
    children = procfs.children(os.getpid())
    async with await Launch.begin(SLEEP, {}, output=output) as launching:
        assert launching.master is not None
        pid = launching.master.pid
    assert set(procfs.children(os.getpid())) - set(children) == {pid}
    launching.master.close()
    _end(pid)
    assert len(_fds(os.getpid())) == len(files)


async def test_cancelled_at_once(output: Capture) -> None:
    """Whatever was made is handed over, so that the caller can end it."""
    files = _fds(os.getpid())
    pid = 0
    with trio.CancelScope() as scope:
        scope.cancel()
        async with await Launch.begin(SLEEP, {}, output=output) as launching:
            assert launching.master is not None
            pid = launching.master.pid
            await trio.sleep_forever()
    assert pid
    launching.master.close()
    _end(pid)
    assert len(_fds(os.getpid())) == len(files)


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (("/bin/sh", "-c", "echo broken >&2; exit 3"), ExitStatus(code=3), "broken"),
        (("/bin/sh", "-c", "kill -SEGV $$"), ExitStatus(signal=11), ""),
        (("/nowhere/nginx",), ExitStatus(code=127), "/nowhere/nginx: not found"),
        (("/etc/passwd",), ExitStatus(code=126), "Permission denied"),
    ],
    ids=["exits", "crashes", "missing", "not executable"],
)
async def test_a_start_that_fails(
    output: Capture, argv: Sequence[str], status: ExitStatus, words: str
) -> None:
    with trio.fail_after(LIMIT):
        async with await Launch.begin(argv, {}, output=output) as launching:
            assert await launching.wait_failed() == status
            assert launching.failed
            assert words in output.tail()
            if launching.master is not None:
                launching.master.close()


async def test_no_process_can_be_made(output: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(trio.lowlevel, "open_process", refuse)
    with pytest.raises(OperationFailed, match="Resource temporarily") as caught:
        await Launch.begin(SLEEP, {}, output=output)
    assert caught.value.reason == "start_failed"


@each_build
async def test_a_failed_start_gives_nginxs_status_and_words(
    build: Build, tmp_path: Path, output: Capture
) -> None:
    async with site_of(build, tmp_path) as site:
        (site.folder / "nginx.conf").write_text("no_such_directive on;\n")
        async with await Launch.begin(site.argv, {}, output=output) as launching:
            with trio.fail_after(LIMIT):
                assert await launching.wait_failed() == ExitStatus(code=1)
            assert 'unknown directive "no_such_directive"' in output.tail()
            if launching.master is not None:
                launching.master.close()


async def _upgrade(site: Site, old: int, new_build: Build) -> int:
    site.put(new_build)
    os.kill(old, signal.SIGUSR2)
    await until("a new master with workers", lambda: len(_workers(_new_master(old))) == 2)
    return _new_master(old)


def _new_master(old: int) -> int:
    masters = procfs.brood_of(procfs.children(old)).masters
    return min(masters, default=0)


def _workers(master: int) -> frozenset[int]:
    return procfs.brood_of(procfs.children(master)).accepting


@each_old_build
async def test_usr2_and_winch_are_obeyed_afterwards(
    build: Build, tmp_path: Path, output: Capture
) -> None:
    newest = builds()[-1]
    async with site_of(build, tmp_path) as site:
        old = await launch(site, output)
        assert await trio.to_thread.run_sync(site.ask) == build.version
        new = await _upgrade(site, old.master.pid, newest)
        os.kill(old.master.pid, signal.SIGWINCH)
        await until("the old workers left", lambda: not _workers(old.master.pid))
        assert await trio.to_thread.run_sync(site.ask) == newest.version
        os.kill(old.master.pid, signal.SIGQUIT)
        with trio.fail_after(LIMIT):
            await old.master.wait_exited()
        # Every later master comes to us, its subreaper.
        await until("adopted", lambda: procfs.read_stat(new).parent == os.getpid())  # type: ignore[union-attr]  # it lives
        old.close()


@each_old_build
async def test_held_listeners_are_taken_over(build: Build, tmp_path: Path, output: Capture) -> None:
    """After the death of everything: the same sockets, never closed, and an upgrade works."""
    newest = builds()[-1]
    async with site_of(build, tmp_path) as site:
        site.configure(listens=f"listen unix:{site.folder}/nginx.sock;")
        first = await launch(site, output)
        held = HeldListeners().for_successor([first.master])
        assert len(held) == 2
        os.kill(first.master.pid, signal.SIGSTOP)
        for pid in (*first.workers, first.master.pid):
            os.kill(pid, signal.SIGKILL)
        await until("all dead", lambda: first.gone)
        waiting = socket.create_connection(("127.0.0.1", site.port))  # not refused, but queued
        second = await launch(site, output, held)
        for fd in held:
            os.close(fd)
        with waiting:
            waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = await trio.to_thread.run_sync(waiting.recv, 65536)
        assert answer.startswith(b"HTTP/1.1 200")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{site.folder}/nginx.sock")
        early = (site.folder / "logs" / "error.log").read_text()
        assert "using inherited sockets from" in early
        new = await _upgrade(site, second.master.pid, newest)
        os.kill(second.master.pid, signal.SIGWINCH)
        await until("the old workers left", lambda: not _workers(second.master.pid))
        assert new in site.processes()
        for generation in (first, second):
            generation.close()


async def test_output_of_all_generations_is_ours(tmp_path: Path, output: Capture) -> None:
    async with site_of(builds()[0], tmp_path) as site:
        site.configure(error_log="stderr", access_log="/dev/stdout")
        old = await launch(site, output)
        await _upgrade(site, old.master.pid, builds()[-1])
        for _ in range(1000):
            await trio.to_thread.run_sync(site.ask)
        lines: list[bytes] = []

        def all_told() -> bool:
            for part in (output, output.stdout):
                assert part is not None
                while more := part.drain():
                    lines.extend(more)
            return len([one for one in lines if b'"GET / HTTP/1.1" 200' in one]) == 1000

        await until("a line for each request, which comes after the answer", all_told)
        assert any(b"start new binary process" in one for one in lines)
        found = Capture.reattach(old.master.pid)
        assert found is not None
        assert os.fstat(found.fd).st_ino == os.fstat(output.fd).st_ino
        found.close()
        old.close()


async def test_a_successor_finds_the_output_of_nginx_with_an_error_log(
    tmp_path: Path, output: Capture
) -> None:
    async with site_of(builds()[-1], tmp_path) as site:
        launched = await launch(site, output)
        found = Capture.reattach(launched.master.pid)
        assert found is not None
        assert found.stdout is not None
        assert output.stdout is not None
        assert os.fstat(found.stdout.fd).st_ino == os.fstat(output.stdout.fd).st_ino
        assert found.drain() == []
        found.close()
        launched.close()


_SUPERVISOR = """
import sys, trio
from supervisor.edges.capture import Capture
from supervisor.edges.launch import Launch

async def main():
    async with await Launch.begin(sys.argv[1:], {}, output=Capture.create()) as launching:
        print(launching.master.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@each_old_build
async def test_a_supervisor_is_killed_in_mid_launch(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx serves and ignores USR2, until a successor finds the intermediate and ends it."""
    async with site_of(build, tmp_path) as site:
        with subprocess.Popen(
            [sys.executable, "-c", _SUPERVISOR, *site.argv], stdout=subprocess.PIPE
        ) as supervisor:
            assert supervisor.stdout is not None
            master = int(supervisor.stdout.readline())
            await until("workers accept", lambda: len(_workers(master)) == 2)
            supervisor.kill()
        assert find_leftovers((*site.argv, "-g", "daemon off;")) == []
        assert find_leftovers(site.argv[:-1]) == []
        with monkeypatch.context() as somebody:
            somebody.setattr(os, "geteuid", lambda: 4711)
            assert find_leftovers(site.argv) == [], "another user's is neither waited for nor ended"
        ((intermediate, child),) = find_leftovers(site.argv)
        assert child == master
        os.kill(master, signal.SIGUSR2)
        await until("it is ignored", lambda: "ignoring" in site.log)
        os.kill(intermediate, signal.SIGKILL)
        await until("adopted", lambda: procfs.read_stat(master).parent == os.getpid())  # type: ignore[union-attr]  # it lives
        assert find_leftovers(site.argv) == []
        new = await _upgrade(site, master, builds()[-1])
        assert new
        assert await trio.to_thread.run_sync(site.ask)
