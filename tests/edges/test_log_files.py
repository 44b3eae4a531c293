"""The ends of error logs over every way of rotation, and what is not read at all."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.edges import log_files
from supervisor.edges.inotify import Inotify
from supervisor.edges.log_files import BACKLOG, DELETED, KEPT, MOST, PIECE, ROTATED, LogFiles, News

PREFIX = "2026/11/24 13:11:55 [alert] 7#7: "


def line(text: str) -> str:
    return f"{PREFIX}{text}\n"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class Follower:
    """Turns as the supervisor takes them: only when the kernel says that something happened."""

    def __init__(self, *paths: Path) -> None:
        self.files = LogFiles()
        self.now = 0.0
        self.first = self.files.follow(map(str, paths), at=self.now)

    def happened(self) -> bool:
        return bool(select.select([self.files.fd], [], [], 0)[0])

    def news(self) -> list[News]:
        found: list[News] = []
        while self.happened() or self.files.behind:
            found += self.files.turn(at=self.now)
        return found

    def texts(self) -> list[str]:
        return [entry.text for one in self.news() for entry in one.entries]

    def pass_time(self, seconds: float) -> list[News]:
        self.now += seconds
        assert self.files.due is not None
        assert self.files.due <= self.now
        return self.files.turn(at=self.now)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "error.log"
    path.parent.mkdir()
    path.write_text(line("of before"))
    return path


@pytest.fixture
def made() -> Iterator[list[Follower]]:
    followers: list[Follower] = []
    yield followers
    for one in followers:
        one.files.close()


def follow(made: list[Follower], *paths: Path) -> Follower:
    made.append(Follower(*paths))
    return made[-1]


def open_files() -> set[str]:
    """The files that this process has open, without pytest's own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if "error.log" in path or "secret" in path:
            found.add(path)
    return found


def test_what_is_appended_is_told_and_an_idle_log_is_not(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    assert [(news.past, news.entries[0].text) for news in one.first] == [(True, "of before")]
    assert not one.happened()
    assert one.files.followed == (str(log),)
    append(log, line("a") + "2026/11/24 13:11:55 [notice] 7#7: no evidence\n" + line("b"))
    assert one.texts() == ["a", "b"]
    (log.parent / "access.log").write_text("")  # a name in the folder, and no more of it:
    assert one.news() == []
    append(log.parent / "access.log", "GET /\n")
    assert not one.happened()


def test_a_line_is_told_once_it_has_an_end(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    append(log, line("cut in two")[:40])
    assert one.texts() == []
    append(log, line("cut in two")[40:])
    assert one.texts() == ["cut in two"]


def test_a_line_of_a_megabyte_is_bounded(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    append(log, PREFIX + "long" + "x" * 10**6)
    (text,) = one.texts()
    assert text.startswith("longxxx")
    assert len(text) <= 512
    append(log, "its end\n" + line("after it"))
    assert one.texts() == ["after it"]
    with log.open("ab") as file:
        file.write(os.urandom(2**19).replace(b"\n", b"") + b"\n" + b"\0\xff\n" * 999)
    append(log, line("after that"))
    assert one.texts() == ["after that"]


@pytest.mark.parametrize("first", ["rename", "delete"])
def test_rotation_by_another_file(log: Path, made: list[Follower], first: str) -> None:
    """As logrotate does it: what is written until nginx reopens its logs is not lost."""
    one = follow(made, log)
    with log.open("a") as nginx:
        if first == "rename":
            log.rename(log.with_name("error.log.1"))
        else:
            log.unlink()
        assert one.texts() == []
        nginx.write(line("by whoever has not reopened it"))
        nginx.flush()
        assert one.texts() == ["by whoever has not reopened it"]
        log.write_text(line("by whoever has"))
        assert one.texts() == ["by whoever has"]
        nginx.write(line("late"))
        nginx.flush()
        assert one.texts() == ["late"]
    assert one.pass_time(ROTATED) == []
    assert one.files.due is None
    assert open_files() == {str(log)}
    append(log, line("on it goes"))
    assert one.texts() == ["on it goes"]


def test_a_deleted_log_is_not_kept_open(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    log.unlink()
    assert one.texts() == []
    assert any(path == f"{log} (deleted)" for path in open_files())
    assert one.pass_time(DELETED) == []
    assert not any(path == f"{log} (deleted)" for path in open_files())
    log.write_text(line("made anew"))
    assert one.texts() == ["made anew"]


def test_rotation_by_cutting(log: Path, made: list[Follower]) -> None:
    """copytruncate."""
    one = follow(made, log)
    append(log, line("long before " * 9))
    assert len(one.texts()) == 1
    os.truncate(log, 0)
    append(log, line("after it"))
    assert one.texts() == ["after it"]


def test_a_log_that_has_its_name_again_is_not_read_twice(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    append(log, line("once"))
    assert one.texts() == ["once"]
    aside = log.with_name("aside")
    log.rename(aside)
    log.write_text(line("for a while"))
    assert one.texts() == ["for a while"]
    aside.rename(log)
    assert one.texts() == []
    append(log, line("again"))
    assert one.texts() == ["again"]


def test_a_log_and_its_folder_may_come_later(tmp_path: Path, made: list[Follower]) -> None:
    log = tmp_path / "a" / "b" / "error.log"
    one = follow(made, log)
    assert (one.first, one.files.followed) == ([], ())
    (tmp_path / "a").mkdir()
    assert one.texts() == []
    (tmp_path / "a" / "b").mkdir()
    assert one.texts() == []
    log.write_text(line("here"))
    assert one.texts() == ["here"]
    (tmp_path / "a").rename(tmp_path / "z")
    log.parent.mkdir(parents=True)
    assert one.texts() == []
    log.write_text(line("elsewhere"))
    assert one.texts() == ["elsewhere"]


def test_several_logs_and_other_ones_later(log: Path, made: list[Follower]) -> None:
    second = log.with_name("second.log")
    second.touch()
    one = follow(made, log, second)
    append(log, line("a"))
    append(second, line("b"))
    assert sorted(one.texts()) == ["a", "b"]
    third = log.with_name("third.log")
    one.files.follow([str(log), str(third)], at=one.now)
    append(second, line("by whoever has not let go of it"))
    third.write_text(line("c"))
    assert sorted(one.texts()) == ["by whoever has not let go of it", "c"]
    one.pass_time(ROTATED)
    append(second, line("nobody looks"))
    assert one.texts() == []
    assert one.files.followed == (str(log), str(third))
    many = one.files.follow([str(log.with_name(f"{number}")) for number in range(MOST + 2)], at=9)
    assert [news.problem for news in many] == [f"only {MOST} error logs are followed"] * 2


def test_two_names_of_one_file_are_one_log(log: Path, made: list[Follower]) -> None:
    other = log.with_name("other.log")
    other.symlink_to(log)
    one = follow(made, log, other)
    append(log, line("once"))
    assert one.texts() == ["once"]
    one.files.follow([str(other)], at=one.now)
    append(log, line("once more"))
    assert one.texts() == ["once more"]


def test_a_link_is_followed_and_its_rotation_noticed(log: Path, made: list[Follower]) -> None:
    """As where all logs are on another disk."""
    there = log.parent.parent / "there"
    there.mkdir()
    link = log.with_name("link.log")
    link.symlink_to("../there/error.log")
    one = follow(made, link)
    (there / "error.log").write_text(line("a"))
    assert one.texts() == ["a"]
    (there / "error.log").rename(there / "error.log.1")
    (there / "error.log").write_text(line("b"))
    assert one.texts() == ["b"]
    link.unlink()
    link.symlink_to(log)
    assert one.texts() == ["of before"]


def test_a_link_of_somebody_else_is_not_followed(log: Path, made: list[Follower]) -> None:
    secret = log.with_name("secret")
    secret.write_text(line("secret"))
    link = log.with_name("planted.log")
    link.symlink_to(secret)
    os.lchown(link, 12345, 12345)
    one = follow(made, link)
    (told,) = one.first
    assert told.problem == f"{link} is a link that uid 12345 has made"
    assert str(secret) not in open_files()
    append(secret, line("more of it"))
    assert one.news() == []


@pytest.mark.parametrize(
    "target", ["/dev/stderr", "/proc/self/fd/2", "/dev/null", "/dev/tty", "fifo", "folder", "loop"]
)
def test_what_is_no_file_is_not_opened(log: Path, made: list[Follower], target: str) -> None:
    """A fifo would be waited for, and the standard error is somebody else's for each process.

    Of that nothing is said: what nginx writes there is read otherwise.
    """
    path = log.with_name("odd.log")
    if target == "fifo":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if target == "loop" else target)
    one = follow(made, path, log)
    told = [news.problem for news in one.first if news.path == str(path)]
    assert len(told) == (target not in ("/dev/stderr", "/proc/self/fd/2", "/dev/null"))
    assert all(told)
    assert one.files.followed == (str(log),)
    assert one.files.follow([str(path), str(log)], at=1.0) == []  # once is enough
    append(log, line("the other one is followed"))
    assert one.texts() == ["the other one is followed"]
    log.rename(path) if not path.is_dir() else path.rmdir()  # another time it is a file
    path.touch()
    one.texts()
    append(path, line("as it should be"))
    assert one.texts() == ["as it should be"]


def test_what_the_kernel_has_no_room_for_is_told(
    log: Path, made: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Inotify, _path: str, _mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = follow(made)
    with monkeypatch.context() as patch:
        patch.setattr(Inotify, "add", full)
        (told,) = one.files.follow([str(log)], at=0.0)
        assert "fs.inotify.max_user_watches" in told.problem
        assert one.files.followed == ()
    assert one.files.follow([str(log)], at=0.0) == []
    append(log, line("there was room again"))
    assert "there was room again" in one.texts()


def test_a_disk_that_fails_is_told(
    log: Path, made: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_fd: int, _size: int, _at: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    second = log.with_name("second.log")
    second.touch()
    one = follow(made, log, second)
    one.news()
    append(log, line("lost"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        (told,) = one.news()
    assert (told.path, told.problem) == (str(log), os.strerror(errno.EIO))
    assert one.files.followed == (str(second),)
    assert one.files.unread == {str(log): told.problem}
    append(second, line("the other disk is well"))
    assert one.texts() == ["the other disk is well"]
    log.rename(log.with_name("error.log.1"))
    log.write_text(line("and so is this one again"))
    assert one.texts() == ["and so is this one again"]
    assert one.files.unread == {}


def test_a_flood_is_passed_over_and_counted(
    log: Path, made: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "BACKLOG", 4 * PIECE)
    one = follow(made, log)
    append(log, line("lost") + "x\n" * (4 * PIECE) + line("kept"))
    news = one.news()
    assert [entry.text for each in news for entry in each.entries] == ["kept"]
    assert sum(each.dropped for each in news) > 4 * PIECE
    append(log, line("next"))
    assert one.texts() == ["next"]


def test_a_turn_is_bounded(
    log: Path, made: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "TURN", PIECE)
    one = follow(made, log)
    append(log, "x\n" * PIECE + line("at the end"))
    assert one.happened()
    assert one.files.turn(at=0.0) == []
    assert one.files.behind
    assert one.texts() == ["at the end"]


HEAD = PREFIX.replace("alert", "error") + '*1 open() "/www/a\n'
TAIL = '" failed (2: No such file or directory), request: "GET /www/a%0a HTTP/1.0"\n'


def filled(length: int) -> str:
    """Whole lines of nobody's, so many bytes of them."""
    notice = PREFIX.replace("alert", "notice")
    return (
        (notice + "x" * (999 - len(notice)) + "\n") * (length // 1000)
        + "y" * (length % 1000 - 1)
        + "\n"
    )


@pytest.mark.parametrize("edge", [PIECE, 4 * PIECE])
def test_a_message_at_the_edge_of_a_piece_is_doubted_as_a_whole(
    log: Path, made: list[Follower], edge: int
) -> None:
    """A turn reads four pieces. What a client has made up ends before it, its end does not."""
    one = follow(made, log)
    made_up = HEAD + line("made up")
    append(log, filled(edge - len(made_up) - 9) + made_up + TAIL + filled(9999) + line("true"))
    assert one.texts() == ["true"]


def test_a_message_whose_beginning_is_passed_over_is_doubted(
    log: Path, made: list[Follower]
) -> None:
    one = follow(made, log)
    rest = line("made up") + TAIL
    append(log, filled(BACKLOG) + HEAD + rest + filled(KEPT - len(rest) - 9))
    news = one.news()
    assert any(each.dropped for each in news)
    assert not any(each.entries for each in news)
    append(log, line("true"))
    assert one.texts() == ["true"]


def test_a_successor_goes_on_where_this_one_was(log: Path, made: list[Follower]) -> None:
    one = follow(made, log)
    append(log, line("a") + line("b")[:30])
    assert one.texts() == ["a"]
    places = one.files.places
    append(log, line("b")[30:])
    other = LogFiles()
    try:
        assert other.follow([str(log)], places, at=0.0) == []
        news = other.turn(at=0.0)
        assert [entry.text for each in news for entry in each.entries] == ["b"]
    finally:
        other.close()


def test_a_long_past_is_looked_at_in_part(log: Path, made: list[Follower]) -> None:
    append(log, "x\n" * KEPT + line("of late") + "cut")
    one = follow(made, log)
    texts = [entry.text for news in one.first for entry in news.entries]
    assert texts == ["of late"]
    append(log, "\n" + line("new"))
    assert one.texts() == ["new"]
