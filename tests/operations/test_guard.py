"""A guarded reload with a jury of paper around a real nginx: what is put back, and what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.core.model import Verdict
from supervisor.core.reload_judge import Objection
from supervisor.edges import config_restore
from supervisor.operations import guard, reload
from supervisor.operations.reload import Heard, ReloadEnd
from tests.operations.lab import LIMIT, Lab, lab
from tools.nginx_cache import Build

FAILS = Objection(reason="reload_probes_failed", detail="probe home failed")
BAD = Heard(objection=FAILS, judged=True)


@dataclass
class Jury:
    """Says what it is told to, in order, then that all is well."""

    says: list[Heard] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    heard: list[tuple[frozenset[str], frozenset[int], float]] = field(default_factory=list)

    async def passing(self) -> frozenset[str]:
        return frozenset({"home"})

    async def hear(
        self, witnesses: frozenset[str], workers: frozenset[int], seconds: float
    ) -> Heard:
        self.heard.append((witnesses, workers, seconds))
        self.before()
        return self.says.pop(0) if self.says else Heard(judged=True)


@asynccontextmanager
async def serving(build: Build) -> AsyncIterator[Lab]:
    """An nginx whose configuration has a part in a folder, and that has been copied."""
    async with lab(build, listens="include {folder}/conf.d/*.conf;") as made:
        folder(made).mkdir()
        (folder(made) / "one.conf").write_text("add_header X-One 1;\n")
        active = await made.start()
        await made.until("the copy", lambda: active.program.config_copy)
        yield made


def folder(made: Lab) -> Path:
    return made.folder / "conf.d"


def texts(made: Lab) -> dict[str, str]:
    files = [made.folder / "nginx.conf", *folder(made).iterdir()]
    return {one.name: one.read_text() for one in files}


def change(made: Lab) -> None:
    (folder(made) / "one.conf").write_text("add_header X-One changed;\n")
    (folder(made) / "two.conf").write_text("add_header X-Two 2;\n")


async def guarded(made: Lab, jury: Jury) -> ReloadEnd:
    with trio.fail_after(3 * LIMIT):
        return await guard.guarded(made.world, "r1", jury)


async def test_one_that_serves_stays(oldest: Build) -> None:
    async with serving(oldest) as made:
        change(made)
        jury, after = Jury(), texts(made)
        ended = await guarded(made, jury)
        assert (ended.verdict, ended.reason) == (Verdict.COMMITTED, "reloaded")
        assert list(ended.phases) == ["preflight", "shifting", "soaking"]
        ((witnesses, workers, seconds),) = jury.heard
        assert (witnesses, seconds) == ({"home"}, made.world.settings.reload.guard)
        active = made.world.active
        assert active is not None
        assert workers == active.look().accepting
        assert texts(made) == after
        assert guard.left_behind(made.world.configs) is not None  # until the verdict is written
        await guard.close(made.world)
        assert guard.left_behind(made.world.configs) is None
        assert not made.world.reloading


async def test_one_that_does_not_is_taken_back(newest: Build) -> None:
    async with serving(newest) as made:
        before = texts(made)
        change(made)
        jury = Jury([BAD])
        ended = await guarded(made, jury)
        assert (ended.verdict, ended.reason) == (Verdict.ROLLED_BACK, FAILS.reason)
        assert FAILS.detail in ended.detail
        assert "two.conf" in ended.detail
        assert texts(made) == before
        assert [seconds for *_, seconds in jury.heard] == [5.0, 0.0]
        assert not jury.heard[0][1] & jury.heard[1][1]
        assert made.world.config_matches()
        active = made.world.active
        assert active is not None
        await made.assert_serves_alone(active)


async def test_with_the_previous_one_it_fails_too(oldest: Build) -> None:
    """Whatever is to blame, it is not the configuration: a person is told so."""
    async with serving(oldest) as made:
        before = texts(made)
        change(made)
        ended = await guarded(made, Jury([BAD, BAD]))
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, FAILS.reason)
        assert "with these, too" in ended.detail
        assert texts(made) == before


@pytest.mark.parametrize("who", ["changed", "removed", "replaced by a link"])
async def test_what_somebody_has_changed_since_is_not_overwritten(oldest: Build, who: str) -> None:
    async with serving(oldest) as made:
        change(made)
        path = folder(made) / "one.conf"
        real = made.folder / "real.conf"

        def meddle() -> None:
            if who == "removed":
                path.unlink()
            elif who == "changed":
                path.write_text("add_header X-One mended;\n")
            else:
                path.rename(real)
                path.symlink_to(real)

        jury = Jury([BAD], before=meddle)
        ended = await guarded(made, jury)
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, "configuration_changed")
        assert str(path) in ended.detail
        assert FAILS.detail in ended.detail
        assert (folder(made) / "two.conf").exists()  # nothing at all was put back
        place = ended.detail.partition("copied to ")[2].partition(")")[0]
        assert Path(f"{place}{path}").read_text() == "add_header X-One 1;\n"


async def test_a_disk_that_does_not_take_it(oldest: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise Refusal("no_space", "the disk is full")

    async with serving(oldest) as made:
        change(made)
        monkeypatch.setattr(config_restore, "put_file", full)
        ended = await guarded(made, Jury([BAD]))
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, "restore_failed")
        assert "the disk is full" in ended.detail


async def test_nginx_does_not_take_the_previous_one_any_more(oldest: Build) -> None:
    """It needs something that is gone by then, as a file that `-T` does not list."""
    async with serving(oldest) as made:
        needed = made.folder / "mime"
        needed.write_text("users")
        one = folder(made) / "one.conf"
        one.write_text(f"ssl_certificate {needed};\n")
        one.write_text("add_header X-One 1;\n")

        def vanish() -> None:
            (made.folder / "nginx.conf").chmod(0o644)

        change(made)
        jury = Jury([BAD], before=vanish)
        real = guard.facts_of_running
        asked = 0

        async def fails(*arguments: object) -> object:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise Refusal("config_rejected", "a certificate is gone")
            return await real(*arguments)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guard, "facts_of_running", fails)
            ended = await guarded(made, jury)
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, "restore_rejected")
        assert "a certificate is gone" in ended.detail
        assert made.world.active is not None
        assert made.world.active.look().accepting


async def test_refused_before_anything_is_done(oldest: Build) -> None:
    async with serving(oldest) as made:
        active = made.world.active
        assert active is not None
        workers = active.look().accepting
        for broken, reason in (
            ("no_such_directive on;", "config_rejected"),
            ("", "previous_configuration_unknown"),
        ):
            (folder(made) / "one.conf").write_text(broken)
            if not broken:
                await reload.adopt_facts(made.world, active, None)
            with pytest.raises(Refusal) as caught:
                await guarded(made, Jury())
            assert caught.value.reason == reason
        assert made.world.guard is None
        assert guard.left_behind(made.world.configs) is None
        assert active.look().accepting == workers


async def test_a_copy_that_is_lost_is_said(oldest: Build) -> None:
    async with serving(oldest) as made:
        for path in (made.world.configs.path / "blobs").iterdir():
            path.unlink()
        with pytest.raises(Refusal) as caught:
            await guarded(made, Jury())
        assert caught.value.reason == "previous_configuration_unknown"
        assert "is lost" in caught.value.detail


# --- what is left half done ------------------------------------------------------------------


async def test_a_start_comes_in_between(oldest: Build) -> None:
    """Nothing is started with a configuration that nobody has proved."""
    async with serving(oldest) as made:
        before = texts(made)
        change(made)
        jury = Jury(before=lambda: None)
        ended = await guarded(made, jury)
        assert ended.verdict is Verdict.COMMITTED
        run = made.world.guard = guard.left_behind(made.world.configs)
        assert run is not None
        assert run.left
        await guard.settle_before_start(made.world)
        assert texts(made) == before
        assert run.reason == "supervisor_died"
        await guard.settle_before_start(made.world)  # once
        ended = await guard.finish(made.world, run, jury)
        assert (ended.verdict, ended.reason) == (Verdict.ROLLED_BACK, "supervisor_died")


async def test_a_start_is_not_kept_from_starting(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> str:
        raise OperationFailed("restore_failed", "cannot")

    async with serving(oldest) as made:
        change(made)
        await guarded(made, Jury())
        assert made.world.guard is not None
        monkeypatch.setattr(guard, "restore_files", fails)
        await guard.settle_before_start(made.world)
        assert made.world.guard.reason == "reload_master_exited"
        assert "config.not_restored" in [one["event"] for one in made.log]


async def test_the_rest_of_it_is_done_by_a_successor(newest: Build) -> None:
    async with serving(newest) as made:
        before = texts(made)
        change(made)
        await guarded(made, Jury())
        run = guard.left_behind(made.world.configs)
        assert run is not None
        ended = await guard.finish(made.world, run, Jury([BAD]))  # it watches once more
        assert (ended.verdict, ended.reason) == (Verdict.ROLLED_BACK, FAILS.reason)
        assert texts(made) == before
        run = guard.left_behind(made.world.configs)
        assert run is not None
        assert (run.restoring, run.reason) == (True, FAILS.reason)
        ended = await guard.finish(made.world, run, Jury())  # again, by another one
        assert (ended.verdict, ended.reason) == (Verdict.ROLLED_BACK, FAILS.reason)


async def test_a_successor_finds_a_broken_configuration(oldest: Build) -> None:
    async with serving(oldest) as made:
        change(made)
        await guarded(made, Jury())
        run = guard.left_behind(made.world.configs)
        assert run is not None
        (folder(made) / "two.conf").write_text("no_such_directive on;")
        ended = await guard.finish(made.world, run, Jury())
        assert (ended.verdict, ended.reason) == (Verdict.FAILED, "configuration_changed")


async def test_a_record_that_is_none(oldest: Build) -> None:
    async with lab(oldest) as made:
        made.world.configs.write_guard({"id": "r1"})
        assert guard.left_behind(made.world.configs) is None
