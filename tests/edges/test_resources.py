from __future__ import annotations

import os
import subprocess

import psutil
import pytest

from supervisor.edges.resources import resources_of


def test_of_ourselves() -> None:
    found = resources_of(os.getpid())
    assert found is not None
    assert set(found) == {"rss_bytes", "cpu_s", "threads", "open_files"}
    rss = found["rss_bytes"]
    assert isinstance(rss, int)
    assert rss > 2**20
    assert isinstance(found["threads"], int)
    assert isinstance(found["open_files"], int)
    assert isinstance(found["cpu_s"], float)


def test_of_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert resources_of(child.pid) is None


def test_what_may_not_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> int:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "num_fds", denied)
    found = resources_of(os.getpid())
    assert found is not None
    assert found["open_files"] is None
    assert found["rss_bytes"]
