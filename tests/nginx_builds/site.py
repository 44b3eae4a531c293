"""A real nginx in a private folder, upgraded by bare signals: no supervisor is involved."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness.ports import free_port

LIMIT_SECONDS = 60.0
WORKERS = 2
CONFIGURATION = """\
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
worker_processes {workers};
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    sendfile on;
    server {{
        listen 127.0.0.1:{public};
        include {folder}/probe*.conf;
        location / {{ return 200 "ok\\n"; }}
        location /file {{ root {folder}; }}
    }}
}}
"""
FILE = b"0123456789\n" * 1000


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    body: bytes


class Site:
    """One nginx, its upgrades, and everything that has to be killed afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public, self.private = free_port(), free_port()
        self.binary = folder / "sbin" / "nginx"
        self.binary.parent.mkdir()
        folder.chmod(0o755)
        (folder / "file").write_bytes(FILE)
        self.configuration = folder / "nginx.conf"
        self.configuration.write_text(
            CONFIGURATION.format(folder=folder, public=self.public, workers=WORKERS)
        )
        self.arguments = ["-p", str(folder), "-c", str(self.configuration)]
        self.old = 0

    def start(self, binary: Path) -> None:
        """Starts it as a daemon, which USR2 needs, and waits until it serves."""
        shutil.copy(binary, self.binary)
        subprocess.run([self.binary, *self.arguments], check=True, timeout=LIMIT_SECONDS)
        until(lambda: self.pid() is not None and len(self.children(self.pid() or 0)) == WORKERS)
        self.old = self.pid() or 0

    def upgrade(self) -> int:
        """Tells nginx to start the binary on disk, with a private listener; its pid."""
        (self.folder / "probe.conf").write_text(f"listen 127.0.0.1:{self.private} reuseport;\n")
        os.kill(self.old, signal.SIGUSR2)
        until(lambda: "start new binary process" in self.log())
        return int(self.log().rpartition("start new binary process ")[2].split()[0])

    def until_ready(self, new: int) -> None:
        """Waits until the new master has all of its workers."""
        until(lambda: self.pid() == new and len(self.children(new)) == WORKERS)

    def until_rolled_back(self, new: int) -> None:
        """Waits until the new master is gone and the old one has its pid file and workers."""
        until(lambda: not is_alive(new) and self.pid() == self.old)
        until(lambda: len(self.children(self.old)) == WORKERS)
        assert self.get(self.public) == Answer(200, b"ok\n")

    def pid(self) -> int | None:
        """The pid file's content."""
        try:
            return int((self.folder / "nginx.pid").read_text())
        except (OSError, ValueError):
            return None

    def log(self) -> str:
        """The error log so far."""
        return (self.folder / "error.log").read_text()

    def get(self, port: int, path: str = "/", *, timeout: float = LIMIT_SECONDS) -> Answer:
        """One request on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def children(self, parent: int) -> list[int]:
        """The living children of a master."""
        return [pid for pid in pids() if is_alive(pid) and stat(pid)[1] == str(parent)]

    def processes(self) -> list[int]:
        """Every living process that runs this folder's binary, whatever became of the file."""
        found = []
        for pid in pids():
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").startswith(f"{self.binary}") and is_alive(pid):
                    found.append(pid)
        return found

    def stop(self) -> None:
        """Kills them all, masters before they can start more workers."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        assert not left


def until(condition: Callable[[], object]) -> None:
    """Waits for `condition`. Raises AssertionError when it takes too long."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.005)


def pids() -> list[int]:
    """Every process id on the system."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def stat(pid: int) -> list[str]:
    """State, parent and so on: /proc/PID/stat from its third field."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ["X", "0"]


def is_alive(pid: int) -> bool:
    """A zombie is dead: PID 1 may be late to reap it."""
    return stat(pid)[0] not in "ZX"
