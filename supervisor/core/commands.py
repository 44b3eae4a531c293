"""What an operator can ask for, as values. Durations are seconds; None means "as configured"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """Upgrade to `binary`, or to what is now on disk at `nginx.binary` where it is None."""

    binary: str | None = None
    canary: float | None = None
    soak: float | None = None
    hold: bool = False
    dry_run: bool = False
    if_changed: bool = False
    trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Commit the upgrade that is held or soaking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Return to the previous generation, or after a commit upgrade back to version `to`."""

    to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Test the configuration and have the serving generation read it again.

    With `guard` the previous files come back where the new ones do not serve. `resume` (nobody
    outside asks for that): end a guarded reload that stands half done, and do nothing else.
    """

    guard: bool = False
    resume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopen:
    """Have every living generation reopen its log files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """End the draining generation now instead of waiting for its connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop nginx and keep the supervisor running; `now` skips the graceful part."""

    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a stopped nginx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Stop nginx and start it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Take in a living nginx that somebody else started.

    With `take_over` a new master of the supervisor's own takes the place of the one that serves.
    """

    take_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """End the supervisor and leave nginx serving, as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfUpgrade:
    """Replace the supervisor itself, after the upgrade that runs or (`now`) in the midst of it.

    No command of the machine: nothing about nginx changes.
    """

    now: bool = False


Command = (
    Upgrade | Promote | Rollback | Reload | Reopen | Drain | Stop | Start | Restart | Adopt | Detach
)
