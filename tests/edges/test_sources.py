from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges.sources import mapped_modules, open_module


def test_only_what_is_mapped_was_loaded(tmp_path: Path) -> None:
    """Replaced or not, by whatever name; a file that merely lies there was not."""
    folder, linked = tmp_path / "real", tmp_path / "linked"
    folder.mkdir()
    linked.symlink_to(folder)
    program = folder / "cat"
    shutil.copy("/bin/cat", program)
    content = program.read_bytes()
    (folder / "other").write_bytes(content)
    names = [str(linked / "cat"), str(folder / "other"), str(folder / "none")]
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        assert process.stdout.read(1) == b"x"  # it runs: all that it needs is mapped
        assert mapped_modules(process.pid, names) == {names[0]: linked / "cat"}
        (folder / "new").write_bytes(b"new")
        (folder / "new").rename(program)
        found = mapped_modules(process.pid, names)
        assert list(found) == [names[0]]
        assert found[names[0]].read_bytes() == content
        process.kill()
    assert mapped_modules(process.pid, names) == {}


def test_a_module_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the capability that /proc/PID/map_files asks for; there is a way out."""

    def forbidden(*_arguments: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(Refusal) as caught:
        open_module(Path("/proc/1/map_files/1-2"))
    assert caught.value.reason == "binary_unreadable"
    assert "nginxctl restart" in caught.value.detail
