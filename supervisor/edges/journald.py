"""Log events to systemd's journal as entries with fields, by its native protocol.

Framing and sending are logging_journald's, which has the protocol's two forms: a datagram, or a
sealed memfd where the entry is larger than one may be (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).
What is ours: which fields an event becomes, and that nobody waits. The socket is not connected, so
a journald that comes back with another one gets the next entry.

Every value goes out with its length before it, so that nothing in a value, whoever has written it,
can begin another field or another entry.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

from logging_journald import JournaldTransport  # type: ignore[import-untyped]  # no py.typed in it

from supervisor.core.log_text import Event, message, message_id, priority

SOCKET = "/run/systemd/journal/socket"
STREAM = "JOURNAL_STREAM"
"""Where systemd names the stream that it has connected to the journal (systemd.exec(5))."""
IDENTIFIER = "nginx-supervisor"
LATE = 1000
"""Events that may wait for a journal that does not read."""
PATIENCE = 0.5
"""Seconds that these get when the supervisor ends or replaces itself."""
_FACILITY = "3"  # daemon
_BUFFER = 8 << 20  # as libsystemd asks for: a moment's lines while journald does not run
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; beyond net.core.wmem_max, with CAP_NET_ADMIN
_NAME = 64
"""Characters of a field's name at most (journald-native.c, systemd 252)."""
_UNUSABLE = re.compile(r"[^A-Z0-9_]")
_TAKEN = re.compile(
    r"^(MESSAGE|MESSAGE_ID|PRIORITY|ERRNO|TID|UNIT|USER_UNIT|INVOCATION_ID|USER_INVOCATION_ID"
    r"|DOCUMENTATION|(CODE|SYSLOG|OBJECT|COREDUMP|JOB)_.*)$"
)
"""Names that mean something to the journal (systemd.journal-fields(7))."""
_OMITTED = frozenset({"event", "level"})


def is_journal(fd: int) -> bool:
    """Whether systemd has connected `fd` to the journal, and nobody has put another there since."""
    device, _, inode = os.environ.get(STREAM, "").partition(":")
    try:
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


class Journald:
    """Sends to the socket at `path`. Never blocks its caller; nobody has to listen there yet.

    journald's socket holds few entries where systemd runs in a container (10; else 512), and an
    upgrade tells more within one of journald's naps. So what is not taken at once goes, in order,
    to a thread that waits; `LATE` entries at most. `lost` is told, in that thread, of each event
    that could not be sent after all.
    """

    def __init__(
        self,
        path: str = SOCKET,
        lost: Callable[[Event, Exception], None] = lambda _event, _cause: None,
    ) -> None:
        self._now = _transport(path)
        self._now.socket.setblocking(False)
        self._waiting = _transport(path)
        self._lost = lost
        self._late: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._count = 0  # of events that the thread still has
        self._all_sent = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, event: Event) -> None:
        """Hand `event` to the journal. Raises OSError where that is not possible soon.

        To be called by one thread at a time.
        """
        if not self._count:
            try:
                self._now.send(fields_of(event))
            except BlockingIOError:
                pass  # its queue is full
            else:
                return
        if self._count >= LATE:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if self._thread is None:
            thread = threading.Thread(target=self._send_late, daemon=True, name="journal")
            thread.start()
            self._thread = thread
        with self._all_sent:
            self._count += 1
        self._late.put(event)

    def _send_late(self) -> None:
        while (event := self._late.get()) is not None:
            try:
                self._waiting.send(fields_of(event))
            except Exception as exc:  # noqa: BLE001 - the thread has to live for what comes after
                with contextlib.suppress(Exception):
                    self._lost(event, exc)
            finally:
                with self._all_sent:
                    self._count -= 1
                    self._all_sent.notify_all()

    def flush(self, seconds: float) -> bool:
        """Whether all that was handed over is sent, after `seconds` at most."""
        with self._all_sent:
            return self._all_sent.wait_for(lambda: not self._count, timeout=seconds)

    def close(self) -> None:
        """Nothing can be sent any more; what waits gets a moment."""
        self.flush(PATIENCE)
        self._late.put(None)
        self._now.socket.close()
        if self._count == 0:  # else the thread is in a call with it, and ends with the process
            self._waiting.socket.close()


def _transport(path: str) -> JournaldTransport:
    transport = JournaldTransport(path, connected=False)
    with contextlib.suppress(OSError):
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        transport.socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    return transport


def fields_of(event: Event) -> list[tuple[str, bytes]]:
    """The fields of the entry that `event` becomes; a value's bytes may be any."""
    entry: dict[str, str] = {
        "MESSAGE": message(event),
        "PRIORITY": str(priority(event)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "SYSLOG_FACILITY": _FACILITY,
        "EVENT": str(event.get("event")),
    }
    explained = message_id(event)
    if explained is not None:
        entry["MESSAGE_ID"] = explained
    if event.get("event") == "upgrade.state_changed":
        entry["PHASE"] = str(event.get("to_state"))
    for name, value in _named(event):
        entry.setdefault(name, value)
    return [(name, value.encode("utf-8", "backslashreplace")) for name, value in entry.items()]


def _named(event: Event) -> Iterator[tuple[str, str]]:
    for key, value in event.items():
        if key in _OMITTED or value is None:
            continue
        yield field_name(key), _text(value)


def field_name(key: str) -> str:
    """A name that the journal takes, and that means nothing to it yet; "GENERATION" of a
    "generation"."""
    name = _UNUSABLE.sub("_", key.upper()).lstrip("_")
    if not name or name[0].isdigit() or _TAKEN.match(name):
        name = f"FIELD_{name}"
    return name[:_NAME]


def _text(value: object) -> str:
    """As JSON has it, but text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | list | tuple | Mapping):
        return json.dumps(value, default=repr, ensure_ascii=False)
    return str(value)
