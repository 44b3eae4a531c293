"""Times that are not long ago."""

from __future__ import annotations

from collections.abc import Iterable


def recent(times: Iterable[float], now: float, interval: float) -> tuple[float, ...]:
    """Those of `times` that lie less than `interval` seconds before `now`."""
    return tuple(one for one in times if now - one < interval)
