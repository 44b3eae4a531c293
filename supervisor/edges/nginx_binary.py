"""Runs an nginx binary for its `-V`, `-t` and `-T`, and says in stable words why one is unusable.

Each run has exactly the environment that USR2 would pass on, three file descriptors, a session of
its own, a time limit and bounded output: the file may be anything that somebody calls nginx. `-t`
has side effects in the configuration's folders, so it is run only with files that were checked
before.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import trio

from supervisor.core.elf import (
    HEAD_BYTES,
    Architecture,
    ElfProblem,
    architecture_of,
    check_executable,
)
from supervisor.core.errors import Refusal
from supervisor.core.nginx_config import NginxConfig, parse_dump
from supervisor.core.nginx_listen import DEFAULT_PORT
from supervisor.core.nginx_version import (
    NginxBuild,
    left_out,
    lost_with_unknown_directives,
    module_of_error,
    parse_build,
)
from supervisor.edges import children
from supervisor.edges.files import closing
from supervisor.edges.sources import reading

VERSION_LIMIT = 10.0
"""Seconds for `-V`, which reads nothing and waits for nothing."""

CONFIG_TEST_LIMIT = 60.0
"""Seconds for `-t`, which may resolve host names and read many certificates."""

_LARGEST_DUMP = 64 * 2**20
_LARGEST_MESSAGE = 64 * 2**10
_DETAIL = 512
_LITTLE = 4096  # bytes of a dump that are read sooner than a thread is woken
_KILL_GRACE = 10.0
_UNPRIVILEGED_PORT = 8000
_MISMATCH = re.compile(
    r"module \".*\" version \d+ instead of \d+|is not binary compatible|dlopen\(\) "
)
# With the time and the pid where its own log could not be opened, which is an alert and no cause.
_CAUSE = re.compile(r"^(?:\w+: |[\d/]+ [\d:]+ )\[emerg\] (?:\d+#\d+: )?(?P<what>.*)", re.MULTILINE)
_ERROR_LINE = re.compile(r"^nginx: (?:\[(?:emerg|alert|crit)\] .*|invalid option.*)", re.MULTILINE)
_PASSED_ON = "TZ"


@dataclass(frozen=True, slots=True)
class TestResult:
    """What `-t` said; `output` is nginx's own text, bounded."""

    __test__ = False  # no test class, whatever pytest makes of the name

    ok: bool
    output: str


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int
    stdout: str
    stderr: str


def upgrade_environment(
    config_env: tuple[str, ...], settings_environment: Mapping[str, str]
) -> dict[str, str]:
    """The environment that USR2 passes on, but for the inheritance variable (src/core/nginx.c).

    TZ and the variables of the `env` directives: `NAME=value` as it stands, `NAME` with the value
    from the settings, if there is one. Nothing comes from the supervisor's own environment.
    """
    directives = dict.fromkeys((_PASSED_ON, *config_env))
    environment = {}
    for directive in directives:
        name, equals, value = directive.partition("=")
        if equals:
            environment[name] = value
        elif name in settings_environment:
            environment[name] = settings_environment[name]
    return environment


def inspect_binary(path: Path) -> None:
    """`path` is a whole executable for this machine. Does not run it; blocks on the disk.

    Raises Refusal `relative_path`, `binary_missing`, `binary_unreadable`, `binary_not_executable`,
    `binary_not_nginx`, `binary_wrong_architecture` or `binary_truncated`.
    """
    if not path.is_absolute():
        raise Refusal(
            "relative_path", f"cannot use the binary {path}: the path must begin with a slash"
        )
    with (
        reading(path),
        closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd,
    ):
        found = os.fstat(fd)
        head = os.pread(fd, HEAD_BYTES, 0) if stat.S_ISREG(found.st_mode) else b""
    if not stat.S_ISREG(found.st_mode):
        raise _not_nginx(path, "it is no regular file")
    if head.startswith(b"#!"):
        raise _not_nginx(
            path, "it is a script, and a wrapper cannot be upgraded: name the program that it runs"
        )
    problem = check_executable(head, found.st_size, _own_architecture())
    if problem is ElfProblem.NOT_ELF:
        raise _not_nginx(path, "it is no executable file")
    if problem is ElfProblem.WRONG_ARCHITECTURE:
        raise Refusal(
            "binary_wrong_architecture",
            f"cannot use the binary {path}: it is for another processor"
            f" ({architecture_of(head)}, this machine is {_own_architecture()}); build it for"
            f" {os.uname().machine}",
        )
    if problem is ElfProblem.TRUNCATED:
        raise Refusal(
            "binary_truncated",
            f"cannot use the binary {path}: it ends after {found.st_size} bytes, before its own"
            " headers say; copy it again",
        )
    if not os.access(path, os.X_OK):
        raise _not_executable(path, f"mode {stat.S_IMODE(found.st_mode):04o}")


async def version_of(path: Path, env: Mapping[str, str]) -> NginxBuild:
    """What `-V` says. Cancelling ends the process.

    Raises Refusal `binary_not_nginx`, `binary_cannot_run` (a library or the loader is missing, it
    crashed), or what starting it fails with.
    """
    ended = await _run(path, ["-V"], env, seconds=VERSION_LIMIT)
    if ended is None:
        raise _not_nginx(path, f"it gave no version within {VERSION_LIMIT:.0f} s")
    build = parse_build(ended.stderr)
    if build is not None and ended.code == 0:
        return build
    said = (ended.stderr or ended.stdout).strip()[:_DETAIL]
    if ended.code < 0 or "loading shared libraries" in said:
        how = f"ended by signal {-ended.code}" if ended.code < 0 else f"exited with {ended.code}"
        raise Refusal(
            "binary_cannot_run",
            f"cannot use the binary {path}: it {how} when asked for its version: {said};"
            " install what it needs on this machine",
        )
    answer = f"said: {said}" if said else "said nothing"
    raise _not_nginx(path, f"asked for its version it exited with {ended.code} and {answer}")


async def test_config(path: Path, argv: Sequence[str], env: Mapping[str, str]) -> TestResult:
    """What `path ARGV -t` says of the configuration on disk. Cancelling ends the process.

    Raises Refusal `config_test_timeout`, or what starting it fails with.
    """
    ended = await _run(path, [*argv, "-t"], env, seconds=CONFIG_TEST_LIMIT)
    if ended is None:
        raise _timeout(path)
    return TestResult(ended.code == 0, (ended.stderr or ended.stdout).strip())


test_config.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


async def dump_config(
    path: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    candidate: NginxBuild | None = None,
    running: NginxBuild | None = None,
) -> tuple[NginxConfig, str]:
    """The configuration that `path ARGV` would run, tested, and its text. Cancelling ends it.

    Raises Refusal as `rejection` describes, `config_test_timeout`, or what starting it fails with.
    """
    ended = await _run(
        path, [*argv, "-T", "-q"], env, seconds=CONFIG_TEST_LIMIT, largest=_LARGEST_DUMP
    )
    if ended is None:
        raise _timeout(path)
    if ended.code != 0:
        said = ended.stderr or ended.stdout
        raise rejection(path, said, candidate=candidate, running=running)
    port = DEFAULT_PORT if os.geteuid() == 0 else _UNPRIVILEGED_PORT
    parse = partial(parse_dump, ended.stdout, implied_port=port)
    if len(ended.stdout) < _LITTLE:
        return parse(), ended.stdout
    return await trio.to_thread.run_sync(parse), ended.stdout  # a thousand servers take 0.3 s


def rejection(
    path: Path,
    said: str,
    *,
    candidate: NginxBuild | None = None,
    running: NginxBuild | None = None,
) -> Refusal:
    """Why the binary does not take the configuration, from what it said.

    `module_mismatch`: a dynamic module is of another build. `module_missing`: the configuration
    uses a module that this build lacks, told by nginx's words and the two builds. Else
    `config_rejected`.
    """
    line = _cause(said)[:_DETAIL]
    if _MISMATCH.search(line):
        return Refusal(
            "module_mismatch",
            f"cannot run {path} with the configured dynamic modules: {line};"
            " install the modules that were built for this nginx",
        )
    missing = _missing_module(line, candidate, running)
    if missing:
        return Refusal(
            "module_missing",
            f"cannot run {path}: it was built {missing}, and the configuration uses that module:"
            f" {line}; build it with the module, or load it as a dynamic one",
        )
    return Refusal(
        "config_rejected",
        f"cannot run {path} with the configuration on disk: {line}; {_remedy(line)}",
    )


def _remedy(line: str) -> str:
    if f"({errno.EROFS}: " in line:
        return (
            "name its folder in ReadWritePaths= of the supervisor's unit, if that makes it"
            " read-only (docs/hardening.md)"
        )
    return "correct it, then test it with the same binary and -t"


def _cause(said: str) -> str:
    if cause := _CAUSE.search(said):
        return f"nginx: [emerg] {cause['what']}"
    line = _ERROR_LINE.search(said)
    return line[0] if line else said.strip()


def _missing_module(
    line: str, candidate: NginxBuild | None, running: NginxBuild | None
) -> str | None:
    option = module_of_error(line)
    if option is None or candidate is None:
        return None
    if option.startswith("--with-"):
        present = candidate.configure_arguments
        lacks = option not in present and f"{option}=dynamic" not in present
        return f"without {option}" if lacks else None
    # A directive that is in no table: a module of others, if the running build has one more; else
    # somebody has mistyped it.
    lost = lost_with_unknown_directives(running, candidate) if running is not None else ()
    if not lost:
        return None
    directive = option.removeprefix("directive ")
    own = left_out(lost, directive)
    if own:  # nginx's own module, which is built in unless one says otherwise
        return f"with {' and '.join(own)}"
    absent = " or ".join(one for one in lost if not one.startswith("--without-"))
    return f"without {absent} ({option})" if absent else None


@cache
def _own_architecture() -> Architecture:
    with open("/proc/self/exe", "rb") as file:
        own = architecture_of(file.read(64))
    assert own is not None
    return own


async def _run(
    path: Path,
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    seconds: float,
    largest: int = _LARGEST_MESSAGE,
) -> _Ended | None:
    """Runs it to its end; None where the time was up. It is dead when this returns or raises."""
    process = await _start(path, arguments, env)
    pieces: dict[trio.abc.ReceiveStream, bytearray] = {}
    try:
        with trio.move_on_after(seconds) as limit:
            async with trio.open_nursery() as nursery:
                for stream, most in ((process.stdout, largest), (process.stderr, _LARGEST_MESSAGE)):
                    assert stream is not None
                    pieces[stream] = bytearray()
                    nursery.start_soon(_collect, stream, pieces[stream], most)
                await process.wait()
    finally:
        await _end(process)
    if limit.cancelled_caught:
        return None
    assert process.returncode is not None
    stdout, stderr = (bytes(piece).decode("utf-8", "backslashreplace") for piece in pieces.values())
    return _Ended(process.returncode, stdout, stderr)


async def _start(path: Path, arguments: Sequence[str], env: Mapping[str, str]) -> trio.Process:
    try:
        with trio.CancelScope(shield=True):  # else nobody would own what was just started
            process = await children.start(
                [str(path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                cwd="/",
                start_new_session=True,
                umask=0o022,
            )
    except PermissionError as exc:
        raise _not_executable(path, "its file system may be mounted noexec") from exc
    except FileNotFoundError as exc:
        if os.access(path, os.F_OK):
            raise Refusal(
                "binary_cannot_run",
                f"cannot run {path}: the program loader that it names is not on this machine;"
                " build it for this distribution",
            ) from exc
        raise Refusal(
            "binary_missing", f"cannot run {path}: there is no such file; name one that exists"
        ) from exc
    except OSError as exc:
        if exc.errno == errno.ENOEXEC:
            raise _not_nginx(path, "it is no executable file") from exc
        raise Refusal(
            "binary_cannot_run", f"cannot run {path}: {exc.strerror}; see the kernel's log"
        ) from exc
    return children.note(process)


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray, most: int) -> None:
    """Keeps the first `most` bytes and drops the rest, so that the process never blocks on us."""
    async for piece in stream:
        into += piece[: max(0, most - len(into))]


async def _end(process: trio.Process) -> None:
    """Kills what still runs, with what it may have started, and closes the pipes."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _KILL_GRACE):
        if process.poll() is None:
            with suppress(ProcessLookupError):  # the session's leader is unreaped: the group is its
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()


def _not_nginx(path: Path, why: str) -> Refusal:
    return Refusal("binary_not_nginx", f"cannot use {path} as nginx: {why}")


def _not_executable(path: Path, why: str) -> Refusal:
    return Refusal(
        "binary_not_executable",
        f"cannot use the binary {path}: it may not be executed ({why}); chmod 755 {path}",
    )


def _timeout(path: Path) -> Refusal:
    return Refusal(
        "config_test_timeout",
        f"cannot test the configuration with {path}: no answer within {CONFIG_TEST_LIMIT:.0f} s;"
        " see which host name or file it waits for",
    )
