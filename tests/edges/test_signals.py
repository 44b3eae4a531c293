"""Signals come one after the other, and what nobody has taken can be asked for."""

from __future__ import annotations

import os
import signal

import trio
from trio.testing import wait_all_tasks_blocked

from supervisor.edges.signals import SignalInbox


async def test_signals_are_taken_in_their_order_and_coalesce() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with SignalInbox((signal.SIGUSR1, signal.SIGUSR2)) as inbox:
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert inbox.unheard == (signal.SIGUSR2, signal.SIGUSR1)
        with trio.fail_after(60):
            assert await inbox.next() == signal.SIGUSR2
            assert inbox.unheard == (signal.SIGUSR1,)
            assert await inbox.next() == signal.SIGUSR1
        assert inbox.unheard == ()
    assert signal.getsignal(signal.SIGUSR1) is before


async def test_a_signal_wakes_whoever_waits_for_it() -> None:
    heard: list[int] = []

    async def listen(inbox: SignalInbox) -> None:
        while True:
            heard.append(await inbox.next())

    with SignalInbox((signal.SIGUSR1,)) as inbox, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, inbox)
            for count in (1, 2):
                await wait_all_tasks_blocked()
                os.kill(os.getpid(), signal.SIGUSR1)
                while len(heard) < count:
                    await trio.sleep(0)
            nursery.cancel_scope.cancel()
    assert heard == [signal.SIGUSR1] * 2
