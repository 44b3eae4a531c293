"""The supervisor's own program: how it was started, and what is on disk by now.

An update puts other files in the same places (pip, a package manager, a virtual environment that
is changed in place), so the same interpreter with the same arguments is the new program. Before it
takes over it is run once beside this one, with `check`: it has to start, to load all of its modules
and to understand the configuration.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import trio

from supervisor.core.errors import Refusal
from supervisor.edges import children

CHECK_LIMIT = 30.0
"""Seconds that a new program gets to say what it thinks of the configuration."""
_WORDS = 600
_DISTRIBUTION = "nginx-supervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProgram:
    """How this process was started; `environment` is what its children would get."""

    interpreter: tuple[str, ...]  # and the script or module
    arguments: tuple[str, ...]
    config: Path
    environment: Mapping[str, str]

    @classmethod
    def of_this_process(cls, config: Path) -> OwnProgram:
        """As the interpreter tells it; call it before the environment is changed."""
        own = tuple(sys.argv[1:])
        whole = (sys.executable, *sys.orig_argv[1:])
        return cls(
            interpreter=whole[: len(whole) - len(own)],
            arguments=own,
            config=config,
            environment=dict(os.environ),
        )

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command line, with the interpreter's absolute path."""
        return (*self.interpreter, *self.arguments)

    async def check(self) -> str:
        """The version of what is on disk, once that is known to work. Changes nothing.

        Raises Refusal `self_check_failed` with the program's own words. Cancelling ends it.
        """
        command = [*self.interpreter, "check", "--config", str(self.config)]
        done = None
        try:
            with children.beginning(), trio.move_on_after(CHECK_LIMIT):
                done = await trio.run_process(
                    command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True,
                    check=False, env=dict(self.environment), start_new_session=True,
                )  # fmt: skip
        except (OSError, ValueError) as exc:
            raise _refusal(command, f"it cannot be started: {exc}") from exc
        if done is None:
            raise _refusal(command, f"it did not end within {CHECK_LIMIT:g} s")
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-_WORDS:]
            raise _refusal(command, f"it ended with {done.returncode}: {said or 'no word'}")
        return _version_on_disk()


def _version_on_disk() -> str:
    """What is installed where this interpreter looks, as the new program will say of itself."""
    importlib.invalidate_caches()
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _refusal(command: list[str], cause: str) -> Refusal:
    return Refusal(
        "self_check_failed",
        f"cannot replace the supervisor by what is on disk now: `{' '.join(command)}`: {cause}; "
        "mend the installation or the configuration and try again, nothing was changed",
    )
