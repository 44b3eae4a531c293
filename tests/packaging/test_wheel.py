"""The wheel, as people install it: by pipx, in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.private_tree import own_version, own_wheel

PROGRAMS = ("nginx-supervisor", "nginx-supervisor-migrate", "nginxctl")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what pipx has installed."""
    folder = tmp_path_factory.mktemp("pipx")
    wheel = own_wheel(folder)
    run(sys.executable, "-m", "venv", folder / "tool")
    run(folder / "tool/bin/pip", "install", "--quiet", "pipx")
    home = {"PIPX_HOME": str(folder / "home"), "PIPX_BIN_DIR": str(folder / "bin")}
    run(folder / "tool/bin/pipx", "install", "--python", sys.executable, wheel, **home)
    return folder / "bin"


def test_pipx_installs_every_program(programs: Path) -> None:
    assert {path.name for path in programs.iterdir()} == set(PROGRAMS)


def test_they_run(programs: Path, tmp_path: Path) -> None:
    assert run(programs / "nginx-supervisor", "--version").stdout.strip() == own_version()
    assert run(programs / "nginxctl", "--version").stdout.split()[-1] == own_version()
    assert "--back" in run(programs / "nginx-supervisor-migrate", "--help").stdout
    config = tmp_path / "c.toml"
    config.write_text('[nginx]\nbinary = "/usr/sbin/nginx"\nconfig = "/etc/nginx/nginx.conf"\n')
    assert f"{config}: ok" in run(programs / "nginx-supervisor", "check", "--config", config).stdout


def test_nothing_but_the_program_is_in_it(programs: Path) -> None:
    (folder,) = programs.parent.glob("home/venvs/*/lib/python*/site-packages")
    ours = {path.name for path in folder.iterdir()}
    assert not ours & {"tests", "tools", "bench", "conf", "deb"}
    assert (folder / "supervisor/org.nginxsupervisor.Control.varlink").is_file()
