"""What is on disk is run once before it takes over."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges import own_program
from supervisor.edges.own_program import OwnProgram

PROGRAM = """\
import sys, time
if sys.argv[1:] == ["check", "--config", "/c.toml"]:
    {check}
else:
    sys.exit(f"what? {{sys.argv}}")
"""


def program(folder: Path, check: str) -> OwnProgram:
    script = folder / "program.py"
    script.write_text(PROGRAM.format(check=check))
    return OwnProgram(
        interpreter=(sys.executable, str(script)), arguments=("run", "--config", "/c.toml"),
        config=Path("/c.toml"), environment=dict(os.environ),
    )  # fmt: skip


async def test_one_that_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path, "print('ok')")
    assert await own.check() == metadata.version("nginx-supervisor")
    monkeypatch.setattr(own_program, "_DISTRIBUTION", "nginx-supervisor-that-is-gone")
    assert await own.check() == "unknown"
    assert own.argv[-3:] == ("run", "--config", "/c.toml")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("sys.exit('the key `soke` is unknown')", "ended with 1: the key `soke` is unknown"),
        ("sys.exit(2)", "ended with 2: no word"),
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("time.sleep(600)", "did not end within 0.3 s"),
    ],
)
async def test_one_that_is_not_is_refused_in_its_own_words(
    tmp_path: Path, check: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in check:
        monkeypatch.setattr(own_program, "CHECK_LIMIT", 0.3)
    with pytest.raises(Refusal) as caught:
        await program(tmp_path, check).check()
    assert caught.value.reason == "self_check_failed"
    assert words in caught.value.detail
    assert "nothing was changed" in caught.value.detail


async def test_one_that_is_gone(tmp_path: Path) -> None:
    own = OwnProgram(
        interpreter=(str(tmp_path / "python"),), arguments=(), config=Path("/c.toml"),
        environment={},
    )  # fmt: skip
    with pytest.raises(Refusal, match="cannot be started"):
        await own.check()


def test_this_process_is_known_by_how_it_was_started() -> None:
    own = OwnProgram.of_this_process(Path("/c.toml"))
    assert own.argv[0] == sys.executable
    assert own.arguments == tuple(sys.argv[1:])
    assert list(own.argv[1:]) == sys.orig_argv[1:]
