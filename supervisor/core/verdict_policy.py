"""How evidence becomes a decision about a candidate: the windows, the numbers, and what doubt does.

Two times are kept apart. The *come-up deadline* (`come_up`) is how long the candidate may take to
be ready, and then, beyond the canary's duration, to be proved healthy. The *stay-up windows*
(`canary`, `soak`) are how long it has to hold up: with both generations accepting, then alone.

At the end of each window the evidence is concluded:

- `PASS`: each probe that passed before the upgrade has been heard at least `min_samples` times, has
  passed `rise` times in a row (the canary) or well at last (the soak), every worker that can be
  asked has answered, and no trigger fired. Where no probe could judge, the triggers alone decide;
  that is a pass too, and the verdict says `unjudged`.
- `FAIL`: a trigger fired, or a probe failed `fall` times in a row, in the middle of a window as
  well; the candidate is rolled back, whatever `on_inconclusive` says.
- `INCONCLUSIVE`: nothing speaks against it, and not enough for it: probes that passed before gave
  no answer that could be attributed to the candidate, or too few. `on_inconclusive` decides.

`rise` and `fall` belong to each probe (`judge.Criterion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Conclusion(Enum):
    """What the evidence of one window comes to."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class OnInconclusive(Enum):
    """What to do with a candidate that is neither proved good nor bad."""

    ROLLBACK = "rollback"
    HOLD = "hold"  # for a person: promote or rollback
    COMMIT = "commit"  # as if it had passed; the verdict says so


INCONCLUSIVE = frozenset({"canary_inconclusive", "soak_inconclusive"})
"""The reasons that say that nothing was proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A conclusion, with the reason in the contract's words and a text for people."""

    conclusion: Conclusion
    reason: str = "healthy"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictPolicy:
    """The numbers; seconds. An upgrade may have a `canary` and a `soak` of its own."""

    come_up: float = 10.0
    canary: float = 5.0
    soak: float = 30.0
    min_samples: int = 1
    on_inconclusive: OnInconclusive = OnInconclusive.ROLLBACK

    def canary_limit(self, canary: float) -> float:
        """Seconds after which a canary of this duration is inconclusive if it is not proved."""
        return canary + self.come_up
