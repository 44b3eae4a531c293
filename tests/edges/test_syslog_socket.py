"""The supervisor's syslog socket, with real senders: who they are is the kernel's to say."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.core.errors import ConfigError
from supervisor.core.signals import Severity
from supervisor.edges.syslog_socket import SyslogSocket

LINE = b"<186>Nov 24 13:32:44 host nginx: 2026/11/24 13:32:44 [crit] 4711#4711: *1 text"
SEND = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    " s.sendto(sys.argv[2].encode(), sys.argv[1])"
)


def send(path: Path, *messages: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        for message in messages:
            sender.sendto(message, str(path))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_kernel_says_who_sent_it(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    heard = SyslogSocket.bind(str(path), 0o600)
    with subprocess.Popen([sys.executable, "-c", SEND, str(path), LINE.decode()]) as other:
        assert other.wait() == 0
        (one,) = heard.receive()
        assert one.pid == other.pid != one.entry.pid
    assert (one.entry.severity, one.entry.pid, one.entry.text) == (Severity.CRIT, 4711, "*1 text")
    assert heard.receive() == []
    heard.close()
    assert not path.exists()


def test_what_is_none_of_nginxs_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    heard = SyslogSocket.bind(str(path), 0o600)
    send(path, b"", b"\xff" * 999, b"<13>hello", LINE + b"x" * 9000, LINE)
    assert [one.entry.text for one in heard.receive()] == ["*1 text"]
    heard.close()


def test_a_turn_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    heard = SyslogSocket.bind(str(path), 0o600)
    with pytest.raises(BlockingIOError):
        send(path, *[b"x"] * 10_000)  # more than any queue holds
    while select.select([heard.fd], [], [], 0)[0]:
        assert heard.receive() == []
    send(path, LINE)
    assert len(heard.receive()) == 1
    heard.close()


def test_it_is_the_workers_once_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    heard = SyslogSocket.bind(str(path), 0o600)
    assert mode(path) == 0o666
    heard.give_to((12345, 54321))
    assert (mode(path), path.stat().st_uid, path.stat().st_gid) == (0o600, 12345, 54321)
    heard.close()


def test_what_was_put_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path, precious = tmp_path / "log.sock", tmp_path / "precious"
    precious.write_text("")
    precious.chmod(0o644)
    heard = SyslogSocket.bind(str(path), 0o600)
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(OSError, match="something else in its place"):
        heard.give_to((12345, 54321))
    assert (mode(precious), precious.stat().st_uid) == (0o644, os.getuid())
    heard.close()
    assert path.is_symlink()


def test_a_successor_takes_it_over(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "log.sock", tmp_path / "elsewhere"
    before = SyslogSocket.bind(str(path), 0o600)
    other = SyslogSocket.bind(str(elsewhere), 0o600)
    send(path, LINE)
    fds = [os.dup(other.fd), os.dup(before.fd)]
    after = SyslogSocket.inherit(str(path), 0o600, fds)
    assert after is not None
    assert after.fd == fds[1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[0])
    assert len(after.receive()) == 1
    assert SyslogSocket.inherit(str(path), 0o600, []) is None
    after.close()
    before.close()
    other.close()


def test_what_a_killed_supervisor_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
        killed.bind(str(path))
    heard = SyslogSocket.bind(str(path), 0o600)
    send(path, LINE)
    assert len(heard.receive()) == 1
    with pytest.raises(ConfigError, match="another process has it"):
        SyslogSocket.bind(str(path), 0o600)
    path.unlink()
    path.write_text("precious")
    heard.close()
    assert path.read_text() == "precious"  # the name is another file's by now


@pytest.mark.parametrize("there", ["file", "stream", "no-folder"])
def test_what_is_in_the_way_is_told(tmp_path: Path, there: str) -> None:
    path = tmp_path / "log.sock"
    if there == "no-folder":
        path = tmp_path / "missing" / "log.sock"
    elif there == "file":
        path.write_text("precious")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        if there == "stream":
            stream.bind(str(path))
            stream.listen()
        with pytest.raises(ConfigError) as refused:
            SyslogSocket.bind(str(path), 0o600)
        assert refused.value.reason.startswith("syslog_socket")
        assert str(path) in refused.value.detail
        assert path.exists() is (there != "no-folder")
