"""What systemd has loaded of a unit, asked by systemctl; nothing is changed.

Where systemd is not the service manager there is nothing to ask (sd_booted(3)).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

from supervisor.core.unit_file import UnitSeen, read_show
from supervisor.edges import cgroup
from supervisor.edges.asking import ask

BOOTED = Path("/run/systemd/system")
_NOT_LIMITED = "infinity"


def is_booted() -> bool:
    """Whether systemd manages this machine or container."""
    return BOOTED.is_dir()


def own_unit(pid: int) -> str:
    """The service that `pid` runs in; empty where it is none of systemd's."""
    unit = cgroup.unit_of(pid)
    return unit if unit.endswith(".service") else ""


async def unit_seen(name: str) -> UnitSeen | None:
    """The unit as systemd has loaded it; None where it has none of that name, or does not answer.

    Cancelling ends systemctl.
    """
    shown = read_show(await _systemctl("show", name))
    if shown.get("LoadState") != "loaded":
        return None
    return UnitSeen(name=name, properties=shown, text=await _systemctl("cat", name))


async def _systemctl(*argv: str) -> str:
    return await ask(["systemctl", "--no-pager", *argv])


def limits_of(pid: int) -> Mapping[str, str]:
    """The limits of a process in the words of a unit file; without those that may not be seen."""
    found = {}
    for name in ("NOFILE", "CORE", "MEMLOCK", "NPROC", "STACK"):
        try:
            soft, hard = resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}"))
        except OSError:
            continue  # gone, or of another user
        found[f"Limit{name}"] = _text(hard) if soft == hard else f"{_text(soft)}:{_text(hard)}"
    return found


def _text(limit: int) -> str:
    return _NOT_LIMITED if limit == resource.RLIM_INFINITY else str(limit)
