"""One connection to the control socket: framing, order, limits, and the end of it.

Two tasks share a connection. One reads and cuts the stream into calls; the other answers them,
one after the other. The reader goes on while a long call is answered, and that is how a client
that hung up is noticed although nothing is being written to it.

Hanging up ends the waiting and nothing else: calls that had arrived are still carried out.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import structlog
import trio

from supervisor import wire
from supervisor.edges.peers import Peer
from supervisor.varlink import Check, Mismatch

_log = structlog.get_logger()
_CHUNK = 1 << 16
_LISTS = trio.CapacityLimiter(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take from the others; times are seconds."""

    request_bytes: int = wire.REQUEST_LIMIT
    mid_message: float = 10.0  # from the first byte of a call to its last
    write: float = 10.0  # for a client to take one reply
    pipelined: int = 16  # calls that wait for their turn on one connection
    connections: int = 64
    connections_of_uid: int = 16  # of each uid that is no admin


class CallError(Exception):
    """A call ends with this Varlink error; `error` is the full name."""

    def __init__(self, error: str, parameters: Mapping[str, object]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.parameters = parameters


class Use(Enum):
    """What a connection is good for at this moment, in the order in which they give way."""

    IDLE = "idle"  # no whole call waits for its answer
    LOOKS = "looks"  # follows the log, or waits for a look at the disk
    WAITS = "waits"  # for the end of an operation, which goes on without it
    ANSWERED = "answered"  # it will be over in a moment, and gives way to nobody


_GAVE_WAY = {
    Use.LOOKS: ("Busy", "and this one gave way; ask again"),
    Use.WAITS: ("GaveWay", "and this one, which only waited, gave way"),
}


class HungUp(Exception):  # noqa: N818 - says what happened; nobody is to blame
    """The client does not take replies any more."""


class Exchange:
    """One call that is being answered.

    `reply` sends a reply, or drops it where the caller wants none: all with `oneway`, and those
    with `continues` without `more`. It raises HungUp when the client is gone or takes too long.
    """

    def __init__(self, call: wire.Call, connection: Connection) -> None:
        self.call = call
        self.peer = connection.peer
        self._connection = connection
        self._check: Check | None = None

    def expect(self, check: Check) -> None:
        """Have every reply checked; one that does not fit is our fault and becomes an error."""
        self._check = check

    async def reply(self, parameters: Mapping[str, object], *, continues: bool = False) -> None:
        """Send one reply; see the class."""
        if self._check is not None:
            self._insist(self._check(parameters, ""))
        if not self.call.oneway and (self.call.more or not continues):
            await self._connection.send(wire.encode_reply(parameters, continues=continues))

    async def reply_rows(
        self, name: str, rows_of: Callable[[], Awaitable[Sequence[Mapping[str, object]]]]
    ) -> None:
        """Send one reply with nothing but a list, which may be long: others go on meanwhile.

        A few such lists are made at a time, however many clients ask: as objects they take several
        times the memory that they take as text.
        """
        async with _LISTS:
            rows = await rows_of()
            if self._check is not None:
                self._insist(await trio.to_thread.run_sync(self._check, {name: rows}, ""))
            message = await trio.to_thread.run_sync(wire.encode_rows, name, rows)
            del rows
        if not self.call.oneway:
            await self._connection.send(message)

    def _insist(self, mismatch: Mismatch | None) -> None:
        if mismatch is not None:
            _log.error("control.bad_reply", method=self.call.method, field=mismatch.path)
            raise internal_error(f"the reply's {mismatch.path} should be {mismatch.expected}")

    @contextmanager
    def while_connected(self, use: Use) -> Iterator[None]:
        """Run the block only as long as somebody is there to be told; else raises HungUp.

        It ends with a CallError where the connection has to give way to another one.
        """
        with self._connection.while_connected(use):
            yield


Answer = Callable[[Exchange], Awaitable[None]]


class Connection:
    """A client's connection; `run` returns when it is over, and never raises for a client's sake.

    The stream is closed at the end, also when cancelled.

    Args:
        hung_up: tells after the end of the input whether the client closed the connection, and
            not merely its sending half.
        answer: answers one call, or raises CallError. Any other exception is a fault of ours: it
            is logged, told as InternalError, and harms no other connection.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        peer: Peer,
        *,
        limits: Limits,
        answer: Answer,
        hung_up: Callable[[], bool],
    ) -> None:
        self.peer = peer
        self._stream = stream
        self._limits = limits
        self._answer = answer
        self._hung_up = hung_up
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._waiting: trio.CancelScope | None = None
        self._use = Use.ANSWERED  # while a call is
        self._sending = False
        self._displaced = False
        self._gone = False
        self._unanswered = 0

    @property
    def use(self) -> Use:
        """What it is good for; see there."""
        return self._use if self._unanswered else Use.IDLE

    def give_way(self) -> None:
        """End the connection: whoever waits is told why, unless half a message is on its way."""
        if self._waiting is None or self._sending:
            self._life.cancel()
        else:
            self._displaced = True
            self._waiting.cancel()

    async def run(self) -> None:
        """Answer calls until the client leaves or breaks the protocol."""
        incoming, calls = trio.open_memory_channel[bytes | wire.FrameError](self._limits.pipelined)
        with self._life:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._read, incoming)
                await self._answer_all(calls)
                nursery.cancel_scope.cancel()

    async def refuse(self, error: CallError) -> None:
        """Say why this client gets no service, and close. Instead of `run`, not beside it."""
        async with self._stream:
            await self._say_last(error)

    async def _say_last(self, error: CallError) -> None:
        with suppress(HungUp):
            await self.send(wire.encode_error(error.error, error.parameters))

    async def send(self, message: bytes) -> None:
        """Send one message; raises HungUp when the client is gone or takes too long."""
        if self._gone:
            raise HungUp
        with trio.move_on_after(self._limits.write) as limit:
            self._sending = True
            try:
                await self._stream.send_all(message)
                self._sending = False
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._leave()
                raise HungUp from exc
        if limit.cancelled_caught:
            # Half a message may have been sent: nothing after it could be understood.
            _log.warning("control.client_too_slow", pid=self.peer.pid, uid=self.peer.uid)
            self._leave()
            raise HungUp

    @contextmanager
    def while_connected(self, use: Use) -> Iterator[None]:
        """Run the block until the client hangs up (HungUp) or has to give way (CallError)."""
        self._use = use
        try:
            with trio.CancelScope() as self._waiting:
                if self._gone:
                    self._waiting.cancel()
                yield
            ended = self._waiting.cancelled_caught
        finally:
            self._use, self._waiting = Use.ANSWERED, None
        if ended:
            raise _gave_way(use) if self._displaced else HungUp

    def _leave(self) -> None:
        self._gone = True
        self._reading.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _read(self, incoming: trio.MemorySendChannel[bytes | wire.FrameError]) -> None:
        with incoming:  # not `async with`: that waits, and being cancelled there hides an error
            try:
                with self._reading:
                    await self._read_messages(incoming)
            except wire.FrameError as broken:
                await self._queue(incoming, broken)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._leave()

    async def _read_messages(
        self, incoming: trio.MemorySendChannel[bytes | wire.FrameError]
    ) -> None:
        decoder = wire.Decoder(self._limits.request_bytes)
        deadline = math.inf
        while True:
            with trio.CancelScope(deadline=deadline) as limit:
                data = await self._stream.receive_some(_CHUNK)
            if limit.cancelled_caught:
                raise wire.FrameError(f"the call is not whole after {self._limits.mid_message} s")
            if not data:
                if self._hung_up():
                    self._leave()
                return
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                deadline = math.inf
                await self._queue(incoming, message)
            if not decoder.mid_message:
                deadline = math.inf
            elif deadline == math.inf:
                deadline = trio.current_time() + self._limits.mid_message

    async def _queue(
        self,
        incoming: trio.MemorySendChannel[bytes | wire.FrameError],
        message: bytes | wire.FrameError,
    ) -> None:
        self._unanswered += 1
        await incoming.send(message)

    async def _answer_all(self, calls: trio.MemoryReceiveChannel[bytes | wire.FrameError]) -> None:
        async for message in calls:
            try:
                await self._answer_one(message)
            except wire.FrameError as broken:
                # The stream is closed by `run`, once the reader has ended: it still looks at it.
                error = f"{wire.INTERFACE}.BadMessage"
                await self._say_last(CallError(error, {"detail": str(broken)}))
                return
            except HungUp:
                pass  # calls that had come before the client left are still carried out
            finally:
                self._unanswered -= 1
            if self._displaced:
                return

    async def _answer_one(self, message: bytes | wire.FrameError) -> None:
        if isinstance(message, wire.FrameError):
            raise message
        call = wire.parse_call(message)
        try:
            await self._answer(Exchange(call, self))
        except CallError as error:
            await self._send_error(call, error)
        except (HungUp, wire.FrameError):
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary: one call's fault stays that call's
            _log.exception("control.call_failed", method=call.method, pid=self.peer.pid)
            await self._send_error(call, internal_error(f"{type(exc).__name__}: {exc}"))

    async def _send_error(self, call: wire.Call, error: CallError) -> None:
        if not call.oneway:
            await self.send(wire.encode_error(error.error, error.parameters))


def _gave_way(use: Use) -> CallError:
    error, why = _GAVE_WAY[use]
    detail = f"too many connections to the supervisor are in use, {why}"
    return CallError(f"{wire.INTERFACE}.{error}", {"detail": detail})


def internal_error(detail: str) -> CallError:
    """The error for a fault of ours."""
    return CallError(f"{wire.INTERFACE}.InternalError", {"detail": detail[:512]})


def invalid_parameter(name: str) -> NoReturn:
    """Raise the error for a parameter that is unknown, missing or out of range."""
    raise CallError(f"{wire.SERVICE_INTERFACE}.InvalidParameter", {"parameter": name})
