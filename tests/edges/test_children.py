"""Children that a program before this one has started: told from others, ended, reaped."""

from __future__ import annotations

import os
import subprocess

import trio

from supervisor.edges import children, procfs


async def test_they_are_ended_with_their_groups_and_reaped() -> None:
    script = "sleep 600 & echo $!; wait"
    with (
        subprocess.Popen(["sleep", "600"]) as simple,
        subprocess.Popen(
            ["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
        ) as group,
        subprocess.Popen(["true"]) as over,
        subprocess.Popen(["sleep", "600"]) as tracked,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as of_nginx,
    ):
        assert group.stdout is not None
        inner = int(group.stdout.readline())
        os.waitid(os.P_PID, over.pid, os.WEXITED | os.WNOWAIT)
        left = children.besides({tracked.pid}, {of_nginx.pid})
        assert {simple.pid, group.pid, over.pid} <= set(left)
        assert not {tracked.pid, of_nginx.pid} & set(left)
        with trio.fail_after(10):
            await children.end([simple.pid, group.pid, over.pid, 1])
        for one in (simple, group, over):
            assert not os.path.exists(f"/proc/{one.pid}")
        stat = procfs.read_stat(inner)
        assert stat is None or not stat.alive
        for other in (tracked, of_nginx):
            stat = procfs.read_stat(other.pid)
            assert stat is not None
            assert stat.alive
            other.kill()
