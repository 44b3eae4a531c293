"""docs/control.md names everything that the API has."""

from __future__ import annotations

from pathlib import Path

import pytest

import supervisor
from supervisor import wire
from supervisor.cli.arguments import COMMANDS
from supervisor.varlink import parse_interface

ROOT = Path(supervisor.__file__).parent
TEXT = (ROOT.parent / "docs" / "control.md").read_text()


@pytest.mark.parametrize("name", [wire.INTERFACE, wire.SERVICE_INTERFACE])
def test_every_method_and_error_is_documented(name: str) -> None:
    interface = parse_interface((ROOT / f"{name}.varlink").read_text())
    missing = [word for word in (*interface.methods, *interface.errors) if word not in TEXT]
    assert missing == []


def test_every_command_is_documented() -> None:
    assert [name for name in COMMANDS if f"`{name}" not in TEXT] == []
