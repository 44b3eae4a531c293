"""Who waits for what: each caller gets progress, and in the end one reply that says how it ended.

A caller that hangs up, or that does not read, holds up nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, get_args

import trio

from supervisor.core import commands

Reply = dict[str, object]

_REPLY_BUFFER = 1024
"""Replies that a slow client may be behind; one that is further behind misses progress lines."""

OF_NO_CANDIDATE = dict.fromkeys(("canary_observed", "attribution", "coverage"))
OF_NO_UPGRADE = {
    **dict.fromkeys(("upgrade_id", "from_version", "to_version", "judged")), **OF_NO_CANDIDATE,
}  # fmt: skip
"""Every verdict has all fields of one, so that scripts need not ask which are there."""


def refusal(operation: str, reason: str, detail: str) -> Reply:
    """The final reply of what was refused before anybody began."""
    return {
        "event": "verdict",
        "operation": operation,
        "verdict": "refused",
        "reason": reason,
        "detail": detail,
        **OF_NO_UPGRADE,
        "elapsed_s": 0.0,
        "phases": {},
    }


@dataclass(slots=True)
class Waiter:
    """One caller."""

    send: trio.MemorySendChannel[Reply]
    receive: trio.MemoryReceiveChannel[Reply]
    command: commands.Command | commands.SelfUpgrade
    accepted_at: float
    upgrade_id: str = ""

    def tell(self, reply: Reply) -> None:
        """Tell what goes on; one that is too far behind misses it, and never the final reply."""
        if self.send.statistics().current_buffer_used < _REPLY_BUFFER - 1:
            self._send(reply)

    def finish(self, reply: Reply) -> None:
        """Give the final reply."""
        self._send(reply)
        self.send.close()

    def _send(self, reply: Reply) -> None:
        with suppress(trio.BrokenResourceError):  # it has hung up
            self.send.send_nowait(reply)

    @property
    def operation(self) -> str:
        """What was asked for, as replies name it."""
        kind = type(self.command)
        return "self_upgrade" if kind is commands.SelfUpgrade else kind.__name__.lower()


_COMMANDS: Mapping[str, Any] = {
    one.__name__: one for one in (*get_args(commands.Command), commands.SelfUpgrade)
}


class Waiters:
    """All callers that have no final reply yet, by number; in the engine's thread."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiter] = {}
        self._for_verdict: list[int] = []
        self._for_settlement: list[int] = []
        self._handed: dict[int, trio.MemoryReceiveChannel[Reply]] = {}  # of callers yet to resume
        self._next = 1
        self._listening = 0  # callers that have not left `listen`
        self._all_told = trio.Event()
        self._over = False

    @asynccontextmanager
    async def listen(
        self, command: commands.Command | commands.SelfUpgrade, *, at: float, upgrade_id: str
    ) -> AsyncIterator[tuple[int | None, trio.MemoryReceiveChannel[Reply]]]:
        """A new caller's number and replies; None, and no reply, once the supervisor ends."""
        send, receive = trio.open_memory_channel[Reply](_REPLY_BUFFER)
        number: int | None = None
        if self._over:
            send.close()
        else:
            number, self._next = self._next, self._next + 1
            self._waiting[number] = Waiter(send, receive, command, at, upgrade_id)
        self._listening += 1
        try:
            async with receive:
                yield number, receive
        finally:
            self._listening -= 1
            self._all_told.set()

    @asynccontextmanager
    async def resume(
        self, number: int | None, undelivered: Sequence[Mapping[str, object]]
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Reply]]:
        """The replies of a caller that a predecessor has handed over, those `undelivered` first.

        It listens from now on as if it had called here; with None it had its final reply already.
        """
        waiter = None if number is None else self._waiting.get(number)
        since = None if number is None else self._handed.pop(number, None)
        replies = [dict(one) for one in undelivered]
        if since is not None:
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    replies.append(since.receive_nowait())
        send, receive = trio.open_memory_channel[Reply](_REPLY_BUFFER + len(replies))
        if waiter is not None:
            waiter.send, waiter.receive = send, receive
        for reply in replies:
            send.send_nowait(reply)
        if waiter is None:
            send.close()
        self._listening += 1
        try:
            async with receive:
                yield receive
        finally:
            self._listening -= 1
            self._all_told.set()

    def number_of(self, receive: trio.MemoryReceiveChannel[Reply]) -> int | None:
        """The caller whose replies come there; None where it has its final reply."""
        found = (number for number, one in self._waiting.items() if one.receive is receive)
        return next(found, None)

    @property
    def unsettled(self) -> bool:
        """Somebody waits for the end of what is no upgrade."""
        return any(number in self._waiting for number in self._for_settlement)

    def tell(self, number: int, reply: Reply) -> None:
        """Tell one caller what goes on."""
        waiter = self._waiting.get(number)
        if waiter is not None:
            waiter.tell(reply)

    def announce(self, reply: Reply) -> None:
        """Tell everyone who waits for anything."""
        for waiter in self._waiting.values():
            waiter.tell(reply)

    # --- over the replacement of the supervisor -----------------------------------------------

    def to_data(self, *, at: float) -> dict[str, object]:
        """Who waits for what, for `from_data` in another process; times as seconds before `at`."""
        return {
            "next": self._next,
            "for_verdict": self._for_verdict,
            "for_settlement": self._for_settlement,
            "waiting": [
                [
                    number, type(one.command).__name__, asdict(one.command),
                    at - one.accepted_at, one.upgrade_id,
                ]
                for number, one in self._waiting.items()
            ],
        }  # fmt: skip

    def from_data(self, data: Mapping[str, Any], *, at: float) -> None:
        """Those who wait go on waiting here. Raises KeyError, TypeError or ValueError."""
        self._next = int(data["next"])
        self._for_verdict = [int(one) for one in data["for_verdict"]]
        self._for_settlement = [int(one) for one in data["for_settlement"]]
        for number, kind, values, ago, upgrade_id in data["waiting"]:
            send, receive = trio.open_memory_channel[Reply](_REPLY_BUFFER)
            command = _COMMANDS[kind](**values)
            self._waiting[int(number)] = Waiter(send, receive, command, at - ago, upgrade_id)
            self._handed[int(number)] = receive

    async def wait_told(self, seconds: float) -> None:
        """Return when every caller has taken its last reply; at most after `seconds`."""
        with trio.move_on_after(seconds):
            while self._listening:
                self._all_told = trio.Event()
                await self._all_told.wait()

    def get(self, number: int) -> Waiter | None:
        """The caller, None where it has its final reply."""
        return self._waiting.get(number)

    def attach(self, number: int, *, to_verdict: bool) -> None:
        """Let the caller wait for the running upgrade's verdict, or for what else goes on."""
        (self._for_verdict if to_verdict else self._for_settlement).append(number)

    def accept(self, number: int, **more: object) -> None:
        """Tell the caller that it is being done."""
        waiter = self._waiting.get(number)
        if waiter is not None:
            waiter.tell({"event": "accepted", **more})

    def progress(self, reply: Reply) -> None:
        """Tell everyone who waits for the verdict what goes on."""
        for number in self._for_verdict:
            if number in self._waiting:
                self._waiting[number].tell(reply)

    def finish(self, number: int, reply: Reply) -> None:
        """Give the final reply."""
        waiter = self._waiting.pop(number, None)
        if waiter is not None:
            waiter.finish({"operation": waiter.operation, **reply})

    def answer(self, number: int, verdict: str, reason: str, detail: str, *, at: float) -> None:
        """Give the final reply of what was no upgrade."""
        waiter = self._waiting.get(number)
        elapsed = 0.0 if waiter is None else at - waiter.accepted_at
        reply: Reply = {
            "event": "verdict",
            "verdict": verdict,
            "reason": reason,
            "detail": detail,
            **OF_NO_UPGRADE,
            "elapsed_s": round(elapsed, 6),
            "phases": {},
        }
        self.finish(number, reply)

    def settle(self, verdict: str, reason: str, detail: str, *, at: float) -> None:
        """Answer everyone who waits for what is no upgrade."""
        waiting, self._for_settlement = self._for_settlement, []
        for number in waiting:
            self.answer(number, verdict, reason, detail, at=at)

    def pronounce(self, told: Reply) -> None:
        """Give the verdict to everyone who waits for it."""
        waiting, self._for_verdict = self._for_verdict, []
        for number in waiting:
            self.finish(number, told)

    def dismiss(self) -> None:
        """Whoever still waits learns by the end of the channel that the supervisor ends."""
        self._over = True
        for waiter in self._waiting.values():
            waiter.send.close()
        self._waiting.clear()
