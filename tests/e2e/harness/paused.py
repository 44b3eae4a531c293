"""A supervisor that stops itself at one exact point; run as a program, in place of its command.

    NGS_PAUSE=FILE python paused.py run --config FILE

`FILE` holds the name of a point and the number of the time at which it is reached, counted since
the file is there. There the supervisor renames the file to `FILE.reached` and stops itself whole
(SIGSTOP), before it does anything else; SIGCONT lets it go on. Without the file nothing stops it.

The points are made by wrapping the real functions: the supervisor itself knows nothing of them.
`NAME.before` is before the function, `NAME.after` after it has returned; for what is written there
is `NAME.written` between the write and its fsync.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor import daemon, effects
from supervisor.core.model import State
from supervisor.edges import (
    config_restore,
    config_store,
    files,
    journal,
    pidfile,
    placing,
    preflight,
    runtime_state,
)
from supervisor.edges.launch import Launch
from supervisor.edges.probe_listener import ProbeListener
from supervisor.edges.process import Process
from supervisor.operations import shift, spawn, start
from supervisor.operations.world import World

VARIABLE = "NGS_PAUSE"

_FILE = Path(os.environ.get(VARIABLE, ""))
_seen: Counter[str] = Counter()
_writing = threading.local()


def point(name: str) -> None:
    """Stop the whole process if this is the point, and the time, that is asked for."""
    try:
        wanted, number = _FILE.read_text().split()
    except FileNotFoundError:
        return
    if name != wanted:
        return
    _seen[name] += 1
    if _seen[name] == int(number):
        _FILE.rename(f"{_FILE}.reached")
        # To this thread: a signal to the process would leave it running for some moments yet.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def around(owner: Any, attribute: str, name: str) -> None:
    """`NAME.before` and `NAME.after` around a function that does not wait."""
    real: Callable[..., Any] = getattr(owner, attribute)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        point(f"{name}.before")
        _writing.name = name
        try:
            result = real(*args, **kwargs)
        finally:
            _writing.name = None
        point(f"{name}.after")
        return result

    setattr(owner, attribute, wrapped)


def around_async(owner: Any, attribute: str, name: str) -> None:
    """The same around one that does."""
    real: Callable[..., Any] = getattr(owner, attribute)

    @functools.wraps(real)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        point(f"{name}.before")
        result = await real(*args, **kwargs)
        point(f"{name}.after")
        return result

    setattr(owner, attribute, wrapped)


def between_write_and_fsync() -> None:
    """`NAME.written` for what is written by a function that has points around it."""
    real = files.RealDisk.sync

    def sync(self: files.RealDisk, fd: int) -> None:
        name = getattr(_writing, "name", None)
        if name is not None:
            point(f"{name}.written")
        real(self, fd)

    files.RealDisk.sync = sync  # type: ignore[method-assign]


def around_signals() -> None:
    """`SIGUSR2.before`, `SIGUSR2.after` and so on for whatever is sent to a process of nginx."""
    real = Process.send

    def send(self: Process, what: signal.Signals) -> bool:
        point(f"{what.name}.before")
        result = real(self, what)
        point(f"{what.name}.after")
        return result

    Process.send = send  # type: ignore[method-assign]


def at_states() -> None:
    """`state.PHASE` once an event was handled and its actions were begun."""
    real = effects.NginxEffects.settled

    def settled(self: effects.NginxEffects, state: State) -> None:
        real(self, state)
        point(f"state.{state.phase.value}")

    effects.NginxEffects.settled = settled  # type: ignore[method-assign]


def wrap_everything() -> None:
    """All points."""
    between_write_and_fsync()
    around_signals()
    at_states()
    around(journal.Journal, "append", "journal")
    around(journal.Journal, "close_upgrade", "closed")
    around(journal.History, "append", "history")
    around(runtime_state.RuntimeState, "save", "masters")
    around(ProbeListener, "write", "include")
    around(ProbeListener, "restore", "include_back")
    around(preflight.Plan, "install", "install")
    around(placing, "stage", "stage")
    around(placing, "commit", "rename")
    around(pidfile, "repair", "pid_file")
    around(pidfile, "remove_stale", "stale")
    around(World, "join", "join")
    around(shift, "_expect_workers", "leaving")
    around(config_store.ConfigStore, "write_guard", "guard")
    around(config_store.ConfigStore, "clear_guard", "guard_closed")
    around(config_store.ConfigStore, "keep_rejected", "rejected")
    around(config_restore, "put_file", "put")
    around(config_restore, "take_away", "away")
    around(os, "execve", "execve")
    around(daemon, "take_over", "inherit")
    around_async(spawn, "wait_ready", "ready")
    around_async(start, "wait_ready", "ready")
    around_async(Launch, "begin", "launch")
    around_async(Launch, "__aexit__", "launched")


if __name__ == "__main__":
    wrap_everything()
    sys.exit(daemon.main(sys.argv[1:]))
