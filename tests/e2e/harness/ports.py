"""Ports that no other test run is given, and that no outgoing connection takes by accident."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BLOCK = 8
"""Ports in one lease."""
LOWEST = 20000


def _highest() -> int:
    """Below the range from which the kernel takes the local ports of outgoing connections."""
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    return min(int(text.split()[0]), 32768) - BLOCK


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Without SO_REUSEADDR: not even a connection of an earlier test in TIME_WAIT.
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_leases = ExitStack()
_left: list[int] = []


def free_port() -> int:
    """A port that is nobody else's until this process ends."""
    if not _left:
        _left.extend(_leases.enter_context(lease()))
    return _left.pop(0)


@contextmanager
def lease() -> Iterator[range]:
    """A block of free ports; the kernel ends the lease if this process dies."""
    folder = Path(tempfile.gettempdir()) / f"nginx-supervisor-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    blocks = list(range(LOWEST, _highest(), BLOCK))
    random.shuffle(blocks)
    for first in blocks:
        with (folder / str(first)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            ports = range(first, first + BLOCK)
            if all(map(_is_free, ports)):
                yield ports
                return
    raise RuntimeError(f"cannot lease {BLOCK} ports between {LOWEST} and {_highest()}: all taken")
