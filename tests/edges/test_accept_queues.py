"""How many connections wait at real listeners."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.edges import sock_diag
from supervisor.edges.accept_queues import Waiting, accept_queues


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def queue_of(listener: socket.socket) -> Waiting:
    inode = os.fstat(listener.fileno()).st_ino
    (found,) = [one for one in accept_queues() if one.inode == inode]
    return found


def connect(stack: ExitStack, family: int, address: object, count: int) -> None:
    for _ in range(count):
        client = stack.enter_context(socket.socket(family))
        client.connect(address)  # type: ignore[arg-type]  # of any family


@pytest.mark.parametrize("diag", [True, False], ids=["sock_diag", "proc"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, host: str, *, diag: bool) -> None:
    if not diag:
        monkeypatch.setattr(sock_diag, "_SOCK_DIAG_BY_FAMILY", 9999)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.socket(family))
    listener.bind((host, 0))
    listener.listen(7)
    port = listener.getsockname()[1]
    assert queue_of(listener).waiting == 0
    connect(stack, family, (host, port), 3)
    seen = queue_of(listener)
    assert seen.address == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    assert (seen.waiting, seen.limit) == (3, 7 if diag else 0)
    stack.enter_context(listener.accept()[0])
    assert queue_of(listener).waiting == 2


def test_unix(stack: ExitStack, tmp_path: Path) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    path = f"{tmp_path}/s"
    listener.bind(path)
    listener.listen(7)
    connect(stack, socket.AF_UNIX, path, 2)
    seen = queue_of(listener)
    assert (seen.address, seen.waiting, seen.limit) == (f"unix:{path}", 2, 7)
    abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
    abstract.bind(f"\0{tmp_path}/abstract")
    abstract.listen()
    assert queue_of(abstract).address == f"unix:@{tmp_path}/abstract"
