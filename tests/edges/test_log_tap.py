from __future__ import annotations

import json

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


async def test_what_a_predecessor_logged_stands_before() -> None:
    before, after = LogTap(), LogTap()
    for number in range(499):
        _logger(before).info("counted", number=number)
    log = _logger(after)
    log.info("supervisor.replaced", odd=float("inf"))
    after.put_before(json.loads(json.dumps(before.recent, allow_nan=False)))
    async with after.follow() as (everything, _), after.follow(new=True) as (own, coming):
        assert [one["event"] for one in everything] == ["counted"] * 499 + ["supervisor.replaced"]
        assert everything[:-1] == before.recent
        assert [one["fields"] for one in own] == [{"odd": "inf"}]
        log.info("later")
        assert coming.receive_nowait()["event"] == "later"
    log.info("last")
    async with after.follow(new=True) as (own, _):
        assert [one["event"] for one in own] == ["supervisor.replaced", "later", "last"]
    for number in range(600):
        log.info("counted", number=number)
    async with after.follow(new=True) as (own, _), after.follow() as (everything, _):
        assert own == everything
    after.put_before(before.recent)
    assert len(after.recent) == 500
