"""The Debian package as a file; what it does on a system is in tests/booted/test_deb.py."""

import hashlib
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from supervisor.core.settings import parse_settings
from tools.make_deb import make_deb
from tools.private_tree import TreeError, own_version, private_tree

ARCHITECTURES = [("x86_64", "amd64"), ("aarch64", "arm64")]


def dpkg_deb(*words: str | Path) -> str:
    return subprocess.run(["dpkg-deb", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deb(tmp_path_factory.mktemp("deb"), machine="x86_64")


@pytest.fixture(scope="module")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    dpkg_deb("-R", deb, folder)
    return folder


def test_it_is_the_same_each_time(deb: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = make_deb(tmp_path / "elsewhere", machine="x86_64")
    finally:
        os.umask(before)
    assert again.name == deb.name == f"nginx-supervisor_{own_version()}-1_amd64.deb"
    assert again.read_bytes() == deb.read_bytes()


def test_what_it_says_of_itself(deb: Path) -> None:
    fields = dpkg_deb("-f", deb)
    assert f"Version: {own_version()}-1\n" in fields
    assert "Architecture: amd64\n" in fields
    assert "Depends: libc6 (>= 2.17), python3 (>= 3.11)\n" in fields
    assert "Recommends: nginx\n" in fields


def test_everything_belongs_to_root_and_nobody_else_writes_it(deb: Path) -> None:
    for line in dpkg_deb("-c", deb).splitlines():
        mode, owner, *_ = line.split()
        assert owner == "root/root"
        assert mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"), line
        assert (mode == "-rwxr-xr-x") == ("bin/" in line and not line.endswith("/")), line


def test_the_only_conffile_is_small_and_good(unpacked: Path) -> None:
    assert (unpacked / "DEBIAN/conffiles").read_text() == (
        "/etc/nginx-supervisor/nginx-supervisor.toml\n"
    )
    (file,) = (path for path in (unpacked / "etc").rglob("*") if path.is_file())
    settings = parse_settings(tomllib.loads(file.read_text()))
    assert (settings.nginx.binary, settings.nginx.config) == (
        "/usr/sbin/nginx",
        "/etc/nginx/nginx.conf",
    )


def test_the_sums_are_those_of_every_other_file(unpacked: Path) -> None:
    told = {}
    for line in (unpacked / "DEBIAN/md5sums").read_text().splitlines():
        digest, _, name = line.partition("  ")
        told[name] = digest
    found = {
        str(path.relative_to(unpacked)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in (unpacked / "usr").rglob("*")
        if path.is_file()
    }
    assert told == found


def test_the_licences_of_all_packages_are_told(unpacked: Path) -> None:
    text = (unpacked / "usr/share/doc/nginx-supervisor/copyright").read_text()
    for folder in (unpacked / "usr/lib/nginx-supervisor").glob("*.dist-info"):
        name = folder.name.removesuffix(".dist-info").replace("-", " ")
        assert name.startswith("nginx_supervisor") or f"\n{name}: " in text, name
    assert "BSD 2-Clause License" in text


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_a_script_that_is_called_in_an_unknown_way_fails(unpacked: Path, script: str) -> None:
    done = subprocess.run(
        [unpacked / "DEBIAN" / script, "dance"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "unknown argument 'dance'" in done.stderr


@pytest.mark.parametrize(("machine", "architecture"), ARCHITECTURES)
def test_each_architecture_has_its_own_psutil(
    machine: str, architecture: str, tmp_path: Path
) -> None:
    kinds = {"x86_64": b"\x3e\x00", "aarch64": b"\xb7\x00"}
    (library,) = private_tree(machine).rglob("*.so")
    assert library.read_bytes()[18:20] == kinds[machine]  # e_machine, elf(5)
    assert make_deb(tmp_path, machine=machine).name.endswith(f"_{architecture}.deb")


def test_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="only for x86_64, aarch64"):
        make_deb(tmp_path, machine="vax")
