"""The client's end of the control socket: blocking, with one deadline for all of it."""

from __future__ import annotations

# The C module alone: `socket` brings in enum and selectors, and takes longer than all the rest.
import _socket
import os
import sys
import time

from supervisor import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_CHUNK = 1 << 16
_QUEUE_WAIT = 10.0  # seconds for a place where many others connect, too
_DYING = 0.3  # seconds that a process may take from one close to the last
_LONGEST_WAIT = 86400.0  # poll(2) counts milliseconds in an int, which ends after 24 days


class ClientError(Exception):
    """The command ends with `code`; `message` says why and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class WaitEnded(ClientError):  # noqa: N818 - says what happened
    """The call was sent, and its end will not be seen: too slow, or the connection was lost."""

    def __init__(self, cause: str) -> None:
        super().__init__(wire.ExitCode.GAVE_UP, cause)


class LostError(WaitEnded):
    """The connection broke off, and perhaps the supervisor ended."""


class Connection:
    """A connection to the supervisor at `path`; use it with `with`.

    `timeout` (seconds, None for ever) runs from the construction and covers everything.

    Raises:
        ClientError: it cannot be reached; the message has the remedy.
    """

    __slots__ = ("_deadline", "_decoder", "_path", "_socket", "_timeout")

    def __init__(self, path: str, *, timeout: float | None) -> None:
        self._path = path
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._decoder = wire.Decoder(wire.REPLY_LIMIT)
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._connect(path)
        except TimeoutError as exc:
            self._socket.close()
            cause = f"gave up after {timeout:g} s, before the supervisor was asked for anything"
            raise ClientError(wire.ExitCode.UNREACHABLE, cause) from exc
        except (OSError, ValueError) as exc:
            self._socket.close()
            raise _unreachable(path, exc) from exc

    def _connect(self, path: str) -> None:
        """Connect, after waiting for a place in the queue of those that are not accepted yet.

        Only a blocking connect(2) waits for that, in the order of arrival (unix_wait_for_peer in
        net/unix/af_unix.c); its limit is SO_SNDTIMEO, and it then fails with EAGAIN.
        """
        remaining = self._remaining()
        wait = _QUEUE_WAIT if remaining is None else min(remaining, _QUEUE_WAIT)
        parts = int(wait), min(int(wait % 1 * 1e6) + 1, 999_999)  # 0 would be for ever
        word = 8 if sys.maxsize > 1 << 32 else 4  # struct timeval: two of type long
        limit = b"".join(part.to_bytes(word, sys.byteorder) for part in parts)
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
        self._socket.connect(path)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send one message; raises WaitEnded when it does not get through."""
        try:
            self._socket.settimeout(self._remaining())
            self._socket.sendall(message)
        except TimeoutError as exc:
            raise self._gave_up() from exc
        except (BrokenPipeError, ConnectionError):
            return  # a server that refuses says why first: `receive` finds it, or the loss

    def receive(self) -> bytes:
        """The next message; raises WaitEnded when there will be none."""
        try:
            while (message := self._decoder.next_message()) is None:
                self._socket.settimeout(self._remaining())
                try:
                    data = self._socket.recv(_CHUNK)
                except TimeoutError:
                    continue  # whether that was the end of the patience is known above
                if not data:
                    raise self._lost("it was closed")
                self._decoder.feed(data)
        except TimeoutError as exc:
            raise self._gave_up() from exc
        except OSError as exc:
            raise self._lost(exc.strerror or str(exc)) from exc
        except wire.FrameError as exc:
            raise self._lost(str(exc)) from exc
        return message

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        return min(remaining, _LONGEST_WAIT)

    def _gave_up(self) -> WaitEnded:
        return WaitEnded(f"gave up waiting for the supervisor after {self._timeout:g} s")

    def _lost(self, cause: str) -> LostError:
        return LostError(f"lost the connection to the supervisor at {self._path}: {cause}")


def is_gone(path: str) -> bool:
    """Whether no supervisor listens at `path` any more, looked at until that is certain.

    One that dies closes its sockets one after the other, and the one that listens may be the last.
    """
    until = time.monotonic() + _DYING
    while _listens(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _listens(path: str) -> bool:
    trial = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        trial.settimeout(0)
        trial.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        return True  # it takes no connections, but it is there
    finally:
        trial.close()
    return True


def _is_socket(path: str) -> bool:
    import stat

    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # it was one a moment ago
        return True


def _unreachable(path: str, exc: Exception) -> ClientError:
    if isinstance(exc, FileNotFoundError):
        cause = "there is no such socket; start the supervisor, or name its socket with --socket"
    elif isinstance(exc, ConnectionRefusedError) and not _is_socket(path):
        cause = "that is no socket; name the supervisor's with --socket"
    elif isinstance(exc, ConnectionRefusedError):
        cause = "nobody listens there; start the supervisor"
    elif isinstance(exc, PermissionError):
        cause = (
            "permission denied; run nginxctl as root or as the supervisor's user, or have root let "
            "you connect (mode and group in [control]) and give you a role there"
        )
    elif isinstance(exc, BlockingIOError):
        cause = "it does not take connections; see whether its process is stopped or hangs"
    else:
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        cause = f"{text}; name the supervisor's socket with --socket"
    return ClientError(
        wire.ExitCode.UNREACHABLE, f"cannot reach the supervisor at {path!r}: {cause}"
    )
