"""What the doctor says of the unit that the supervisor runs in."""

from __future__ import annotations

import pytest

from supervisor.core.diagnosis import Level
from supervisor.core.diagnosis_own_unit import of_own_unit
from supervisor.core.unit_file import UnitSeen

GOOD = {
    "Type": "notify", "KillMode": "process", "OOMPolicy": "continue", "Restart": "always",
    "PrivateTmp": "no", "WatchdogSignal": "6", "RuntimeDirectory": "nginx-supervisor",
    "RuntimeDirectoryPreserve": "yes",
}  # fmt: skip


def unit(**properties: str) -> UnitSeen:
    return UnitSeen(name="x.service", properties=properties, text="")


def test_a_unit_as_it_has_to_be() -> None:
    assert not list(of_own_unit(unit(**GOOD)))
    assert not list(of_own_unit(unit(**GOOD | {"Type": "notify-reload"})))
    assert not list(of_own_unit(unit()))  # systemd tells nothing of it
    assert not list(of_own_unit(unit(RuntimeDirectoryPreserve="no")))  # it has none to lose


@pytest.mark.parametrize("mode", ["control-group", "mixed"])
def test_a_restart_cannot_keep_nginx_where_systemd_kills_all(mode: str) -> None:
    keeps = {"RestartKillSignal": "34"}
    assert not list(of_own_unit(unit(**GOOD | keeps)))
    assert len(list(of_own_unit(unit(**GOOD | {"KillMode": mode, "RestartKillSignal": "15"})))) == 1
    _, found = of_own_unit(unit(**GOOD | keeps | {"KillMode": mode}))
    assert "RestartKillSignal=SIGRTMIN in x.service: " in found.seen
    assert f"KillMode={mode}" in found.seen


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("Type", "forking", "Type=notify"),
        ("KillMode", "control-group", "KillMode=process"),
        ("OOMPolicy", "stop", "OOMPolicy=continue"),
        ("Restart", "no", "Restart=always"),
        ("PrivateTmp", "yes", "PrivateTmp=no"),
        ("WatchdogSignal", "15", "WatchdogSignal=SIGABRT"),
        ("RuntimeDirectoryPreserve", "no", "RuntimeDirectoryPreserve=yes"),
    ],
)
def test_an_option_that_would_take_nginx_along(key: str, value: str, advice: str) -> None:
    (found,) = of_own_unit(unit(**GOOD | {key: value}))
    assert (found.topic, found.level) == ("unit", Level.WARN)
    assert f"{key}={value} in x.service: " in found.seen
    assert found.lines == (advice,)
