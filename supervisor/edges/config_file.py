"""The supervisor's configuration file: who may write it decides who is root here."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

from supervisor.core.errors import ConfigError
from supervisor.core.settings import Settings, parse_settings

_LARGEST = 1024 * 1024


def load_settings(path: str | Path) -> Settings:
    """The settings in the file at `path`. Raises ConfigError, and nothing else.

    The file has to belong to root or to the supervisor's own user, and nobody else may be able to
    write it: it names programs that the supervisor runs.
    """
    shown = str(path)
    return settings_in(_read(shown), shown)


def settings_in(data: bytes, shown: str) -> Settings:
    """The settings in the text of a file called `shown`. Raises ConfigError, and nothing else."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"cannot read the configuration {shown}: line {line} is not UTF-8; save it as UTF-8"
        ) from exc
    except ValueError as exc:  # TOMLDecodeError, and numbers of thousands of digits
        raise ConfigError(f"cannot read the configuration {shown}: not TOML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(
            f"cannot read the configuration {shown}: not TOML: nested too deeply"
        ) from exc
    try:
        return parse_settings(document)
    except ConfigError as exc:
        raise ConfigError(f"{shown}: {exc.detail}", reason=exc.reason) from exc


def _read(path: str) -> bytes:
    try:
        # Not blocking: a fifo in its place must not hold the supervisor up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            _expect_trusted(path, os.fstat(fd))
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as exc:
        remedy = "name another one with --config"
        if isinstance(exc, FileNotFoundError):
            remedy = "write one (conf/ has a sample), or name another one with --config"
        cause = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"cannot read the configuration {path}: {cause}; {remedy}") from exc
    if len(data) > _LARGEST:
        raise ConfigError(
            f"cannot read the configuration {path}: it has more than {_LARGEST} bytes"
        )
    return data


def _expect_trusted(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"cannot read the configuration {path}: it is not a regular file")
    own = os.geteuid()
    if found.st_uid not in (0, own):
        raise ConfigError(
            f"cannot trust the configuration {path}: it belongs to uid {found.st_uid}, who is "
            f"neither root nor the supervisor's user; chown {own} {path}"
        )
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"cannot trust the configuration {path}: everyone can write it; chmod o-w {path}"
        )
    if found.st_mode & stat.S_IWGRP and found.st_gid != 0:
        raise ConfigError(
            f"cannot trust the configuration {path}: group {found.st_gid} can write it; "
            f"chmod g-w {path}"
        )
