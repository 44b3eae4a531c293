"""What one probe saw, as a value.

A failed probe is not an exception: it is evidence, and evidence has an origin. An observation
names the generation (and where it could be known, the worker) that produced the answer, and by
which way that is known. One that cannot be attributed is INCONCLUSIVE and never counts as a pass
for a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

DETAIL_BYTES = 512
"""The most that `Observation.detail` holds."""


class Outcome(Enum):
    """Result of one probe."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Attribution(Enum):
    """How it is known who produced an answer, the best way first; words of the public contract."""

    PRIVATE_LISTENER = "private_listener"  # nobody else has the socket open that was connected to
    RESPONSE_HEADER = "response_header"  # the answer names a worker of that generation
    SOCKET_OWNER = "socket_owner"  # a worker of that generation holds the connection's other end
    SOLE_GENERATION = "sole_generation"  # no other accepts connections


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One result of one probe; `generation` is None where the answer could not be attributed.

    `attribution` is how the generation is known, `worker_by` how the worker is (by its header or
    its socket): a private listener tells the first, and not the second.
    """

    probe: str
    outcome: Outcome
    detail: str  # at most DETAIL_BYTES, for people
    latency: float  # seconds from the first byte sent to the end of the answer
    generation: int | None
    worker_pid: int | None = None
    attribution: Attribution | None = None  # None: it could not be known
    worker_by: Attribution | None = None


def bounded_detail(text: str) -> str:
    """`text` on one printable line of at most DETAIL_BYTES bytes of UTF-8.

    What a server or a script answered ends in logs and on terminals: no escape sequence gets there.
    """
    line = " ".join(text.split())
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)
    raw = shown.encode("utf-8", "replace")
    if len(raw) <= DETAIL_BYTES:
        return shown
    return raw[: DETAIL_BYTES - 3].decode("utf-8", "ignore") + "..."
