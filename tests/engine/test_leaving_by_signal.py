"""SIGRTMIN where systemd would kill nginx with the supervisor."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock

import pytest

from supervisor import daemon
from supervisor.core.errors import Refusal, SupervisorError
from supervisor.core.events import LeaveRequested, TerminateRequested


@pytest.mark.parametrize("killed", [False, True])
async def test_nginx_is_stopped_properly_where_it_would_be_killed(
    monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    async def killed_with_us() -> SupervisorError | None:
        return Refusal("kill_mode", "cannot detach: KillMode=mixed") if killed else None

    monkeypatch.setattr(daemon, "killed_with_us", killed_with_us)
    parts = Mock()
    await daemon.leave(cast("Any", parts))
    parts.engine.post.assert_called_once_with(TerminateRequested() if killed else LeaveRequested())
    assert parts.world.log.error.called is killed
