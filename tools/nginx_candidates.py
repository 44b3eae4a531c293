"""Bad candidates: real nginx builds that start an upgrade well and then go wrong in one known way.

A candidate is a copy of a build with one more shared object (tests/nginx/bad_KIND.c), which
patchelf makes the first of its libraries. tests/nginx/README.md tells how each kind shows.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tools import system_packages
from tools.nginx_cache import Build, BuildsError, cache_folder

SOURCES = Path(__file__).resolve().parent.parent / "tests" / "nginx"
COMPILE = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
# Empty stubs since glibc 2.34; needed on older systems.
LIBRARIES = ("-ldl", "-lrt", "-lpthread")

TRUNCATED_BYTES = 64 * 1024
# Part of the path of those that are made from the file alone: raise it when one of them changes.
RECIPE_NUMBER = 2

Knob = int | str
WHERE = ("everywhere", "new", "inherited")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to go wrong, and its knobs with their defaults."""

    summary: str
    knobs: Mapping[str, Knob] = field(default_factory=lambda: MappingProxyType({}))


def _kind(summary: str, **knobs: Knob) -> Kind:
    return Kind(summary, MappingProxyType(knobs))


# Kinds with a source in tests/nginx. Each also takes always=1: it misbehaves in a cold start too;
# and test_ms: what asks it for its version or to test takes that long.
COMPILED: dict[str, Kind] = {
    "good": _kind("nothing is wrong; another hash"),
    "exit_at_once": _kind("the master exits before it reads its configuration", code=1),
    "exit_later": _kind("the master exits, its workers live on", delay_ms=1500, code=1),
    "hang": _kind("hangs before its pid file; only KILL helps"),
    "slow_start": _kind("takes its time to start, then is well", delay_ms=3000),
    "stop_after": _kind("the master stops itself by SIGSTOP", delay_ms=1500),
    "spin_master": _kind("the master no longer acts on signals", delay_ms=300, burns=0),
    "deaf_master": _kind("the master ignores QUIT, WINCH, TERM", delay_ms=0, obeys_term=0),
    "workers_fatal": _kind("workers exit with code 2 in their start"),
    "workers_exit": _kind("workers exit again and again", delay_ms=50, code=1),
    "workers_crash": _kind("workers die by a signal again and again", delay_ms=50, signal=11),
    "worker_crash_once": _kind("one worker dies by a signal once", delay_ms=50, signal=11),
    "leaky_workers": _kind("workers grow", delay_ms=0, mb_per_second=50, limit_mb=200),
    "leaky_descriptors": _kind("workers open descriptors", delay_ms=0, per_second=200, limit=2000),
    "burn_cpu": _kind("a thread in one worker spins", delay_ms=0),
    "cache_manager_crash": _kind(
        "the cache manager dies by a signal again and again", delay_ms=0, every_ms=200, signal=11
    ),
    "workers_leave": _kind(
        "one worker after the other ends, untold", delay_ms=0, every_ms=2000, code=0
    ),
    "alerting": _kind("workers write [alert] lines", delay_ms=50),
    "hang_workers": _kind("workers never answer; only KILL helps", delay_ms=0),
    "hang_one_worker": _kind("one worker never answers again", delay_ms=0),
    "silent_listeners": _kind("listeners connect, never answer", where="everywhere", loopback=0),
    "refuse_new_listeners": _kind("a listener that it opens itself refuses connections"),
    "reset_connections": _kind("connections are reset", delay_ms=0, where="everywhere"),
    "status_500": _kind("responses say 500", delay_ms=0, where="everywhere", one_worker=0),
    "wrong_body": _kind("responses have another body", delay_ms=0, where="everywhere"),
    "slow_answers": _kind("responses are late", delay_ms=0, where="everywhere", late_ms=300),
    "wrong_redirect": _kind("redirects lead elsewhere", delay_ms=0, where="everywhere"),
    "wrong_certificate": _kind("certificates are somebody else's"),
    "broken_handshake": _kind("no TLS handshake comes about", delay_ms=0),
    "broken_http2": _kind("HTTP/2 connections are closed at once", delay_ms=0),
    "unwritable_cache": _kind("nothing gets into a proxy cache", delay_ms=0),
    "unreachable_backend": _kind("one backend is never reached", delay_ms=0, loopback=3),
}
# Kinds made from the file alone. All but the first are refused before they are ever started.
MADE: dict[str, Kind] = {
    "without_stub_status": _kind("the same version without that module"),
    "wrapper": _kind("a shell script that runs nginx"),
    "truncated": _kind("the first 64 KiB of the file"),
    "wrong_architecture": _kind("an ELF file for another machine"),
    "not_nginx": _kind("a program that is not nginx"),
    "not_executable": _kind("nginx without its x bit"),
    "empty": _kind("no bytes at all"),
}
KINDS: dict[str, Kind] = {**COMPILED, **MADE}


def candidate(build: Build, kind: str, *, into: Path | None = None, **knobs: Knob) -> Path:
    """A binary named `nginx`, made from `build`, that goes wrong in the way of `kind`.

    Made once for each build, kind and knobs, in the cache folder or in the folder `into`: a test
    that runs nginx as a user who cannot read the caller's home gives one. Several callers share the
    file, so change only copies of it.
    Raises ValueError for an unknown kind or knob, BuildsError where it cannot be made.
    """
    values = check_knobs(kind, knobs)
    root = into or cache_folder() / "candidates"
    if kind == "without_stub_status":
        return lacking(build)
    if kind in MADE:
        maker = _MAKERS[kind]
        name = f"{kind}-{RECIPE_NUMBER}-{_digest(build.path)}"
        return _publish(root / build.version / name, build, maker)
    library = shared_object(kind, values, folder=root / "lib")
    folder = root / build.version / f"{library.stem}-{_digest(build.path)}"
    return _publish(folder, build, lambda source, target: _add_library(source, target, library))


def lacking(build: Build) -> Path:
    """The twin of `build` without a common module. Raises BuildsError where there is none."""
    if not build.lacking.is_file():
        raise BuildsError(f"cannot offer {build.lacking}: only builds made here have such a twin")
    return build.lacking


def check_knobs(kind: str, given: Mapping[str, Knob]) -> dict[str, Knob]:
    """The knobs of `kind` with their values. Raises ValueError for what it does not have."""
    if kind not in KINDS:
        raise ValueError(f"cannot make a candidate of kind {kind!r}: one of {', '.join(KINDS)}")
    known = {**KINDS[kind].knobs, **({"always": 0, "test_ms": 0} if kind in COMPILED else {})}
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"cannot set {name} of {kind}: it has {', '.join(known) or 'no knobs'}"
            )
        if name == "where" and value not in WHERE:
            raise ValueError(f"cannot set where={value!r}: one of {', '.join(WHERE)}")
    return {**known, **given}


def shared_object(kind: str, values: Mapping[str, Knob], *, folder: Path) -> Path:
    """The compiled tests/nginx/bad_KIND.c with its knobs."""
    source = SOURCES / f"bad_{kind}.c"
    defines = [f"-D{name.upper()}={str(value).upper()}" for name, value in sorted(values.items())]
    digest = hashlib.sha256(repr((COMPILE, defines)).encode())
    for path in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    target = folder / f"{kind}-{digest.hexdigest()[:12]}.so"
    if target.exists():
        return target
    _make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as work:
        made = Path(work) / target.name
        command = ["gcc", *COMPILE, *defines, "-o", str(made), str(source), *LIBRARIES]
        _run(command, doing=f"compile {source.name}")
        made.chmod(0o755)
        os.replace(made, target)
    return target


def _publish(folder: Path, build: Build, make: Callable[[Path, Path], None]) -> Path:
    """Makes folder/nginx once; two processes that make it at once put the same file there."""
    target = folder / "nginx"
    if target.exists():
        return target
    _make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as work:
        made = Path(work) / "nginx"
        make(build.path, made)
        os.replace(made, target)
    return target


def _make_folder(folder: Path) -> None:
    """Makes it writable by its owner only, whatever the umask: the supervisor refuses others."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def _add_library(source: Path, target: Path, library: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)
    _run([patchelf(), "--add-needed", str(library), str(target)], doing=f"patch a copy of {source}")


def ensure_tools() -> None:
    """Has what candidate() needs installed now, rather than by several tests at once."""
    system_packages.ensure(system_packages.COMPILER)
    patchelf()


def patchelf() -> str:
    """The patchelf of this virtual environment, else the system's."""
    beside_python = shutil.which("patchelf", path=str(Path(sys.executable).parent))
    if beside_python is None:
        system_packages.ensure([system_packages.PATCHELF])
    return beside_python or "patchelf"


def _wrapper(source: Path, target: Path) -> None:
    target.write_text(f'#!/bin/sh\nexec {source} "$@"\n', encoding="utf-8")
    target.chmod(0o755)


def _truncated(source: Path, target: Path) -> None:
    # Half of a build that was not stripped would still run: the rest is for the debugger.
    target.write_bytes(source.read_bytes()[:TRUNCATED_BYTES])
    target.chmod(0o755)


def _wrong_architecture(source: Path, target: Path) -> None:
    elf = bytearray(source.read_bytes())
    # e_machine, 2 bytes at offset 18: SPARC version 9 (43) is nobody's test machine.
    elf[18:20] = (43).to_bytes(2, sys.byteorder)
    target.write_bytes(elf)
    target.chmod(0o755)


def _not_nginx(source: Path, target: Path) -> None:
    del source
    shutil.copyfile(shutil.which("true") or "/bin/true", target)
    target.chmod(0o755)


def _not_executable(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)


def _empty(source: Path, target: Path) -> None:
    del source
    target.touch()
    target.chmod(0o755)


_MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "wrapper": _wrapper,
    "truncated": _truncated,
    "wrong_architecture": _wrong_architecture,
    "not_nginx": _not_nginx,
    "not_executable": _not_executable,
    "empty": _empty,
}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _run(command: list[str], *, doing: str) -> None:
    if command[0] == "gcc":
        system_packages.ensure(system_packages.COMPILER)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise BuildsError(f"cannot {doing}: {done.stderr.strip()[-2000:]}")
