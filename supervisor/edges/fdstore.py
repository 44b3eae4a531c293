"""The service manager's store of descriptors: what is in it survives the supervisor, and nginx too.

systemd keeps a duplicate of what it is sent and gives it to the next start of the service
(sd_notify(3): FDSTORE=1, FDNAME=, FDSTOREREMOVE=1; sd_listen_fds(3)). It drops all of it once the
service is down and no restart is due. Descriptors are removed by name, so each has a name of its
own here: `name_of`.

The manager acts on a message when it gets to it. `settle` waits for that by its BARRIER=1: it
closes a descriptor of ours once everything sent before has been acted on.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass

import trio

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_REMOVE = b"FDSTOREREMOVE=1"
_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 65536  # descriptors that are believed to have been given
_NAME_LENGTH = 200  # systemd takes 255 (FDNAME_MAX)

_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""What keeps a message from a manager that is there."""

LIMIT = 2.0
"""Seconds that the manager gets to let go of what is not held any more; it takes a millisecond."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A descriptor from the store, the receiver's from now on; the name is the manager's for it."""

    fd: int
    name: str


def receive(environment: MutableMapping[str, str] = os.environ) -> tuple[Kept, ...]:
    """What the service manager has kept for this process; nothing where that is for another one.

    The variables are removed and the descriptors close on exec, so that no child takes them for
    its own. Never raises.
    """
    given = {name: environment.pop(name, "") for name in VARIABLES}
    try:
        own = int(given["LISTEN_PID"]) == os.getpid()
        count = int(given["LISTEN_FDS"]) if own else 0
    except ValueError:
        return ()
    names = given["LISTEN_FDNAMES"].split(":")
    kept = []
    for index in range(min(count, _MOST)):
        fd = _FIRST + index
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            kept.append(Kept(fd, names[index] if index < len(names) else ""))
    return tuple(kept)


def name_of(inode: int, address: str) -> str:
    """A name for the listener with this inode, which `systemd-analyze fdstore` shows.

    An inode is one socket's as long as anybody has it, and so is the name. Supervisors before and
    after this one remove descriptors by it: it must not change.
    """
    readable = "".join(one if "!" <= one <= "~" and one != ":" else "_" for one in address)
    return f"listener-{inode}-{readable}"[:_NAME_LENGTH]


class DescriptorStore:
    """Sends to the manager at `address` (as in NOTIFY_SOCKET); None: there is none. `given` is what
    it has kept for this process, see `receive`.

    No method raises or blocks: a manager that is gone or slow is no reason to fail. What it cannot
    take at once is sent by `run`, in order.
    """

    def __init__(self, address: str | None = None, given: tuple[Kept, ...] = ()) -> None:
        self._given = given
        self._address: str | None = None
        if address is not None and len(address) > 1 and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket: socket.socket | None = None
        self._waiting: deque[tuple[bytes, int | None]] = deque()  # the descriptor is ours
        self._more = trio.Event()
        self._removals = self._settled = 0
        self._thrown_away = 0  # messages that the manager would have taken
        self._unsent_removals: list[bytes] = []

    def take_back(self) -> tuple[Kept, ...]:
        """What was kept for this process; the descriptors are the caller's from now on."""
        return self._given

    def forget(self) -> None:
        """Have all of it removed: this process ends, and nobody will serve what it was given."""
        for one in self._given:
            self.remove(one.name)

    def put(self, fd: int, name: str) -> None:
        """Have a duplicate of `fd` kept; one of the same socket that is there already stays."""
        if self._address is not None:
            # What happens to the socket is ours to see: a hang-up is no reason to drop it.
            self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode(), fd)

    def remove(self, name: str) -> None:
        """Have what is kept under `name` closed; soon, see `settle`."""
        if self._address is not None and name:
            self._removals += 1
            self._send(_REMOVE + f"\nFDNAME={name}".encode())

    async def settle(self, limit: float = LIMIT) -> bool:
        """Return once nothing is kept that was to be removed; False where it is after `limit` s.

        At once where nothing was removed since the last time. False also where the manager could
        not be told, for want of descriptors or memory; the next call tells it again.
        """
        wanted = self._removals
        if wanted == self._settled:
            return True
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        before = self._thrown_away
        try:
            again, self._unsent_removals = self._unsent_removals, []
            for message in again:
                self._send(message)
            self._send(b"BARRIER=1", writing)
        finally:
            os.close(writing)
        try:
            with trio.move_on_after(limit):
                await trio.lowlevel.wait_readable(reading)  # its end: nobody writes
                if self._thrown_away != before:
                    return False  # it was closed here, and not by the manager
                self._settled = max(self._settled, wanted)
                return True
        finally:
            os.close(reading)
        return False

    async def run(self) -> None:
        """Send what had to wait; one task, until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting and self._socket is not None:
                with contextlib.suppress(trio.ClosedResourceError):  # the manager is gone
                    await trio.lowlevel.wait_writable(self._socket)
                self._flush()

    def close(self) -> None:
        """Forget what was not sent."""
        while self._waiting:
            _close(self._waiting.popleft()[1])
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):  # nothing waits for it outside of trio
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None

    def _send(self, message: bytes, fd: int | None = None) -> None:
        try:
            own = None if fd is None else os.dup(fd)
        except OSError:
            self._thrown_away += 1
            return  # no descriptor is left, and others need them more
        self._waiting.append((message, own))
        self._flush()
        if self._waiting:
            self._more.set()

    def _flush(self) -> None:
        """Send as much as is taken; where nobody is there to take it, all is dropped."""
        if not self._waiting:
            return
        try:
            if self._socket is None:
                self._socket = _connected(str(self._address))
            while self._waiting:
                message, fd = self._waiting[0]
                rights = [] if fd is None else [_rights(fd)]
                self._socket.sendmsg([message], rights)
                self._waiting.popleft()
                _close(fd)
            self.close()  # words are rare, and a descriptor that lies idle is one to account for
        except BlockingIOError:
            return
        except (OSError, ValueError) as exc:
            if getattr(exc, "errno", None) in _PASSING:
                messages = [message for message, _ in self._waiting]
                self._thrown_away += len(messages)
                self._unsent_removals += [one for one in messages if one.startswith(_REMOVE)]
            self.close()


def _connected(address: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        found.setblocking(False)
        found.connect(address)
    except BaseException:
        found.close()
        raise
    return found


def _rights(fd: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes()


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
