"""Whether USR2 would bring a new generation of a master: what the kernel shows of its start.

nginx ignores USR2 while the process lives that it recorded as its parent, and WINCH unless it made
itself a daemon or was started with the inheritance variable (ngx_process.c, ngx_signal_handler).
Neither can be read from outside, but how it was started leaves traces: a daemon has umask 0
(ngx_daemon.c) and is later given to a reaper, which is in another session; whoever forked it is in
its own session, or it has begun one itself. Where they do not tell, the signal itself does.
"""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGUSR2

from supervisor.core.errors import Refusal
from supervisor.edges import command_line, procfs

TAKE_OVER = (
    "nginxctl adopt --take-over puts a master of the supervisor's own in its place, on the same "
    "sockets"
)
_MOST_LINKS = 40  # as the kernel has it (path_resolution(7))


def objection(pid: int, binary: Path) -> Refusal | None:
    """Why the master `pid` could not be upgraded to what is put at `binary`; None: nothing shows.

    Some reads of /proc, no more; raises nothing.
    """
    refused = _would_refuse(pid)
    if refused:
        return Refusal("usr2_would_be_refused", f"cannot upgrade: the master {pid}: {refused}")
    elsewhere = _executes_elsewhere(pid, binary)
    if elsewhere:
        return Refusal("executes_another_file", f"cannot upgrade: the master {pid} {elsewhere}")
    return None


def _would_refuse(pid: int) -> str:
    stat = procfs.read_stat(pid)
    if stat is None or not stat.alive:
        return "it is gone"
    if stat.stopped:
        return f"it is stopped by a signal or a debugger; kill -CONT {pid}"
    if not procfs.catches(pid, SIGUSR2):
        return "it has no handler for the signal yet; wait until it has started"
    if pid == 1:
        return "it is process 1 of its container; run it under the supervisor instead"
    if procfs.umask(pid) == 0:
        return ""
    if stat.parent == 0:
        return f"its parent is outside of this container, and it ignores the signal; {TAKE_OVER}"
    if _has_its_starter(stat):
        return (
            f"it runs in the foreground (`daemon off`): it ignores USR2 as long as its parent "
            f"{_named(stat.parent)} lives, and WINCH always; {TAKE_OVER}"
        )
    return ""


def _has_its_starter(stat: procfs.Stat) -> bool:
    """Of one that is no daemon: whether its parent is the process that started it."""
    if stat.session == stat.pid:
        return True  # a session of its own, as service managers give it before they exec
    parent = procfs.read_stat(stat.parent)
    # A reaper is in another session; process 1 of a container may be both.
    return parent is not None and parent.session == stat.session and parent.pid != 1


def _named(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        name = ""
    return f"{pid} ({name})" if name else str(pid)


def _executes_elsewhere(pid: int, binary: Path) -> str:
    """USR2 executes argv[0] as it was given, without a search in PATH."""
    given = command_line.of_master(pid)
    if given is None or (given.cut and str(binary).startswith(given.program)):
        return ""
    try:
        path = command_line.resolved(pid, given.program)
    except OSError:
        return ""
    if _leads_through(path, binary):
        return ""
    missing = "" if os.path.exists(path) else ", which does not exist,"
    return (
        f"was started as `{given.program}`: USR2 would have it execute {path}{missing} and not "
        f"{binary}; {TAKE_OVER}"
    )


def _leads_through(path: str, binary: Path) -> bool:
    """Whether who executes `path` gets what is put at `binary`, whatever it is then."""
    wanted = _place(str(binary))
    for _ in range(_MOST_LINKS):
        if _place(path) == wanted:
            return True
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return False
    return False


def _place(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)
