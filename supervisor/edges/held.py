"""Duplicates of nginx's listening sockets, so that a crash of nginx refuses no connection.

A socket lives as long as anybody has it open: while a duplicate is held here, connections that
nobody accepts wait in its queue, and the next master inherits it (pidfd_getfd(2); what nginx does
with inherited sockets is in ngx_cycle.c, ngx_init_cycle).

A duplicate that outlives its listener is worse than none. It keeps an address bound and a queue
open that nobody serves: clients hang instead of being refused, and a reload that adds the address
again cannot bind it. So `follow` holds exactly what the serving master has open, and is called
again and again; `release` comes before the last master is told to quit.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from supervisor.core.nginx_listen import AddressKind, Listen
from supervisor.edges.process import Process
from supervisor.edges.sockets import listening_address

_CLOSED = (errno.EBADF, errno.ESRCH)
"""The descriptor, or the process, was gone before it could be duplicated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    """A listening socket of the master's; held where it has a descriptor here."""

    listen: Listen
    fd: int | None
    place: tuple[int, int] | None = None  # device and inode of a unix socket's file


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What `follow` has changed: the addresses of duplicates, one for each."""

    taken: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class HeldListeners:
    """The duplicates of one nginx's listeners; whoever made it calls `release` at the end.

    Nothing here waits: a look is one readlink for each descriptor of a master, which has a few. A
    worker's descriptors are never listed, since it may have 100,000.
    """

    def __init__(self, *, enabled: bool = True, with_reuseport: bool = False) -> None:
        self._enabled = enabled
        self._with_reuseport = with_reuseport
        self._listening: dict[int, _Socket] = {}  # by the socket's inode
        self._others: set[int] = set()  # inodes of the master's that do not listen
        self._numbers: frozenset[int] = frozenset()  # of the master's descriptors that listen
        self.problem: str | None = None  # why nothing can be held, where that is so

    def configure(self, *, enabled: bool, with_reuseport: bool) -> None:
        """New settings are in force; the next `follow` holds what they say."""
        if (enabled, with_reuseport) != (self._enabled, self._with_reuseport):
            self._enabled, self._with_reuseport = enabled, with_reuseport
            self.release()

    def report(self) -> dict[str, object]:
        """What `status` shows: `available`, `count`, `addresses`."""
        held = [one for one in self._listening.values() if one.fd is not None]
        return {
            "available": self._enabled and self.problem is None,
            "count": len(held),
            "addresses": sorted({str(one.listen) for one in held}),
        }

    # --- holding ----------------------------------------------------------------------------

    def follow(self, master: Process) -> Changed:
        """Hold exactly what `master` listens on; call when it may have changed, and now and then.

        A master that listens on nothing was told to quit, or is dead: nothing is dropped then,
        since its successor needs it. Whoever wants no successor says `release`.
        """
        found = _sockets_of(master.pid)
        inodes = set(found.values())
        self._others &= inodes
        taken = self._take_new(master, found)
        listening = frozenset(no for no, inode in found.items() if inode in self._listening)
        if not listening:
            return Changed()
        self._numbers = listening
        dropped = [self._drop(inode) for inode in self._listening.keys() - inodes]
        return Changed(taken=tuple(taken), dropped=tuple(filter(None, dropped)))

    def _take_new(self, master: Process, found: dict[int, int]) -> list[str]:
        taken = []
        try:
            for number, inode in found.items():
                if inode in self._listening or inode in self._others:
                    continue
                fd = _take(master, number, inode)
                if fd is None:
                    continue
                one = self._sort(fd)
                if one is None:
                    self._others.add(inode)
                    continue
                self._listening[inode] = one
                if one.fd is not None:
                    taken.append(str(one.listen))
        except OSError as exc:
            self.problem = (
                f"cannot duplicate the listening sockets of process {master.pid}: {exc.strerror}; "
                "pidfd_getfd(2) needs the same user or CAP_SYS_PTRACE, and in a container a "
                "seccomp profile that allows it"
            )
        else:
            self.problem = None
        return taken

    def _sort(self, fd: int) -> _Socket | None:
        """What `fd` is; None, and it is closed, where it does not listen."""
        with socket.socket(fileno=fd) as found:
            address = listening_address(found)
            if address is None:
                return None
            kind, host, port, transport = address
            shared = kind is not AddressKind.UNIX and bool(
                found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            )
            listen = Listen(kind=kind, host=host, port=port, transport=transport, reuseport=shared)
            kept = self._enabled and (self._with_reuseport or not shared)
            return _Socket(
                listen=listen, fd=found.detach() if kept else None, place=_place_of(listen)
            )

    def _drop(self, inode: int) -> str | None:
        gone = self._listening.pop(inode)
        if gone.fd is None:
            return None
        os.close(gone.fd)
        return str(gone.listen)

    def release(self) -> tuple[str, ...]:
        """Hold nothing any more; the addresses that were held."""
        return self.keep_only(())

    def keep_only(self, wanted: Iterable[Listen]) -> tuple[str, ...]:
        """Drop what no listener of `wanted` would inherit; the addresses of what was held.

        It would only be in the way: 127.0.0.1:80 keeps a master from binding 0.0.0.0:80.
        """
        needed = tuple(wanted)
        odd = [
            inode for inode, one in self._listening.items()
            if not any(_inherits(listen, one.listen) for listen in needed)
        ]  # fmt: skip
        return tuple(filter(None, [self._drop(inode) for inode in odd]))

    # --- handing on -------------------------------------------------------------------------

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of everything that is held."""
        return tuple(one.fd for one in self._listening.values() if one.fd is not None)

    def inherit(self, fds: Iterable[int]) -> None:
        """Hold what a predecessor in this process held; what settings do not want is closed."""
        for fd in fds:
            inode = os.fstat(fd).st_ino
            one = self._sort(fd)
            if one is not None:
                self._listening[inode] = one

    def for_successor(self, relatives: Iterable[Process]) -> list[int]:
        """Descriptors of every listener that is to be inherited; the caller closes them.

        The held ones, and what living `relatives` (orphaned workers, another master) have besides:
        sockets with `reuseport` are there and nowhere else. A unix socket whose file was removed
        or is another by now is left out: nobody could reach it, and nginx makes a new one.
        """
        given: dict[int, int] = {}
        unreachable = set()
        for inode, one in self._listening.items():
            if _place_of(one.listen) != one.place:
                unreachable.add(inode)
            elif one.fd is not None:
                given[inode] = os.dup(one.fd)
        for process in relatives:
            for number, inode in _sockets_of(process.pid, self._numbers or None).items():
                if inode in given or inode in unreachable:
                    continue
                fd = _take_listener(process, number, inode)
                if fd is not None:
                    given[inode] = fd
        return list(given.values())


def _inherits(listen: Listen, held: Listen) -> bool:
    """Whether nginx would take the socket `held` for `listen`, where that is a name perhaps."""
    if AddressKind.UNIX in (listen.kind, held.kind):
        return listen.address == held.address
    if (listen.port, listen.transport) != (held.port, held.transport):
        return False
    try:
        return ip_address(listen.host) == ip_address(held.host)
    except ValueError:
        return True  # a host name, which may be anything


def share_a_listener(one: Process, other: Process) -> bool:
    """One of the two was started with a listening socket of the other's; False where unseen."""
    theirs = set(_sockets_of(other.pid).values())
    for number, inode in _sockets_of(one.pid).items():
        fd = _take_listener(one, number, inode) if inode in theirs else None
        if fd is not None:
            os.close(fd)
            return True
    return False


def _take(process: Process, number: int, inode: int) -> int | None:
    """A duplicate; None where that is gone, or another by now. Raises OSError where forbidden."""
    try:
        fd = process.take_fd(number)
    except OSError as exc:
        if exc.errno in _CLOSED:
            return None
        raise
    if os.fstat(fd).st_ino != inode:
        os.close(fd)
        return None
    return fd


def _take_listener(process: Process, number: int, inode: int) -> int | None:
    try:
        fd = _take(process, number, inode)
    except OSError:
        return None
    if fd is None:
        return None
    with socket.socket(fileno=os.dup(fd)) as found:
        listens = listening_address(found) is not None
    if listens:
        return fd
    os.close(fd)
    return None


def _sockets_of(pid: int, numbers: Iterable[int] | None = None) -> dict[int, int]:
    """The descriptors of `pid` (or those of `numbers`) that are sockets, with their inodes.

    Empty where it is gone or may not be looked at.
    """
    folder = f"/proc/{pid}/fd"
    found: dict[int, int] = {}
    try:
        names = os.listdir(folder) if numbers is None else [str(one) for one in numbers]
    except OSError:
        return {}
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # closed, or the process is gone
        if target.startswith("socket:["):
            found[int(name)] = int(target[len("socket:[") : -1])
    return dict(sorted(found.items()))


def _place_of(listen: Listen) -> tuple[int, int] | None:
    """The file of a unix socket as it is now; None for others, and where there is no file."""
    if listen.kind is not AddressKind.UNIX or not listen.host.startswith("/"):
        return None
    try:
        found = os.lstat(listen.host)
    except OSError:
        return None
    return found.st_dev, found.st_ino
