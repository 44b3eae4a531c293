"""The findings of `nginxctl doctor`, in as many columns as the terminal has, at most 100."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator

from supervisor.cli.render import Fields, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_TITLES = {
    "nginx": "nginx and its upgrade",
    "evidence": "how a candidate would be judged",
    "host": "the supervisor and its host",
    "unit": "its unit, and the distribution's",
}
_WIDEST = 100
_INDENT = 30
_COLOURS = {"ok": "32", "note": "36", "warn": "33", "problem": "31;1"}
_COUNTED = {"problem": "problem", "warn": "warning", "note": "note"}


def doctor(found: Fields) -> Iterator[str]:
    """The reply of Doctor; levels are coloured on a terminal, and counted at the end."""
    width = min(_WIDEST, shutil.get_terminal_size((80, 24)).columns)
    findings = [one for one in _list(found.get("findings")) if isinstance(one, dict)]
    topic: object = None
    for one in findings:
        if one.get("topic") != topic:
            if topic is not None:
                yield ""
            topic = one.get("topic")
            yield _TITLES.get(text(topic), text(topic))
        yield from _finding(one, width)
    yield ""
    yield _summary(findings)


def _finding(one: Mapping[str, object], width: int) -> Iterator[str]:
    level, name = text(one.get("level")), text(one.get("name")).replace("_", " ")
    first, *rest = _wrapped(text(one.get("seen")), width) or [""]
    head = f"  {level:<8} {name:<{_INDENT - 12}} "
    if len(head) > _INDENT:  # a long name has a line of its own
        yield _coloured(level, head.rstrip())
        rest = [first, *rest]
    else:
        yield _coloured(level, head.ljust(_INDENT)) + first
    yield from (" " * _INDENT + line for line in rest)
    advice = text(one["advice"]) if one.get("advice") else ""
    for number, line in enumerate(_wrapped(advice, width - 3)):
        yield " " * _INDENT + ("-> " if number == 0 else "   ") + line
    for each in _list(one.get("lines")):  # not wrapped: they are to be copied
        line = text(each)
        yield " " * max(4, min(_INDENT + 5, width - len(line) - 1)) + line


def _wrapped(words: str, width: int) -> list[str]:
    return textwrap.wrap(
        words, max(20, width - _INDENT), break_long_words=False, break_on_hyphens=False
    )


def _coloured(level: str, head: str) -> str:
    if level not in _COLOURS or not (sys.stdout is not None and sys.stdout.isatty()):
        return head
    return head.replace(level, f"\033[{_COLOURS[level]}m{level}\033[0m", 1)


def _summary(findings: list[dict[str, object]]) -> str:
    levels = [text(one.get("level")) for one in findings]
    counts = [
        f"{levels.count(level)} {word}{'' if levels.count(level) == 1 else 's'}"
        for level, word in _COUNTED.items()
        if level in levels
    ]
    return ", ".join([*counts, f"{levels.count('ok')} ok"])


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
