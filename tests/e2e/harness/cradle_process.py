"""The process that everything of one test descends from; run as a program by `cradle.Cradle`.

A child subreaper, so that no orphan of a test escapes to PID 1, which may reap late and which the
test could not search. Orders come as lines of JSON on stdin, `{"argv": …, "env": …, "output": …}`;
it answers `{"started": PID}` and tells `{"exited": PID, "status": …}` for every descendant that it
reaps. When stdin closes it kills all descendants and ends: a killed test leaves nothing behind.

Imports little, because each test starts one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal

PR_SET_CHILD_SUBREAPER = 36
NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""For the test, which then closes our stdin: whoever ends us leaves our descendants behind."""


def say(**answer: object) -> None:
    # A test that was killed reads no more; its stdin end is closed as well, and that ends us.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")


def reap(flags: int) -> bool:
    """Tell of one child that has ended; False when there is none (left)."""
    try:
        pid, status = os.waitpid(-1, flags)
    except ChildProcessError:
        return False
    if pid == 0:
        return False
    say(exited=pid, status=os.waitstatus_to_exitcode(status))
    return True


def start(order: dict[str, object]) -> None:
    argv, env, output = order["argv"], order["env"], order["output"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            # Python and we ignore these; a child must not start like that.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, *NOT_FOR_US],
        )
    except OSError as exc:
        say(failed=str(exc))
    else:
        say(started=pid)


def kill_all() -> None:
    """Until no child is left: what a killed child leaves behind becomes a child of ours."""
    while True:
        with open("/proc/thread-self/children", encoding="ascii") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        if not reap(0):
            return


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    for number in NOT_FOR_US:
        signal.signal(number, signal.SIG_IGN)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        while reap(os.WNOHANG):
            pass
        if 0 in ready:
            part = os.read(0, 65536)
            if not part:
                break
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                start(json.loads(line))
    kill_all()


if __name__ == "__main__":
    main()
