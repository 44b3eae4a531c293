"""One real nginx that accepts USR2, without a supervisor."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from supervisor.edges import procfs
from supervisor.edges.pidfile import ProcessIdentity, identity_of
from tests.e2e.harness.ports import free_port
from tools.nginx_cache import Build

LIMIT = 30.0


class RunningNginx:
    """Started with `daemon on`, ended by pid with all that it started."""

    def __init__(self, folder: Path, build: Build, *, main: str = "", http: str = "") -> None:
        self.folder = folder
        self.binary = folder / "sbin" / "nginx"
        self.pid_path = folder / "nginx.pid"
        self.config = folder / "nginx.conf"
        self.port = free_port()
        self.binary.parent.mkdir(parents=True)
        (folder / "logs").mkdir()
        self.binary.write_bytes(build.path.read_bytes())
        self.binary.chmod(0o755)
        self.configure(main=main, http=http)
        self.identity = ProcessIdentity(0, 0)

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("-p", str(self.folder), "-c", str(self.config))

    def configure(self, *, main: str = "", http: str = "", listen: str = "") -> None:
        user = "user root;" if os.geteuid() == 0 else ""
        listen = listen or f"listen 127.0.0.1:{self.port};"
        self.config.write_text(
            f"{user} {main}\nworker_processes 2;\npid {self.pid_path};\n"
            f"error_log {self.folder}/logs/error.log notice;\nevents {{}}\n"
            f"http {{ access_log off; {http} server {{ {listen} return 204; }} }}\n"
        )

    def __enter__(self) -> RunningNginx:
        subprocess.run([self.binary, *self.arguments], check=True, timeout=LIMIT)
        deadline = time.monotonic() + LIMIT
        while not self.identity.pid or len(self.workers()) < 2:
            assert time.monotonic() < deadline
            text = self.pid_path.read_text() if self.pid_path.exists() else ""
            if text.strip():
                self.identity = identity_of(int(text)) or self.identity
            time.sleep(0.001)  # there is no event for it
        return self

    def workers(self) -> tuple[int, ...]:
        return tuple(procfs.brood_of(procfs.children(self.identity.pid)).accepting)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pid in (self.identity.pid, *procfs.children(self.identity.pid)):
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], LIMIT)[0]
            os.close(pidfd)
