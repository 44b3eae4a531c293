"""What is logged gets the id of the upgrade or reload that it belongs to."""

from __future__ import annotations

from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.core import commands
from supervisor.core.actions import Operation
from supervisor.core.events import CandidateHealthy, Succeeded
from supervisor.edges.generation import Role
from supervisor.operations.world import World
from supervisor.story import Story
from tests.engine.conftest import engine_with
from tests.fakes import FakeEffects

RUN = SimpleNamespace(id="u1")
ROLES = {1: SimpleNamespace(role=Role.RETIRING), 2: SimpleNamespace(role=Role.ACTIVE)}


def told(
    event: dict[str, Any], *, run: object = None, reload: str | None = None, last: str | None = None
) -> MutableMapping[str, Any]:
    story = Story()
    world = SimpleNamespace(run=run, reload_id=reload, committed_id=last, generations=ROLES)
    story.tell_of(cast(World, world), lambda: "canary")
    return story(None, "info", event)


def test_without_a_world_nothing_is_added() -> None:
    assert Story()(None, "info", {"event": "x.y"}) == {"event": "x.y"}


def test_what_happens_in_an_upgrade_is_its_story() -> None:
    assert told({"event": "probe.state_changed"}, run=RUN) == {
        "event": "probe.state_changed", "upgrade_id": "u1", "phase": "canary",
    }  # fmt: skip


def test_an_event_that_names_its_upgrade_keeps_it() -> None:
    own = told({"event": "rollback.step", "upgrade_id": "u1"}, run=RUN)
    other = told({"event": "upgrade.requested", "upgrade_id": "u2"}, run=RUN)
    change = told({"event": "upgrade.state_changed", "upgrade_id": "u1"}, run=RUN)
    assert own["phase"] == "canary"
    assert other == {"event": "upgrade.requested", "upgrade_id": "u2"}
    assert "phase" not in change  # it says itself from where to where


def test_a_reload_has_its_story() -> None:
    assert told({"event": "worker.exited"}, reload="r1")["upgrade_id"] == "r1"


@pytest.mark.parametrize("under_way", [{"run": RUN}, {"reload": "r1"}])
def test_an_access_log_is_nobodys_story(under_way: dict[str, Any]) -> None:
    assert "upgrade_id" not in told({"event": "nginx.output", "line": "GET /"}, **under_way)
    message = {"event": "nginx.output", "line": "[alert] ...", "generation": "g2"}
    assert "upgrade_id" in told(message, **under_way)


@pytest.mark.parametrize(
    ("event", "belongs"),
    [
        ({"event": "worker.exited", "generation": "g1"}, True),
        ({"event": "worker.exited", "generation": "g2"}, False),
        ({"event": "worker.exited", "generation": "g9"}, False),
        ({"event": "probe.state_changed", "generation": None}, False),
        ({"event": "odd", "generation": "all"}, False),
        ({"event": "supervisor.state_changed", "from_state": "draining"}, True),
        ({"event": "supervisor.state_changed", "from_state": "idle"}, False),
    ],
)
def test_a_drain_belongs_to_the_upgrade_that_began_it(event: dict[str, Any], belongs: bool) -> None:  # noqa: FBT001
    assert ("upgrade_id" in told(event, last="u1")) is belongs


# --- what the engine adds ---------------------------------------------------------------------


async def test_a_story_begins_with_who_asked_for_what(effects: FakeEffects) -> None:
    for operation in (Operation.PREFLIGHT, Operation.SPAWN, Operation.SHIFT):
        effects.expect(operation, Succeeded(generation=2))
    effects.expect(Operation.ROLL_BACK, Succeeded())
    async with engine_with(effects) as running:
        upgrade = running.ask(commands.Upgrade(binary="/new", canary=0.0, soak=0.0, hold=True))
        await running.quiet()
        await running.tell(CandidateHealthy())
        assert running.phase == "held"
        second = running.ask(commands.Upgrade())
        refused = await second.verdict()
        back = running.ask(commands.Rollback())
        await upgrade.verdict()
        await back.verdict()
        asked = [one for one in running.entries if one["event"] == "upgrade.requested"]
        first = asked[0]
        assert (first["binary"], first["hold"], first["canary"]) == ("/new", True, 0.0)
        assert "dry_run" not in first
        # A rollback of what runs is a part of that story, what is refused is one of its own.
        ids = [one["upgrade_id"] for one in asked]
        assert ids == ["u1", "u2", "u1"]
        assert [one["operation"] for one in asked] == ["upgrade", "upgrade", "rollback"]
        (said,) = (one for one in running.entries if one["event"] == "request.refused")
        assert (said["upgrade_id"], said["verdict"]) == (refused["upgrade_id"], "refused")
        (end,) = (one for one in running.entries if one["event"] == "upgrade.verdict")
        assert (end["verdict"], end["generation"]) == ("rolled_back", "g1")
