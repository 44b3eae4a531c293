"""One GET, judged by its status, its body and its time; over TLS and along redirects if so set."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from supervisor.core.http_answer import (
    Answer,
    Follow,
    Judgement,
    Part,
    Refused,
    judge,
    redirect_of,
    searches,
)
from supervisor.core.observation import Attribution, Outcome
from supervisor.core.probe_settings import Address, HttpProbe, TcpAddress
from supervisor.edges import http1
from supervisor.edges.http_exchange import MOST_BODY, BadAnswerError
from supervisor.edges.owner_finding import Owner
from supervisor.edges.pattern_search import found_in
from supervisor.edges.probe_finding import (
    Finding,
    Progress,
    cause_of,
    connect,
    outcome_of,
    trace,
    within,
)
from supervisor.edges.tls_client import context_for, secured, tls_cause

__all__ = ["MOST_BODY", "check_http"]

_RESET = struct.pack("ii", 1, 0)
"""Linger on, for no time: close(2) resets the connection (socket(7))."""


async def check_http(
    probe: HttpProbe, address: Address, owner: Owner | None, *, known: Callable[[int], bool]
) -> Finding:
    """Ask once. Never raises; cancelling closes the connection.

    A worker that only a response header names has to be `known`.

    Each request has a connection of its own. The worker is looked for before the request is sent,
    when it cannot have closed the connection yet, and again after a kept-alive answer; one that
    the answer names itself is not looked for where that would take long. The time runs from the
    first byte sent, which over TLS is the handshake's, to the end of the last answer.
    """

    async def ask(progress: Progress) -> Finding:
        asked = [probe.target]
        asking = _Asking(probe, address, owner, known, progress)
        try:
            while True:
                answer, took = await asking.once(asked[-1])
                step = redirect_of(answer, probe, asked, _own_ports(probe, address))
                if not isinstance(step, Follow):
                    break
                asked.append(step.target)
            found = await _found(answer, probe, progress)
        except BadAnswerError as exc:
            after = f" (after {' -> '.join(asked)})" if len(asked) > 1 else ""
            return progress.finding(exc.outcome, f"{exc}{after}")
        if isinstance(step, Refused):
            told = Judgement(Outcome.FAIL, f"status {answer.status}: {step.why}")
        else:
            told = judge(answer, probe, took, found)
        unproved = probe.tls is not None and not probe.tls.verify
        return Finding(
            outcome=told.outcome,
            detail=told.detail + (" (certificate not verified)" if unproved else ""),
            latency=took, worker_pid=asking.worker, worker_by=asking.worker_by,
            fair=probe.max_latency if told.too_late else None, aside=progress.aside,
        )  # fmt: skip

    return await within(probe.timeout, ask)


async def _found(answer: Answer, probe: HttpProbe, progress: Progress) -> frozenset[Part]:
    """The parts with their pattern in them. Raises BadAnswerError where nobody can tell."""
    with progress.own_time():
        wanted = searches(answer, probe)
        return frozenset([part for part, one, text in wanted if await found_in(text, one)])


@dataclass(slots=True)
class _Asking:
    """One look of a probe, and who gave its last answer."""

    probe: HttpProbe
    address: Address
    owner: Owner | None
    known: Callable[[int], bool]
    progress: Progress
    worker: int | None = None
    worker_by: Attribution | None = None

    async def once(self, target: str) -> tuple[Answer, float]:
        """One answer, and the seconds until its end. Raises BadAnswerError."""
        probe, progress = self.probe, self.progress
        progress.doing, progress.worker_pid = "connecting", None
        context = None
        if probe.tls is not None:
            with progress.own_time():
                context = await context_for(probe.tls)
        try:
            plain = await connect(self.address)
        except OSError as exc:
            raise BadAnswerError(f"cannot connect: {cause_of(exc)}", outcome_of(exc)) from exc
        try:
            progress.doing = "waiting for a worker to accept"
            cheaply = probe.pid_header is not None
            progress.worker_pid = await trace(
                plain, self.owner, progress, patient=True, cheaply=cheaply
            )
            if progress.began is None:
                progress.began = trio.current_time()
            stream: trio.abc.Stream = plain
            if probe.tls is not None and context is not None:
                progress.doing = "TLS handshake"
                stream = await secured(plain, probe.tls, context)
            answer = await _exchange(stream, probe, target, progress)
            took = progress.elapsed
            await self._find_worker(plain, answer)
        finally:
            if probe.tls is not None:
                # By RST: older nginx logs an end without a word of TLS as critical.
                plain.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
            await trio.aclose_forcefully(plain)
        return answer, took

    async def _find_worker(self, plain: trio.SocketStream, answer: Answer) -> None:
        named = _pid_in(answer, self.probe.pid_header)
        if named is not None and self.known(named):
            self.worker, self.worker_by = named, Attribution.RESPONSE_HEADER
            return
        progress = self.progress
        if progress.worker_pid is None:
            progress.worker_pid = await trace(plain, self.owner, progress, patient=False)
        self.worker = progress.worker_pid
        self.worker_by = None if self.worker is None else Attribution.SOCKET_OWNER


async def _exchange(
    stream: trio.abc.Stream, probe: HttpProbe, target: str, progress: Progress
) -> Answer:
    try:
        if probe.tls is not None and probe.tls.http2:
            from supervisor.edges import http2  # most sites have no such probe

            return await http2.exchange(stream, probe, target, progress)
        return await http1.exchange(stream, probe, target, progress)
    except trio.BrokenResourceError as exc:
        told = None if probe.tls is None else tls_cause(exc, probe.tls)
        raise BadAnswerError(
            f"the connection broke while {progress.doing}: {told or cause_of(exc)}"
        ) from exc


def _own_ports(probe: HttpProbe, address: Address) -> Collection[int]:
    return {one.port for one in (probe.address, address) if isinstance(one, TcpAddress)}


def _pid_in(answer: Answer, header: str | None) -> int | None:
    """The worker that the answer names; only digits of a sensible length count."""
    value = None if header is None else answer.header(header)
    return int(value) if value is not None and value.isdigit() and len(value) <= 10 else None
