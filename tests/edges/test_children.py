"""Children that a program before this one has started: told from others, ended, reaped."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import trio

from supervisor.edges import children, procfs
from tests.edges.launched_nginx import subreaper


async def test_what_was_noted_is_told_until_it_ends() -> None:
    process = await children.start(["sleep", "600"])
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


STRANGERS = """
import os, sys
for number in range(300):
    if os.fork() == 0:
        if os.fork() == 0:
            if number % 2:
                os.setsid()
            os._exit(7)  # an orphan by now, or in a moment
        os._exit(0)
    os.wait()
"""


async def test_one_that_has_ended_is_left_to_whoever_waits_for_it() -> None:
    """Until then nobody else can get its pid, which is that of its group."""
    with subreaper():
        process = children.note(await children.start(["/bin/sh", "-c", "exit 5"]))
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert children.reap(set, lambda: None) == 0
        assert process.pid in children.running()
        assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        assert await process.wait() == 5
        assert process.pid not in children.running()


async def test_orphans_of_strangers_are_reaped_and_no_exit_status_is_stolen() -> None:
    """Own children end at the same time, some before anybody knows their pid."""
    with subreaper():
        tracked = subprocess.Popen(["/bin/sh", "-c", "exit 5"])
        os.waitid(os.P_PID, tracked.pid, os.WEXITED | os.WNOWAIT)
        reaped = 0

        def sweep() -> None:
            nonlocal reaped
            reaped += children.reap(lambda: {tracked.pid}, sweep)

        async def own(code: int) -> None:
            for _ in range(15):
                process = await children.start(["/bin/sh", "-c", f"exit {code}"])
                sweep()
                assert await process.wait() == code

        async with trio.open_nursery() as nursery:
            for code in (3, 4):
                nursery.start_soon(own, code)
            made = await children.start([sys.executable, "-I", "-S", "-c", STRANGERS])
            while made.poll() is None:
                sweep()
                await trio.sleep(0.001)
            assert made.returncode == 0
        with trio.fail_after(60):
            while reaped < 300:
                sweep()
                await trio.sleep(0.001)
        assert tracked.wait() == 5
        assert children.reap(set, sweep) == 0


async def test_nobody_is_reaped_while_it_is_not_known_whose_it_is() -> None:
    again: list[int] = []
    over = subprocess.Popen(["true"])
    os.waitid(os.P_PID, over.pid, os.WEXITED | os.WNOWAIT)
    with children.beginning():
        assert children.reap(set, lambda: again.append(1)) == 0
        assert again == []
    assert again == [1]
    assert over.wait() == 0


PROCESS_STARTERS = {
    "open_process", "run_process", "Popen", "create_subprocess_exec", "posix_spawn", "fork",
    "popen",
}  # fmt: skip
PROGRAMS_OF_THEIR_OWN = ("cli", "installed")


def test_nobody_else_starts_a_process() -> None:
    """One that is not known as ours loses its exit status to the reaping of orphans."""
    root = Path(children.__file__).parents[1]
    found = []
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in PROGRAMS_OF_THEIR_OWN or path.name == "children.py":
            continue
        tree = ast.parse(path.read_text())
        guarded = {
            id(inner)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any(ast.unparse(one.context_expr) == "children.beginning()" for one in block.items)
            for inner in ast.walk(block)
        }
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or id(call) in guarded:
                continue
            what = ast.unparse(call.func)
            if what.rpartition(".")[2] in PROCESS_STARTERS or what.startswith("subprocess."):
                found.append(f"{path.relative_to(root)}:{call.lineno}: {what}")
    assert found == []
