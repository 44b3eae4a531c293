"""A box: a real systemd, booted as PID 1 of namespaces of its own, in well under a second.

    with Box(lower=[layer, root], folder=tmp_path) as box:
        box.run("systemctl", "start", "nginx-supervisor")

Its `/` is an overlay over the given folders whose upper part vanishes with the box, as do its
processes, its network (a loopback) and its mounts, also where the test is killed. It keeps
accidents in, not attackers: root inside is root on the machine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.booted.roots import BoxError
from tools.quick_load import QuickLoad, QuickPlan

BOOT_LIMIT = 120.0
"""Seconds that a boot may take; it takes half of one where the machine has nothing else to do."""
COMMAND_LIMIT = 120.0

# What no namespace keeps apart from the machine: modules, raw devices, the clock, the kernel's log.
_WITHOUT = (
    "sys_module", "sys_rawio", "sys_time", "syslog", "wake_alarm", "block_suspend", "mac_admin",
    "mac_override",
)  # fmt: skip
_UNCAPABLE = ("setpriv", f"--bounding-set={','.join(f'-{name}' for name in _WITHOUT)}")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "TERM": "dumb",
    "SYSTEMD_PAGER": "",
}
_CGROUP = "nginx-supervisor-box-"


@dataclass(frozen=True, slots=True)
class Binding:
    """A folder or file of the machine that the box sees as well."""

    host: Path
    box: str
    read_only: bool = True


class CommandError(AssertionError):
    """A command in the box failed; the message has what it said."""


class Box:
    """A booted box, from entering the context to its end; `reboot` keeps its files."""

    def __init__(
        self, lower: Sequence[Path], folder: Path, *, bindings: Iterable[Binding] = ()
    ) -> None:
        self._lower = [str(one) for one in lower]
        self._folder = folder
        self._bindings = tuple(bindings)
        self._cgroup = _cgroup_root() / f"{_CGROUP}{os.getpid()}-{folder.name}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._manager: socket.socket | None = None
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pids = -1  # the pipe that tells each PID 1
        self.init_pid = 0
        """The box's PID 1, as the machine numbers it."""

    def __enter__(self) -> Box:
        for name in ("work", "host"):
            (self._folder / name).mkdir()
        _sweep()
        try:
            self._start()
            self._wait_until_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(value, Exception):
            print(self.journal())  # pytest shows it with the failure
        self.close()

    def _start(self) -> None:
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A path of a socket is short (unix(7)), and a test's folder may be long.
        with _inside(self._folder / "host"):
            self._manager.bind("notify")
        threading.Thread(target=self._listen, args=(self._manager,), daemon=True).start()
        self._pids, told = os.pipe()
        log = (self._folder / "outer.log").open("wb")
        try:
            self._outer = subprocess.Popen(
                [
                    *_UNCAPABLE, "--pdeathsig", "KILL",
                    "unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--net",
                    "bash", str(Path(__file__).with_name("boot.sh")), "outer",
                ],
                env={
                    **_ENVIRONMENT,
                    "BOX": str(self._folder),
                    "LOWER": ":".join(self._lower),
                    "CGROUP": str(self._cgroup),
                    "BINDINGS": "\n".join(
                        f"{one.host} {one.box} {'ro' if one.read_only else 'rw'}"
                        for one in self._bindings
                    ),
                    "PID_PIPE": str(told),
                },
                pass_fds=(told,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        finally:
            log.close()
            os.close(told)

    def _listen(self, manager: socket.socket) -> None:
        """systemd tells its container's manager when all that boots has started (sd_notify(3)).

        It tells other things too, and waits where nobody reads them.
        """
        with manager:
            while told := manager.recv(65536):
                if b"READY=1" in told.split(b"\n"):
                    self._ready.put(None)

    def _wait_until_up(self) -> None:
        numbers = b""
        while not numbers.endswith(b"\n"):
            part = os.read(self._pids, 32)
            if not part:
                raise BoxError(f"cannot boot a box: {self._said()}")
            numbers += part
        self.init_pid = int(numbers)
        try:
            self._ready.get(timeout=BOOT_LIMIT)
        except queue.Empty:
            raise BoxError(f"a box did not boot in {BOOT_LIMIT:g} s: {self.journal()}") from None

    def _said(self) -> str:
        return (self._folder / "outer.log").read_text(errors="replace")[-4000:]

    def reboot(self) -> None:
        """An orderly reboot: what is enabled is up afterwards; files outside /run and /tmp stay."""
        self._forget_what_was_told()
        self.run("systemctl", "reboot", "--no-wall", check=False)
        self._wait_until_up()

    def _forget_what_was_told(self) -> None:
        """systemd 257 is ready again after each daemon-reload: that is not the next boot's word."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()

    def close(self) -> None:
        """End all that is in the box, and leave nothing behind."""
        if self._outer is not None:
            # PID 1 of a namespace takes every process along.
            if self.init_pid and self._outer.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.init_pid, signal.SIGKILL)
            try:
                self._outer.wait(30)
            except subprocess.TimeoutExpired:
                self._outer.kill()
                self._outer.wait()
            self._outer = None
        if self._manager is not None:
            self._manager.shutdown(socket.SHUT_RD)  # which ends the thread that listens
            self._manager = None
            os.close(self._pids)
        _remove(self._cgroup)
        for name in ("work", "host"):
            shutil.rmtree(self._folder / name, ignore_errors=True)

    # --- in the box -------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """A path of the box, to be used from outside: files, and sockets to connect to.

        An absolute symbolic link in it would be followed on the machine's side.
        """
        return Path(f"/proc/{self.init_pid}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file in the box, and make the folders to it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def command(self, *argv: str) -> list[str]:
        """What runs `argv` as root in the box, for subprocess.Popen."""
        return [
            *_UNCAPABLE, "nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "-C",
            "-r", "-w", "env", "-i", *(f"{key}={value}" for key, value in _ENVIRONMENT.items()),
            *argv,
        ]  # fmt: skip

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = COMMAND_LIMIT,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` as root in the box, to its end. Raises CommandError where it fails."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout, **given
        )
        if check and done.returncode != 0:
            raise CommandError(
                f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start `argv` as root in the box; the box's end is its end."""
        return subprocess.Popen(self.command(*argv), text=True, **options)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """`systemctl show` of a unit's properties."""
        said = self.run("systemctl", "show", unit, *(f"-p{name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def journal(self, *arguments: str) -> str:
        """What `journalctl` prints; why it cannot, where it cannot."""
        try:
            done = self.run(
                "journalctl", "--no-pager", "-o", "short-precise", *arguments, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"no journal: {exc}"
        return done.stdout + done.stderr

    def host_pid(self, pid: int) -> int:
        """The machine's number of the process that the box calls `pid`. Raises BoxError."""
        namespace = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") != namespace:
                    continue
                numbers = re.search(r"^NSpid:\s*(.*)$", (entry / "status").read_text(), re.M)
                if numbers is not None and int(numbers[1].split()[-1]) == pid:
                    return int(entry.name)
        raise BoxError(f"no process {pid} in the box")

    def quick_load(self, port: int = 80, **plan: object) -> QuickLoad:
        """Requests from within the box's network, each accounted for."""
        within = ("nsenter", f"--net=/proc/{self.init_pid}/ns/net")
        return QuickLoad(QuickPlan(port=port, **plan), within=within)  # type: ignore[arg-type]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


# --- cgroups ------------------------------------------------------------------------------------


def _cgroup_root() -> Path:
    """This process's own folder in the unified hierarchy. Raises BoxError where there is none."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = next((one[1] for one in mounts if one[2] == "cgroup2"), None)
    if top is None:
        raise BoxError("cannot boot a box: no cgroup2 is mounted")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return Path(top) / own.lstrip("/")


def _sweep() -> None:
    """Remove the cgroups of boxes whose test was killed; the processes went with it."""
    for one in _cgroup_root().glob(f"{_CGROUP}*"):
        owner = one.name.removeprefix(_CGROUP).partition("-")[0]
        if not Path("/proc", owner).exists():
            _remove(one)


def _remove(cgroup: Path) -> None:
    """A cgroup is empty a moment after its last process was reaped; then it can be removed."""
    limit = time.monotonic() + 10
    while cgroup.exists() and time.monotonic() < limit:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if cgroup.exists():
            time.sleep(0.01)
