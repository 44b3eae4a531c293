"""The document about the machine is the one that its table makes."""

from __future__ import annotations

import re

from supervisor.core.machine import TABLE, Column
from supervisor.core.model import UPGRADING, Phase
from tools.machine_doc import DOCUMENT, diagram, document


def test_the_committed_copy_is_current() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == document(), "run: python -m tools.machine_doc"


def test_every_phase_and_every_event_is_in_it() -> None:
    sections = re.split(r"^### ", document(), flags=re.MULTILINE)[1:]
    assert [one.splitlines()[0] for one in sections] == [phase.value for phase in TABLE]
    for section in sections:
        rows = re.findall(r"^\| ([a-z ]+) \|", section, flags=re.MULTILINE)
        ignored = re.findall(r"^Ignored: (.*)\.$", section, flags=re.MULTILINE)
        named = rows[1:] + ignored[0].split(", ")
        assert sorted(named) == sorted(column.value for column in Column)


def test_every_phase_of_an_upgrade_is_in_the_diagram() -> None:
    drawn = set(re.findall(r"(\w+) --> (\w+):", diagram()))
    reached = {target for _, target in drawn}
    assert {phase.value for phase in UPGRADING} <= reached
    assert ("soaking", "rolling_back") in drawn
    assert ("committing", "draining") in drawn
    assert (Phase.CANARY.value, Phase.SOAKING.value) not in drawn
