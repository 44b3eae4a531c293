from __future__ import annotations

import pytest
import structlog
import trio

from supervisor.edges.log_tap import LogTap


def _logger(tap: LogTap) -> structlog.typing.FilteringBoundLogger:
    def drop(*_: object) -> dict[str, object]:
        raise structlog.DropEvent

    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[tap, drop], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


async def test_a_follower_gets_what_was_and_what_comes() -> None:
    tap = LogTap()
    log = _logger(tap)
    log.info("upgrade.state_changed", generation="g2", pids={2, 1}, table={1: None})
    async with tap.follow() as (recent, coming):
        log.warning("probe.state_changed", detail=ValueError("bad"))
        (before,) = recent
        assert before["event"] == "upgrade.state_changed"
        assert before["level"] == "info"
        assert before["fields"] == {"generation": "g2", "pids": [1, 2], "table": {"1": None}}
        assert str(before["time"]).endswith("+00:00")
        after = coming.receive_nowait()
        assert after["level"] == "warning"
        assert after["fields"] == {"detail": "bad"}
        with pytest.raises(trio.WouldBlock):
            coming.receive_nowait()


async def test_only_recent_events_are_kept() -> None:
    tap = LogTap()
    log = _logger(tap)
    for number in range(700):
        log.info("counted", number=number)
    async with tap.follow() as (recent, _):
        assert [one["fields"] for one in recent] == [{"number": one} for one in range(200, 700)]


async def test_a_follower_that_does_not_read_holds_nobody_up() -> None:
    tap = LogTap()
    log = _logger(tap)
    async with tap.follow() as (_, slow), tap.follow() as (_, other):
        for number in range(1500):
            log.info("counted", number=number)
            assert other.receive_nowait()["fields"] == {"number": number}
        assert slow.statistics().current_buffer_used == 1000


async def test_nothing_is_kept_of_a_follower_that_left() -> None:
    tap = LogTap()
    log = _logger(tap)
    async with tap.follow() as (_, coming):
        await coming.aclose()
        log.info("to nobody")
    async with tap.follow() as (_, coming):
        pass
    log.info("to nobody")
    with pytest.raises(trio.ClosedResourceError):
        coming.receive_nowait()
    assert not tap._followers
