"""Whether a pattern is in a text, in bounded time, whatever the text is.

Python's regular expressions backtrack: `"status":.*"up"` takes minutes for a megabyte of
`"status":` on one line, and `(\\w+\\s?)*ok` takes for ever for a few dozen letters. A bad candidate
may answer just that, and the search would hold the engine up, as nothing in this process can
interrupt it. So a search that might take long for a text of this length is made in a process of its
own, which the kernel ends when it has used its CPU time; on an overloaded host that is no shorter.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import trio

from supervisor.core.observation import Outcome
from supervisor.edges import children
from supervisor.edges.http_exchange import BadAnswerError

CPU_LIMIT = 2
"""Seconds of CPU time for one search: a megabyte takes some milliseconds for a good pattern."""
WALL_LIMIT = 20.0
"""Seconds after which even a host that gives hardly any CPU time is not waited for."""
MOST_STEPS = 1_000_000
"""Steps of a search that is made at once: some milliseconds."""

_REPEATS = frozenset("*+{")
_NESTED = re.compile(r"\)[*+{]")
_BACK = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")  # references back
_MOST_CHOICES = 16
_MATCH, _NO_MATCH = 3, 4
_PROGRAM = f"""
import resource, re, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_LIMIT}, {CPU_LIMIT}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
length, _, rest = sys.stdin.buffer.read().partition(b"\\n")
both = rest[:int(length)], rest[int(length):]
pattern, text = (one.decode("utf-8", "surrogatepass") for one in both)
sys.exit({_MATCH} if re.search(pattern, text) else {_NO_MATCH})
"""


async def found_in(text: str, pattern: re.Pattern[str]) -> bool:
    """Whether `pattern` is somewhere in `text`.

    Raises BadAnswerError where that cannot be told in time. Cancelling ends the search.
    """
    if is_quick(pattern.pattern, len(text)):
        return pattern.search(text) is not None
    code: int | None = None
    try:
        with trio.move_on_after(WALL_LIMIT):
            code = await _search_apart(pattern.pattern, text)
    except OSError as exc:
        why = f"cannot search for {pattern.pattern!r}: {exc.strerror}"
        raise BadAnswerError(why, Outcome.INCONCLUSIVE) from exc
    if code in (_MATCH, _NO_MATCH):
        return code == _MATCH
    shown = f"whether {pattern.pattern!r} matches an answer of {len(text)} characters"
    if code is None:
        why = f"host overloaded: nobody could tell within {WALL_LIMIT:g} s {shown}"
        raise BadAnswerError(why, Outcome.INCONCLUSIVE)
    raise BadAnswerError(f"it takes more than {CPU_LIMIT} s of CPU time to tell {shown}")


def is_quick(pattern: str, length: int) -> bool:
    """Whether a search in so many characters surely takes no more than `MOST_STEPS`.

    Without repetition it takes one attempt for each place. Each repetition multiplies that by the
    length; within each other, or with references back, there is no bound.
    """
    if pattern.count("?") > _MOST_CHOICES:
        return False
    repeats = sum(one in _REPEATS for one in pattern)
    if not repeats:
        return True
    if _NESTED.search(pattern) or _BACK.search(pattern):
        return False
    return bool(length ** (repeats + 1) <= MOST_STEPS)


async def _search_apart(pattern: str, text: str) -> int:
    """How the process ended that searched."""
    wanted = pattern.encode("utf-8", "surrogatepass")
    message = b"%d\n%s%s" % (len(wanted), wanted, text.encode("utf-8", "surrogatepass"))
    with trio.CancelScope(shield=True):  # a process that was made is also ended
        process = children.note(
            await children.start(
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        )
    try:
        assert process.stdin is not None
        with contextlib.suppress(trio.BrokenResourceError):  # it is gone: its end tells why
            await process.stdin.send_all(message)
        await process.stdin.aclose()
        return await process.wait()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
            process.kill()
            await process.wait()
