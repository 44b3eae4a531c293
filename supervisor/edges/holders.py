"""Who has the addresses that nginx could not bind: nginx says only that they are in use.

All of it blocks, and goes through the descriptors of every process: for a start that has failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from supervisor.core.nginx_listen import Listen
from supervisor.edges import cgroup, procfs, sockets

UNSEEN = "another process, which cannot be seen from here"
"""Of another container on the same network, or nobody's: a socket that a kernel thread has."""
_TITLE_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens; of a family that shares its sockets, the one that began it."""

    pid: int
    program: str
    unit: str  # of systemd; empty where it is in none
    title: str  # of an nginx master, which names its configuration; else empty
    is_beside_us: bool = False  # in the supervisor's own unit, whose stop leaves it alone

    def __str__(self) -> str:
        of_unit = f" of {self.unit}" if self.unit else ""
        return f"process {self.pid} ({self.program}{of_unit})"

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        by_unit = self.unit.endswith(".service") and not self.is_beside_us
        stop = f"`systemctl stop {self.unit}`" if by_unit else f"`kill {self.pid}`"
        if not self.title:
            return f"stop that first ({stop})"
        return (
            f'it is "{self.title}": to have this nginx supervised, [nginx] has to name its '
            f"binary and configuration, and its pid file has to name it; else stop it ({stop})"
        )


def holder_of(listen: Listen) -> str:
    """Who listens on the address, for people: `process 12 (apache2)` as far as it can be seen."""
    found = _holder(listen, sockets.everyones_listeners())
    return UNSEEN if found is None else str(found)


def who_holds(listens: Iterable[Listen]) -> str:
    """Of each address that is taken, by whom, and what to do; empty where all are free by now."""
    everyone = sockets.everyones_listeners()
    held: dict[Holder | None, list[str]] = {}
    for listen in listens:
        if sockets.is_busy(listen):
            held.setdefault(_holder(listen, everyone), []).append(str(listen))
    return "; ".join(_text(holder, addresses) for holder, addresses in held.items())


def _text(holder: Holder | None, addresses: Sequence[str]) -> str:
    places = " and ".join(filter(None, (", ".join(addresses[:-1]), addresses[-1])))
    are = "is" if len(addresses) == 1 else "are"
    if holder is None:
        return f"{places} {are} held by {UNSEEN}: stop that first"
    return f"{places} {are} held by {holder}: {holder.remedy}"


def _holder(listen: Listen, everyone: Sequence[tuple[int, sockets.Address]]) -> Holder | None:
    pid = min((pid for pid, held in everyone if sockets.in_the_way(held, listen)), default=None)
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        # Of those that share a socket the list has only one.
        while (parent := process.parent()) is not None and _has(parent.pid, listen):
            process = parent
        pid, program = process.pid, process.name()
    except psutil.Error:  # it ends at this moment
        program = "?"
    title = procfs.title(pid).decode(errors="replace") if procfs.is_master(pid) else ""
    if len(title) > _TITLE_SHOWN:
        title = title[:_TITLE_SHOWN] + "..."
    unit = cgroup.unit_of(pid)
    beside = unit == cgroup.unit_of(os.getpid())
    return Holder(pid=pid, program=program, unit=unit, title=title, is_beside_us=beside)


def _has(pid: int, listen: Listen) -> bool:
    held = sockets.held_by(pid)
    return held is not None and held.meets([listen])
