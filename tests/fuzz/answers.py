"""`answers`: what any server may send to an http probe, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from supervisor.core.http_answer import Answer, Follow, judge, redirect_of, searches
from supervisor.core.probe_settings import HttpProbe, parse_probe
from supervisor.edges import http1, http2
from supervisor.edges.http_exchange import MOST_BODY, BadAnswerError
from supervisor.edges.probe_finding import Progress
from tests.fuzz.choices import Choices


def _probe(**more: object) -> HttpProbe:
    found = parse_probe({"name": "p", "type": "http", "url": "https://127.0.0.1/a?b", **more}, 1)
    assert isinstance(found, HttpProbe)
    return found


_PROBES = (
    _probe(expect_body="ok", follow_redirects=3),
    _probe(expect_status=[301], expect_location="^/", max_latency="1s"),
)
_Exchange = Callable[[trio.abc.Stream, HttpProbe, str, Progress], Awaitable[Answer]]
_FRAMES = (0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255)
_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


class _Stream(trio.abc.Stream):
    """What a server sends, in pieces, before it closes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        taken, rest = piece[:max_bytes], piece[max_bytes:] if max_bytes is not None else b""
        self._pieces[0:1] = [rest] if rest else []
        return taken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def answers_target(data: bytes) -> None:
    """An answer, or a word about what it is instead, however the bytes come; and it is judged."""
    choices = Choices(data)
    probe, by_http2 = choices.one_of(_PROBES), choices.yes()
    size = 1 + choices.number(40)
    sent = _frames(choices) if by_http2 else choices.rest()
    exchange = http2.exchange if by_http2 else http1.exchange
    cut = [sent[at : at + size] for at in range(0, len(sent), size)]
    whole, parts = trio.run(_both, probe, [sent] if sent else [], cut, exchange)
    if isinstance(whole, Answer):
        assert parts == whole
        _check(whole, probe)
        return
    assert not isinstance(parts, Answer), "the same bytes are an answer when they come in pieces"
    for said in (whole, parts):
        assert said.strip()
        assert len(said) < 400, said


def _frames(choices: Choices) -> bytes:
    """Mostly frames, after a greeting, most of them of our request."""
    sent = _SETTINGS if choices.number(8) else b""
    while choices.left:
        if choices.number(16) == 1:
            return sent + choices.rest()
        kind, flags = choices.one_of(_FRAMES), choices.one_of((4, 5, 0, 1, 8, 0x20, 255))
        stream = choices.one_of((1, 1, 1, 0, 2, 3))
        payload = choices.one_of((b"", b"\x88", b"\x8b", b"\0\0\0\1\0\0\0\0")) + choices.some()
        sent += len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
        sent += payload
    return sent


async def _both(
    probe: HttpProbe, whole: Sequence[bytes], cut: Sequence[bytes], exchange: _Exchange
) -> tuple[Answer | str, Answer | str]:
    return await _ask(probe, whole, exchange), await _ask(probe, cut, exchange)


async def _ask(probe: HttpProbe, pieces: Sequence[bytes], exchange: _Exchange) -> Answer | str:
    try:
        return await exchange(_Stream(pieces), probe, probe.target, Progress())
    except BadAnswerError as exc:
        return str(exc)


def _check(answer: Answer, probe: HttpProbe) -> None:
    assert len(answer.body) <= MOST_BODY
    assert all(name == name.lower() for name, _ in answer.headers)
    asked = [probe.target]
    while isinstance(step := redirect_of(answer, probe, asked, {443, 18931}), Follow):
        assert step.target.startswith("/")
        assert all("\x21" <= one <= "\x7e" for one in step.target)
        assert step.target not in asked
        asked.append(step.target)
        assert len(asked) <= 1 + probe.follow_redirects
    for found in ([], [part for part, _, _ in searches(answer, probe)]):
        assert judge(answer, probe, 0.1, found).detail.startswith(f"status {answer.status}")
