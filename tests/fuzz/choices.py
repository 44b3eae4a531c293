"""Turns the bytes of a fuzzer into choices, so that what it mutates are decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

WORDS = (
    "", " ", "0", "user:root", "group:4", "user:", "10s", "1e9s", "0660", "18931-18934", "restart",
    "http", "tcp", "exec", "/usr/sbin/nginx", "/a\0b", "relative", "\ud800", "é" * 200, "x" * 300,
    "http://127.0.0.1:8080/", "https://[::1]/x?y#z", "unix:/run/s:/", "127.0.0.1:25", "[::1]:0",
    "http://a\r\nb/", "NGINX", "TZ", "stderr", "json", "debug", "(", "[a-z]+",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 0.5, 1e-9, 1e9, 1e308, -0.0, 2**31, 2**63, -(2**63), 2**64, 10**30, 65535, 65536,
    float("inf"), float("nan"), 31536000, 31536001,
)  # fmt: skip


class Choices:
    """Reads decisions off `data`; when it has ended, every further one is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._at)

    def number(self, limit: int) -> int:
        """From 0 to `limit` - 1, which is at most 255."""
        value = self._data[self._at] % limit if self._at < len(self._data) else 0
        self._at += 1
        return value

    def yes(self) -> bool:
        return self.number(2) == 1

    def one_of(self, among: Sequence[T]) -> T:
        return among[self.number(len(among))]

    def some(self) -> bytes:
        """A few of the bytes themselves."""
        size = self.number(24)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        taken = self._data[self._at :]
        self._at = len(self._data)
        return taken

    def text(self) -> str:
        return self.one_of(WORDS) if self.yes() else self.some().decode("utf-8", "surrogateescape")

    def value(self, depth: int = 0) -> object:
        """Anything that TOML or JSON can hold."""
        match self.number(8 if depth < 3 else 5):
            case 0:
                return self.text()
            case 1:
                return self.one_of(NUMBERS)
            case 2:
                return self.yes()
            case 3:
                return self.text()
            case 4:
                return int.from_bytes(self.some(), "big", signed=True)
            case 5:
                return [self.value(depth + 1) for _ in range(self.number(4))]
            case 6:
                return {self.text(): self.value(depth + 1) for _ in range(self.number(4))}
            case _:
                return None
