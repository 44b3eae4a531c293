"""What a process may do, tried from within: run in the box, by its own Python.

Prints one JSON object: what was tried, and "ok", the name of the error, or what was found.
Everything that is tried changes nothing, or is taken back, where it is permitted.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
NUMBERS = {  # of x86_64, and of those that use the generic table
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "adjtimex": (159, 171),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "io_setup": (206, 0),
    "ptrace": (101, 117),
    "userfaultfd": (323, 282),
}


def attempt(deed: Callable[[], object]) -> object:
    try:
        found = deed()
    except OSError as exc:
        return errno.errorcode.get(exc.errno, str(exc.errno))
    return "ok" if found is None else found


def call(name: str, *arguments: object) -> int:
    number = NUMBERS[name][0 if X86 else 1]
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def write_in(folder: str) -> None:
    handle, path = tempfile.mkstemp(dir=folder, prefix=".inside")
    os.close(handle)
    os.unlink(path)


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def address_family(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_DGRAM).close()


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4).close()  # NETLINK_SOCK_DIAG


def executable_memory() -> str:
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:  # EPERM of a filter, EACCES of the kernel's own switch (Linux 6.3)
        return "forbidden"
    return "ok"


def set_user_id_file() -> None:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        os.chmod(file.name, 0o4755)


def in_a_child(deed: Callable[[], None]) -> str:
    """For what cannot be taken back."""
    pid = os.fork()
    if pid == 0:
        try:
            deed()
        except OSError as exc:
            os._exit(exc.errno)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    code = os.WEXITSTATUS(status)
    return "ok" if code == 0 else errno.errorcode[code]


def personality() -> None:
    # The number of the last call is the argument: ADDR_NO_RANDOMIZE.
    check(LIBC.personality(0x0040000))


def realtime() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def namespace(flag: int) -> Callable[[], None]:
    return lambda: check(LIBC.unshare(flag))


def foreign_architecture() -> str:
    """Runs a program of 32 bits whose one call is exit(0)."""
    code = bytes.fromhex("31db31c040cd80")  # xor ebx,ebx; xor eax,eax; inc eax; int 0x80
    base, size = 0x08048000, 52 + 32
    elf = b"\x7fELF\x01\x01\x01" + bytes(9)
    elf += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + size, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    length = size + len(code)
    elf += struct.pack("<IIIIIIII", 1, 0, base, base, length, length, 5, 0x1000)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = os.path.join(folder, "foreign")
        with open(path, "wb") as file:
            file.write(elf + code)
        os.chmod(path, 0o755)
        status = subprocess.run([path]).returncode
    return "ok" if status == 0 else signal.Signals(-status).name


def descriptor_of_another() -> None:
    """Takes one out of a process of another user that runs already, as of a worker."""
    pidfd = call("pidfd_open", int(sys.argv[1]), 0)
    os.close(call("pidfd_getfd", pidfd, 0, 0))


def umask() -> str:
    mask = os.umask(0o77)
    os.umask(mask)
    return f"{mask:04o}"


def status(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name + ":"))


def names(folder: str) -> list[str]:
    return sorted(os.listdir(folder))


def aio() -> None:
    context = ctypes.c_ulong(0)
    call("io_setup", 1, ctypes.byref(context))


def done(_: object) -> None:
    """It went well, and how is of no interest."""


def cgroup() -> None:
    os.mkdir("/sys/fs/cgroup/inside")
    os.rmdir("/sys/fs/cgroup/inside")


TRIED: dict[str, Callable[[], object]] = {
    "NoNewPrivileges": lambda: status("NoNewPrivs"),
    "CapabilityBoundingSet": lambda: status("CapBnd"),
    "write /usr/lib": lambda: write_in("/usr/lib"),
    "write /usr/lib/nginx-supervisor": lambda: write_in("/usr/lib/nginx-supervisor"),
    "write /etc": lambda: write_in("/etc"),
    "write /usr/sbin": lambda: write_in("/usr/sbin"),
    "write /usr/local/sbin": lambda: write_in("/usr/local/sbin"),
    "write /usr/lib/nginx": lambda: write_in("/usr/lib/nginx"),
    "write /etc/nginx": lambda: write_in("/etc/nginx"),
    "write /srv": lambda: write_in("/srv"),
    "write /var/log/nginx": lambda: write_in("/var/log/nginx"),
    "write /root": lambda: write_in("/root"),
    "read /root": lambda: opened("/root/readable", os.O_RDONLY),
    "write /home": lambda: write_in("/home"),
    "read /home": lambda: opened("/home/readable", os.O_RDONLY),
    "names in /run/user": lambda: names("/run/user"),
    "device": lambda: opened("/dev/extra", os.O_RDONLY),
    "adjtimex": lambda: done(call("adjtimex", ctypes.create_string_buffer(512))),
    "make a cgroup": cgroup,
    "names in /usr/lib/modules": lambda: names("/usr/lib/modules"),
    "mode of /proc/kmsg": lambda: f"{stat.S_IMODE(os.stat('/proc/kmsg').st_mode):04o}",
    "mode of /proc/kallsyms": lambda: f"{stat.S_IMODE(os.stat('/proc/kallsyms').st_mode):04o}",
    "set the host name": lambda: socket.sethostname(socket.gethostname()),
    "hidepid": lambda: "hidepid=" in Path("/proc/self/mountinfo").read_text(),
    "personality": lambda: in_a_child(personality),
    "executable memory": executable_memory,
    "a user namespace": lambda: in_a_child(namespace(0x10000000)),
    "a mount namespace": lambda: in_a_child(namespace(0x00020000)),
    "realtime": lambda: in_a_child(realtime),
    "set user id": set_user_id_file,
    "AF_PACKET": lambda: address_family(17),
    "AF_NETLINK": netlink,
    "foreign architecture": foreign_architecture if X86 else lambda: "SIGSYS",
    "io_uring_setup": lambda: done(call("io_uring_setup", 1, None)),
    "userfaultfd": lambda: os.close(call("userfaultfd", 1)),
    "keyctl": lambda: done(call("keyctl", 0, -1, 0)),
    "ptrace": lambda: done(call("ptrace", 2, 0, 0, 0)),
    "pidfd_getfd": descriptor_of_another,
    "io_setup": aio if X86 else lambda: None,
    "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "niceness": lambda: in_a_child(lambda: done(os.nice(1))),
    "umask": umask,
    "mounts": lambda: os.readlink("/proc/self/ns/mnt"),
    "uts": lambda: os.readlink("/proc/self/ns/uts"),
}

print(json.dumps({name: attempt(deed) for name, deed in TRIED.items()}))
