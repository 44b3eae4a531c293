"""What one process uses, as far as the kernel tells (psutil)."""

from __future__ import annotations

import contextlib

import psutil


def resources_of(pid: int) -> dict[str, object] | None:
    """Resident memory in bytes, CPU time in seconds, open files, threads; None when it is gone.

    A figure that may not be read (another user's process) is None.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            found: dict[str, object] = {
                "rss_bytes": process.memory_info().rss,
                "cpu_s": round(times.user + times.system, 3),
                "threads": process.num_threads(),
                "open_files": None,
            }
    except psutil.Error:
        return None
    with contextlib.suppress(psutil.Error):
        found["open_files"] = process.num_fds()
    return found
