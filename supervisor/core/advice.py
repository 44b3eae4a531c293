"""What is legal in the settings and will surprise: told by `nginxctl check`, and never refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from supervisor.core.probe_settings import HttpProbe, ProbeSettings
from supervisor.core.server_blocks import ServerBlock, why_not_in_canary
from supervisor.core.settings import Settings, UpgradeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A stable word, and a text for people."""

    reason: str
    detail: str


def advise(settings: Settings, blocks: Sequence[ServerBlock]) -> tuple[Advice, ...]:
    """All advice about the probes of `settings`, with nginx's server blocks as they are."""
    if not settings.probes:
        return ()
    about_each = (one for probe in settings.probes for one in _on_times(probe, settings.upgrade))
    return (*_on_canary(settings, blocks), *about_each, *_on_trust(settings.probes))


def _on_canary(settings: Settings, blocks: Sequence[ServerBlock]) -> Iterator[Advice]:
    file = settings.probe_listener.include_file
    number = sum(block.reads(file) for block in blocks)
    if number == 0:
        yield Advice(
            reason="include_missing",
            detail=f"no server block includes {file}: in a canary an answer counts only where it "
            "can be traced to a worker of the candidate, and no probe is waited for; include it "
            "in the server block that the probes look at",
        )
        return
    if number > 1:
        yield Advice(
            reason="include_repeated",
            detail=f"{number} server blocks include {file}: nginx will reject its listen "
            "directives in more than one, and each upgrade is refused",
        )
    for probe in settings.probes:
        why = why_not_in_canary(probe, blocks, file)
        if why is not None:
            yield Advice(
                reason="not_asked_in_canary",
                detail=f"probe {probe.name} is not asked in a canary, it judges from the shift on: "
                f"{why}",
            )


def _on_times(probe: ProbeSettings, upgrade: UpgradeSettings) -> Iterator[Advice]:
    row = probe.fall * probe.interval
    if upgrade.soak < row:
        yield Advice(
            reason="soak_short",
            detail=f"the soak ({upgrade.soak:g} s) is shorter than fall x interval of probe "
            f"{probe.name} ({row:g} s): only its last answer before the commit can condemn",
        )
    if isinstance(probe, HttpProbe) and (probe.max_latency or 0.0) > probe.timeout:
        yield Advice(
            reason="timeout_impossible",
            detail=f"max_latency of probe {probe.name} ({probe.max_latency:g} s) is longer than "
            f"its timeout ({probe.timeout:g} s), which always comes first",
        )
    window = upgrade.canary + upgrade.start_timeout
    if probe.timeout >= window:
        yield Advice(
            reason="timeout_impossible",
            detail=f"timeout of probe {probe.name} ({probe.timeout:g} s) is not shorter than "
            f"canary + start_timeout ({window:g} s): a candidate that hangs is never told from a "
            "slow one",
        )


def _on_trust(probes: Sequence[ProbeSettings]) -> Iterator[Advice]:
    for probe in probes:
        if isinstance(probe, HttpProbe) and probe.tls is not None and not probe.tls.verify:
            yield Advice(
                reason="not_verified",
                detail=f"probe {probe.name} takes any certificate (verify = false): it passes "
                "where a candidate presents an expired or a wrong one; name its authority in "
                "ca_file",
            )
