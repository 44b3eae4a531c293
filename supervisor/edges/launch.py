"""The one launch path: how a master comes to life so that it can be upgraded later.

nginx ignores USR2 while the parent that it recorded lives, and WINCH unless it daemonized or found
its inheritance variable (ngx_process.c, ngx_signal_handler). So it is started by an intermediate
`sh` that it records as parent and that is ended once nginx has set its handlers; it is then
reparented to the supervisor, a child subreaper. The variable is always given: empty, or with the
listening sockets that a predecessor left behind.

The intermediate waits for nginx, so that its exit status is nginx's when the start fails. It never
leaves by itself: leaving before nginx has asked for its parent's pid makes USR2 dead for ever.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from types import TracebackType

import trio

from supervisor.core.errors import OperationFailed
from supervisor.edges import children, linux, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.linux import ExitStatus
from supervisor.edges.process import Process

_INTERMEDIATE = (
    'unset PWD OLDPWD SHLVL; "$@" </dev/null & echo $! >&0; exec </dev/null >/dev/null; wait $!'
)
"""Its standard input is where it tells nginx's pid: dash knows no descriptors beyond 9 by number,
and those up to 9 may be listeners. Its outputs are nginx's, so it lets go of standard output."""
_LIMIT = re.compile(rb"/bin/sh -c ulimit -S -n (?:[0-9]+|unlimited); ")
"""nginx gets the limit that the supervisor was started with, and not the one that it has."""


_ROOM = {"SPARE": "X" * 300}
"""Room for the master's title, which tells how it was started, as nginx itself gives it to the next
binary (nginx.c, ngx_exec_new_binary): without it the end is cut."""


def find_leftovers(argv: Sequence[str]) -> list[tuple[int, int | None]]:
    """Intermediates of a supervisor that died while it launched `argv`: pids, and nginx's if alive.

    nginx ignores USR2 as long as its intermediate lives; whoever adopts it ends that first. The
    whole of `argv` counts: another supervisor may be launching the same binary at this moment.
    """
    wanted = " ".join((_INTERMEDIATE, "sh", *argv)).encode()
    found: list[tuple[int, int | None]] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        title = procfs.title(int(name))
        limit = _LIMIT.match(title)
        if limit is not None and title[limit.end() :] == wanted:
            stat = procfs.read_stat(int(name))
            if stat is None or not stat.has_execed:
                continue  # its child, which is about to become nginx
            if not procfs.runs_as_we_do(int(name)):
                continue  # somebody else's, who may only pretend, or is launching an nginx of his
            born = procfs.children(int(name))
            found.append((int(name), born[0] if born else None))
    return found


class Launch:
    """A start that is under way; an async context manager that leaves no intermediate behind.

    On leaving the block the intermediate is ended by SIGKILL. nginx itself is not touched: whoever
    launched it decides what becomes of one that is not ready.
    """

    def __init__(self, sh: trio.Process, master: Process | None) -> None:
        self._sh = sh
        self.master = master

    @classmethod
    async def begin(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: Capture,
        inherit_variable: str = "NGINX",
        listeners: Sequence[int] = (),
    ) -> Launch:
        """Start `argv` (absolute argv[0]) with exactly `environment` and the inheritance variable.

        Its outputs go to `output`. `listeners` are listening sockets that nginx inherits; the
        caller keeps and closes its own.
        Raises OperationFailed when the process cannot be made. Cancelling takes effect at the
        caller's next checkpoint, when there is something to clean up.
        """
        inherited = "".join(f"{fd};" for fd in listeners)
        script = f"ulimit -S -n {linux.files_given()}; {_INTERMEDIATE}"
        stdout = output if output.stdout is None else output.stdout
        try:
            told, telling = os.pipe2(os.O_CLOEXEC)
            stream = trio.lowlevel.FdStream(told)
            try:
                with trio.CancelScope(shield=True):
                    sh = await children.start(
                        ["/bin/sh", "-c", script, "sh", *argv],
                        stdin=telling,
                        stdout=stdout.fd,
                        stderr=output.fd,
                        env={**environment, inherit_variable: inherited, **_ROOM},
                        cwd="/",
                        start_new_session=True,
                        umask=0o022,
                        pass_fds=tuple(listeners),
                    )
                    os.close(telling)
                    telling = -1
                    pid = await _read_pid(stream)
            finally:
                if telling >= 0:
                    os.close(telling)
                stream.close()
        except OSError as exc:
            raise OperationFailed(
                "start_failed", f"cannot start {argv[0]}: {exc.strerror or exc}"
            ) from exc
        return cls(sh, Process.open(pid) if pid else None)

    @property
    def session(self) -> int:
        """The session that nginx and everything that it forks is in, and nobody else."""
        return self._sh.pid

    async def wait_failed(self) -> ExitStatus:
        """Return when nginx exited before the intermediate was ended; with nginx's status."""
        code = await self._sh.wait()
        # The shell reports a child that a signal ended as 128 plus the signal.
        if code > 128:
            return ExitStatus(signal=code - 128)
        return ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)

    @property
    def failed(self) -> bool:
        """Whether nginx has exited already."""
        return self._sh.poll() is not None

    async def __aenter__(self) -> Launch:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):
            self._sh.send_signal(signal.SIGKILL)
            await self._sh.wait()


async def _read_pid(told: trio.lowlevel.FdStream) -> int | None:
    line = b""
    while not line.endswith(b"\n"):
        part = await told.receive_some(64)
        if not part:
            return None
        line += part
    return int(line)
