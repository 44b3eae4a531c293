"""The service manager's end of sd_notify: hears what the supervisor says about itself."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from types import TracebackType

_AT_REST = re.compile(r"\((idle|draining|reloading|backoff|degraded)\)")


class Ears:
    """Listens on a socket for NOTIFY_SOCKET; leaving the block closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed = threading.Condition()
        self._heard: list[str] = []

    def __enter__(self) -> Ears:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # Wakes the reader, which closing alone does not.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._reader.join()
        self._socket.close()
        self.path.unlink()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            with self._changed:
                self._heard += message.decode().splitlines()
                self._changed.notify_all()

    def forget(self) -> None:
        """Start afresh, before another supervisor is started."""
        with self._changed:
            self._heard.clear()

    def heard(self, line: str, limit: float) -> bool:
        """Whether `line` is said within `limit` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: line in self._heard, limit)

    def at_rest(self, limit: float) -> bool:
        """Whether the newest line for people has a phase at rest within `limit` seconds."""
        with self._changed:
            return self._changed.wait_for(self._is_at_rest, limit)

    def _is_at_rest(self) -> bool:
        told = [line for line in self._heard if line.startswith("STATUS=")]
        return bool(told) and _AT_REST.search(told[-1]) is not None

    @property
    def lines(self) -> list[str]:
        """All that was said."""
        with self._changed:
            return list(self._heard)
