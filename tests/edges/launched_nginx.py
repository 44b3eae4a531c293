"""A real nginx from the launch path, without any operation around it."""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from supervisor.edges import linux, procfs
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.launch import Launch
from tests.e2e.harness.ports import free_port
from tools.nginx_cache import Build

LIMIT = 60.0
WORKERS = 2
CONFIGURATION = """\
pid {folder}/nginx.pid;
error_log {error_log} notice;
worker_processes 2;
user root;
events {{ }}
http {{
    access_log {access_log};
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    server {{ listen 127.0.0.1:{port}; {listens} location / {{ return 200 "$nginx_version"; }} }}
}}
"""


class Site:
    """A folder with a binary, a configuration and a port."""

    def __init__(self, folder: Path, build: Build) -> None:
        self.folder = folder
        self.port = free_port()
        self.binary = folder / "nginx"
        (folder / "logs").mkdir()
        self.put(build)
        self.configure()

    def put(self, build: Build) -> None:
        """`build` is what USR2 will start."""
        shutil.copy(build.path, f"{self.binary}.new")
        os.rename(f"{self.binary}.new", self.binary)

    def configure(self, *, error_log: str = "", access_log: str = "off", listens: str = "") -> None:
        text = CONFIGURATION.format(
            folder=self.folder,
            port=self.port,
            error_log=error_log or self.folder / "error.log",
            access_log=access_log,
            listens=listens,
        )
        (self.folder / "nginx.conf").write_text(text)

    @property
    def argv(self) -> tuple[str, ...]:
        conf = str(self.folder / "nginx.conf")
        return (str(self.binary), "-p", f"{self.folder}/", "-c", conf)

    @property
    def log(self) -> str:
        return (self.folder / "error.log").read_text()

    def ask(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """Every living process that runs a binary of this folder."""
        found = []
        for name in os.listdir("/proc"):
            with suppress(OSError, ValueError):
                stat = procfs.read_stat(int(name))
                target = os.readlink(f"/proc/{name}/exe")
                if stat is not None and stat.alive and target.startswith(f"{self.folder}/"):
                    found.append(int(name))
        return found


async def until(what: str, holds: Callable[[], object]) -> None:
    """For what has no event, as titles and nginx's own doings."""
    with trio.move_on_after(LIMIT):
        while not holds():
            await trio.sleep(0.001)
        return
    raise AssertionError(f"not within {LIMIT:g} s: {what}")


@contextmanager
def subreaper() -> Iterator[None]:
    """This process adopts orphans for as long as the block lasts, and reaps them at its end."""
    before = set(procfs.children(os.getpid()))
    linux.become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
        for pid in set(procfs.children(os.getpid())) - before:
            stat = procfs.read_stat(pid)
            if stat is not None and not stat.alive:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


@asynccontextmanager
async def site_of(build: Build, folder: Path) -> AsyncIterator[Site]:
    """A site; nothing of it lives on after the block."""
    folder.chmod(0o755)
    site = Site(folder, build)
    with subreaper():
        try:
            yield site
        finally:
            with trio.CancelScope(shield=True):
                await until("all are dead", lambda: not [_kill(one) for one in site.processes()])


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def launch(site: Site, output: Capture, listeners: Sequence[int] = ()) -> Generation:
    """Launch nginx; returns once its workers accept and the intermediate is gone."""
    async with await Launch.begin(site.argv, {}, output=output, listeners=listeners) as launching:
        assert launching.master is not None, output.tail()
        generation = Generation(
            id=1,
            role=Role.ACTIVE,
            master=launching.master,
            program=Program(version="", sha256="", path=str(site.binary)),
        )
        await until(
            "workers accept",
            lambda: (
                procfs.catches(generation.master.pid, signal.SIGUSR2)
                and len(generation.look().accepting) == WORKERS
            ),
        )
    return generation
