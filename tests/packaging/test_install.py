"""`make install` and `make uninstall`, with folders of the test's own for /usr and /etc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.install import LAUNCHER, Layout, compile_bytecode, install, uninstall
from tools.private_tree import BUNDLED, REPOSITORY, own_version


def layout_in(folder: Path) -> Layout:
    return Layout(
        prefix=folder / "usr", sysconfdir=folder / "etc", localstatedir=folder / "var",
        interpreter=sys.executable,
    )  # fmt: skip


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = layout_in(tmp_path_factory.mktemp("installed"))
    install(layout)
    compile_bytecode(layout)
    return layout


def program(layout: Layout, name: str) -> Path:
    return next(path for path in layout.programs if path.name == name)


def test_both_programs_run_from_the_private_folder_alone(installed: Layout, tmp_path: Path) -> None:
    # Whatever an environment or a working directory puts in their way.
    hostile = tmp_path / "hostile"
    for name in ("supervisor", "trio", "json"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    said = subprocess.run(
        [program(installed, "nginx-supervisor"), "--version"], cwd=hostile, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(hostile), "PYTHONHOME": ""}, timeout=60,
    )  # fmt: skip
    assert (said.returncode, said.stdout.strip()) == (0, own_version()), said.stderr
    said = run(program(installed, "nginxctl"), "--help", PYTHONPATH=str(hostile))
    assert said.returncode == 0, said.stderr
    assert "self-upgrade" in said.stdout


def test_the_client_loads_no_package_that_it_does_not_need(installed: Layout) -> None:
    script = program(installed, "nginxctl").read_text().replace('"__main__"', '"other"')
    known = "print(*sorted(name for name in sys.modules if '.' not in name))"
    said = run(sys.executable, "-IS", "-c", script + known)
    loaded = set(said.stdout.split())
    assert "supervisor" in loaded, said.stderr
    assert not loaded & {"trio", "structlog", "psutil", "argparse", "json", "site"}


def test_the_sample_that_is_installed_is_a_good_configuration(installed: Layout) -> None:
    said = run(program(installed, "nginx-supervisor"), "check", "--config", installed.config)
    assert said.returncode == 0, said.stderr


def test_a_configuration_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.config.parent.mkdir(parents=True)
    layout.config.write_text("# mine\n")
    install(layout)
    uninstall(layout)
    assert layout.config.read_text() == "# mine\n"


def test_a_link_in_the_place_of_the_configuration_stays_one(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.config.parent.mkdir(parents=True)
    layout.config.symlink_to(tmp_path / "not-mounted-yet.toml")
    install(layout)
    assert layout.config.is_symlink()
    assert not (tmp_path / "not-mounted-yet.toml").exists()


def test_uninstall_leaves_the_configuration_only(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    neighbour = layout.prefix / "lib" / "other" / "file"
    neighbour.parent.mkdir(parents=True)
    neighbour.write_text("")
    install(layout)
    compile_bytecode(layout)
    assert list(layout.library.rglob("__pycache__"))
    uninstall(layout)
    uninstall(layout)  # nothing is left for it to do
    assert files_in(tmp_path) == {
        "etc/nginx-supervisor/nginx-supervisor.toml", "usr/lib/other/file",
    }  # fmt: skip


def test_installing_again_leaves_nothing_of_the_version_before(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    install(layout)
    (layout.library / "supervisor" / "gone_since.py").write_text("")
    install(layout)
    assert not (layout.library / "supervisor" / "gone_since.py").exists()
    assert {path.name for path in layout.library.parent.iterdir()} == {
        "nginx-supervisor",
        "systemd",
    }


def test_make_stages_for_another_root_and_names_it_in_no_file(tmp_path: Path) -> None:
    words = (f"DESTDIR={tmp_path}", "PREFIX=/opt/web", "INTERPRETER=/opt/python/bin/python3")
    done = make("install", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "etc/nginx-supervisor/nginx-supervisor.toml").is_file()
    unit = (tmp_path / "opt/web/lib/systemd/system/nginx-supervisor.service").read_text()
    assert "ExecStart=/opt/web/sbin/nginx-supervisor run" in unit
    launcher = tmp_path / "opt/web/bin/nginxctl"
    assert launcher.read_text() == LAUNCHER.format(
        interpreter="/opt/python/bin/python3", library="/opt/web/lib/nginx-supervisor",
        module="supervisor.cli",
    )  # fmt: skip
    assert launcher.stat().st_mode & 0o777 == 0o755
    named = [
        name for name in files_in(tmp_path)
        if str(tmp_path).encode() in (tmp_path / name).read_bytes()
    ]  # fmt: skip
    assert not named
    assert not list(tmp_path.rglob("__pycache__"))
    assert make("uninstall", *words).returncode == 0
    assert files_in(tmp_path) == {"etc/nginx-supervisor/nginx-supervisor.toml"}


@pytest.mark.parametrize("words", [("PREFIX=usr",), ("PREFIX=/",), ("DESTDIR=relative",)])
def test_make_refuses_a_place_that_cannot_be_meant(words: tuple[str, ...]) -> None:
    done = make("uninstall", *words)
    assert done.returncode != 0
    assert "absolute path" in done.stderr


def test_an_interpreter_that_is_too_old_or_none_is_named(tmp_path: Path) -> None:
    words = (f"PREFIX={tmp_path}/usr", f"SYSCONFDIR={tmp_path}/etc", "INTERPRETER=/bin/false")
    done = make("install", *words)
    assert done.returncode != 0
    assert "/bin/false is not Python 3.11 or newer" in done.stderr
    assert files_in(tmp_path) == set()


def test_every_package_that_is_needed_is_bundled(installed: Layout) -> None:
    # With what is bundled and nothing else, every requirement of every package is met.
    question = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import re; from importlib import metadata\n"
        "for one in metadata.distributions(path=[sys.argv[1]]):\n"
        "    for need in one.requires or ():\n"
        "        if ';' not in need:\n"
        "            metadata.version(re.match(r'[A-Za-z0-9_.-]+', need).group())\n"
    )
    said = run(sys.executable, "-IS", "-c", question, installed.library)
    assert said.returncode == 0, said.stderr
    pinned = {line.split("==")[0] for line in BUNDLED.read_text().splitlines() if "==" in line}
    there = {path.name.split("-")[0] for path in installed.library.glob("*.dist-info")}
    assert there == pinned | {"nginx_supervisor"}
