"""Run a command as a probe: its exit code is the answer, its output the detail."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from supervisor.core.observation import DETAIL_BYTES, Outcome
from supervisor.core.probe_settings import ExecProbe
from supervisor.edges import children, linux
from supervisor.edges.probe_finding import Finding, Progress, outcome_of, within

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_WORDS = 0.05
"""Seconds for output that is still in the pipe when the command has ended."""
_KILL_LIMIT = 5.0
"""Seconds for the kernel to end a killed command."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to run as; no supplementary groups."""

    uid: int
    gid: int


class _CannotRunError(Exception):
    """The command cannot be run; the text says why."""


async def check_exec(
    probe: ExecProbe, worker: Identity | None, environment: Mapping[str, str]
) -> Finding:
    """Run the command once. Never raises; cancelling kills it and what it left in its group.

    It gets descriptors 0 to 2, a small environment with `environment` in it, a session of its own
    and the rights of its user, by default `worker`'s. An unprivileged supervisor runs it as itself.
    """

    async def run(progress: Progress) -> Finding:
        progress.doing = "starting the command"
        process: trio.Process | None = None
        try:
            identity = await _identity(probe, worker)
            with trio.CancelScope(shield=True):  # a process that was made is also ended
                process = await _start(probe, identity, environment)
        except _CannotRunError as exc:
            return progress.finding(outcome_of(exc), str(exc))
        assert process is not None
        progress.began = trio.current_time()
        output = bytearray()
        try:
            await _wait(process, output)
        finally:
            # Where time ran out, this is what is told.
            progress.doing = _with_output("the command still ran", output)
            await _end(process)
        return _judge(progress, process.returncode, output)

    return await within(probe.timeout, run)


async def _identity(probe: ExecProbe, worker: Identity | None) -> Identity | None:
    if probe.user is not None:
        try:  # in a thread: accounts may be in a directory that does not answer
            found = await trio.to_thread.run_sync(pwd.getpwnam, probe.user, abandon_on_cancel=True)
        except KeyError as exc:
            raise _CannotRunError(f"cannot run as {probe.user}: no such user") from exc
        itself = os.geteuid() == found.pw_uid != 0
        return None if itself else Identity(found.pw_uid, found.pw_gid)
    if os.geteuid() != 0:
        return None
    if worker is None:  # never as root by accident
        raise _CannotRunError("cannot run: nginx's worker user is not known; set user")
    return worker


async def _start(
    probe: ExecProbe, identity: Identity | None, environment: Mapping[str, str]
) -> trio.Process:
    base = {"PATH": _PATH, "LANG": "C.UTF-8", "PROBE_NAME": probe.name}
    try:
        started = await children.start(
            list(probe.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**base, **environment},
            cwd="/",
            start_new_session=True,
            umask=0o022,
            user=None if identity is None else identity.uid,
            group=None if identity is None else identity.gid,
            extra_groups=None if identity is None else [],
        )
        return children.note(started)
    except (OSError, subprocess.SubprocessError) as exc:
        cause = getattr(exc, "strerror", None) or str(exc)
        raise _CannotRunError(f"cannot run {probe.command[0]}: {cause}") from exc


async def _wait(process: trio.Process, output: bytearray) -> None:
    """Return when the command has ended (not yet reaped) and its group is gone."""
    pidfd = linux.open_pidfd(process.pid)
    assert pidfd is not None  # nobody has reaped it
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_collect, process, output)
            await trio.lowlevel.wait_readable(pidfd)
            _kill_group(process)
            # A descendant in a session of its own may hold the pipe for ever.
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
    finally:
        os.close(pidfd)


async def _collect(process: trio.Process, output: bytearray) -> None:
    """Keep the beginning of the output; read on, so that the command is not held up."""
    assert process.stdout is not None
    while part := await process.stdout.receive_some(65536):
        output += part[: DETAIL_BYTES - len(output)]


async def _end(process: trio.Process) -> None:
    """Nothing of the command's group is left, and it is reaped."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _KILL_LIMIT):
        _kill_group(process)
        await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()


def _kill_group(process: trio.Process) -> None:
    """Before the command is reaped, so that its pid, the group's id, cannot be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _judge(progress: Progress, code: int | None, output: bytearray) -> Finding:
    if code == 0:
        return progress.finding(Outcome.PASS, _with_output("exit code 0", output))
    signalled = -code if code is not None and code < 0 else None
    said = f"exit code {code}" if signalled is None else f"ended by signal {signalled}"
    return progress.finding(Outcome.FAIL, _with_output(said, output))


def _with_output(said: str, output: bytearray) -> str:
    text = output.decode("utf-8", "replace").strip()
    return f"{said}: {text}" if text else said
