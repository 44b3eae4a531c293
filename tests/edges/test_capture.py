from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from supervisor.edges.capture import Capture

BLOCK = 512  # of st_blocks, whatever the file system


@pytest.fixture
def capture() -> Iterator[Capture]:
    made = Capture.create()
    yield made
    made.close()


def _memory(capture: Capture) -> int:
    return os.fstat(capture.fd).st_blocks * BLOCK


def _drain_all(capture: Capture) -> list[bytes]:
    lines: list[bytes] = []
    while part := capture.drain():
        lines += part
    return lines


def test_lines_come_once(capture: Capture) -> None:
    os.write(capture.fd, b"one\ntwo\nthr")
    assert capture.drain() == [b"one", b"two"]
    assert capture.drain() == []
    os.write(capture.fd, b"ee\n")
    assert capture.drain() == [b"three"]


def test_it_is_not_inherited_by_accident(capture: Capture) -> None:
    assert not os.get_inheritable(capture.fd)


def test_a_writer_is_never_blocked(capture: Capture) -> None:
    """16 MB and nobody reads: a pipe would have stopped the writer after 64 kB."""
    subprocess.run(
        [sys.executable, "-S", "-c", "import os\nfor _ in range(256): os.write(1, b'x' * 65536)"],
        stdout=capture.fd,
        check=True,
        timeout=20,
    )
    assert os.fstat(capture.fd).st_size == 2**24


def test_memory_is_given_back(capture: Capture) -> None:
    line = b"x" * 99 + b"\n"
    os.write(capture.fd, line * 100_000)
    assert _memory(capture) >= 10_000_000
    assert len(_drain_all(capture)) == 100_000
    assert _memory(capture) <= 8192


def test_memory_is_given_back_by_small_drains_too(capture: Capture) -> None:
    """No single one of them covers a page."""
    for number in range(2000):
        os.write(capture.fd, f"line {number}\n".encode())
        assert capture.drain() == [b"line %d" % number]
    assert _memory(capture) <= 8192


def test_the_oldest_can_be_dropped_unread(capture: Capture) -> None:
    line = b"x" * 99 + b"\n"
    os.write(capture.fd, line * 100_000 + b"last\n")
    assert capture.behind == 10_000_005
    lost = capture.drop_all_but(65536)
    assert capture.behind == 10_000_005 - lost
    assert 65536 - 100 <= capture.behind <= 65536
    assert _memory(capture) <= 65536 + 8192
    lines = _drain_all(capture)
    assert set(lines[:-1]) == {b"x" * 99}
    assert lines[-1] == b"last"
    assert capture.drop_all_but(65536) == 0
    assert _memory(capture) <= 8192


def test_much_is_dropped_in_steps(capture: Capture) -> None:
    os.write(capture.fd, (b"x" * 99 + b"\n") * 400_000)
    steps = []
    while lost := capture.drop_all_but(0):
        steps.append(lost)
    assert len(steps) == 3
    assert sum(steps) == 40_000_000
    assert capture.behind == 0
    assert _memory(capture) <= 4096


def test_what_a_predecessor_left_unread_is_bounded_too(capture: Capture) -> None:
    """It was killed, and nginx has written on."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=capture.fd) as writer:
        os.write(capture.fd, b"x" * 99 + b"\n")
        capture.drain()
        os.write(capture.fd, (b"y" * 99 + b"\n") * 100_000)
        found = Capture.reattach(writer.pid)
        assert found is not None
        assert found.behind == 10_000_000
        assert found.drop_all_but(1000) == 9_999_000
        assert _drain_all(found) == [b"y" * 99] * 10
        assert _memory(found) <= 8192
        found.close()
        writer.communicate()


def test_nothing_is_left_to_reattach_to(capture: Capture) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=capture.fd) as writer:
        found = Capture.reattach(writer.pid)
        assert found is not None
        assert found.behind == 0
        assert found.drain() == []
        found.close()
        writer.communicate()


def test_writers_go_on_behind_the_hole(capture: Capture) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=capture.fd) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"a\n" * 10_000)
        writer.stdin.flush()
        seen = 0
        while seen < 10_000:
            seen += len(capture.drain())
        writer.stdin.write(b"b\n")
        writer.stdin.close()
        writer.wait()
    assert capture.drain() == [b"b"]


def test_a_line_without_end_is_cut(capture: Capture) -> None:
    os.write(capture.fd, b"x" * 16384 + b"y\nnext\n")
    assert capture.drain() == [b"x" * 16384]
    assert capture.drain() == [b"y", b"next"]


def test_nothing_but_a_line_feed_ends_a_line(capture: Capture) -> None:
    line = b"\xff\xfe\r\x0b\x0c\x1c\x85 \xc2\x85 \xe2\x80\xa8 end"
    os.write(capture.fd, line + b"\n\n")
    assert capture.drain() == [line, b""]


def test_it_says_whether_there_is_more(capture: Capture) -> None:
    os.write(capture.fd, b"a" * 9999 + b"\n" + b"b" * 9999 + b"\n")
    assert (len(capture.drain()), capture.more) == (1, True)
    assert (len(capture.drain()), capture.more) == (1, False)


def test_the_tail_is_bounded_and_not_consumed(capture: Capture) -> None:
    os.write(capture.fd, b"first\n" + b"z" * 5000)
    assert capture.tail() == "z" * 4096
    assert capture.tail(most=10) == "z" * 10
    assert capture.drain() == [b"first"]


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
def test_a_successor_reattaches(capture: Capture, number: int) -> None:
    """nginx puts its error log in the place of standard error, so that 1 is the one that stays."""
    where = {1: {"stdout": capture.fd}, 2: {"stderr": capture.fd, "stdout": subprocess.DEVNULL}}
    os.write(capture.fd, b"of an earlier life\n" * 1000)
    assert len(_drain_all(capture)) == 1000
    os.write(capture.fd, b"while nobody read\n")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **where[number]) as writer:  # type: ignore[call-overload]  # one of two
        found = Capture.reattach(writer.pid)
        assert found is not None
        os.write(capture.fd, b"of this one\n")
        assert found.drain() == [b"while nobody read", b"of this one"]
        assert _memory(found) <= 8192
        found.close()
        writer.stdin.close()


def test_a_closed_one_touches_no_other_file() -> None:
    """Its number may be another file's by now."""
    made = Capture.create()
    os.write(made.fd, b"line\n")
    number = made.fd
    made.close()
    made.close()
    first = os.memfd_create("other", os.MFD_CLOEXEC)
    other = os.dup2(first, number, inheritable=False)
    os.write(other, b"precious\n")
    assert made.drain() == []
    assert made.drop_all_but(0) == 0
    assert made.behind == 0
    assert made.tail() == ""
    assert os.pread(other, 100, 0) == b"precious\n"
    for fd in {first, other}:
        os.close(fd)


def test_there_is_none_to_reattach_to() -> None:
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as other:
        assert Capture.reattach(other.pid) is None
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
        assert Capture.reattach(other.pid) is None


def test_no_descriptor_is_left() -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        made = Capture.create()
        os.write(made.fd, b"x\n")
        made.drain()
        made.close()
    assert len(os.listdir("/proc/self/fd")) == files
