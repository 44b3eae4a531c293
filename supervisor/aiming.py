"""Where the probes are sent to while a candidate is judged, and how its answers are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.edges.generation import Generation
from supervisor.edges.owner_finding import OwnerFinder
from supervisor.edges.probe_listener import Sharing
from supervisor.edges.probes import Aim
from supervisor.operations.world import UpgradeRun, World

_CANDIDATES_OWN = (Sharing.EXCLUSIVE, Sharing.NOBODY)
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """The candidate's private probe listener: for plain requests, and for TLS where it has that."""

    plain: int
    tls: int | None

    @property
    def all(self) -> tuple[int, ...]:
        """Both, as far as there are any."""
        return (self.plain,) if self.tls is None else (self.plain, self.tls)


def ports_of(run: UpgradeRun | None) -> Ports | None:
    """The private listener of this upgrade; None: it has none."""
    return None if run is None or run.port is None else Ports(run.port, run.tls_port)


def shared_port(world: World, candidate: Generation, ports: Ports) -> int | None:
    """A private port that the old generation has open as well; None: there is none."""
    shared = (one for one in ports.all if _sharing(world, candidate, one) is Sharing.SHARED)
    return next(shared, None)


def private_aim(
    world: World, candidate: Generation, ports: Ports, not_asked: Mapping[str, str]
) -> Aim:
    """Ask the candidate alone, and each of its workers."""
    return Aim(
        generation=candidate.id,
        address=(_HOST, ports.plain),
        tls_address=None if ports.tls is None else (_HOST, ports.tls),
        owner=OwnerFinder(lambda: candidate.look().workers),
        exclusive=lambda: all(
            _sharing(world, candidate, one) in _CANDIDATES_OWN for one in ports.all
        ),
        cover=candidate.look().accepting,
        workers=lambda: candidate.brood().workers,
        processes=lambda: candidate.workers,
        not_asked=not_asked,
        prove_within=world.settings.upgrade.start_timeout,
    )


def public_aim(candidate: Generation, not_asked: Mapping[str, str]) -> Aim:
    """Ask where both generations accept; an answer counts where it is a candidate's worker's.

    Before nginx 1.21.6 hardly any connection reaches the new workers under light load, so a
    pass is not waited for; a failure that is the candidate's condemns as always.
    """
    return Aim(
        generation=candidate.id,
        owner=OwnerFinder(lambda: candidate.look().workers),
        cover=candidate.look().accepting,
        sole=False,
        workers=lambda: candidate.brood().workers,
        processes=lambda: candidate.workers,
        not_asked=not_asked,
    )


def _sharing(world: World, candidate: Generation, port: int) -> Sharing:
    old = world.active
    return world.listener.exclusive_to(
        port, candidate.master.pid, None if old is None else old.master.pid
    )
