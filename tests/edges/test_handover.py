"""What a program hands to the one that replaces it in the same process; with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.errors import OperationFailed
from supervisor.edges.handover import FORMAT, VARIABLE, HandOver, Parcel, receive

SUCCESSOR = """\
import fcntl, json, os, signal, sys
from supervisor.edges.handover import let_signals_come, receive

hand_over = receive()
parcel = hand_over.take("pipe")
heard = []
for one in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(one, lambda number, frame: heard.append(number))
let_signals_come(hand_over)
os.write(parcel.fds[0], json.dumps({
    "pid": os.getpid(),
    "data": parcel.data,
    "problem": hand_over.problem,
    "same_format": hand_over.same_format,
    "young": 0 <= hand_over.age < 60,
    "heard": sorted(heard),
    "closed_on_exec": bool(fcntl.fcntl(parcel.fds[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
    "rest": hand_over.close_rest(),
    "open": sorted(map(int, os.listdir("/proc/self/fd"))),
    "variable": "NGINX_SUPERVISOR_HANDOVER" in os.environ,
    "masked": [one.name for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
}).encode())
"""

PREDECESSOR = """\
import os, signal, sys, threading
from supervisor.edges import handover
from supervisor.edges.handover import HandOver, Parcel

handover.FORMAT = int(sys.argv[3])
write = int(sys.argv[2])
other = os.open("/dev/null", os.O_RDONLY)
for one in (signal.SIGHUP, signal.SIGUSR2):
    signal.signal(one, lambda number, frame: None)

# A thread that has blocked nothing gets a signal in the last moment.
last_moment, execve = threading.Event(), os.execve

def late():
    last_moment.wait()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

thread = threading.Thread(target=late)
thread.start()

def execve_at_last(*arguments):
    last_moment.set()
    thread.join()
    execve(*arguments)

os.execve = execve_at_last
hand_over = HandOver()
hand_over.register("pipe", lambda: Parcel((write,), {"for": "you"}))
hand_over.register("nobody's", lambda: Parcel((other,)))
hand_over.unheard = lambda: (signal.SIGHUP,)
print(os.getpid(), flush=True)
hand_over.replace_program([sys.executable, "-c", sys.argv[1]], dict(os.environ))
"""


def replaced(form: int = FORMAT) -> dict[str, Any]:
    """What the successor says, and the pid of the predecessor."""
    read, write = os.pipe()
    command = [sys.executable, "-c", PREDECESSOR, SUCCESSOR, str(write), str(form)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[write]) as process:
        os.close(write)
        with os.fdopen(read, "rb") as said:
            told: dict[str, Any] = json.loads(said.read())
        assert process.stdout is not None
        assert told["pid"] == process.pid == int(process.stdout.read())
        assert process.wait() == 0
    told["pipe"] = write
    return told


def test_descriptors_data_and_signals_go_along() -> None:
    told = replaced()
    assert told["data"] == {"for": "you"}
    assert told["same_format"]
    assert told["problem"] == ""
    assert told["young"]
    assert told["closed_on_exec"]
    assert told["rest"] == ["nobody's"]
    # 0 to 2, the pipe, and the folder that is being listed: no document, nothing of nobody's.
    assert len(told["open"]) == 5
    assert told["pipe"] in told["open"]
    assert told["heard"] == [signal.SIGHUP, signal.SIGUSR2]
    assert told["masked"] == []
    assert not told["variable"]


def test_of_another_format_the_descriptors_are_taken_by_their_names() -> None:
    told = replaced(FORMAT + 1)
    assert told["data"] is None
    assert not told["same_format"]
    assert f"format {FORMAT + 1}, and this supervisor knows {FORMAT}" in told["problem"]
    assert told["closed_on_exec"]


def test_where_execve_fails_nothing_has_changed(tmp_path: Path) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    before, mask = os.listdir("/proc/self/fd"), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    hand_over = HandOver()
    hand_over.register("null", lambda: Parcel((fd,)))
    with pytest.raises(OperationFailed) as caught:
        hand_over.replace_program([str(tmp_path / "missing")], {})
    assert caught.value.reason == "exec_failed"
    assert "No such file" in caught.value.detail
    assert not os.get_inheritable(fd)
    assert os.listdir("/proc/self/fd") == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    os.close(fd)


def test_what_cannot_be_written_down_changes_nothing_either(tmp_path: Path) -> None:
    hand_over = HandOver()
    hand_over.register("odd", lambda: Parcel(data=object()))
    with pytest.raises(OperationFailed, match="not JSON serializable"):
        hand_over.replace_program([str(tmp_path / "missing")], {})


def test_without_a_predecessor_there_is_nothing() -> None:
    found = receive({})
    assert (found.same_format, found.problem, found.names) == (False, "", frozenset())
    assert found.take("anything") is None


@pytest.mark.parametrize("value", ["", "x", "0", "999999", "-1"])
def test_a_variable_that_names_no_document(value: str) -> None:
    environment = {VARIABLE: value}
    found = receive(environment)
    assert not found.same_format
    assert "cannot be read" in found.problem
    assert environment == {}


def document(content: object) -> dict[str, str]:
    fd = os.memfd_create("nginx-supervisor-handover", os.MFD_CLOEXEC)
    os.write(fd, content if isinstance(content, bytes) else json.dumps(content).encode())
    return {VARIABLE: str(fd)}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        [],
        {"v": FORMAT, "pid": 1, "fds": {}},
        {"v": FORMAT, "pid": os.getpid(), "fds": []},
        {"v": FORMAT, "pid": os.getpid()},
        {"v": FORMAT, "pid": os.getpid(), "fds": {"a": ["x"]}},
    ],
)
def test_a_document_that_is_none(content: object) -> None:
    found = receive(document(content))
    assert not found.same_format
    assert "cannot be read" in found.problem


def test_a_descriptor_that_is_missing_is_named() -> None:
    content = {"v": FORMAT, "pid": os.getpid(), "fds": {"gone": [99999]}, "data": {"gone": 1}}
    found = receive(document(content))
    assert "missing: gone" in found.problem
    assert not found.same_format
    parcel = found.take("gone")
    assert parcel == Parcel()
    assert parcel.fields == {}
