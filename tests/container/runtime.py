"""Runs an image as a container: its entry point is PID 1 of namespaces, without an engine.

What an engine adds to that is added here as well: Docker's default capabilities, a seccomp filter
that forbids pidfd_getfd (as its default profile does without CAP_SYS_PTRACE), a user, a read-only
root with volumes, standard output and error in pipes that somebody reads (`docker logs`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.container.image import Image
from tools.quick_load import QuickLoad, QuickPlan

LIMIT = 60.0
"""Seconds for what should happen at once, on a busy machine."""
DOCKER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
"""chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
sys_chroot, mknod, audit_write, setfcap (capability.h); CAP_SYS_PTRACE is not among them."""

_ENTER = """
set -eu
mount -t tmpfs -o mode=0755 container "$BOX/work"
mkdir "$BOX/work/upper" "$BOX/work/ovl" "$BOX/work/root"
r="$BOX/work/root"
mount -t overlay -o "lowerdir=$LOWER,upperdir=$BOX/work/upper,workdir=$BOX/work/ovl" container "$r"
mount -t tmpfs -o mode=0755,nosuid dev "$r/dev"
for device in null zero full random urandom tty; do
    : >"$r/dev/$device"
    mount --bind "/dev/$device" "$r/dev/$device"
done
ln -s /proc/self/fd "$r/dev/fd"
ln -s /proc/self/fd/0 "$r/dev/stdin"
ln -s /proc/self/fd/1 "$r/dev/stdout"
ln -s /proc/self/fd/2 "$r/dev/stderr"
mkdir "$r/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$r/dev/shm"
mount -t proc -o nosuid,nodev,noexec proc "$r/proc"
for volume in $VOLUMES; do
    mkdir -p "$r${volume#*:}"
    mount --bind "${volume%%:*}" "$r${volume#*:}"
done
cd "$r"
pivot_root . .
umount -l .
cd /
[ -z "$READ_ONLY" ] || mount -o remount,bind,ro /
exec /usr/bin/python3 -IS -c "$LAUNCHER" "$PLAN"
"""

# In the container's own Python: what a runtime does last before it runs the entry point.
_LAUNCHER = """
import ctypes, fcntl, json, os, socket, struct, sys
plan = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
with socket.socket() as any_socket:
    up = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
    fcntl.ioctl(any_socket, 0x8914, up)
def prctl(*arguments):
    if libc.prctl(*map(ctypes.c_ulong, arguments)) != 0:
        raise OSError(ctypes.get_errno(), "prctl", arguments)
if plan["forbidden"]:
    steps = [(0x20, 0, 0, 0)]
    for number in plan["forbidden"]:
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 1)]
    steps.append((0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in steps))
    fprog = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program))
    libc.prctl.argtypes = None
    if libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
if plan["capabilities"] is not None:
    last = int(open("/proc/sys/kernel/cap_last_cap").read())
    for number in set(range(last + 1)) - set(plan["capabilities"]):
        prctl(24, number, 0, 0, 0)
if plan["user"]:
    os.setgroups([])
    os.setgid(plan["user"])
    os.setuid(plan["user"])
if plan["no_new_privileges"]:
    prctl(38, 1, 0, 0, 0)
os.umask(0o022)
os.execvpe(plan["argv"][0], plan["argv"], plan["environment"])
"""

PIDFD_GETFD = 438
PIDFD_OPEN = 434


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the container is run."""

    user: int = 0
    capabilities: tuple[int, ...] | None = DOCKER_CAPABILITIES
    forbidden: tuple[int, ...] = (PIDFD_GETFD,)  # system calls, answered by EPERM
    no_new_privileges: bool = False
    read_only: bool = False
    volumes: Mapping[Path, str] = ()  # type: ignore[assignment]  # nothing
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None


class Stream:
    """One of the container's outputs, read by a thread as an engine reads it."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while part := self._file.read(65536):
            self._parts.append(part)

    @property
    def lines(self) -> list[str]:
        return b"".join(self._parts).decode(errors="replace").splitlines()

    def close(self) -> None:
        self._thread.join(LIMIT)
        self._file.close()


class Container:
    """A context manager; nothing of it is left after the block."""

    def __init__(self, image: Image, how: How | None = None) -> None:
        self.image, self.how = image, how or How()
        self.init_pid = 0

    def __enter__(self) -> Container:
        how, image = self.how, self.image
        self._folder = Path(tempfile.mkdtemp(prefix="container-"))
        (self._folder / "work").mkdir()
        plan = {
            "argv": [*(how.entrypoint or image.entrypoint), *(how.command or image.command)],
            "environment": {**image.environment, "HOSTNAME": "container"},
            "user": how.user,
            "capabilities": how.capabilities,
            "forbidden": how.forbidden,
            "no_new_privileges": how.no_new_privileges,
        }
        volumes = " ".join(f"{here}:{there}" for here, there in dict(how.volumes).items())
        out, out_child = os.pipe()
        err, err_child = os.pipe()
        self._outer = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "private", "--pid", "--net", "--uts",
                "--ipc", "--cgroup", "--fork", "--kill-child=KILL", "sh", "-c", _ENTER,
            ],
            stdin=subprocess.DEVNULL, stdout=out_child, stderr=err_child,
            env={
                "PATH": os.environ["PATH"], "BOX": str(self._folder),
                "LOWER": ":".join(map(str, image.layers)), "VOLUMES": volumes,
                "READ_ONLY": "yes" if how.read_only else "", "LAUNCHER": _LAUNCHER,
                "PLAN": json.dumps(plan),
            },
        )  # fmt: skip
        os.close(out_child)
        os.close(err_child)
        self.stdout, self.stderr = Stream(out), Stream(err)
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")

        def born() -> bool:
            self.init_pid = int((children.read_text() or "0").split()[0])
            return self.init_pid > 0

        self.until("PID 1", born)
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init_pid, signal.SIGKILL)  # the kernel ends all that is in it
        self._outer.wait(LIMIT)
        self.stdout.close()
        self.stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what an engine's client does -----------------------------------------------------------

    def send(self, number: signal.Signals) -> None:
        """`docker kill -s`."""
        os.kill(self.init_pid, number)

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code of PID 1. Raises TimeoutExpired."""
        return self._outer.wait(limit)

    def exec(self, *argv: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """`docker exec`, as the container's user."""
        user = ["-S", str(self.how.user), "-G", str(self.how.user)] if self.how.user else []
        done = subprocess.run(
            [
                "nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w",
                *user, "env", "-i", *(f"{k}={v}" for k, v in self.image.environment.items()), *argv,
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        assert not check or done.returncode == 0, (argv, done)
        return done

    def healthy(self) -> bool:
        """As HEALTHCHECK sees it."""
        return self.exec(*self.image.healthcheck).returncode == 0

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.exec("nginxctl", "--json", "status", check=True).stdout
        )
        return found

    def path(self, inside: str) -> Path:
        """A file of the container, from outside."""
        return Path(f"/proc/{self.init_pid}/root") / inside.lstrip("/")

    def load(self, port: int = 80, **plan: Any) -> QuickLoad:
        """Requests from within the container's network."""
        within = ("nsenter", f"--net=/proc/{self.init_pid}/ns/net")
        return QuickLoad(QuickPlan(port=port, **plan), within=within)

    # --- looking at it --------------------------------------------------------------------------

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The supervisor's own log, or its events of one name."""
        found = []
        for line in self.stderr.lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [one for one in found if not event or one["event"] == event]

    def until(self, what: str, holds: Any) -> None:
        limit = time.monotonic() + LIMIT
        while not holds():
            if time.monotonic() > limit:
                raise AssertionError(f"not within {LIMIT:g} s: {what}\n{self._said()}")
            time.sleep(0.01)

    def until_healthy(self) -> None:
        self.until("healthy", self.healthy)

    def _said(self) -> str:
        return "\n".join([*self.stderr.lines[-40:], *self.stdout.lines[-5:]])

    def zombies(self) -> int:
        """How many dead children PID 1 has not reaped."""
        count = 0
        children = Path(f"/proc/{self.init_pid}/task/{self.init_pid}/children").read_text()
        for pid in children.split():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text()
                count += stat[stat.rindex(")") + 2] == "Z"
        return count
