"""Framing and messages, without any I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import wire

OBJECTS = st.dictionaries(st.text(), st.text() | st.integers() | st.none())


def messages_of(decoder: wire.Decoder, data: bytes) -> list[bytes]:
    decoder.feed(data)
    found = []
    while (message := decoder.next_message()) is not None:
        found.append(message)
    return found


@given(
    messages=st.lists(st.binary().filter(lambda b: b"\0" not in b), max_size=5),
    cuts=st.lists(st.integers(min_value=1, max_value=9), min_size=1),
)
def test_messages_survive_any_cutting(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(message + b"\0" for message in messages)
    decoder = wire.Decoder(1000)
    found = []
    while stream:
        size = cuts[len(stream) % len(cuts)]
        found += messages_of(decoder, stream[:size])
        stream = stream[size:]
    assert found == messages
    assert not decoder.mid_message


def test_the_limit_is_exact_for_whole_and_unfinished_messages() -> None:
    assert messages_of(wire.Decoder(4), b"1234\0") == [b"1234"]
    for data in (b"12345\0", b"12345"):
        decoder = wire.Decoder(4)
        decoder.feed(data)
        with pytest.raises(wire.FrameError, match="longer than 4 bytes"):
            decoder.next_message()


def test_mid_message() -> None:
    decoder = wire.Decoder(10)
    assert not decoder.mid_message
    assert messages_of(decoder, b"a\0b") == [b"a"]
    assert decoder.mid_message


@given(parameters=OBJECTS, more=st.booleans(), oneway=st.booleans())
def test_calls_come_back(*, parameters: dict[str, object], more: bool, oneway: bool) -> None:
    (message,) = messages_of(
        wire.Decoder(1 << 20), wire.encode_call("a.b.C", parameters, more=more, oneway=oneway)
    )
    call = wire.parse_call(message)
    assert (call.method, call.parameters, call.more, call.oneway) == (
        "a.b.C",
        parameters,
        more,
        oneway,
    )


@given(parameters=OBJECTS, continues=st.booleans())
def test_replies_come_back(*, parameters: dict[str, object], continues: bool) -> None:
    (message,) = messages_of(
        wire.Decoder(1 << 20), wire.encode_reply(parameters, continues=continues)
    )
    reply = wire.parse_reply(message)
    assert (reply.parameters, reply.continues, reply.error) == (parameters, continues, None)
    assert (wire.plain_parameters(message) is None) == continues


def test_errors_come_back_and_are_not_plain() -> None:
    (message,) = messages_of(wire.Decoder(100), wire.encode_error("a.b.E", {"x": {}}))
    reply = wire.parse_reply(message)
    assert (reply.error, reply.parameters) == ("a.b.E", {"x": {}})
    assert wire.plain_parameters(message) is None


def test_plain_parameters_are_the_text() -> None:
    (message,) = messages_of(wire.Decoder(100), wire.encode_reply({"a": 1}))
    assert wire.plain_parameters(message) == b'{"a":1}'
    assert wire.plain_parameters(b'{ "parameters" : {} }') is None


def test_a_name_that_is_no_utf8_travels() -> None:
    name = b"/bin/\xff".decode("utf-8", "surrogateescape")
    (message,) = messages_of(wire.Decoder(100), wire.encode_call("a.b.C", {"binary": name}))
    assert wire.parse_call(message).parameters == {"binary": name}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"nonsense",
        b"\xff",
        b"[]",
        b"{}",
        b"1",
        b'{"method":1}',
        b'{"method":"a.b.C","parameters":[]}',
        b'{"method":"a.b.C","more":1}',
        b'{"method":"a.b.C","oneway":"yes"}',
        b'{"method":"a.b.C","upgrade":0}',
        b'{"method":"a.b.C","parameters":{"x":NaN}}',
        b'{"method":"a.b.C","parameters":{"x":-Infinity}}',
        b'{"method":"a.b.C","parameters":{"x":' + b"9" * 5000 + b"}}",
        b"[" * 500_000,
        b'{"method":"a.b.C","parameters":' + b'{"x":' * 100_000,
    ],
)
def test_no_call(message: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.parse_call(message)


@pytest.mark.parametrize("message", [b"x", b"[]", b'{"error":1}', b'{"continues":2}'])
def test_no_reply(message: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.parse_reply(message)


def test_null_members_are_as_good_as_none() -> None:
    call = wire.parse_call(b'{"method":"a.b.C","parameters":null,"more":null}')
    assert (call.parameters, call.more) == ({}, False)


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": "\ud800"}, {"b": [None, {"c": 0.5}]}]])
def test_rows_are_a_reply_like_any_other(rows: list[dict[str, object]]) -> None:
    assert wire.encode_rows("entries", rows) == wire.encode_reply({"entries": rows})
