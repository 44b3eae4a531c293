"""The private address of one generation, and the proof that it is private.

Both generations accept on the public addresses during a canary, so an answer there says nothing
about the candidate. Just before USR2 a `listen` on a port of its own is written into a file that
the configuration includes: only the candidate reads it. `reuseport` makes the kernel spread
connections over all workers, whatever nginx's version.

A reload in the wrong moment makes the old generation open the port as well. So the claim is
checked against the kernel with every answer: a socket is private while the candidate's master has
it open and the old one has not.

Where the server block has certificates and a probe asks over https, a second port speaks TLS, as
the block's own listens do.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from pathlib import Path

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.core.nginx_listen import DEFAULT_PORT
from supervisor.core.probe_settings import HttpProbe, ProbeSettings
from supervisor.core.server_blocks import (
    UNPRIVILEGED_PORT,
    PrivateTls,
    ServerBlock,
    private_tls,
    server_blocks,
    why_not_in_canary,
)
from supervisor.core.settings import ProbeListenerSettings
from supervisor.edges import procfs, socket_owners
from supervisor.edges.files import REAL_DISK, Disk, read_regular, write_atomically

_FILE_MODE = 0o644  # nginx's master reads it, and so does a curious operator
_LARGEST_FILE = 65536
_V4, _V6 = "127.0.0.1", "::1"


class Sharing(Enum):
    """Who listens on a private port."""

    EXCLUSIVE = "exclusive"  # the candidate alone
    SHARED = "shared"  # someone else as well
    ABSENT = "absent"  # someone else, and not the candidate
    NOBODY = "nobody"  # a refused connection is then the candidate's own doing


def blocks_of(dump: str) -> tuple[ServerBlock, ...]:
    """The server blocks in what `nginx -T` told this user."""
    port = DEFAULT_PORT if os.geteuid() == 0 else UNPRIVILEGED_PORT
    return server_blocks(dump, implied_port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The private ports of one candidate; `tls` None: none of them speaks TLS."""

    plain: int
    tls: int | None = None
    http2: bool = False  # an option of the line with `ssl`

    @property
    def all(self) -> tuple[int, ...]:
        """Every port that has to be the candidate's own."""
        return (self.plain,) if self.tls is None else (self.plain, self.tls)


class ProbeListener:
    """Writes the included file, knows who includes it and who listens. Holds nothing open."""

    def __init__(self, settings: ProbeListenerSettings, *, disk: Disk = REAL_DISK) -> None:
        self._path = Path(settings.include_file)
        self._ports = range(settings.first_port, settings.last_port + 1)
        self._disk = disk
        self._last = self._ports[-1]
        self._proved: dict[int, tuple[int, int | None, frozenset[int]]] = {}
        self._blocks: tuple[ServerBlock, ...] = ()
        self._no_tls = "the private listener does not speak TLS"

    def learn(self, dump: str) -> None:
        """Take in the configuration that the candidate will read, as `nginx -T` tells it."""
        self._blocks = blocks_of(dump)

    def why_not(self, probe: ProbeSettings, *, tls: bool = True) -> str | None:
        """Why `probe` is not to be sent to a private port, one of them with `tls`; None: it is."""
        why = why_not_in_canary(probe, self._blocks, str(self._path))
        if why is None and isinstance(probe, HttpProbe) and probe.tls is not None and not tls:
            return self._no_tls
        return why

    def choose_ports(self, probes: Iterable[ProbeSettings]) -> Ports:
        """The ports for what `learn` was told last; one for TLS where a probe can use it.

        Raises Refusal as `choose_port` does where there is none at all.
        """
        ports = Ports(plain=self.choose_port())
        by_https = [one for one in probes if isinstance(one, HttpProbe) and one.tls is not None]
        speaks = private_tls(self._blocks, str(self._path)) if by_https else None
        if speaks is None or all(self.why_not(one) for one in by_https):
            return ports
        try:
            return self._with_tls(ports, speaks)
        except Refusal:
            self._no_tls = "no second port was left for the private listener that speaks TLS"
            return ports

    def without_tls(self, ports: Ports, why: str) -> Ports:
        """The same without a port for TLS, as nginx refuses it; `why_not` tells that from now."""
        self._no_tls = f"nginx refuses ssl on the private listener: {why}"
        return replace(ports, tls=None)

    def _with_tls(self, ports: Ports, speaks: PrivateTls) -> Ports:
        return replace(ports, tls=self.choose_port({ports.plain}), http2=speaks.http2)

    def choose_port(self, exclude: Collection[int] = ()) -> int:
        """The next port of the range that can be bound now; another one each time.

        Raises Refusal `no_probe_port` where none is left.
        """
        later = range(self._last + 1, self._ports.stop)
        for port in chain(later, self._ports):
            if port not in exclude and _can_bind(port):
                self._last = port
                return port
        raise Refusal(
            "no_probe_port",
            f"cannot choose a port for the private probe listener: all of {self._ports[0]} to "
            f"{self._ports[-1]} are in use; free one, or change ports in [probe_listener]",
        )

    def free_ports(self) -> tuple[int, ...]:
        """The ports of the range that could be bound now. Raises OperationFailed as above."""
        return tuple(port for port in self._ports if _can_bind(port))

    def write(self, ports: Ports) -> None:
        """The file tells nginx to listen on `ports` of the loopback addresses.

        Raises Refusal `probe_file_not_writable`; the file is then as it was.
        """
        lines = ["# Written by nginx-supervisor for the next upgrade; edits are lost."]
        hosts = [_V4, f"[{_V6}]"] if _has_ipv6() else [_V4]
        lines += [f"listen {host}:{ports.plain} reuseport;" for host in hosts]
        if ports.tls is not None:
            options = "ssl http2 reuseport" if ports.http2 else "ssl reuseport"
            lines += [f"listen {host}:{ports.tls} {options};" for host in hosts]
        self._replace("\n".join(lines) + "\n")

    def text(self) -> str | None:
        """What the file holds, None where there is none. Raises Refusal where it is not a file."""
        try:
            return read_regular(self._path, limit=_LARGEST_FILE).decode(errors="surrogateescape")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._refusal("read", exc) from exc

    def restore(self, text: str | None) -> None:
        """The file holds `text` again, None: is gone. Raises as `write` does."""
        if text is not None:
            self._replace(text)
            return
        try:
            self._disk.unlink(self._path)
        except OSError as exc:
            raise self._refusal("remove", exc) from exc

    def exclusive_to(self, port: int, candidate_master: int, old_master: int | None) -> Sharing:
        """Who listens on `port`, by the sockets that the two masters have open.

        Cheap when asked again: sockets that were the candidate's alone stay so, since no process
        that is there already can get one of them, and new ones have other inodes.
        """
        listening = socket_owners.listening_inodes(port)
        case = (candidate_master, old_master, listening)
        if case == self._proved.get(port) and procfs.is_alive(candidate_master):
            return Sharing.EXCLUSIVE
        found = self._who_listens(listening, candidate_master, old_master)
        if found is Sharing.EXCLUSIVE:
            self._proved[port] = case
        return found

    def _who_listens(
        self, listening: frozenset[int], candidate_master: int, old_master: int | None
    ) -> Sharing:
        if not listening:
            return Sharing.NOBODY
        own = socket_owners.inodes_of(candidate_master)
        if not listening & own:
            return Sharing.ABSENT
        others = socket_owners.inodes_of(old_master) if old_master is not None else frozenset()
        return Sharing.SHARED if listening & others or listening - own else Sharing.EXCLUSIVE

    def _replace(self, text: str) -> None:
        try:
            data = text.encode(errors="surrogateescape")
            write_atomically(self._disk, self._path, data, mode=_FILE_MODE)
        except OSError as exc:
            raise self._refusal("write", exc) from exc

    def _refusal(self, verb: str, exc: OSError) -> Refusal:
        remedy = "make it writable for the supervisor"
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            remedy = f"make its folder (mkdir -p {self._path.parent})"
        elif exc.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR):
            remedy = "only a regular file can stand there; remove what does"
        elif exc.errno == errno.ENOSPC:
            remedy = "free space on its file system"
        return Refusal(
            "probe_file_not_writable",
            f"cannot {verb} the probe listener's file {self._path}: {exc.strerror or exc}; "
            f"{remedy}, or change include_file in [probe_listener]",
        )


def _has_ipv6() -> bool:
    return _bind(socket.AF_INET6, _V6, 0)


def _can_bind(port: int) -> bool:
    return _bind(socket.AF_INET, _V4, port) and (
        not _has_ipv6() or _bind(socket.AF_INET6, _V6, port)
    )


def _bind(family: socket.AddressFamily, host: str, port: int) -> bool:
    """Whether `port` can be bound as nginx does, but by one socket alone."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # Connections of an earlier listener that still linger do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as exc:
        if exc.errno == errno.EMFILE:
            raise OperationFailed(
                "no_descriptors", f"cannot try port {port}: {exc.strerror}; raise LimitNOFILE"
            ) from exc
        return False
    return True
