"""Standard output and standard error, either of which may be closed, full, or read by nobody."""

from __future__ import annotations

import os
import sys

from supervisor import wire
from supervisor.cli.connection import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


class OutputLostError(ClientError):
    """Standard output takes no more; what was asked of the supervisor is not touched by that."""

    def __init__(self, cause: str) -> None:
        super().__init__(wire.ExitCode.FAILED, f"cannot write to standard output: {cause}")


def insist_on_output() -> None:
    """Raise ClientError where standard output is closed: before anything is asked."""
    if sys.stdout is None:
        text = "cannot write to standard output: it is closed; where it is not wanted, >/dev/null"
        raise ClientError(wire.ExitCode.USAGE, text)


def width() -> int | None:
    """How many characters fit into a line of the terminal; None where it is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def line(text: str) -> bool:
    """Print one line at once; False where its reader went away: that one has seen enough.

    Raises:
        OutputLostError: it cannot be written for another cause.
    """
    return _write(f"{text}\n".encode(sys.stdout.encoding, "backslashreplace"))


def raw_line(text: bytes) -> None:
    """The same for a text that is encoded already."""
    _write(text + b"\n")


def _write(data: bytes) -> bool:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return False
    except OSError as exc:
        _discard(sys.stdout)
        raise OutputLostError(exc.strerror or str(exc)) from exc
    return True


def complain(text: str) -> None:
    """Print `text` to standard error, if that takes it."""
    if sys.stderr is None:  # and print would take None for standard output
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Whatever is left in `stream` goes nowhere, else the interpreter complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
