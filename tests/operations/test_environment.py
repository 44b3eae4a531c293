"""Every run of nginx has the environment that USR2 passes on: also the first, -V and -T."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import SupervisorError
from supervisor.edges import env_directives, procfs
from supervisor.edges.generation import Generation
from supervisor.edges.journal import History
from supervisor.edges.runtime_state import KnownMaster, RuntimeState
from supervisor.operations import facts, recover, reload
from tests import recording
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A library that notes who runs with it, and where it does."""
    return recording.build(tmp_path_factory.mktemp("recorder"))


def _runs(made: Lab, record: Path) -> list[str]:
    """What ran with the library since the last time: its arguments after -c FILE."""
    lines = record.read_text().splitlines() if record.exists() else []
    record.unlink(missing_ok=True)
    ours = f"-p {made.folder}/ -c {made.folder}/nginx.conf"
    return [line.replace(ours, "") for line in lines if line.startswith(str(made.binary))]


def _give(made: Lab, **variables: str) -> None:
    settings = made.world.settings
    made.world.settings = replace(settings, nginx=replace(settings.nginx, environment=variables))


def _add(made: Lab, text: str) -> None:
    path = made.folder / "nginx.conf"
    path.write_text(f"{text}\n{path.read_text()}")


@pytest.mark.parametrize("literal", [False, True], ids=["from-settings", "in-the-directive"])
async def test_a_cold_start_runs_everything_with_it(
    oldest: Build, recorder: tuple[Path, Path], *, literal: bool
) -> None:
    library, record = recorder
    async with lab(oldest) as made:
        if literal:
            _give(made, UNNAMED="secret")
            _add(made, f"env LD_PRELOAD={library};\nenv SEEN=1;")
        else:
            _give(made, LD_PRELOAD=str(library), SEEN="1", UNNAMED="secret")
            _add(made, "env LD_PRELOAD;\nenv SEEN;")
        active = await made.start()
        ran = _runs(made, record)
        assert [line.split()[1] for line in ran] == ["-V", "-T", "SEEN=1"], ran
        assert all("SEEN=1 UNNAMED=-" in line for line in ran)
        assert len(active.program.environment) == 2
        await reload.reload(made.world)
        assert [line.split()[1] for line in _runs(made, record)] == ["-V", "-T"]
        await made.assert_serves_alone(active)


async def test_one_that_only_nginx_finds(
    oldest: Build, recorder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own dump has the last word, and is asked again with what it needs."""
    library, record = recorder
    async with lab(oldest) as made:
        monkeypatch.setattr(facts, "env_directives", lambda _config: ())
        _give(made, LD_PRELOAD=str(library), SEEN="1")
        _add(made, "env LD_PRELOAD;")
        await made.start()
        assert [line.split()[1] for line in _runs(made, record)] == ["-V", "-T", "SEEN=-"]


async def test_it_is_learnt_once_for_a_configuration(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start after a crash reads no configuration twice; a changed one is read again."""
    read: list[Path] = []

    def counting(config: Path) -> tuple[str, ...]:
        read.append(config)
        return env_directives.env_directives(config)

    async with lab(oldest) as made:
        (made.folder / "conf").mkdir()
        included = made.folder / "conf" / "a.conf"
        included.write_text("env SEEN;")
        _add(made, f"include {made.folder}/conf/*.conf;")
        _give(made, SEEN="1", LATER="2")
        monkeypatch.setattr(facts, "env_directives", counting)
        argv = facts.settings_argv(made.world)

        async def look() -> tuple[str, ...]:
            found = await facts.read_facts(made.world, str(made.binary), argv)
            return found.config.env

        assert await look() == ("SEEN",)
        folder = made.folder.stat()  # nginx makes files in it
        assert await look() == ("SEEN",)
        os.utime(made.folder, ns=(folder.st_atime_ns, folder.st_mtime_ns))
        before = len(read)
        assert await look() == ("SEEN",)
        assert await look() == ("SEEN",)
        assert len(read) <= before + 1
        (made.folder / "conf" / "b.conf").write_text("env LATER;")
        assert await look() == ("SEEN", "LATER")
        included.write_text("")
        assert await look() == ("LATER",)


async def test_a_broken_configuration_is_told_by_nginx(oldest: Build) -> None:
    async with lab(oldest) as made:
        (made.folder / "nginx.conf").unlink()
        with pytest.raises(SupervisorError) as caught:
            await made.start()
        assert "nginx.conf" in caught.value.detail
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("found_by", ["record", "pid-file"])
async def test_an_adopted_one_is_known_with_it(
    oldest: Build, recorder: tuple[Path, Path], found_by: str
) -> None:
    """By its record with what it has, whatever the configuration on disk says by now."""
    library, record = recorder
    async with lab(oldest) as made:
        _give(made, LD_PRELOAD=str(library), SEEN="1")
        _add(made, "env LD_PRELOAD;\nenv SEEN;")
        first = await made.start()
        state = RuntimeState(made.folder / "state")
        if found_by == "record":
            state.save([_on_record(first)])
            path = made.folder / "nginx.conf"
            path.write_text(path.read_text().replace("env SEEN;", ""))
        made.world.generations.drop(first)
        record.unlink()
        await recover.recover(made.world, state, History(made.folder / "state"))
        adopted = made.world.active
        assert adopted is not None
        assert adopted.program.environment == ("LD_PRELOAD", "SEEN")
        assert [line.split()[1] for line in _runs(made, record)] == ["-V", "-T"]
        await reload.reload(made.world)
        assert all("SEEN=1" in line for line in _runs(made, record))


def _on_record(one: Generation) -> KnownMaster:
    return KnownMaster(
        generation=one.id, pid=one.master.pid, start_ticks=one.master.start,
        boot_id=procfs.boot_id(), version=one.program.version, sha256=one.program.sha256,
        version_id=one.program.stored or "", role=one.role.value, session=one.session,
        pid_path=one.program.pid_path, worker_processes=one.program.workers,
        environment=one.program.environment,
    )  # fmt: skip
