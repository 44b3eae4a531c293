"""Whether the unit that the supervisor runs in lets nginx outlive it, and systemd know of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from supervisor.core.diagnosis import Diagnosis, Level, finding
from supervisor.core.unit_file import UnitSeen

_TOPIC = "unit"
KILLS_NGINX = ("control-group", "mixed")
"""Values of KillMode= with which systemd ends nginx when the supervisor ends."""
_LEAVE = ("34", "SIGRTMIN", "RTMIN+0")  # systemctl shows the number


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a property has to be; `else_` is what happens otherwise."""

    key: str
    good: Callable[[str], bool]
    wanted: str
    else_: str


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


_RULES = (
    _Rule(
        "Type", _one_of("notify", "notify-reload"), "notify",
        "systemd does not know when nginx serves (and with `forking` ends the supervisor, and "
        "nginx with it, when TimeoutStartSec= is over)",
    ),
    _Rule(
        "KillMode", _one_of("process"), "process",
        "the end of the supervisor, by a crash or by its watchdog, is the end of nginx",
    ),
    _Rule(
        "OOMPolicy", _one_of("continue"), "continue",
        "one worker that is killed for its memory stops nginx",
    ),
    _Rule(
        "Restart", _one_of("always", "on-failure"), "always",
        "nobody adopts nginx after a crash of the supervisor",
    ),
    _Rule(
        "PrivateTmp", _one_of("no"), "no",
        "systemd empties /tmp under the living nginx when the supervisor dies",
    ),
    _Rule(
        "WatchdogSignal", lambda value: value not in ("15", "2"), "SIGABRT",
        "the watchdog stops nginx, where it should end a supervisor that is stuck",
    ),
)  # fmt: skip


def of_own_unit(ours: UnitSeen) -> Iterator[Diagnosis]:
    """One finding for each option that is not as it has to be."""
    for rule in _RULES:
        value = ours.properties.get(rule.key, "")
        if value and not rule.good(value):
            yield _wrong(ours, rule.key, value, rule.wanted, rule.else_)
    mode = ours.properties.get("KillMode", "")
    if mode in KILLS_NGINX and ours.properties.get("RestartKillSignal", "") in _LEAVE:
        yield _wrong(
            ours, "RestartKillSignal", "SIGRTMIN", "SIGTERM",
            f"it shall keep nginx over a restart, and with KillMode={mode} systemd kills nginx in "
            "each; set KillMode=process, or stop nginx as before",
        )  # fmt: skip
    directory = ours.properties.get("RuntimeDirectory", "")
    kept = ours.properties.get("RuntimeDirectoryPreserve", "")
    if directory and kept == "no":
        yield _wrong(
            ours, "RuntimeDirectoryPreserve", kept, "yes",
            f"systemd removes /run/{directory.split()[0]} under the living nginx when the "
            "supervisor dies",
        )  # fmt: skip


def _wrong(ours: UnitSeen, key: str, value: str, wanted: str, consequence: str) -> Diagnosis:
    return finding(
        _TOPIC, key, Level.WARN,
        f"{key}={value} in {ours.name}: {consequence}",
        f"with `systemctl edit {ours.name}`, in its [Service] part (docs/systemd.md):",
        f"{key}={wanted}",
    )  # fmt: skip
