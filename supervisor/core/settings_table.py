"""Reads one TOML table key by key; what nobody asked for is an unknown key.

Every message names the table and the key, says what is wrong, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from typing import TypeVar

from supervisor.core.duration import parse_duration
from supervisor.core.errors import ConfigError

T = TypeVar("T")

SOCKET_PATH_BYTES = 107
"""What fits into sockaddr_un with its terminating zero (unix(7))."""
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)


class Table:
    """One table of the configuration; `name` is as a person finds it in the file."""

    def __init__(self, name: str, entries: Mapping[str, object]) -> None:
        self.name = name
        self._entries = entries
        self._known: set[str] = set()

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about `key`, to be raised."""
        return ConfigError(f"cannot use {key} in {self.name}: {problem}")

    def has(self, key: str) -> bool:
        """Whether the key is given."""
        self._known.add(key)
        return key in self._entries

    def take(self, key: str) -> object:
        """The value as it stands. Raises ConfigError where it is missing."""
        if not self.has(key):
            raise ConfigError(f"cannot do without {key} in {self.name}: add it")
        return self._entries[key]

    def finish(self) -> None:
        """Raise ConfigError where a key is left that nobody asked for."""
        for key in self._entries:
            if key not in self._known:
                raise unknown_key(key, self._known, where=self.name)

    # --- kinds of values; `default` None makes a key optional where the type says so ---

    def duration(self, key: str, default: float, *, positive: bool = False) -> float:
        """Seconds; `positive` forbids 0."""
        if not self.has(key):
            return default
        try:
            seconds = parse_duration(self._entries[key])
        except ValueError as exc:
            raise self.error(key, str(exc)) from exc
        if positive and seconds == 0:
            raise self.error(key, "it has to be more than 0 seconds")
        return seconds

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        if not self.has(key):
            return default
        value = self._entries[key]
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r} is neither true nor false")
        return value

    def integer(self, key: str, default: int, *, least: int, most: int) -> int:
        """A whole number within bounds."""
        if not self.has(key):
            return default
        value = self._entries[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"{value!r} is not a whole number")
        if not least <= value <= most:
            raise self.error(key, f"{value} is not from {least} to {most}")
        return value

    def text(self, key: str) -> str:
        """A string that is not empty and that a process can be given."""
        return self._text(key, self.take(key))

    def optional_text(self, key: str) -> str | None:
        """As `text`, None where it is not given."""
        return self.text(key) if self.has(key) else None

    def absolute_path(self, key: str, default: str | None = None) -> str:
        """An absolute path; required where there is no default."""
        if default is not None and not self.has(key):
            return default
        path = self.text(key)
        if not path.startswith("/"):
            raise self.error(key, f"{path!r} is a relative path; write it from / on")
        return path

    def optional_path(self, key: str) -> str | None:
        """As `absolute_path`, None where it is not given."""
        return self.absolute_path(key) if self.has(key) else None

    def socket_path(self, key: str, default: str | None = None) -> str:
        """An absolute path that fits into the address of a unix socket."""
        path = self.absolute_path(key, default)
        if len(path.encode()) > SOCKET_PATH_BYTES:
            raise self.error(
                key,
                f"the path has {len(path.encode())} bytes and a socket's has at most "
                f"{SOCKET_PATH_BYTES}; choose a shorter one",
            )
        return path

    def file_mode(self, key: str, default: int) -> int:
        """Permission bits, written as a string: TOML's 660 and 0o660 look alike and are not."""
        if not self.has(key):
            return default
        value = self._entries[key]
        if not isinstance(value, str) or not _MODE.fullmatch(value):
            raise self.error(key, f'{value!r} is not a file mode; write it as a string, "0660"')
        return int(value, 8)

    def choice(self, key: str, default: T, choices: Mapping[str, T]) -> T:
        """One of a few words."""
        if not self.has(key):
            return default
        value = self._entries[key]
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"{value!r} is none of {', '.join(choices)}")
        return choices[value]

    def array(self, key: str, read: Callable[[str, object], T]) -> tuple[T, ...]:
        """An array that is not empty, its elements read one by one."""
        value = self.take(key)
        if not isinstance(value, list) or not value:
            raise self.error(key, f"{value!r} is not an array with something in it")
        return tuple(read(key, one) for one in value)

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """An array of strings; with a default it may be left out, or be empty."""
        if default is not None and (not self.has(key) or self._entries[key] == []):
            return default
        return self.array(key, self._text)

    def text_table(self, key: str) -> dict[str, str]:
        """A table of strings; empty where it is not given."""
        if not self.has(key):
            return {}
        value = self._entries[key]
        if not isinstance(value, dict):
            raise self.error(key, f'{value!r} is not a table; write {key} = {{ name = "value" }}')
        return {name: self._plain(f"{key}.{name}", one) for name, one in value.items()}

    def _text(self, key: str, value: object) -> str:
        text = self._plain(key, value)
        if not text:
            raise self.error(key, "it is empty")
        return text

    def _plain(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(key, f"{value!r} is not a string")
        if "\0" in value:
            raise self.error(key, "it holds a zero byte")
        return value


def unknown_key(key: str, known: Iterable[str], *, where: str) -> ConfigError:
    """The error about a key that means nothing, with the one that was probably meant."""

    def likeness(other: str) -> float:
        return SequenceMatcher(None, key, other).ratio()

    nearest = max(sorted(known), key=likeness)
    return ConfigError(f"cannot use the unknown key {key} in {where}: did you mean {nearest}?")
