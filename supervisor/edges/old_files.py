"""Run a program as if files that were replaced on disk were still there.

A running nginx that reads its configuration again takes a dynamic module that it has loaded from
its memory, by the name of its path (dlopen(3)), whatever file that path leads to by now. A test of
the configuration by another process opens the file. So that process gets a view of the file system
of its own (mount_namespaces(7)) in which copies of the old files lie over the new ones; nobody else
sees them, and they are gone with it. Where the kernel does not permit that, `NO_VIEW` is what it
says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NO_VIEW = "cannot have a view of its own of the file system"

_PROGRAM = f"""
import ctypes, os, sys
count = int(sys.argv[1])
files, argv = sys.argv[2:2 + 2 * count], sys.argv[2 + 2 * count:]
program = os.open(argv[0], os.O_PATH)  # /proc/PID/exe of others may not be opened any more then
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        error = os.strerror(ctypes.get_errno())
        sys.exit(f"{NO_VIEW}: {{name}}{{arguments}}: {{error}}")
def mount(source, target, flags):
    call("mount", source, target, None, ctypes.c_ulong(flags), None)
uid, gid = os.geteuid(), os.getegid()
if uid == 0:
    call("unshare", 0x20000)  # CLONE_NEWNS
else:
    call("unshare", 0x10020000)  # and CLONE_NEWUSER, where this user may mount
    for name, text in ("setgroups", "deny"), ("uid_map", uid), ("gid_map", gid):
        try:
            with open(f"/proc/self/{{name}}", "w") as file:
                file.write(text if text == "deny" else f"{{text}} {{text}} 1")
        except OSError as exc:
            sys.exit(f"{NO_VIEW}: {{exc}}")
mount(None, b"/", 0x44000)  # MS_PRIVATE | MS_REC: nobody else sees what follows
for old, path in zip(files[::2], files[1::2]):
    mount(os.fsencode(old), os.fsencode(path), 0x1000)  # MS_BIND
    # The copy may lie where nothing is executable (MS_REMOUNT | MS_BIND, without MS_NOEXEC).
    libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(0x1020), None)
os.execve(f"/proc/self/fd/{{program}}", argv, os.environ)
"""


def with_old_files(
    argv: Sequence[str], replaced: Mapping[str, Path]
) -> tuple[Path, tuple[str, ...]]:
    """A program and its arguments that run `argv` with a copy of the old content at each path."""
    pairs = [str(each) for path, old in replaced.items() for each in (old, path)]
    own = ("-I", "-S", "-c", _PROGRAM, str(len(replaced)), *pairs)
    return Path(sys.executable), (*own, *argv)
