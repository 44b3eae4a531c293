"""The reserve, in a process that has no descriptor left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervisor.edges.descriptors import Reserve
from supervisor.edges.probe_finding import outcome_of


@contextmanager
def none_left() -> Iterator[None]:
    """Nothing can be opened but what is closed first."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    limit = next(number for number in range(before[0]) if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    hole: list[int] = []
    try:
        while (fd := null_or_none()) is not None:
            hole.append(fd)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in hole:
            os.close(fd)


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def null_or_none() -> int | None:
    try:
        return null()
    except OSError:
        return None


def test_what_cannot_wait_is_opened_until_the_reserve_is_used_up() -> None:
    reserve = Reserve(3)
    assert not reserve.was_needed()
    reserve.fill()
    assert not reserve.was_needed()
    with none_left():
        opened = [reserve.open(null) for _ in range(2)]
        assert reserve.was_needed()
        reserve.fill()  # in vain
        assert reserve.was_needed()
        for each in opened:
            os.close(each)
        reserve.fill()
        assert not reserve.was_needed()
        with reserve.borrowed(null) as fd:
            os.close(fd)
        assert reserve.was_needed()  # and is whole again
        assert not reserve.was_needed()
        reserve.make_room(2)
        for each in [null() for _ in range(2)]:
            os.close(each)
        reserve.make_room(9)  # as far as it goes
        opened = [null() for _ in range(3)]
        with pytest.raises(OSError, match="Too many open files"):
            reserve.open(null)
        for each in opened:
            os.close(each)
    reserve.close()


def test_other_errors_are_not_for_the_reserve() -> None:
    reserve = Reserve(1)
    reserve.fill()
    with pytest.raises(FileNotFoundError):
        reserve.open(lambda: os.open("/no/such/file", os.O_RDONLY))
    assert not reserve.was_needed()
    reserve.close()


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(errno.EMFILE, "inconclusive"), (errno.ENOMEM, "inconclusive"), (errno.ECONNREFUSED, "fail")],
)
def test_our_own_lack_says_nothing_of_the_server(code: int, outcome: str) -> None:
    wrapped = OSError("all attempts to connect failed")
    wrapped.__cause__ = ExceptionGroup("", [OSError(code, os.strerror(code))])
    assert outcome_of(wrapped).value == outcome


def test_standard_descriptors_that_were_closed_lead_nowhere() -> None:
    """Else the next file that is opened would be somebody's standard output."""
    script = (
        "import os; from supervisor.edges.descriptors import open_standard_descriptors;"
        "os.close(0); os.close(1); open_standard_descriptors();"
        "seen = [os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1)];"
        "fd = os.open('/', os.O_RDONLY); assert fd > 2, fd;"
        "assert seen == ['/dev/null'] * 2, seen; assert os.get_inheritable(1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
