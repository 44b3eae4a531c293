"""Duplicates of nginx's listening sockets, so that a crash of nginx refuses no connection.

A socket lives as long as anybody has it open: while a duplicate is held here, connections that
nobody accepts wait in its queue, and the next master inherits it (pidfd_getfd(2); what nginx does
with inherited sockets is in ngx_cycle.c, ngx_init_cycle).

A duplicate that outlives its listener is worse than none. It keeps an address bound and a queue
open that nobody serves: clients hang instead of being refused, and a reload that adds the address
again cannot bind it. So `follow` holds exactly what the serving master has open, and is called
again and again; `release` comes before the last master is told to quit.

What is held is in the service manager's store too (`fdstore`), where there is one: so it outlives
the supervisor. Whatever is dropped here is dropped there; `settled` tells when that is done.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address

from supervisor.core.nginx_listen import AddressKind, Listen
from supervisor.edges import linux, procfs
from supervisor.edges.descriptors import NO_DESCRIPTOR
from supervisor.edges.fdstore import DescriptorStore, Kept, name_of
from supervisor.edges.process import Process
from supervisor.edges.sockets import is_busy, listening_address, peer_of

_CLOSED = (errno.EBADF, errno.ESRCH)
"""The descriptor, or the process, was gone before it could be duplicated."""

_LOOKED_AT = 16384
"""Descriptors of one process that are looked at, the lowest: a listener is opened by the master,
which has few, while a worker may have 100,000 connections."""

_SPARE_FILES = 256
"""Descriptors of the supervisor's own that are left over for everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    """A listening socket of the master's; held where it has a descriptor here."""

    listen: Listen
    fd: int | None
    place: tuple[int, int] | None = None  # device and inode of a unix socket's file
    name: str = ""  # in the service manager's store


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What `follow` has changed: the addresses of duplicates, one for each."""

    taken: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class HeldListeners:
    """The duplicates of one nginx's listeners; whoever made it calls `release` at the end.

    Nothing here waits: a look is one readlink for each descriptor of a master, which has a few.
    Those of a worker, which may have 100,000, are looked at only for a successor.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        with_reuseport: bool = False,
        store: DescriptorStore | None = None,
    ) -> None:
        self._enabled = enabled
        self._store = store or DescriptorStore()
        self._with_reuseport = with_reuseport
        self._listening: dict[int, _Socket] = {}  # by the socket's inode
        self._others: set[int] = set()  # inodes of the master's that never will listen
        self._numbers: frozenset[int] = frozenset()  # of the master's descriptors that listen
        self.problem: str | None = None  # why nothing can be held, where that is so

    def configure(self, *, enabled: bool, with_reuseport: bool) -> None:
        """New settings are in force; the next `follow` holds what they say."""
        if (enabled, with_reuseport) != (self._enabled, self._with_reuseport):
            self._enabled, self._with_reuseport = enabled, with_reuseport
            self.release()

    def report(self) -> dict[str, object]:
        """What `status` shows: `available`, and why not (`detail`), `count`, `addresses`."""
        held = [one for one in self._listening.values() if one.fd is not None]
        return {
            "available": self._enabled and self.problem is None,
            "count": len(held),
            "addresses": sorted({str(one.listen) for one in held}),
            "detail": self.problem if self._enabled else "switched off: [restart] hold_listeners",
        }

    # --- holding ----------------------------------------------------------------------------

    def follow(self, master: Process, workers: Iterable[Process] = ()) -> Changed:
        """Hold exactly what `master` listens on; call when it may have changed, and now and then.

        A master that listens on nothing was told to quit, or is dead: nothing is dropped then,
        since its successor needs it. Whoever wants no successor says `release`. Where one of its
        `workers` accepts and listens on nothing either, the configuration has no listener.
        """
        found = _sockets_of(master.pid)
        inodes = set(found.values())
        self._others &= inodes
        taken = self._take_new(master, found)
        listening = frozenset(no for no, inode in found.items() if inode in self._listening)
        if not listening and not (self._listening and self._has_none(workers)):
            return Changed()
        self._numbers = listening or self._numbers
        dropped = [self._drop(inode) for inode in self._listening.keys() - inodes]
        return Changed(taken=tuple(taken), dropped=tuple(filter(None, dropped)))

    def _has_none(self, workers: Iterable[Process]) -> bool:
        """A worker that leaves says so in its title before it closes its listeners."""
        without = False
        for one in workers:
            if self._listening.keys() & _sockets_of(one.pid, self._numbers).values():
                return False
            accepts = procfs.classify(one.pid, one.start) is procfs.ChildKind.ACCEPTING
            without = without or accepts
        return without

    def _take_new(self, master: Process, found: dict[int, int]) -> list[str]:
        taken = []
        if found and all(  # a dead master has none, and what it did not let happen stays true
            one.fd is not None or not self._wants(one.listen) for one in self._listening.values()
        ):
            self.problem = None
        try:
            for number, inode in found.items():
                if inode in self._listening or inode in self._others:
                    continue
                fd = _take(master, number, inode)
                if fd is None:
                    continue
                one = self._sort(fd, inode)
                if one is None:
                    continue
                self._listening[inode] = one
                if one.fd is not None:
                    self._store.put(one.fd, one.name)
                    taken.append(str(one.listen))
        except OSError as exc:
            self.problem = (
                f"cannot duplicate the listening sockets of process {master.pid}: {exc.strerror}; "
                "pidfd_getfd(2) needs the same user or CAP_SYS_PTRACE, and in a container a "
                "seccomp profile that allows it"
            )
        return taken

    def _sort(self, fd: int, inode: int) -> _Socket | None:
        """What `fd` is; None, and it is closed, where it does not listen.

        One without a peer may do so in a moment: a master that reloads opens, binds, listens.
        """
        with socket.socket(fileno=fd) as found:
            listen = _listen_of(found)
            if listen is None:
                if peer_of(found) is not None:
                    self._others.add(inode)
                return None
            kept = self._wants(listen) and self._has_room()
            return _Socket(
                listen=listen, fd=found.detach() if kept else None, place=_place_of(listen),
                name=name_of(inode, str(listen)),
            )  # fmt: skip

    def _wants(self, listen: Listen) -> bool:
        return self._enabled and (self._with_reuseport or not listen.reuseport)

    def _has_room(self) -> bool:
        """There are descriptors for one more, and for one to hand it on; the rest needs some too.

        What is not held is taken from living relatives, or bound afresh.
        """
        held, most = len(self.kept), linux.most_files()
        if 2 * (held + 1) + _SPARE_FILES <= most:
            return True
        self.problem = (
            f"cannot duplicate more than {held} listening sockets: the supervisor may have {most} "
            "descriptors, and needs two for each; raise LimitNOFILE= (ulimit -n)"
        )
        return False

    def _drop(self, inode: int) -> str | None:
        gone = self._listening.pop(inode)
        if gone.fd is None:
            return None
        self._store.remove(gone.name)
        os.close(gone.fd)
        return str(gone.listen)

    def release(self) -> tuple[str, ...]:
        """Hold nothing any more; the addresses that were held."""
        return tuple(filter(None, [self._drop(inode) for inode in list(self._listening)]))

    async def settled(self) -> bool:
        """Return once the service manager holds nothing either that was dropped here.

        False where it does not say so in time.
        """
        return await self._store.settle()

    def keep_only(self, wanted: Iterable[Listen]) -> tuple[str, ...]:
        """Drop what would be in the way of the `wanted` listeners; the addresses of what was held.

        That is what none of them would inherit (127.0.0.1:80 keeps a master from binding
        0.0.0.0:80), and where one has to be bound and cannot be, all of its port. A unix socket is
        in nobody's way: nginx removes its file where it inherits one that it does not listen on.
        """
        needed = tuple(wanted)
        inherited = _Wanted(needed)
        dropped = [
            self._drop(inode)
            for inode, one in list(self._listening.items())
            if one.listen not in inherited
        ]
        wildcards = {(one.kind, _port(one)) for one in needed if one.is_wildcard}
        held = {_place(one.listen) for one in self._listening.values()}
        for listen in needed:
            covered = (listen.kind, _port(listen)) in wildcards
            if _place(listen) in held or (covered and not listen.is_wildcard and not listen.binds):
                continue
            near = [
                inode for inode, one in self._listening.items()
                if one.fd is not None and _port(one.listen) == _port(listen)
            ]  # fmt: skip
            if near and is_busy(listen):
                dropped += [self._drop(inode) for inode in near]
        return tuple(filter(None, dropped))

    # --- handing on -------------------------------------------------------------------------

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Everything that is held, with its name in the service manager's store."""
        held = self._listening.values()
        return tuple(Kept(one.fd, one.name) for one in held if one.fd is not None)

    def inherit(self, kept: Iterable[Kept]) -> Changed:
        """Hold what a predecessor held, in this process or in the service manager's store.

        What settings do not want, or is no listener, is closed, and removed from the store. One
        without a name is not in it yet.
        """
        taken, dropped = [], []
        for given in kept:
            one = self._take_in(given.fd)
            if one is None or one.fd is None:
                self._store.remove(given.name)
                dropped.append(given.name if one is None else str(one.listen))
                continue
            if given.name:
                inode = os.fstat(one.fd).st_ino
                self._listening[inode] = replace(one, name=given.name)
            else:
                self._store.put(one.fd, one.name)
            taken.append(str(one.listen))
        return Changed(taken=tuple(taken), dropped=tuple(filter(None, dropped)))

    def _take_in(self, fd: int) -> _Socket | None:
        """What `fd` is, and held if it is wanted; else it is closed."""
        try:
            inode = os.fstat(fd).st_ino
            if inode in self._listening:
                os.close(fd)
                return self._listening[inode]
            one = self._sort(fd, inode)
        except OSError:  # no socket
            with suppress(OSError):
                os.close(fd)
            return None
        if one is not None:
            self._listening[inode] = one
        return one

    def for_successor(
        self,
        relatives: Iterable[Process],
        sharing: Iterable[Process] = (),
        wanted: Iterable[Listen] | None = None,
    ) -> list[int]:
        """Descriptors of every listener that is to be inherited; the caller closes them.

        The held ones, and what living `relatives` (another master, orphaned workers) have besides:
        sockets with `reuseport` are there and nowhere else, and what a reload has just opened. Of
        `sharing` only those descriptors are looked at that are listeners elsewhere. A unix socket
        whose file was removed or is another by now is left out: nobody could reach it, and nginx
        makes a new one; so is what none of the `wanted` would inherit. Raises OSError where there
        are not enough descriptors.
        """
        given: dict[int, int] = {}
        try:
            self._give(given, relatives, sharing, None if wanted is None else _Wanted(wanted))
        except BaseException:
            for fd in given.values():
                os.close(fd)
            raise
        return list(given.values())

    def _give(
        self,
        given: dict[int, int],
        relatives: Iterable[Process],
        sharing: Iterable[Process],
        wanted: _Wanted | None,
    ) -> None:
        unreachable = set()
        for inode, one in self._listening.items():
            if _is_unreachable(one):
                unreachable.add(inode)
            elif one.fd is not None:
                given[inode] = os.dup(one.fd)
        numbers = set(self._numbers)

        def take(process: Process, found: dict[int, int]) -> None:
            for number, inode in found.items():
                if inode in given or inode in unreachable:
                    continue
                taken = _take_listener(process, number, inode)
                if taken is None:
                    continue
                fd, listen = taken
                numbers.add(number)
                if wanted is None or listen in wanted:
                    given[inode] = fd
                else:
                    os.close(fd)

        for process in relatives:
            take(process, _sockets_of(process.pid))
        for process in sharing:
            take(process, _sockets_of(process.pid, numbers))


class _Wanted:
    """Listeners of a configuration; `listen in wanted`: nginx would have a use for the socket."""

    def __init__(self, listens: Iterable[Listen]) -> None:
        listens = tuple(listens)
        self._places = {_place(one) for one in listens}
        self._names = {_port(one) for one in listens if _is_name(one)}

    def __contains__(self, held: Listen) -> bool:
        if held.kind is AddressKind.UNIX:
            return True  # in nobody's way, and nginx removes its file where it is not listened on
        return _place(held) in self._places or _port(held) in self._names


def _place(listen: Listen) -> tuple[object, object]:
    """Equal for what nginx would inherit for one another."""
    if listen.kind is AddressKind.UNIX:
        return listen.host, None
    try:
        return ip_address(listen.host), _port(listen)
    except ValueError:
        return listen.host, _port(listen)


def _port(listen: Listen) -> tuple[object, ...]:
    return (listen.port, listen.transport)


def _is_name(listen: Listen) -> bool:
    """A host name, which may be any address."""
    return listen.kind is not AddressKind.UNIX and isinstance(_place(listen)[0], str)


def _is_unreachable(one: _Socket) -> bool:
    """A unix socket whose file is gone, or is another by now."""
    if one.listen.kind is not AddressKind.UNIX or not one.listen.host.startswith("/"):
        return False
    place = _place_of(one.listen)
    return place is None or place != one.place


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


def _listen_of(found: socket.socket) -> Listen | None:
    """What `found` listens on, None where it does not."""
    address = listening_address(found)
    if address is None:
        return None
    kind, host, port, transport = address
    shared = kind is not AddressKind.UNIX and bool(
        found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    )
    return Listen(kind=kind, host=host, port=port, transport=transport, reuseport=shared)


def _take_listener(process: Process, number: int, inode: int) -> tuple[int, Listen] | None:
    try:
        fd = _take(process, number, inode)
    except OSError as exc:
        if exc.errno in NO_DESCRIPTOR:
            raise
        return None
    if fd is None:
        return None
    with socket.socket(fileno=fd) as found:
        listen = _listen_of(found)
        return None if listen is None else (found.detach(), listen)


def share_a_listener(one: Process, other: Process) -> bool:
    """One of the two was started with a listening socket of the other's; False where unseen."""
    theirs = set(_sockets_of(other.pid).values())
    for number, inode in _sockets_of(one.pid).items():
        taken = _take_listener(one, number, inode) if inode in theirs else None
        if taken is not None:
            os.close(taken[0])
            return True
    return False


def _sockets_of(pid: int, numbers: Iterable[int] | None = None) -> dict[int, int]:
    """The descriptors of `pid` (or those of `numbers`) that are sockets, with their inodes.

    Empty where it is gone or may not be looked at.
    """
    folder = f"/proc/{pid}/fd"
    found: dict[int, int] = {}
    try:
        there = map(int, os.listdir(folder)) if numbers is None else numbers
    except OSError:
        return {}
    for number in sorted(there)[:_LOOKED_AT]:
        try:
            target = os.readlink(f"{folder}/{number}")
        except OSError:
            continue  # closed, or the process is gone
        if target.startswith("socket:["):
            found[number] = int(target[len("socket:[") : -1])
    return found


def _place_of(listen: Listen) -> tuple[int, int] | None:
    """The file of a unix socket as it is now; None for others, and where there is no file."""
    if listen.kind is not AddressKind.UNIX or not listen.host.startswith("/"):
        return None
    try:
        found = os.lstat(listen.host)
    except OSError:
        return None
    return found.st_dev, found.st_ino
