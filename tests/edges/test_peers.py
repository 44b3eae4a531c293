"""Who connects: the ids of real processes, with as many groups as the kernel allows."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.edges import peers
from supervisor.edges.peers import Peer, peer_of

IS_ROOT = os.geteuid() == 0
CONNECT = """
import json, os, socket, sys
uid, gid, *groups = json.loads(sys.argv[2])
stream = socket.socket(socket.AF_UNIX)
os.geteuid() or (os.setgroups(groups), os.setgid(gid), os.setuid(uid))
stream.connect(sys.argv[1])
stream.recv(1)
"""


@contextmanager
def connected_as(*ids: int) -> Iterator[tuple[socket.socket, int]]:
    """Our end of a connection from a process with this uid, gid and groups; and its pid."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        os.chmod(folder, 0o755)
        path = Path(folder) / "s"
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        command = [sys.executable, "-c", CONNECT, str(path), str(list(ids))]
        with subprocess.Popen(command) as process:
            stream, _ = listening.accept()
            with stream:
                yield stream, process.pid
        assert process.returncode == 0


GROUPS = [(), (54321,), (54321, 7, 54322), tuple(range(60000, 60256)), tuple(range(60000, 61000))]


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: f"{len(groups)} groups")
def test_the_kernel_tells_who_connected(groups: tuple[int, ...]) -> None:
    """Without root a process cannot become somebody else: then it is ourselves."""
    ids = (12345, 54320, *groups) if IS_ROOT else (os.geteuid(), os.getegid(), *os.getgroups())
    with connected_as(*ids) as (stream, pid):
        seen = peer_of(stream)
    uid, gid, *expected = ids
    assert (seen.pid, seen.uid, seen.gid) == (pid, uid, gid)
    assert sorted(seen.groups) == sorted(expected)


def test_the_groups_of_a_thousand_need_a_larger_buffer() -> None:
    """Whoever runs this: the second way tells the same as the first."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        raw = peers._many_groups_of(one.fileno())
        assert struct.unpack(f"{len(raw) // 4}I", raw) == peer_of(one).groups
    with pytest.raises(OSError, match="Bad file descriptor"):
        peers._many_groups_of(one.fileno())


def test_a_kernel_that_does_not_know_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_SO_PEERGROUPS", 9999)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_of(one) == Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())


def test_any_other_refusal_is_an_error() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    other.close()
    one.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        peer_of(one)
