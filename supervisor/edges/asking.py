"""Asks another program of this machine (dpkg-query, rpm, systemctl) for what it knows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import trio

from supervisor.edges import children

LIMIT = 10.0
"""Seconds for one answer; it takes some hundredths of one."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


async def ask(command: Sequence[str]) -> str:
    """What it says on its standard output, whatever its exit status.

    Nothing where it cannot be run; where it does not end in time, what it has said until then.
    Cancelling ends it.
    """
    try:
        with trio.CancelScope(shield=True):  # else nobody would own what was just started
            process = children.note(
                await children.start(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/", start_new_session=True,
                )
            )  # fmt: skip
    except OSError:
        return ""
    said = bytearray()
    try:
        with trio.move_on_after(LIMIT):
            assert process.stdout is not None
            async for piece in process.stdout:
                said += piece
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
    return os.fsdecode(bytes(said))
