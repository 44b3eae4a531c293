"""How well a candidate was looked at: by which ways, in its canary or not, and how much of it.

A verdict says so beside its reason: `committed` by a site whose canary nobody could observe, or of
which three workers of sixteen were seen, is worth less than it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisor.core.observation import Attribution, Observation, Outcome

_BEST_FIRST = tuple(Attribution)


class Observed:
    """One candidate, from its canary on."""

    def __init__(self) -> None:
        self.canary: bool | None = None  # some answer in it was the candidate's; None: no canary
        self._ways: set[Attribution] = set()
        self._answered: set[int] = set()
        self._workers: frozenset[int] = frozenset()

    def begin_canary(self) -> None:
        """Both generations accept from now on."""
        self.canary = False

    def take(self, seen: Observation, *, candidate: int, in_canary: bool) -> None:
        """One more observation, of whomever."""
        if seen.generation != candidate:
            return
        self._ways |= {seen.attribution, seen.worker_by} - {None}  # type: ignore[arg-type]  # None is not in it
        if in_canary:
            self.canary = True
        if seen.outcome is Outcome.PASS and seen.worker_pid is not None:
            self._answered.add(seen.worker_pid)

    def census(self, accepting: frozenset[int]) -> None:
        """The candidate's workers that accept now; cache processes are none."""
        if accepting:  # at its end it has none, and what was seen before is what counts
            self._workers = accepting

    @property
    def ways(self) -> list[str]:
        """By which ways its answers were known to be its own, the best first."""
        return [one.value for one in _BEST_FIRST if one in self._ways]

    def report(self) -> dict[str, object]:
        """The fields of a verdict."""
        return {
            "canary_observed": self.canary,
            "attribution": self.ways,
            "coverage": {
                "answered": len(self._workers & self._answered),
                "workers": len(self._workers),
            },
        }

    def to_data(self) -> dict[str, object]:
        """What `from_data` needs in another process."""
        return {
            "canary": self.canary,
            "ways": self.ways,
            "answered": sorted(self._answered),
            "workers": sorted(self._workers),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Observed:
        """As it was. Raises KeyError, TypeError or ValueError where `data` is no such thing."""
        one = cls()
        one.canary = data["canary"]
        one._ways = {Attribution(way) for way in data["ways"]}
        one._answered = {int(pid) for pid in data["answered"]}
        one._workers = frozenset(int(pid) for pid in data["workers"])
        return one
