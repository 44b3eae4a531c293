"""The control protocol without I/O: Varlink messages, their framing, and the client's exit codes.

A message is one JSON object followed by a NUL byte. A call is `{method, parameters, more}` (or
`oneway`), an answer `{parameters, continues}` or `{error, parameters}`. One call at a time is
answered on a connection, in the order in which the calls came.

The client is started anew for each command and should cost little more than the interpreter, so
this module imports nothing when it is loaded: `json` brings in `re`, and that alone takes longer
than a whole `status`. For the same reason the values here are plain slotted classes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERFACE = "org.nginxsupervisor.Control"
SERVICE_INTERFACE = "org.varlink.service"
DEFAULT_SOCKET = "/run/nginx-supervisor/control.sock"
REQUEST_LIMIT = 1 << 16
REPLY_LIMIT = 1 << 26

SUN_PATH_MAX = 107
"""Bytes of a socket's path: sun_path has 108 with the NUL that ends it (unix(7))."""


class ExitCode:
    """What `nginxctl` returns. Not an enum: importing that module costs more than the rest."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    ROLLED_BACK = 4
    UNREACHABLE = 5
    GAVE_UP = 6


class FrameError(Exception):
    """The other side sent something that is no message; nothing that follows can be trusted."""


class Decoder:
    """Cuts a byte stream into messages; keeps at most `limit` bytes of an unfinished one."""

    __slots__ = ("_buffer", "_limit", "_searched")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    @property
    def mid_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)

    @property
    def rest(self) -> bytes:
        """What was fed and has not been returned as a message."""
        return bytes(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next_message(self) -> bytes | None:
        """The next whole message without its NUL, or None until more was fed.

        Raises:
            FrameError: the message is longer than the limit.
        """
        end = self._buffer.find(b"\0", self._searched)
        if (end if end >= 0 else len(self._buffer)) > self._limit:
            raise FrameError(f"the message is longer than {self._limit} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return message


class Call:
    """A parsed call."""

    __slots__ = ("method", "more", "oneway", "parameters", "upgrade")

    def __init__(
        self,
        method: str,
        parameters: dict[str, object],
        *,
        more: bool = False,
        oneway: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.parameters = parameters
        self.more = more
        self.oneway = oneway
        self.upgrade = upgrade


class Reply:
    """A parsed answer; `error` is the full name of a Varlink error, or None."""

    __slots__ = ("continues", "error", "parameters")

    def __init__(
        self, parameters: dict[str, object], *, error: str | None = None, continues: bool = False
    ) -> None:
        self.parameters = parameters
        self.error = error
        self.continues = continues


def encode_call(
    method: str,
    parameters: Mapping[str, object] | None = None,
    *,
    more: bool = False,
    oneway: bool = False,
) -> bytes:
    """The bytes of a call of `method` (with its interface)."""
    if parameters is None and not more and not oneway:
        return b'{"method":"%s"}\0' % method.encode()
    message: dict[str, object] = {"method": method, "parameters": parameters or {}}
    if more:
        message["more"] = True
    if oneway:
        message["oneway"] = True
    return _encode(message)


_PLAIN_START = b'{"parameters":'


def encode_reply(parameters: Mapping[str, object], *, continues: bool = False) -> bytes:
    """The bytes of an answer.

    `continues` comes first in the text, so that a text which begins with `{"parameters":` is
    known to be a last reply and no error: see `plain_parameters`.
    """
    if continues:
        return _encode({"continues": True, "parameters": parameters})
    return _encode({"parameters": parameters})


def encode_rows(name: str, rows: Sequence[Mapping[str, object]]) -> bytes:
    """The bytes of an answer whose one parameter is a list, for a thread of its own.

    Row by row: the interpreter goes from one thread to another between two rows, but not within
    one call of the encoder, however large its argument is.
    """
    import json

    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    texts = ",".join(encode(row) for row in rows)
    return b'%s{"%s":[%s]}}\0' % (_PLAIN_START, name.encode(), texts.encode("ascii"))


def encode_error(error: str, parameters: Mapping[str, object]) -> bytes:
    """The bytes of an error, named with its interface."""
    return _encode({"error": error, "parameters": parameters})


def plain_parameters(message: bytes) -> bytes | None:
    """The text of the parameters of a last reply as our service writes it, without parsing it.

    None for anything else, a legal message of another form included: parse that instead.
    """
    if message.startswith(_PLAIN_START + b"{") and message.endswith(b"}}"):
        return message[len(_PLAIN_START) : -1]
    return None


def parse_call(message: bytes) -> Call:
    """The call in `message`.

    Raises:
        FrameError: it is not a JSON object with a method, or a member has the wrong type.
    """
    members = _decode(message)
    method = members.get("method")
    if not isinstance(method, str):
        raise FrameError("a call needs a method, and that is a string")
    return Call(
        method,
        _parameters(members),
        more=_flag(members, "more"),
        oneway=_flag(members, "oneway"),
        upgrade=_flag(members, "upgrade"),
    )


def parse_reply(message: bytes) -> Reply:
    """The answer in `message`.

    Raises:
        FrameError: it is not a JSON object, or a member has the wrong type.
    """
    members = _decode(message)
    error = members.get("error")
    if error is not None and not isinstance(error, str):
        raise FrameError("the name of an error is a string")
    return Reply(_parameters(members), error=error, continues=_flag(members, "continues"))


def _encode(message: Mapping[str, object]) -> bytes:
    import json

    # ASCII only: a file name that is no UTF-8 travels as a lone surrogate, which has no UTF-8 form.
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\0"


def _decode(message: bytes) -> dict[str, object]:
    import json

    try:
        members = json.loads(message.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise FrameError("the message is nested too deeply") from None
    except ValueError as exc:  # no UTF-8, no JSON, or an integer with thousands of digits
        raise FrameError(f"the message is no JSON: {exc}") from exc
    if not isinstance(members, dict):
        raise FrameError("a message is a JSON object")
    return members


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON value")


def _parameters(members: dict[str, object]) -> dict[str, object]:
    parameters = members.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise FrameError("parameters are a JSON object")
    return parameters


def _flag(members: dict[str, object], name: str) -> bool:
    flag = members.get(name)
    if flag is not None and not isinstance(flag, bool):
        raise FrameError(f"{name} is true or false")
    return bool(flag)
