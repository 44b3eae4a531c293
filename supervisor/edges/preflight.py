"""Everything that can be known to go wrong before the first signal.

`preflight` runs the rows of `CHECKS` (preflight_checks.py) in their order over one `Draft`: each
either adds what it found out, or raises a Refusal with its reason and the remedy, or says that
there is nothing to do. Adding a check is one function and one row. What was done on the way (a
staged copy, the modules of a stored version) is undone when a later check refuses, or when
preflight is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from supervisor.core.config_read import NOTHING_READ, ConfigRead
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.guards import Finding
from supervisor.core.nginx_config import NginxConfig
from supervisor.core.nginx_version import NginxBuild
from supervisor.edges.mapped_libraries import Outdated
from supervisor.edges.placing import Staged
from supervisor.edges.preflight_checks import CHECKS
from supervisor.edges.preflight_draft import Active, Check, Draft, Installation, NoChange, Request
from supervisor.edges.store import StoredVersion, VersionStore

__all__ = ["Active", "Check", "Installation", "NoChange", "Plan", "Request", "preflight"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An upgrade that may begin. Ends in `install` and `settle`, or in `discard`.

    A discard after the installation changes nothing.
    """

    stored: StoredVersion
    staged: Staged
    build: NginxBuild
    config: NginxConfig  # what the candidate will read, with the globals
    dump: str
    read: ConfigRead = NOTHING_READ  # of it, for the upgrade after this one
    changed: tuple[Outdated, ...] = ()  # files of what runs that are others on disk
    warnings: tuple[Finding, ...]
    seconds: Mapping[str, float]  # by check
    _store: VersionStore
    _undo: list[Callable[[], object]]

    def install(self) -> None:
        """The candidate's binary stands where nginx execs it, atomically; a rename, no more.

        Raises Refusal `binary_directory_read_only` or `no_space`; nothing was replaced then.
        """
        self._store.commit(self.staged, durable=False)
        self._undo.clear()

    def settle(self) -> None:
        """What was installed is on disk, also after a power failure. Blocks; raises Refusal."""
        self._store.settle(self.staged)

    def discard(self) -> None:
        """Undoes what preflight did on disk; for a dry run, or when the upgrade does not begin."""
        undo_all(self._undo)


def undo_all(undo: list[Callable[[], object]]) -> None:
    """Undoes in reverse order. Never raises: a leftover is removed by the next preflight."""
    while undo:
        step = undo.pop()
        with suppress(SupervisorError, OSError):
            step()


async def preflight(
    request: Request,
    *,
    installation: Installation,
    active: Active,
    store: VersionStore,
    checks: Sequence[Check] = CHECKS,
) -> Plan | NoChange:
    """Runs the checks in order; nothing has been signalled or replaced when this returns.

    Raises the first check's Refusal. Cancelling takes effect between two steps on disk; what was
    done so far is undone then as well. (A stored version's modules are on disk until the plan is
    installed or discarded: nginx can be tested with them only where its configuration names them.)
    """
    draft = Draft(request=request, installation=installation, active=active, store=store)
    seconds: dict[str, float] = {}
    try:
        for check in checks:
            began = trio.current_time()
            outcome = await check.run(draft)
            seconds[check.name] = trio.current_time() - began
            if outcome is not None:
                await _undo(draft)
                return outcome
    except Refusal as exc:
        await _undo(draft)
        raise _of_the_offer(draft, exc) from exc
    except BaseException:
        await _undo(draft)
        raise
    return Plan(
        stored=draft.ready_stored,
        staged=draft.ready_staged,
        build=draft.ready_build,
        config=draft.ready_config,
        dump=draft.dump,
        read=draft.read,
        changed=draft.changed,
        warnings=tuple(draft.warnings),
        seconds=seconds,
        _store=store,
        _undo=draft.undo,
    )


def _of_the_offer(draft: Draft, refusal: Refusal) -> Refusal:
    """The refusal in terms of the file that was offered, not of our copy of it."""
    if draft.staged is None or draft.source is None:
        return refusal
    told = refusal.detail.replace(str(draft.staged.path), str(draft.source))
    return Refusal(refusal.reason, told)


async def _undo(draft: Draft) -> None:
    with trio.CancelScope(shield=True, deadline=math.inf):
        await trio.to_thread.run_sync(undo_all, draft.undo)
