"""What a cold start would run now: the file at `nginx.binary`, read again only when it changed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass

_VERSION = re.compile(rb"\x00(?:nginx|openresty|Angie|Tengine)/(\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskBinary:
    """The file at a path: its hash (None: no file), and the version that its text names (None: no
    nginx)."""

    path: str
    sha256: str | None
    version: str | None


class DiskBinaryCache:
    """Remembers the last answer for as long as the file's identity, size and times stay."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._answer = DiskBinary(path=path, sha256=None, version=None)

    def look(self) -> DiskBinary:
        """The file as it is now; never raises. Some milliseconds where it has changed."""
        try:
            with open(self._path, "rb", opener=_open_regular) as file:
                found = os.fstat(file.fileno())
                seen = (
                    found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns,
                    found.st_ctime_ns,
                )  # fmt: skip
                if seen != self._seen:
                    content = file.read()
                    version = _VERSION.search(content)
                    self._answer = DiskBinary(
                        path=self._path,
                        sha256=hashlib.sha256(content).hexdigest(),
                        version=version[1].decode() if version else None,
                    )
                    self._seen = seen
        except OSError:
            self._seen, self._answer = None, DiskBinary(path=self._path, sha256=None, version=None)
        return self._answer


def _open_regular(path: str, flags: int) -> int:
    """A pipe would be waited for, and with it everyone who asks for the status."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is no regular file")
    return fd
