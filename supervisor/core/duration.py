"""Durations as people write them: `"250ms"`, `"10s"`, `"5m"`, `"1h"`, or a number of seconds."""

from __future__ import annotations

import re

LONGEST = 365 * 86400.0
"""Seconds; anything longer is a slip of the pen, not a plan."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z]*)", re.ASCII)
_FORM = 'write it as "250ms", "10s", "5m", "1h", or as a number of seconds'


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with a text that says what is wrong and how to write it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a duration; {_FORM}")  # noqa: TRY004 - a value's error
    seconds = _parse_text(value) if isinstance(value, str) else value
    # Compared before it is made a float, which the largest integers cannot be.
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"{value!r} is impossible: a duration is from 0 seconds to a year")
    return float(seconds)


def _parse_text(text: str) -> float:
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError(f"{text!r} is not a duration; {_FORM}")
    number, unit = written.groups()
    if not unit:
        raise ValueError(f"{text!r} has no unit; {_FORM}")
    if unit not in _UNITS:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; {_FORM}")
    return float(number) * _UNITS[unit]
