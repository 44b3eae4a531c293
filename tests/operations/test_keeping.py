from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges.placing import sha256_of
from supervisor.operations import keeping
from supervisor.operations.keeping import loaded_modules, secure
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build

pytestmark = [pytest.mark.needs("marker")]


def _put(source: Path, target: Path) -> None:
    """As a package manager does."""
    target.parent.mkdir(exist_ok=True)
    beside = target.with_name("new")
    shutil.copy(source, beside)
    beside.rename(target)


def _load(made: Lab, name: str) -> None:
    path = made.folder / "nginx.conf"
    path.write_text(f"load_module {name};\n{path.read_text()}")


def _set(made: Lab, *, prefix: str | None, directives: str | None = None) -> None:
    settings = made.world.settings
    nginx = replace(settings.nginx, prefix=prefix, globals=directives)
    made.world.settings = replace(settings, nginx=nginx)


@pytest.mark.parametrize("where", ["relative", "globals"])
async def test_which_modules_run(oldest: Build, newest: Build, where: str) -> None:
    """Those that the configuration names and the master has mapped, not what lies there by now."""
    async with lab(oldest) as made:
        module = made.folder / "modules" / "marker.so"
        _put(oldest.marker_module, module)
        if where == "globals":
            _set(made, prefix=f"{made.folder}/", directives=f"load_module {module};")
        else:
            _load(made, "modules/marker.so")
        active = await made.start()
        assert await loaded_modules(made.world, active) == {str(module): module}
        _load(made, "modules/later.so")
        _put(newest.marker_module, module.with_name("later.so"))
        _put(newest.marker_module, module)
        (found,) = (await loaded_modules(made.world, active)).items()
        assert found[0] == str(module)
        assert found[1].read_bytes() == oldest.marker_module.read_bytes()
        shutil.rmtree(made.world.store.directory)
        stored = await secure(made.world, active)
        assert stored.good
        assert stored.modules == {str(module): sha256_of(oldest.marker_module)}
        assert active.program.stored == stored.id
        assert made.world.last_program is active.program


async def test_the_prefix_is_asked_for_only_where_it_matters(
    oldest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that does not run by now (a library is gone) is stored all the same."""

    async def fails(*_arguments: object) -> None:
        raise Refusal("binary_cannot_run", "cannot run it")

    async with lab(oldest) as made:
        module = made.folder / "modules" / "marker.so"
        _put(oldest.marker_module, module)
        _load(made, str(module))
        active = await made.start()
        _set(made, prefix=None)
        with monkeypatch.context() as patch:
            patch.setattr(keeping, "version_of", fails)
            assert await loaded_modules(made.world, active) == {str(module): module}
            _load(made, "modules/relative.so")
            with pytest.raises(Refusal):
                await loaded_modules(made.world, active)
        assert await loaded_modules(made.world, active) == {str(module): module}
