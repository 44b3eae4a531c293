"""Children that a program before this one has started: told from others, ended, reaped."""

from __future__ import annotations

import os
import subprocess

import trio

from supervisor.edges import children, procfs


async def test_what_was_noted_is_told_until_it_ends() -> None:
    process = await trio.lowlevel.open_process(["sleep", "600"])
    with subprocess.Popen(["sleep", "600"]) as never_noted:
        assert children.note(process) is process
        assert process.pid in children.running()
        assert never_noted.pid not in children.running()
        never_noted.kill()
    process.kill()
    await process.wait()
    assert process.pid not in children.running()


async def test_they_are_ended_with_their_groups_and_reaped() -> None:
    script = "sleep 600 & echo $!; wait"
    with (
        subprocess.Popen(["sleep", "600"]) as simple,
        subprocess.Popen(
            ["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
        ) as group,
        subprocess.Popen(["true"]) as over,
        subprocess.Popen(["sleep", "600"]) as other,
    ):
        assert group.stdout is not None
        inner = int(group.stdout.readline())
        os.waitid(os.P_PID, over.pid, os.WEXITED | os.WNOWAIT)
        inner_end = os.pidfd_open(inner)
        try:
            with trio.fail_after(60):
                await children.end([simple.pid, group.pid, over.pid, 1])
                for one in (simple, group, over):
                    assert not os.path.exists(f"/proc/{one.pid}")
                await trio.lowlevel.wait_readable(inner_end)  # killed, by nobody's child reaped
        finally:
            os.close(inner_end)
        stat = procfs.read_stat(other.pid)
        assert stat is not None
        assert stat.alive
        other.kill()
