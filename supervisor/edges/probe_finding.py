"""What a probe found before anyone asked whose answer it was, and how it connects."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from supervisor.core.host_trouble import TIMEOUT_SHARE
from supervisor.core.observation import Attribution, Outcome
from supervisor.core.probe_settings import Address, UnixAddress
from supervisor.edges.owner_finding import Owner

_ACCEPT_PAUSES = (0.0, 0.001, 0.002, 0.004)
"""Seconds between looks for the worker that accepts; an idle one takes microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of one probe, not yet attributed to a generation."""

    outcome: Outcome
    detail: str
    latency: float = 0.0
    worker_pid: int | None = None
    worker_by: Attribution | None = None  # how the worker is known
    fair: float | None = None  # of a failure by time alone: within as much it would have been well
    aside: float = 0.0  # seconds of the whole look that were our own doing


@dataclass(slots=True)
class Progress:
    """How far a probe has come; tells a timeout's text what it was waiting for."""

    doing: str = "connecting"
    began: float | None = None  # when the first byte was sent
    worker_pid: int | None = None  # by the socket that it holds
    limit: trio.CancelScope | None = None
    aside: float = 0.0  # seconds of `own_time`

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """What passes meanwhile is our own doing: no server is to be blamed for it."""
        if self.limit is None:
            yield
            return
        since = trio.current_time()
        left = self.limit.deadline - since
        self.limit.deadline = math.inf
        try:
            yield
        finally:
            now = trio.current_time()
            self.limit.deadline = now + left
            self.aside += now - since
            if self.began is not None:
                self.began += now - since

    @property
    def elapsed(self) -> float:
        """Seconds since the first byte was sent."""
        return 0.0 if self.began is None else trio.current_time() - self.began

    def finding(self, outcome: Outcome, detail: str, *, fair: float | None = None) -> Finding:
        """The end of it."""
        return Finding(
            outcome=outcome, detail=detail, latency=self.elapsed, worker_pid=self.worker_pid,
            worker_by=None if self.worker_pid is None else Attribution.SOCKET_OWNER, fair=fair,
            aside=self.aside,
        )  # fmt: skip


Check = Callable[[Progress], Awaitable[Finding]]


async def within(seconds: float, check: Check) -> Finding:
    """What `check` finds, or a failure that says what was waited for when time ran out."""
    progress = Progress()
    with trio.move_on_after(seconds) as progress.limit:
        return await check(progress)
    return progress.finding(
        Outcome.FAIL, f"timed out after {seconds:g} s: {progress.doing}",
        fair=TIMEOUT_SHARE * seconds,
    )  # fmt: skip


async def connect(address: Address) -> trio.SocketStream:
    """A connection to `address`. Raises OSError; `cause_of` puts it in words."""
    if isinstance(address, UnixAddress):
        return await trio.open_unix_socket(address.path)
    return await trio.open_tcp_stream(address.host, address.port)


_OUR_OWN_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def outcome_of(exc: BaseException) -> Outcome:
    """What a connection that cannot be made says of the server: nothing, where we lack means."""
    inner = _innermost(exc)
    lacking = isinstance(inner, OSError) and inner.errno in _OUR_OWN_LACK
    return Outcome.INCONCLUSIVE if lacking else Outcome.FAIL


def cause_of(exc: BaseException) -> str:
    """The innermost cause in the kernel's or the resolver's words: trio wraps them."""
    inner = _innermost(exc)
    if isinstance(inner, OSError) and not isinstance(inner, trio.socket.gaierror) and inner.errno:
        return os.strerror(inner.errno)
    return getattr(inner, "strerror", None) or str(inner)


def _innermost(exc: BaseException) -> BaseException:
    while True:
        if isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        elif isinstance(exc.__cause__, OSError | BaseExceptionGroup):
            exc = exc.__cause__
        else:
            return exc


async def trace(
    stream: trio.SocketStream,
    owner: Owner | None,
    progress: Progress,
    *,
    patient: bool,
    cheaply: bool = False,
) -> int | None:
    """The worker at the other end; a patient look gives it a few milliseconds to accept.

    `cheaply`: only where that costs next to nothing, since the answer will name it as well. A
    search does not count as the server's time.
    """
    if owner is None or stream.socket.family not in (trio.socket.AF_INET, trio.socket.AF_INET6):
        return None
    try:
        here, there = stream.socket.getsockname(), stream.socket.getpeername()
    except OSError:
        return None  # it was reset already: there is no other end any more
    for pause in _ACCEPT_PAUSES if patient else (0.0,):
        await trio.sleep(pause)
        with progress.own_time():
            pid = await owner(here, there, cheaply=cheaply)
        if pid is not None:
            return pid
    return None
