"""systemctl and nginxctl, called as a person would; what they say is text."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import supervisor
from supervisor import wire

OUR_UNIT = "nginx-supervisor.service"
ALL_UNITS = "nginx-supervisor*.service"
PACKAGE_UNIT = "nginx-supervisor-package.service"
BOOTED = Path("/run/systemd/system")
"""sd_booted(3): the folder is there while systemd is the init system."""
LIMIT = 300.0
"""Seconds that systemctl may take: a start waits for nginx, and a stop for its clients."""
_LIBRARY = str(Path(supervisor.__file__).resolve().parent.parent)


class StepError(Exception):
    """A step failed; the text says which, and why."""


def systemctl(*words: str) -> str:
    """Run it and return what it printed. Raises StepError with its words where it fails."""
    return _run(["systemctl", *words])


def show(unit: str, *properties: str) -> dict[str, str]:
    """The properties of a unit; one that systemd has never heard of has them as well."""
    said = systemctl("show", unit, *(f"--property={name}" for name in properties))
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _run(command: Sequence[str]) -> str:
    shown = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603 - systemctl, with words of ours
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
        )
    except FileNotFoundError as exc:
        raise StepError(f"`{shown}`: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise StepError(f"`{shown}` did not end within {LIMIT:g} s") from exc
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise StepError(f"`{shown}` failed ({done.returncode}): {said or 'no word'}")
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A supervisor that runs as a unit."""

    unit: str
    pid: int
    socket: str

    def status(self) -> dict[str, object]:
        """What `nginxctl --json status` tells. Raises StepError."""
        code, said = self.nginxctl("status")
        try:
            told = json.loads(said)
        except ValueError:
            told = None
        if code != 0 or not isinstance(told, dict):
            raise StepError(f"{self.unit} does not say how it is: {said.strip() or 'no word'}")
        return told

    def nginxctl(self, *words: str) -> tuple[int, str]:
        """Run a command with this supervisor; its exit code and its last words, JSON if it ends."""
        program = f"import sys; sys.path.insert(0, {_LIBRARY!r}); from supervisor.cli import main; "
        command = [
            sys.executable, "-IS", "-c", f"{program} sys.exit(main())",
            "--socket", self.socket, "--json", *words,
        ]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - our own client
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return wire.ExitCode.GAVE_UP, f"no answer within {LIMIT:g} s"
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
        return done.returncode, lines[-1] if lines else ""


def running(pattern: str = ALL_UNITS) -> list[Running]:
    """Every supervisor that runs as a unit of that name, instances included. Raises StepError."""
    found = [_as_running(name) for name in names(pattern)]
    return [one for one in found if isinstance(one, Running)]


def unknown(pattern: str = ALL_UNITS) -> list[str]:
    """Units of that name that run a program which is not known here: `UNIT (process PID)`.

    It may be a supervisor, with which a stop of the unit would end nginx. Raises StepError.
    """
    return [one for one in map(_as_running, names(pattern)) if isinstance(one, str)]


def words_of(said: str) -> str:
    """The reason and the detail of a verdict; other words as they are."""
    try:
        told = json.loads(said)
    except ValueError:
        return said or "no word"
    if not isinstance(told, dict) or "detail" not in told:
        return said
    return f"{told.get('reason')}: {told['detail']}"


def names(pattern: str = ALL_UNITS, *types: str) -> list[str]:
    """The units of that name (services by default) that systemd has loaded. Raises StepError."""
    kinds = ",".join(types) or "service"
    words = ("list-units", f"--type={kinds}", "--all", "--plain", "--no-legend", "--full")
    return [line.split()[0] for line in systemctl(*words, pattern).splitlines() if line.split()]


def _as_running(unit: str) -> Running | str | None:
    """None: nothing runs, or what may be stopped; a text: nobody knows what it is."""
    pid = int(show(unit, "MainPID").get("MainPID") or 0)
    if pid == 0:
        return None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        words = []
    config = _config_in(words)
    if config is not None:
        return Running(unit=unit, pid=pid, socket=_socket_of(config))
    if unit == PACKAGE_UNIT:
        return None  # nginxctl, which asks for an upgrade and can be stopped at any time
    # Gone since, and at once started again perhaps: only what has no process is at rest.
    return f"{unit} (process {pid})" if show(unit, "MainPID").get("MainPID") == str(pid) else None


def config_of(unit: str) -> str | None:
    """The configuration that the unit's start names; None where it names none."""
    words = show(unit, "ExecStart").get("ExecStart", "").split()
    return _config_in(words)


def _config_in(words: Sequence[str]) -> str | None:
    """What the command `... run --config FILE` or `--config=FILE` names."""
    if "run" not in words:
        return None
    rest = words[words.index("run") + 1 :]
    for word, following in zip(rest, [*rest[1:], ""], strict=True):
        if word == "--config" and following:
            return following
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _socket_of(config: str) -> str:
    """The control socket of the configuration, whatever else is wrong with it by now."""
    try:
        table = tomllib.loads(Path(config).read_text()).get("control", {})
    except (OSError, ValueError):
        table = {}
    given = table.get("socket") if isinstance(table, dict) else None
    return given if isinstance(given, str) else wire.DEFAULT_SOCKET
