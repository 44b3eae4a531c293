"""The prober: when it asks, for whom an answer counts, and that nothing stays behind."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from supervisor.core.observation import DETAIL_BYTES, Attribution, Observation, Outcome
from supervisor.core.probe_settings import ProbeSettings, TcpAddress, TcpProbe
from supervisor.edges.probes import Aim, Prober
from tests.edges.probe_targets import (
    LIMIT,
    OK,
    SELF,
    WORKER,
    answering,
    held_by,
    http,
    owned_by,
    read_request,
    script,
    serving,
)


class Reports:
    """What the prober told, and a way to wait for more."""

    def __init__(self) -> None:
        self.all: list[Observation] = []
        self._more = trio.Event()

    def __call__(self, seen: Observation) -> None:
        self.all.append(seen)
        self._more.set()

    async def next(self, count: int = 1) -> list[Observation]:
        """`count` observations that come from now on."""
        have = len(self.all)
        with trio.fail_after(LIMIT):
            while len(self.all) < have + count:
                self._more = trio.Event()
                await self._more.wait()
        return self.all[have : have + count]


@asynccontextmanager
async def probing(*probes: ProbeSettings) -> AsyncIterator[tuple[Prober, Reports]]:
    reports = Reports()
    prober = Prober(probes, report=reports, worker_identity=lambda: WORKER)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run)
        yield prober, reports
        nursery.cancel_scope.cancel()


async def test_probes_run_again_and_again_for_the_generation_that_is_aimed_at() -> None:
    async with serving(answering(OK)) as port:
        second = replace(http(port), name="second", interval=0.01)
        async with probing(http(port, interval=0.01), second) as (prober, reports):
            prober.aim(Aim(generation=1))
            seen = await reports.next(6)
            assert {one.probe for one in seen} == {"home", "second"}
            assert {(one.outcome, one.generation) for one in seen} == {(Outcome.PASS, 1)}
            assert {one.attribution for one in seen} == {Attribution.SOLE_GENERATION}


async def test_what_was_seen_before_the_aim_that_holds_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer to the canary, say, that comes in the moment of the shift is none of the soak's."""
    asked, answered = trio.Event(), trio.Event()

    async def look(_self: Prober, probe: ProbeSettings, current: Any) -> Observation:
        if current.aim.generation == 1:
            asked.set()
            await answered.wait()
        return Observation(
            probe=probe.name, outcome=Outcome.PASS, detail="", latency=0.0,
            generation=current.aim.generation,
        )  # fmt: skip

    monkeypatch.setattr(Prober, "_observe", look)
    async with probing(http(1, interval=3600.0)) as (prober, reports):
        prober.aim(Aim(generation=1))
        await asked.wait()
        answered.set()
        prober.aim(Aim(generation=2))
        (seen,) = await reports.next()
        assert seen.generation == 2


async def test_a_new_aim_starts_a_fresh_round_at_once() -> None:
    async with (
        serving(answering(OK)) as port,
        probing(http(port, interval=3600.0)) as (prober, reports),
    ):
        for generation in (1, 2, 3):
            prober.aim(Aim(generation=generation))
            (seen,) = await reports.next()
            assert seen.generation == generation


async def test_a_new_aim_breaks_off_the_probes_that_run() -> None:
    asked = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        await read_request(stream)
        asked.set()
        await trio.sleep_forever()

    async with (
        serving(hang) as silent,
        serving(answering(OK)) as port,
        probing(http(silent)) as (prober, reports),
    ):
        prober.aim(Aim(generation=1))
        await asked.wait()
        prober.aim(Aim(generation=2, address=("127.0.0.1", port)))
        (seen,) = await reports.next()
        assert (seen.generation, seen.outcome) == (2, Outcome.PASS)
        assert len(reports.all) == 1


async def test_a_pause_reports_nothing() -> None:
    asked = trio.Event()
    left = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        await read_request(stream)
        asked.set()
        assert await stream.receive_some(1) == b""
        left.set()

    async with serving(hang) as port, probing(http(port)) as (prober, reports):
        prober.cover(frozenset({1}))  # nobody is aimed at: nothing happens
        prober.aim(Aim(generation=1))
        await asked.wait()
        prober.pause()
        with trio.fail_after(LIMIT):
            await left.wait()
        assert reports.all == []


async def test_a_probe_never_runs_beside_itself() -> None:
    running = most = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal running, most
        await read_request(stream)
        running += 1
        most = max(most, running)
        await trio.sleep(0.02)
        running -= 1
        await stream.send_all(OK)

    async with serving(handle) as port, probing(http(port, interval=0.001)) as (prober, reports):
        prober.aim(Aim(generation=1))
        await reports.next(5)
    assert most == 1


async def test_an_answer_over_a_shared_listener_proves_nothing() -> None:
    private = [True]
    async with serving(answering(OK)) as port:
        probe = http(1, interval=0.01)
        async with probing(probe) as (prober, reports):
            prober.aim(
                Aim(
                    generation=2, address=("127.0.0.1", port), exclusive=lambda: private[0],
                    owner=held_by(SELF),
                )
            )  # fmt: skip
            (seen,) = await reports.next()
            assert (seen.outcome, seen.generation) == (Outcome.PASS, 2)
            assert seen.worker_pid == SELF
            assert seen.attribution is Attribution.PRIVATE_LISTENER
            assert seen.worker_by is Attribution.SOCKET_OWNER
            private[0] = False
            seen = (await reports.next(2))[1]
            assert (seen.outcome, seen.generation, seen.worker_pid) == (
                Outcome.INCONCLUSIVE, None, None,
            )  # fmt: skip
            assert seen.detail == "probe_listener_shared (status 200)"


async def test_failures_over_a_private_listener_are_the_candidates() -> None:
    async with (
        serving(answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")) as port,
        probing(http(1)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, address=("127.0.0.1", port), exclusive=lambda: True))
        (seen,) = await reports.next()

    assert (seen.outcome, seen.generation) == (Outcome.FAIL, 2)


@pytest.mark.parametrize(
    ("owner", "expected"),
    [(SELF, (Outcome.PASS, 2, SELF)), (None, (Outcome.INCONCLUSIVE, None, None))],
    ids=["traced", "not traced"],
)
async def test_on_a_public_address_only_a_traced_answer_counts(
    owner: int | None, expected: tuple[Outcome, int | None, int | None]
) -> None:
    async with serving(answering(OK)) as port, probing(http(port)) as (prober, reports):
        prober.aim(Aim(generation=2, owner=held_by(owner), sole=False))
        (seen,) = await reports.next()
    assert (seen.outcome, seen.generation, seen.worker_pid) == expected
    by = None if owner is None else Attribution.SOCKET_OWNER
    assert (seen.attribution, seen.worker_by) == (by, by)


@pytest.mark.parametrize("by", ["cover", "workers"])
async def test_a_named_worker_has_to_be_the_candidates(by: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Pid: 77\r\nContent-Length: 0\r\n\r\n"
    async with (
        serving(answering(answer)) as port,
        probing(http(port, pid_header="X-Pid")) as (prober, reports),
    ):
        for pid, outcome in ((77, Outcome.PASS), (78, Outcome.INCONCLUSIVE)):
            if by == "cover":
                prober.aim(Aim(generation=2, sole=False, cover=frozenset({pid})))
            else:
                prober.aim(Aim(generation=2, sole=False, workers=lambda pid=pid: {pid}))
            (seen,) = await reports.next()
            assert seen.outcome is outcome


async def test_every_worker_is_asked_for_at_once() -> None:
    workers = frozenset(range(100, 116))
    turn = iter(range(10**6))

    def owner() -> int:
        return 100 + (next(turn) * 7) % 16

    async with serving(answering(OK)) as port:
        probe = http(port, interval=3600.0)
        async with probing(probe) as (prober, reports):
            prober.aim(Aim(generation=2, owner=owned_by(owner), cover=workers))
            seen = await reports.next(16)
            assert {one.worker_pid for one in seen} == workers
            # A new worker is asked for with the next round, without a new aim.
            prober.cover(workers | {200})
            with trio.move_on_after(0.2):
                await reports.next()
            assert len(reports.all) == 16


async def test_asking_for_a_worker_that_never_answers_ends() -> None:
    async with serving(answering(OK)) as port:
        for probes in ((http(port, interval=3600.0),), (tcp_probe(port), tcp_probe(port, "b"))):
            async with probing(*probes) as (prober, reports):
                prober.aim(Aim(generation=2, owner=held_by(1), cover=frozenset({1, 2, 3, 4})))
                limit = math.ceil(16 * math.log(4)) + 16
                await reports.next(limit + len(probes))
                with trio.move_on_after(0.2):
                    await reports.next()
                assert len(reports.all) == limit + len(probes)


def tcp_probe(port: int, name: str = "a") -> TcpProbe:
    return TcpProbe(
        name=name, address=TcpAddress("127.0.0.1", port), interval=3600.0, timeout=LIMIT
    )


async def test_a_failure_is_not_asked_for_again_at_once() -> None:
    async with (
        serving(answering(b"x")) as port,
        probing(http(port, interval=3600.0), tcp_probe(port)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, owner=held_by(1), cover=frozenset({1, 2})))
        seen = await reports.next(2)
        with trio.move_on_after(0.2):
            await reports.next()
        assert len(reports.all) == 2
        assert {one.outcome for one in seen} == {Outcome.PASS, Outcome.FAIL}


async def test_commands_learn_the_private_address_and_count_only_then() -> None:
    asking = replace(script('echo "$PROBE_ADDRESS"'), name="asking", uses_probe_address=True)
    other = replace(script("true"), name="other")
    async with probing(asking, other) as (prober, reports):
        prober.aim(Aim(generation=1))
        before = {one.probe: one for one in await reports.next(2)}
        assert before["asking"].detail == "exit code 0"
        assert {one.generation for one in before.values()} == {1}
        prober.aim(
            Aim(
                generation=2, address=("127.0.0.1", 18931), exclusive=lambda: True,
                not_asked={"other": "it asks elsewhere"},
            )
        )  # fmt: skip
        within = {one.probe: one for one in await reports.next(2)}
        assert within["asking"].detail == "exit code 0: 127.0.0.1:18931"
        assert within["asking"].generation == 2
        assert within["other"].outcome is Outcome.INCONCLUSIVE
        assert within["other"].generation is None
        assert within["other"].detail == "it asks elsewhere (exit code 0)"


async def test_a_probe_that_is_not_asked_there_goes_on_asking_its_own_address() -> None:
    async with serving(answering(OK)) as port, probing(http(port)) as (prober, reports):
        prober.aim(
            Aim(
                generation=2, address=("127.0.0.1", 1), exclusive=lambda: True, prove_within=10.0,
                owner=held_by(1), cover=frozenset({1, 2}), not_asked={"home": "not its own"},
            )
        )  # fmt: skip
        (seen,) = await reports.next()
        assert (seen.outcome, seen.detail) == (Outcome.INCONCLUSIVE, "not its own (status 200)")
        assert (seen.generation, seen.worker_pid) == (None, None)
        with trio.move_on_after(0.2):
            await reports.next()
        assert len(reports.all) == 1


async def test_each_kind_of_probe_proves_itself_at_once() -> None:
    async with serving(answering(OK)) as port:
        rare = {"interval": 3600.0, "rise": 4}
        probes = (
            http(port, **rare), replace(tcp_probe(port), rise=3),
            replace(script("true"), rise=2, interval=3600.0),
        )  # fmt: skip
        async with probing(*probes) as (prober, reports):
            prober.aim(Aim(generation=2, prove_within=10.0))
            await reports.next(9)
            with trio.move_on_after(0.2):
                await reports.next()
            by_name = [one.probe for one in reports.all]
            assert {name: by_name.count(name) for name in by_name} == {
                "home": 4,
                "a": 3,
                "check": 2,
            }


async def test_a_failure_breaks_the_row_and_waits_for_the_interval() -> None:
    answers = iter([OK, OK, b"x", OK, OK, OK, OK])

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(next(answers))

    async with (
        serving(handle) as port,
        probing(http(port, rise=3, interval=0.4)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, prove_within=3600.0))
        began = trio.current_time()
        seen = await reports.next(6)
        assert trio.current_time() - began > 0.3
        passed = [one.outcome is Outcome.PASS for one in seen]
        assert passed == [True, True, False, True, True, True]


async def test_failures_fit_into_the_time_that_there_is() -> None:
    async with (
        serving(answering(b"x")) as port,
        probing(http(port, interval=3600.0, fall=3)) as (prober, reports),
    ):
        began = trio.current_time()
        prober.aim(Aim(generation=2, prove_within=0.4))
        await reports.next(4)
        assert trio.current_time() - began >= 0.1 * 3


async def test_where_there_is_no_end_a_failure_waits_for_the_interval() -> None:
    async with (
        serving(answering(b"x")) as port,
        probing(http(port, interval=3600.0, fall=3)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2))
        await reports.next()
        with trio.move_on_after(0.2):
            await reports.next()
        assert len(reports.all) == 1


async def test_who_asks_for_it_is_heard_before_the_interval() -> None:
    async with serving(answering(OK)) as port:
        probes = (http(port, interval=3600.0), tcp_probe(port))
        async with probing(*probes) as (prober, reports):
            prober.ask(["home"])  # nobody is aimed at yet
            prober.aim(Aim(generation=1))
            await reports.next(2)
            await trio.testing.wait_all_tasks_blocked(0.02)
            prober.ask(["home", "unheard of"])
            (seen,) = await reports.next()
            assert seen.probe == "home"
            with trio.move_on_after(0.1):
                await reports.next()
            assert len(reports.all) == 3


async def test_in_public_an_answer_of_nobody_known_is_asked_for_again() -> None:
    found = iter([None, None, 1, *[None] * 1000])

    def owner() -> int | None:
        return next(found)

    async with (
        serving(answering(OK)) as port,
        probing(http(port, interval=3600.0)) as (prober, reports),
    ):
        prober.aim(Aim(generation=2, owner=owned_by(owner), cover=frozenset({1}), sole=False))
        (seen,) = await reports.next()
        assert seen.worker_pid == 1
        with trio.move_on_after(0.1):
            await reports.next()
        assert len(reports.all) == 1  # every worker has answered
        prober.aim(Aim(generation=2, owner=owned_by(owner), cover=frozenset({1}), sole=False))
        await reports.next(17)  # bounded: it may never be reached
        with trio.move_on_after(0.2):
            await reports.next()
        assert len(reports.all) == 18
        assert {one.outcome for one in reports.all[1:]} == {Outcome.INCONCLUSIVE}


async def test_details_are_short_and_printable() -> None:
    async with probing(script("printf '\\033[31m%0600d' 1")) as (prober, reports):
        prober.aim(Aim(generation=1))
        (seen,) = await reports.next()
    assert len(seen.detail.encode()) <= DETAIL_BYTES
    assert seen.detail.isprintable()


async def test_no_descriptor_is_left() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with (
        serving(answering(OK)) as port,
        probing(
            http(port, interval=0.01), replace(script("true"), interval=0.01), tcp_probe(port)
        ) as (prober, reports),
    ):
        prober.aim(Aim(generation=1))
        await reports.next(10)
        prober.pause()
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = descriptors()
        for generation in range(20):
            prober.aim(Aim(generation=generation))
            await reports.next(3)
        prober.pause()
        deadline = time.monotonic() + LIMIT
        while descriptors() > before and time.monotonic() < deadline:
            await trio.sleep(0.01)
        assert descriptors() <= before
