"""Every reason that the code can give stands in docs/reasons.md, and no other does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAKERS = {
    "Refusal",
    "OperationFailed",
    "SupervisorError",
    "ConfigError",
    "Triggered",
    "Trigger",
    "ReportIncident",
    "Pronounce",
    "Refuse",
    "Settle",
    "GiveUp",
    "refuse",
    "roll_back",
    "_condemn",
}
WORD = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


def _reasons_in(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in MAKERS:
            continue
        texts = [one for one in node.args[:2] if isinstance(one, ast.Constant)][:1]
        texts += [
            one.value
            for one in node.keywords
            if one.arg == "reason" and isinstance(one.value, ast.Constant)
        ]
        found |= {one.value for one in texts if isinstance(one.value, str)}
    return {one for one in found if WORD.fullmatch(one)}


def test_the_list_of_reasons_is_complete():
    used = set().union(*(_reasons_in(path) for path in (ROOT / "supervisor").rglob("*.py")))
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs/reasons.md").read_text(), re.M)
    listed = set(re.findall(r"`([a-z0-9_]+)`", " ".join(rows)))
    assert len(used) > 40
    assert used - listed == set(), "in the code and not in docs/reasons.md"
