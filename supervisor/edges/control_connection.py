"""One connection to the control socket: framing, order, limits, and the end of it.

Two tasks share a connection. One reads and cuts the stream into calls; the other answers them,
one after the other. The reader goes on while a long call is answered, and that is how a client
that hung up is noticed although nothing is being written to it.

Hanging up ends the waiting and nothing else: calls that had arrived are still carried out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

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


@dataclass(frozen=True, slots=True)
class Resumed:
    """A call that a predecessor of this process began to answer; see `control_handover`.

    Not to be carried out again: `number` is the caller's, whom the engine knows by it, None where
    there is nothing to come any more; `undelivered` is what is to be told first.
    """

    number: int | None
    undelivered: tuple[dict[str, object], ...]


class Exchange:
    """One call that is being answered.

    `reply` sends a reply, or drops it where the caller wants none: all with `oneway`, and those
    with `continues` without `more`. It raises HungUp when the client is gone or takes too long.
    """

    def __init__(
        self, call: wire.Call, connection: Connection, resumed: Resumed | None = None
    ) -> None:
        self.call = call
        self.peer = connection.peer
        self.resumed = resumed
        self.over = False  # its last reply was sent
        self.events: trio.MemoryReceiveChannel[dict[str, object]] | None = None
        """Where the replies of what was begun come from; what only looks has none."""
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
        self.over = not continues

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
        self.over = True

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
        handed: what a predecessor of this process knew of the connection.
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
        fd: int = -1,
        handed: Mapping[str, Any] | None = None,
    ) -> None:
        self.peer = peer
        self.fd = fd
        self._decoder = wire.Decoder(limits.request_bytes)
        self._exchange: Exchange | None = None  # the one that is being answered
        self._receiving: trio.CancelScope | None = None
        self._parked: trio.Event | None = None  # until that is set nothing is read
        self._read_over = trio.Event()
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
        self._unanswered: deque[bytes | wire.FrameError] = deque()  # the one being answered first
        self._resumed: tuple[bytes, Resumed] | None = None
        if handed is not None:
            self._take(handed)

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

    # --- over the replacement of the supervisor; see `control_handover` -----------------------

    @property
    def speaking(self) -> bool:
        """A reply is being sent, or waits to be."""
        if self._gone:
            return False
        events = None if self._exchange is None else self._exchange.events
        return self._sending or (events is not None and events.statistics().current_buffer_used > 0)

    async def park(self) -> None:
        """Return when nothing is being read, and nothing will be until `unpark`."""
        if self._parked is None:
            self._parked = trio.Event()
        if self._receiving is not None:
            self._read_over = trio.Event()
            self._receiving.cancel()
            await self._read_over.wait()

    def unpark(self) -> None:
        """Read again."""
        if self._parked is not None:
            self._parked.set()
            self._parked = None

    def to_data(
        self, number_of: Callable[[trio.MemoryReceiveChannel[dict[str, object]]], int | None]
    ) -> dict[str, object] | None:
        """What a successor needs besides the descriptor; None: it has to be closed.

        A call that was begun goes on there; one that only looks is answered there from its
        beginning. For a connection that is parked.
        """
        unanswered = [one for one in self._unanswered if isinstance(one, bytes)]
        broken = len(unanswered) != len(self._unanswered)
        if self._sending or self._gone or self._displaced or broken:
            return None
        begun: dict[str, object] | None = None
        exchange = self._exchange
        if exchange is not None and exchange.over:
            del unanswered[0]
        elif self._resumed is not None and (exchange is None or exchange.events is None):
            call, resumed = self._resumed  # it was handed to us, and that is not taken up yet
            del unanswered[0]
            begun = {
                "call": call.hex(),
                "number": resumed.number,
                "undelivered": list(resumed.undelivered),
            }
        elif exchange is not None and exchange.events is not None:
            begun = {
                "call": unanswered.pop(0).hex(),
                "number": number_of(exchange.events),
                "undelivered": _left_in(exchange.events),
            }
        unread = b"".join(message + b"\0" for message in unanswered) + self._decoder.rest
        return {"unread": unread.hex(), "begun": begun}

    def _take(self, handed: Mapping[str, Any]) -> None:
        """Go on from what a predecessor gave by `to_data`."""
        self._decoder.feed(bytes.fromhex(handed["unread"]))
        begun = handed["begun"]
        if begun is not None:
            call = bytes.fromhex(begun["call"])
            self._unanswered.append(call)
            self._resumed = (call, Resumed(begun["number"], tuple(begun["undelivered"])))

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
        decoder = self._decoder
        deadline = math.inf
        while (message := decoder.next_message()) is not None:  # what a predecessor has read
            await self._queue(incoming, message)
        if decoder.mid_message:
            deadline = trio.current_time() + self._limits.mid_message
        while True:
            if self._parked is not None:
                await self._parked.wait()
            data = None
            try:
                with trio.CancelScope(deadline=deadline) as self._receiving:
                    data = await self._stream.receive_some(_CHUNK)
            finally:
                self._receiving = None
                self._read_over.set()
            if data is None:
                if self._parked is not None:
                    continue
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
        self._unanswered.append(message)
        await incoming.send(message)

    async def _answer_all(self, calls: trio.MemoryReceiveChannel[bytes | wire.FrameError]) -> None:
        if self._resumed is not None:
            goes_on = await self._answer_next(*self._resumed)
            self._resumed = None
            if not goes_on:
                return
        async for message in calls:
            if not await self._answer_next(message):
                return

    async def _answer_next(
        self, message: bytes | wire.FrameError, resumed: Resumed | None = None
    ) -> bool:
        """Answer one call; whether to go on with the next."""
        try:
            await self._answer_one(message, resumed)
        except wire.FrameError as broken:
            # The stream is closed by `run`, once the reader has ended: it still looks at it.
            error = f"{wire.INTERFACE}.BadMessage"
            await self._say_last(CallError(error, {"detail": str(broken)}))
            return False
        except HungUp:
            pass  # calls that had come before the client left are still carried out
        finally:
            self._unanswered.popleft()
            self._exchange = None
        return not self._displaced

    async def _answer_one(
        self, message: bytes | wire.FrameError, resumed: Resumed | None = None
    ) -> None:
        if isinstance(message, wire.FrameError):
            raise message
        call = wire.parse_call(message)
        try:
            self._exchange = Exchange(call, self, resumed)
            await self._answer(self._exchange)
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


def _left_in(events: trio.MemoryReceiveChannel[dict[str, object]]) -> list[dict[str, object]]:
    """What has not been received yet."""
    left = []
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            left.append(events.receive_nowait())
    return left


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
