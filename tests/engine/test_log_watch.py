"""Whose a line of an error log is: by living processes, by those that ended, or nobody's."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from supervisor import log_watch
from supervisor.core.errors import ConfigError
from supervisor.core.seen import BEFORE, LINES
from supervisor.core.settings import SyslogSettings
from supervisor.core.signals import LogLine
from supervisor.edges.generation import Role
from supervisor.edges.handover import HandOver, Parcel
from supervisor.edges.log_files import LogFiles, News
from supervisor.edges.syslog_socket import Heard, SyslogSocket
from supervisor.log_watch import ENDED, OTHERS, STDERR, STDOUT, TELL, UNKNOWN, LogWatch
from supervisor.operations.world import World

OLD, NEW = 1, 2
DEAD = 2**22 - 1  # larger than pids get on a machine of this size


@contextmanager
def fork() -> Iterator[int]:
    """A child that has not exec'd, as a worker."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    try:
        yield pid
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(pid, 0)


def line(pid: int, text: str = "text") -> str:
    return f"2026/11/24 13:11:55 [alert] {pid}#{pid}: {text}"


class Scene:
    """A watch of logs on two generations of paper."""

    def __init__(self, *logs: Path, socket: Path | None = None) -> None:
        self.heard: list[LogLine] = []
        self.old = self.generation(OLD, Role.ACTIVE, logs)
        self.new = self.generation(NEW, Role.CANDIDATE, logs)
        self.world = SimpleNamespace(
            generations=[self.old, self.new], run=None, log=structlog.get_logger(),
            worker_identity=lambda: None,
            settings=SimpleNamespace(
                syslog=SyslogSettings(socket=None if socket is None else str(socket))
            ),
        )  # fmt: skip
        self.watch = self.successor(HandOver())

    def successor(self, hand_over: HandOver) -> LogWatch:
        return LogWatch(cast(World, self.world), self.heard.append, hand_over)

    @staticmethod
    def generation(number: int, role: Role, logs: tuple[Path, ...]) -> SimpleNamespace:
        return SimpleNamespace(
            id=number, role=role, master=SimpleNamespace(pid=DEAD - number), alive=True,
            workers={}, program=SimpleNamespace(error_logs=tuple(map(str, logs))),
        )  # fmt: skip

    def says(self, pid: int, text: str = "text") -> None:
        self.watch.hear_output([b"some other output", line(pid, text).encode()])

    @property
    def whose(self) -> list[int | None]:
        return [one.generation for one in self.heard]

    async def until(self, number: int) -> None:
        with trio.fail_after(20):
            while len(self.heard) < number:
                await trio.sleep(0.005)


async def test_lines_of_masters_and_workers_are_theirs() -> None:
    scene = Scene()
    with fork() as worker:
        scene.new.workers[worker] = None
        for pid in (scene.old.master.pid, scene.new.master.pid, worker):
            scene.says(pid)
        scene.watch.settle()
    assert scene.whose == [OLD, NEW, NEW]
    assert {one.log for one in scene.heard} == {STDERR}


@pytest.mark.parametrize("errors", ["/dev/stdout", "/dev/stderr"])
async def test_an_error_log_on_standard_output_is_heard_where_there_is_one(errors: str) -> None:
    """Else it is an access log, in which nobody looks for anything."""
    scene = Scene(Path(errors))
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.watch.run)
        scene.watch.look()
        with trio.fail_after(20):
            # The last of what a look does is to have followed what there is.
            while scene.watch._files is None or not scene.watch._files._logs:
                await trio.sleep(0.001)
        access = b'127.0.0.1 - - "GET / HTTP/1.1" 200\n'
        scene.watch.hear_stdout(access + line(scene.old.master.pid, "lost").encode() + b"\n")
        nursery.cancel_scope.cancel()
    heard = [(one.text, one.log) for one in scene.heard]
    assert heard == ([("lost", STDOUT)] if errors == "/dev/stdout" else [])


async def test_a_worker_that_nobody_has_seen_yet_is_its_masters() -> None:
    scene = Scene()
    scene.old.master.pid = os.getpid()
    with fork() as worker:
        scene.says(worker)
    assert scene.whose == [OLD]


async def test_a_new_master_is_no_worker_of_the_one_that_forked_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    with subprocess.Popen(["sleep", "60"]) as exec_ed:
        try:
            scene.old.workers[exec_ed.pid] = None  # as it was taken for, a moment ago
            scene.says(exec_ed.pid)
            assert scene.whose == []
            scene.new.master.pid = exec_ed.pid
            del scene.old.workers[exec_ed.pid]
            scene.watch.look()
            scene.watch.settle()
            assert scene.whose == [NEW]
        finally:
            exec_ed.kill()


async def test_a_pid_that_is_nobodys_is_looked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.says(DEAD - 9, "late")
    scene.says(DEAD - 8, "foreign")
    assert scene.whose == []
    await trio.sleep(UNKNOWN / 2)
    scene.new.workers[DEAD - 9] = None
    scene.watch.look()
    scene.watch.settle()
    assert scene.whose == [NEW]
    await trio.sleep(UNKNOWN)
    scene.watch.look()
    assert scene.whose == [NEW, None]
    assert scene.heard[-1].text == "foreign"


async def test_the_last_words_of_a_process_are_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.old.workers[DEAD - 9] = None
    scene.old.workers[os.getpid()] = None
    scene.watch.look()
    scene.old.workers.clear()
    scene.says(DEAD - 9)
    scene.says(os.getpid())  # its pid is somebody else's by now
    await trio.sleep(ENDED + 1)
    scene.watch.look()
    assert scene.whose == [OLD, None]
    scene.says(DEAD - 9)
    await trio.sleep(UNKNOWN)
    scene.watch.look()
    assert scene.whose == [OLD, None, None]


async def test_the_other_generation_has_a_moment_to_write_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else what befalls the host would condemn whoever was quicker to write it."""
    scene = Scene()
    scene.says(scene.new.master.pid, "b")
    scene.says(scene.old.master.pid, "a")
    scene.says(scene.new.master.pid, "c")
    held = scene.watch._give()
    assert [one.text for one in scene.heard] == ["a"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.watch._let_others_speak_first)
        await trio.sleep(OTHERS + 0.01)
        assert [one.text for one in scene.heard] == ["a", "b", "c"]
        nursery.cancel_scope.cancel()
    scene.heard.clear()
    scene.successor(HandOver({"error_logs": held})).settle()
    assert [(one.text, one.generation) for one in scene.heard] == [("b", NEW), ("c", NEW)]
    for odd in ("x", [1], [{}], {"a": 1}):
        scene.successor(HandOver({"error_logs": Parcel(data={"late": odd})})).settle()
    assert len(scene.heard) == 2


async def test_each_kind_is_told_once_of_each_generation() -> None:
    scene = Scene()
    with capture_logs() as told:
        for number in range(9):
            scene.says(scene.old.master.pid, f"kind {number}")
        scene.says(scene.new.master.pid, "kind 0")
    assert [(one["event"], one["generation"], one["log_level"]) for one in told] == [
        ("nginx.error_line", "g1", "info"),
        ("nginx.error_line", "g2", "warning"),
    ]


def made_up(pid: int) -> list[bytes]:
    return [
        b'2026/11/24 13:11:55 [error] 9#9: *1 open() "/a"',
        line(pid).encode(),
        b'x" failed (2: x), request: "GET /a%0a HTTP/1.0"',
    ]


@pytest.mark.parametrize("cut", [1, 2])
async def test_output_that_comes_in_parts_is_doubted_as_a_whole(cut: int) -> None:
    scene = Scene()
    forged = made_up(scene.old.master.pid)
    scene.watch.hear_output(forged[:cut], True)
    scene.watch.hear_output([*forged[cut:], line(scene.old.master.pid, "true").encode()])
    assert scene.heard == []  # too near to the other one
    scene.watch.hear_output([b"x" * 2048, line(scene.old.master.pid, "true").encode()])
    assert [one.text for one in scene.heard] == ["true"]


async def test_doubtful_lines_are_told_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    forged = made_up(scene.new.master.pid)
    with capture_logs() as told:
        for _ in range(5):
            scene.watch.hear_output(forged)
        await trio.sleep(TELL)
        scene.watch.hear_output(forged)
    assert scene.heard == []
    assert [(one["event"], one["count"]) for one in told] == [
        ("error_log.lines_doubted", 1),
        ("error_log.lines_doubted", 5),
    ]


async def test_files_are_followed_and_a_successor_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    scene = Scene(log)
    log.write_text(line(1, "of before") + "\n")
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.watch.run)
        scene.watch.look()
        await scene.until(1)
        assert (scene.whose, scene.watch.followed) == ([BEFORE], (str(log),))
        with log.open("a") as file:
            file.write(line(scene.new.master.pid, "a") + "\n")
        await scene.until(2)
        assert scene.heard[-1] == LogLine(
            generation=NEW, pid=scene.new.master.pid, level=scene.heard[-1].level, text="a",
            at=scene.heard[-1].at, log=str(log),
        )  # fmt: skip
        nursery.cancel_scope.cancel()
    places = {
        "places": {str(log): [*os_identity(log), log.stat().st_size]},
        "lines": [{"generation": "g2", "line": "handed on"}],
    }
    with log.open("a") as file:
        file.write(line(scene.old.master.pid, "b") + "\n")
    after = scene.successor(HandOver({"error_logs": Parcel(data=places)}))
    async with trio.open_nursery() as nursery:
        await nursery.start(after.run)
        after.look()
        await scene.until(3)
        assert (scene.whose[-1], scene.heard[-1].text) == (OLD, "b")
        told = after.report()
        assert (told["followed"], told["unread"], told["syslog"]) == ([str(log)], [], None)
        assert [(one["generation"], one["line"]) for one in cast(list[Any], told["lines"])] == [
            ("g2", "handed on"),
            ("g1", "b"),
        ]
        nursery.cancel_scope.cancel()


async def test_a_flood_of_one_kind_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    log.touch()
    scene = Scene(log)
    old, new = scene.old.master.pid, scene.new.master.pid
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.watch.run)
            scene.watch.look()
            with trio.fail_after(20):
                while not scene.watch.followed:
                    await trio.sleep(0.005)
            with log.open("a") as file:
                file.write((line(old, "one kind") + "\n") * 60 * LINES)
                file.write(line(new, "another") + "\n")
            with trio.fail_after(20):
                while NEW not in scene.whose:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
    assert LINES <= scene.whose.count(OLD) <= 20 * LINES  # so many in each second
    assert "error_log.lines_dropped" in {one["event"] for one in told}


async def test_what_cannot_be_read_now_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "error.log"
    log.touch()
    scene = Scene(log)
    read, failures = LogFiles.turn, iter([OSError(5, "Input/output error")])

    def turn(files: LogFiles, *, at: float) -> list[News]:
        for failure in failures:
            raise failure
        return read(files, at=at)

    monkeypatch.setattr(LogFiles, "turn", turn)
    monkeypatch.setattr(log_watch, "RETRY", 0.0)
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.watch.run)
            scene.watch.look()
            with trio.fail_after(20):
                while not scene.watch.followed or not told:
                    await trio.sleep(0.005)
            with log.open("a") as file:
                file.write(line(scene.old.master.pid, "later") + "\n")
            await scene.until(1)
            nursery.cancel_scope.cancel()
    assert [one["event"] for one in told] == ["error_log.not_read", "nginx.error_line"]


def os_identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


async def test_a_socket_that_cannot_be_read_now_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.sock"
    scene = Scene(socket=path)
    scene.old.master.pid = os.getpid()
    receive, failures = SyslogSocket.receive, iter([OSError(12, "Cannot allocate memory")])

    def fail_first(one: SyslogSocket) -> list[Heard]:
        for failure in failures:
            raise failure
        return receive(one)

    monkeypatch.setattr(SyslogSocket, "receive", fail_first)
    monkeypatch.setattr(log_watch, "RETRY", 0.0)
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.watch.run)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"<185>Nov 24 13:11:55 nginx: " + line(1).encode(), str(path))
            await scene.until(1)
            nursery.cancel_scope.cancel()
    assert [one["event"] for one in told] == ["syslog.not_read", "nginx.error_line"]


async def test_a_socket_that_cannot_be_made_is_fatal_to_a_first_start_alone(tmp_path: Path) -> None:
    scene = Scene(socket=tmp_path / "missing" / "log.sock")
    with pytest.raises(ConfigError):
        await scene.watch.run()
    after = scene.successor(HandOver({"error_logs": Parcel()}))
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:
            await nursery.start(after.run)
            nursery.cancel_scope.cancel()
    assert [one["event"] for one in told] == ["syslog.not_open"]
