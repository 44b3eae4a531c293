"""The beat: never early, not slowed by what happens between, and without leaving a descriptor."""

from __future__ import annotations

import os
import select
import time

import trio

from supervisor.edges.pulse import Pulse

BEAT = 0.0005


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_beat_that_was_missed_counts() -> None:
    with Pulse(BEAT) as pulse:
        await pulse.tick()
        time.sleep(10 * BEAT)  # a look that takes its time
        assert select.select([pulse._fd], [], [], 0)[0]
        await pulse.tick()


async def test_it_is_not_early() -> None:
    began = trio.current_time()
    with Pulse(0.02) as pulse:
        await pulse.tick()
    assert trio.current_time() - began >= 0.02


async def test_cancelling_ends_the_wait_and_leaves_nothing() -> None:
    before = descriptors()
    with trio.move_on_after(0.01) as scope, Pulse(600.0) as pulse:
        await pulse.tick()
    assert scope.cancelled_caught
    assert descriptors() == before


async def test_without_a_descriptor_it_is_late_but_comes() -> None:
    pulse = Pulse(BEAT)  # as where the kernel gave none
    began = trio.current_time()
    await pulse.tick()
    assert trio.current_time() - began >= BEAT
