"""`nginxctl upgrade --in-turn`: begin only when nobody else is at it.

The supervisor refuses a second upgrade at once and never queues one; this client may wait. It waits
for the package manager, whose files go together only once it is done, and for the supervisor to be
at rest again, which its event stream tells. A lock's holder is waited for by a pidfd, and the lock
is looked at every few seconds besides: nothing tells of a lock that is released by a process that
lives on, as packagekitd does. No lock is taken: apt gives up at once where somebody else holds one.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import time

from supervisor import wire
from supervisor.cli import READ_TIMEOUT
from supervisor.cli.connection import Connection, LostError, WaitEnded

Fields = dict[str, object]

LOCKS = (
    "/var/lib/dpkg/lock-frontend",  # of apt, from its first package to its last
    "/var/lib/dpkg/lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/var/lib/rpm/.rpm.lock",
)
BUSY = frozenset(
    {
        "upgrade_in_progress", "previous_generation_draining", "reload_in_progress", "starting",
        "taking_over",
    }
)  # fmt: skip
"""Refusals that pass by themselves."""

_PASSING = frozenset({"upgrading", "draining", "starting"})
_AT_REST = frozenset({"idle", "stopped", "degraded"})
_LOOK_AGAIN = 60.0  # seconds after which it is asked again in any case
_LOCK_LOOK = 3.0  # seconds between two looks at a lock whose holder lives on
_BLIND_WAIT = 1.0  # seconds between two looks at a lock whose holder is in another namespace


def wait_for_packages(locks: tuple[str, ...] = LOCKS) -> None:
    """Return when no process holds any of these locks."""
    while True:
        holders = [holder for holder in map(_holder, locks) if holder is not None]
        if not holders:
            return
        _wait_for_end(holders[0])


def _holder(path: str) -> int | None:
    """The process that has locked `path` (fcntl(2)); -1: one that cannot be named from here."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, asked)
    finally:
        os.close(fd)
    kind, _, _, _, pid = struct.unpack("hhqqi4x", answer)
    if kind == fcntl.F_UNLCK:
        return None
    return int(pid) if pid > 0 else -1


def _wait_for_end(pid: int) -> None:
    """Return when that process has ended, or when it is time to look at the lock again."""
    if pid < 0:
        time.sleep(_BLIND_WAIT)  # nothing tells its end: its pid is not visible
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_LOCK_LOOK * 1000)
    finally:
        os.close(pidfd)


class Rest:
    """Made before the question that may be refused, so that no change in between is missed."""

    def __init__(self, socket: str) -> None:
        """Raises ClientError where the supervisor cannot be reached."""
        self._connection = Connection(socket, timeout=_LOOK_AGAIN)
        self._connection.send(
            wire.encode_call(f"{wire.INTERFACE}.Events", {"follow": True}, more=True)
        )
        self._connection.receive()  # the events so far, and with them: it follows from here on

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__(None, None, None)

    def wait(self) -> None:
        """Return when it is time to ask again. Raises LostError where the supervisor ends."""
        try:
            while not any(map(_comes_to_rest, _entries(self._connection.receive()))):
                pass
        except LostError:
            raise
        except WaitEnded:
            return  # a follower that was slow for once may have missed the event


def status(socket: str) -> Fields:
    """The reply of Status."""
    with Connection(socket, timeout=READ_TIMEOUT) as connection:
        connection.send(wire.encode_call(f"{wire.INTERFACE}.Status"))
        found = json.loads(connection.receive()).get("parameters")
    return found if isinstance(found, dict) else {}


def is_free(found: Fields) -> bool:
    """Whether the supervisor is at rest; asking for an upgrade else leaves a refusal behind."""
    return found.get("state") not in _PASSING


def is_as(before: Fields, after: Fields) -> bool:
    """Whether nothing is left to try after a verdict: no file but what was tried has changed."""
    tried, left = before.get("changed"), after.get("changed")
    if not isinstance(left, list) or not isinstance(tried, list):
        return True
    on_disk = [one.get("binary_on_disk") for one in (before, after)]
    was, now = (one.get("sha256") if isinstance(one, dict) else None for one in on_disk)
    # The binary was put back; what it was tried with may do for the one that runs.
    return not left or (was == now and all(one in tried for one in left))


def _entries(message: bytes) -> list[Fields]:
    found = json.loads(message).get("parameters", {}).get("entries", [])
    return [one for one in found if isinstance(one, dict)]


def _comes_to_rest(entry: Fields) -> bool:
    fields = entry.get("fields")
    name = str(entry.get("event"))
    if name == "reload.verdict":
        return True
    return (
        name.endswith(".state_changed")
        and isinstance(fields, dict)
        and fields.get("to_state") in _AT_REST
    )
