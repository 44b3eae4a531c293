"""The configuration file is read only where nobody else could have written it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.core.errors import ConfigError
from supervisor.edges.config_file import load_settings

GOOD = '[nginx]\nbinary = "/n"\nconfig = "/c"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


def problem(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    return caught.value.detail


def test_a_good_file_is_read(file: Path) -> None:
    assert load_settings(file).nginx.binary == "/n"
    assert load_settings(str(file)).nginx.config == "/c"


def test_a_symlink_to_a_good_file_is_read(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert load_settings(link).nginx.binary == "/n"


def test_a_file_that_everyone_can_write_is_refused(file: Path) -> None:
    file.chmod(0o646)
    assert f"chmod o-w {file}" in problem(file)


def test_a_file_that_a_group_can_write_is_refused_unless_it_is_roots(file: Path) -> None:
    if os.geteuid() != 0:  # an unprivileged user's own group is never root's
        file.chmod(0o664)
        assert f"chmod g-w {file}" in problem(file)
        return
    os.chown(file, 0, 12345)
    file.chmod(0o664)
    assert f"group 12345 can write it; chmod g-w {file}" in problem(file)
    os.chown(file, 0, 0)
    assert load_settings(file).nginx.binary == "/n"
    os.chown(file, 12345, 0)
    assert f"uid 12345, who is neither root nor the supervisor's user; chown 0 {file}" in problem(
        file
    )


def test_a_missing_file_names_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert f"{path}: No such file or directory" in problem(path)
    assert "conf/" in problem(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in problem(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "not a regular file" in problem(fifo)
    assert "cannot read the configuration" in problem("a\0b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[nginx]\nbinary = "/n\n', "line 2"),
        (b"[nginx]\n\n= 1\n", "line 3"),
        (b"[nginx]\nbinary = '\xff'\n", "line 2 is not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"1" * 5000, "not TOML"),
        (b"#" * (1024 * 1024 + 1), "more than 1048576 bytes"),
        (b"", "cannot do without binary"),
    ],
)
def test_what_cannot_be_understood_is_located(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    assert said in problem(file)
    assert str(file) in problem(file)
