"""A backend for the real control server: answers from scripts, and records what it was asked.

Run as a program it serves a socket until it is killed:

    python -m tests.control.fake_backend SOCKET
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from supervisor.core import commands
from supervisor.core.access import Kind, Who
from supervisor.edges.control import ControlSettings, Gate, Peer, serve_control

Fields = dict[str, object]

STATUS: Fields = {
    "state": "running",
    "reason": None,
    "detail": None,
    "upgrade": None,
    "generations": [
        {
            "id": "g1",
            "role": "active",
            "version": "1.22.1",
            "binary": "/usr/sbin/nginx",
            "sha256": "ab" * 32,
            "master_pid": 100,
            "master_resources": {"rss_bytes": 4096, "cpu_s": 0.5, "open_files": 8, "threads": 1},
            "workers": [
                {"pid": 101, "state": "accepting"},
                {"pid": 102, "state": "accepting", "resources": None},
                {"pid": 103, "state": "draining"},
            ],
            "upgradable": {"ok": True, "reason": None, "detail": None},
        },
    ],
    "binary_on_disk": {
        "path": "/usr/sbin/nginx",
        "version": "1.26.3",
        "sha256": "cd" * 32,
        "matches_active": False,
    },
    "config_matches_active": False,
    "held_listeners": {
        "available": True,
        "count": 2,
        "addresses": ["0.0.0.0:80", "[::]:80"],
        "detail": None,
    },
    "probes": [
        {
            "name": "home",
            "type": "http",
            "state": "up",
            "generation": "g1",
            "since": "2025-01-02T03:04:05Z",
            "detail": None,
        }
    ],
    "error_logs": {
        "followed": ["/var/log/nginx/error.log"],
        "unread": [{"path": "/var/log/own.log", "detail": "Permission denied"}],
        "syslog": None,
        "lines": [
            {
                "time": "2025-01-02T03:04:05.678+00:00",
                "generation": "g1",
                "pid": 101,
                "severity": "alert",
                "line": "something is wrong",
                "log": "/var/log/nginx/error.log",
            }
        ],
    },
    "restarts": 0,
    "last_verdict": None,
}


REASONS = frozenset(
    re.findall(
        r"`([a-z_0-9]+)`",
        "\n".join(
            line.split(" | ")[0]
            for line in (Path(__file__).parents[2] / "docs" / "reasons.md").read_text().splitlines()
            if line.startswith("| `")
        ),
    )
)
"""The words that the real thing can say."""


def verdict(word: str, reason: str = "healthy", **more: object) -> Fields:
    """A last event."""
    assert reason in REASONS, f"nobody ever says {reason}"
    return {
        "event": "verdict",
        "operation": "upgrade",
        "verdict": word,
        "reason": reason,
        "detail": "cannot say more; look at the log",
        "upgrade_id": "u1",
        "from_version": "1.22.1",
        "to_version": "1.26.3",
        "judged": True,
        "elapsed_s": 0.3,
        "phases": {"preflight": 0.1, "canary": 0.2},
        **more,
    }


def progress(*phases: str) -> list[Fields]:
    """The events of an operation before its last one."""
    accepted: Fields = {"event": "accepted", "upgrade_id": "u1"}
    why: Fields = {"reason": None, "detail": None}
    return [
        accepted,
        *({"event": "phase", "phase": phase, "upgrade_id": "u1", **why} for phase in phases),
    ]


class FakeBackend:
    """Answers each command with `events`, the last one a verdict."""

    def __init__(self) -> None:
        self.snapshot = STATUS
        self.events: list[Fields] = [*progress("preflight", "canary"), verdict("committed")]
        self.held = False
        self.submitted: list[tuple[commands.Command | commands.SelfUpgrade, Peer]] = []
        self.resumed: list[tuple[int | None, list[Fields]]] = []
        self.listeners = 0
        self.listener_left = trio.Event()
        self.past: list[Fields] = [verdict("committed", time="2025-01-02T03:04:05Z")]
        self.checked: Fields = {"ok": True, "findings": [{"name": "nginx -t", "ok": True}]}
        self.healthy: Fields = {
            "ready": True,
            "state": "running",
            "detail": None,
            "probes_down": [],
        }
        self.diagnosis: Fields = {"ok": True, "findings": []}
        self.log: list[Fields] = [log_event("daemon.ready")]
        self._senders: list[trio.MemorySendChannel[Fields]] = []

    async def freshen(self) -> None:
        await trio.lowlevel.checkpoint()

    def status(self) -> Fields:
        return self.snapshot

    @asynccontextmanager
    async def submit(
        self, command: commands.Command | commands.SelfUpgrade, peer: Peer
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Fields]]:
        self.submitted.append((command, peer))
        send, receive = trio.open_memory_channel[Fields](100)
        for event in self.events:
            send.send_nowait(event)
        if self.held:
            self._senders.append(send)
        else:
            send.close()
        async with self._listening(receive):
            yield receive

    @asynccontextmanager
    async def resume(
        self, number: int | None, undelivered: Sequence[Mapping[str, object]]
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Fields]]:
        self.resumed.append((number, [dict(one) for one in undelivered]))
        send, receive = trio.open_memory_channel[Fields](100)
        for event in (*map(dict, undelivered), *self.events):
            send.send_nowait(event)
        send.close()
        async with self._listening(receive):
            yield receive

    @asynccontextmanager
    async def _listening(self, receive: trio.MemoryReceiveChannel[Fields]) -> AsyncIterator[None]:
        self.listeners += 1
        try:
            with receive:
                yield
        finally:
            self.listeners -= 1
            self.listener_left.set()

    def hold(self) -> None:
        """Have operations stay in the canary until `release`."""
        self.events = progress("preflight", "canary")
        self.held = True

    def release(self, *events: Fields) -> None:
        """Send `events` to all who listen, and end their channels."""
        for send in self._senders:
            with suppress(trio.BrokenResourceError):  # it has hung up
                for event in events:
                    send.send_nowait(event)
            send.close()
        self._senders.clear()

    async def history(self, limit: int | None) -> Sequence[Mapping[str, object]]:
        await trio.lowlevel.checkpoint()
        return self.past if limit is None else self.past[-limit:]

    def versions(self) -> Sequence[Mapping[str, object]]:
        return [
            {
                "id": "1.22.1-abababab",
                "version": "1.22.1",
                "sha256": "ab" * 32,
                "modules": [],
                "active": True,
            }
        ]

    async def check(self) -> Fields:
        await trio.lowlevel.checkpoint()
        return self.checked

    async def health(self) -> Fields:
        await trio.lowlevel.checkpoint()
        return self.healthy

    async def doctor(self) -> Fields:
        await trio.lowlevel.checkpoint()
        return self.diagnosis

    @asynccontextmanager
    async def log_events(
        self, *, new: bool = False
    ) -> AsyncIterator[tuple[Sequence[Mapping[str, object]], trio.MemoryReceiveChannel[Fields]]]:
        send, receive = trio.open_memory_channel[Fields](100)
        self._senders.append(send)
        async with self._listening(receive):
            yield [] if new else self.log, receive


def gate_for(*admins: int) -> Gate:
    """A gate that lets root, and these uids, do everything, and nobody else anything."""
    whos = tuple(Who(Kind.USER, str(uid)) for uid in admins)
    return Gate(ControlSettings(admins=whos), own_uid=0)


def log_event(event: str) -> Fields:
    """One LogEvent."""
    return {
        "time": "2025-01-02T03:04:05Z",
        "level": "info",
        "event": event,
        "fields": {"generation": "g1", "pid": 100},
    }


if __name__ == "__main__":
    settings = ControlSettings(socket=sys.argv[1])
    gate = gate_for(os.geteuid())

    async def serve() -> None:
        """Serve the fake until killed."""
        await serve_control(settings, FakeBackend(), gate=gate, version="0")

    trio.run(serve)
