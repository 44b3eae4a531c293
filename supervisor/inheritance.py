"""What goes from a supervisor to the program that replaces it, parcel by parcel.

`register` is for the one that goes, `take_over` for the one that comes. A part that keeps something
in its own way registers its own parcel: the control socket does (`control_handover`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import trio

from supervisor.core.actions import Action, Operation, Run
from supervisor.core.errors import SupervisorError
from supervisor.edges import children
from supervisor.edges.fdstore import Kept
from supervisor.edges.handover import HandOver, Parcel, close_all
from supervisor.operations import handing_on
from supervisor.operations.listeners import take_back

if TYPE_CHECKING:
    from supervisor.backend import Backend
    from supervisor.edges.control_handover import Door
    from supervisor.edges.log_tap import LogTap
    from supervisor.effects import NginxEffects
    from supervisor.engine import Engine
    from supervisor.evidence import Evidence
    from supervisor.operations.world import World
    from supervisor.succession import Succession

HELD = "held_listeners"
_BROKEN = (LookupError, TypeError, ValueError, AttributeError, OSError, SupervisorError)
"""What reading somebody else's data can raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """The parts of a supervisor that know something."""

    world: World
    engine: Engine
    evidence: Evidence
    effects: NginxEffects
    backend: Backend
    tap: LogTap
    door: Door
    succession: Succession
    version: str
    background: Callable[..., None]


def register(hand_over: HandOver, estate: Estate) -> None:
    """Have all that is known handed on when this program is replaced."""
    world = estate.world
    hand_over.register(handing_on.PARCEL, partial(handing_on.give, world))
    hand_over.register(HELD, partial(_give_held, world))
    hand_over.register("engine", lambda: Parcel(data=estate.engine.to_data()))
    hand_over.register("evidence", lambda: Parcel(data=estate.evidence.to_data()))
    hand_over.register("effects", lambda: Parcel(data=estate.effects.to_data()))
    hand_over.register("log", lambda: Parcel(data=estate.tap.recent))
    hand_over.register("supervisor", partial(_give_self, estate))


def _give_held(world: World) -> Parcel:
    kept = world.held.kept
    return Parcel(fds=tuple(one.fd for one in kept), data=[one.name for one in kept])


def _kept(parcel: Parcel) -> list[Kept]:
    """Without a name where the predecessor knew none, or its data cannot be understood."""
    names = parcel.data if isinstance(parcel.data, list) else []
    return [
        Kept(fd, name if isinstance(name, str) else "")
        for fd, name in zip_longest(parcel.fds, names[: len(parcel.fds)])
    ]


def _give_self(estate: Estate) -> Parcel:
    return Parcel(
        data={
            "version": estate.version,
            "started": estate.backend.started,
            "request": estate.succession.request_number,
            "children": children.running(),
        }
    )


def take_over(hand_over: HandOver, estate: Estate) -> tuple[Action, ...]:
    """What the engine is to begin with: to go on where a predecessor was, or to look around.

    Whatever cannot be understood is left: then nginx is found and an upgrade is settled as after
    the death of a supervisor, and the log says why. Raises SupervisorError where another supervisor
    owns this nginx.
    """
    given = {name: hand_over.take(name) or Parcel() for name in hand_over.names}
    if not given and not hand_over.problem:
        return (Run(operation=Operation.RECOVER),)
    problem = hand_over.problem
    if not problem:
        try:
            first, handed = _read(given, hand_over, estate)
        except Exception as exc:  # noqa: BLE001 - whatever it is: nginx has to be found again
            problem = f"its state cannot be understood: {exc!r}"
    if problem:
        return _look_around(given, estate, problem)
    handing_on.take_over(estate.world, handed)
    estate.world.held.inherit(_kept(given.pop(HELD, Parcel())))
    take_what_can_be(given, hand_over, estate)
    if isinstance(given["log"].data, list):
        estate.tap.put_before(given["log"].data)
    _take_self(given["supervisor"].fields, estate)
    for name in given.keys() - {handing_on.PARCEL}:
        close_all(given[name].fds)
    return first


def _read(
    given: Mapping[str, Parcel], hand_over: HandOver, estate: Estate
) -> tuple[tuple[Action, ...], handing_on.Handed]:
    """All that can fail; the world is not touched."""
    handed = handing_on.read(estate.world, given[handing_on.PARCEL].fields)
    for name in ("evidence", "effects", "log", "supervisor"):
        if given[name].data is None:
            raise ValueError(f"there is no data of {name}")
    at = trio.current_time() - hand_over.age
    return estate.engine.from_data(given["engine"].fields, at=at), handed


def _look_around(given: Mapping[str, Parcel], estate: Estate, problem: str) -> tuple[Action, ...]:
    for name, parcel in given.items():
        if name == HELD:  # who serves is compared with it, as after the death of a supervisor
            take_back(estate.world, _kept(parcel), "from the supervisor that was replaced")
        else:
            close_all(parcel.fds)
    estate.door.forget()
    estate.world.predecessor = (
        f"the supervisor was replaced by {estate.version}, which cannot take its state over "
        f"({problem}),"
    )
    detail = (
        f"{problem}; nginx is looked for as after the death of a supervisor, and an upgrade that "
        "ran is finished or rolled back"
    )
    estate.world.log.warning("supervisor.handover_rejected", detail=detail)
    return (Run(operation=Operation.RECOVER),)


def take_what_can_be(given: Mapping[str, Parcel], hand_over: HandOver, estate: Estate) -> None:
    """What the probes saw and what the effects count; nginx is held by now, and nothing fails here.

    What cannot be understood begins anew: the probes in the same windows, the drains with all of
    their time.
    """
    at = trio.current_time() - hand_over.age
    parts: Mapping[str, Callable[[], None]] = {
        "evidence": lambda: estate.evidence.from_data(given["evidence"].fields, at=at),
        "effects": lambda: estate.effects.from_data(given["effects"].fields, age=hand_over.age),
    }
    for name, take in parts.items():
        try:
            take()
        except _BROKEN as exc:
            estate.world.log.warning("supervisor.part_begins_anew", part=name, detail=repr(exc))


def _take_self(data: Mapping[str, Any], estate: Estate) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    estate.backend.started = data.get("started")
    estate.backend.replaced = now
    world = estate.world
    estate.background(children.end, tuple(map(int, data.get("children", ()))))
    estate.background(_reap, world)
    phase = estate.engine.state.phase.value
    upgrade = estate.engine.state.upgrade
    what = f"nginx is {phase}" if upgrade is None else f"upgrade {upgrade.id} goes on in {phase}"
    before = data.get("version")
    detail = f"the supervisor {before} was replaced by {estate.version}; {what}"
    world.log.info(
        "supervisor.replaced", pid=os.getpid(), from_version=before, to_version=estate.version,
        detail=detail,
    )  # fmt: skip
    request = data.get("request")
    if isinstance(request, int):
        estate.engine.waiters.answer(
            request, "done", "self_upgraded", detail, at=trio.current_time()
        )


async def _reap(world: World) -> None:
    """The signal that tells of a dead child may have come to the program before."""
    await trio.lowlevel.checkpoint()
    world.reap_strays()
