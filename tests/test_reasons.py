"""Every reason that the code can give stands in docs/reasons.md, and no other does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reasons_in_code import Code

ROOT = Path(__file__).resolve().parent.parent


def listed() -> set[str]:
    """The words in the first columns of the tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs/reasons.md").read_text("utf-8"), re.M)
    return set(re.findall(r"`([a-z0-9_]+)`", " ".join(rows)))


def test_the_list_of_reasons_is_complete() -> None:
    used = Code(sorted((ROOT / "supervisor").rglob("*.py"))).reasons()
    assert used - listed() == set(), "in the code and not in docs/reasons.md"
    assert listed() - used == set(), "in docs/reasons.md, and nothing in the code gives it"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ('Refusal("no_space", f"cannot {what}")', {"no_space"}),
        ('Refusal(reason="no_space", detail="")', {"no_space"}),
        ('Full("no_space", "")', {"no_space"}),
        ('GaveUp("start_limit", "")', {"start_limit"}),
        ('self._refuse(7, "busy", "")', {"busy"}),
        ('Refusal("a" if this else "b", "")', {"a", "b"}),
        ('state.reason or "c"', set()),
        ('reason = state.reason or "c"', {"c"}),
        ('Refusal(TABLE[error], "")', {"d", "e"}),
        ('with storing("x", path, forbidden=READ_ONLY): pass', {"read_only"}),
        ('told = {"verdict": "failed", "reason": "f"}', {"f"}),
        ('def storing(what, *, forbidden="g"): pass', {"g"}),
        ("async def go(): reason, detail = await reload()", {"reloaded"}),
        ('Refusal(word_of(1), "")', {"h"}),
        ('told, words = other("no reason")', set()),
        ('Refusal("Not a word", "")', set()),
    ],
)
def test_reasons_are_found_wherever_they_stand(
    text: str, reasons: set[str], tmp_path: Path
) -> None:
    known = """
READ_ONLY = "read_only"
TABLE = {1: "d", 2: "e"}
class SupervisorError(Exception):
    def __init__(self, reason, detail): pass
class Refusal(SupervisorError): pass
class Full(Refusal): pass
class GaveUp:
    reason: str
    detail: str
class Engine:
    def _refuse(self, request, reason, detail): pass
async def reload():
    return "reloaded", "detail"
def word_of(number):
    return "h"
"""
    module = tmp_path / "module.py"
    module.write_text(known + text + "\n", encoding="utf-8")
    assert Code([module]).reasons() == reasons
