"""Tells the service manager how things are (sd_notify(3)); does nothing where there is none."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

VARIABLE = "NOTIFY_SOCKET"
_PATIENCE = 1.0
"""Seconds that a word which the service manager waits for may take; a status is dropped instead."""


class Notifier:
    """Datagrams to `address`; None: nobody listens. No method raises."""

    def __init__(self, address: str | None) -> None:
        self._given = address
        self._last = ""  # the last line for people
        self._address: str | None = None
        if address is not None and len(address) > 1 and address[0] in "/@":
            # "@" stands for the zero byte that begins an abstract address (unix(7)).
            self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """As the variable says, which is removed: no child shall speak in our name."""
        return cls(environ.pop(VARIABLE, None))

    @property
    def environment(self) -> dict[str, str]:
        """What a program that takes this one's place needs to speak to the same manager."""
        return {} if self._given is None else {VARIABLE: self._given}

    def ready_again(self) -> None:
        """What `reloading` began is over, and everything is as before."""
        self.ready(self._last)

    def ready(self, status: str) -> None:
        """The service is up (READY=1), also after `reloading`."""
        self._last = status
        self._send("READY=1", _status(status), patience=_PATIENCE)

    def status(self, text: str) -> None:
        """One line for people."""
        self._last = text
        self._send(_status(text), patience=0.0)

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", patience=_PATIENCE)

    def stopping(self) -> None:
        """The service goes down."""
        self._send("STOPPING=1", patience=_PATIENCE)

    def _send(self, *fields: str, patience: float) -> None:
        if self._address is None:
            return
        # A manager that is gone or slow is no reason to fail: nginx is what matters.
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        ):
            datagrams.settimeout(patience)
            datagrams.sendto("\n".join(fields).encode("utf-8", "replace"), self._address)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
