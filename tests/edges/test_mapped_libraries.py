"""Libraries of a living process that are replaced, deleted or only written anew on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.edges.mapped_libraries import (
    Outdated,
    libraries_in,
    mapped_libraries,
    outdated_libraries,
)

LIBRARY = next(
    Path(one.path) for one in mapped_libraries(os.getpid()) if "libc.so" in one.path
)  # any library that the loader takes: this interpreter has it mapped


@contextmanager
def holding(library: Path) -> Iterator[int]:
    """A process that has `library` mapped as it is now."""
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(library)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The tests' own place is one where no library is installed.
    monkeypatch.setattr("supervisor.edges.mapped_libraries._NO_PACKAGES", ("/memfd:",))
    path = tmp_path / "lib" / "libexample.so.1"
    path.parent.mkdir()
    shutil.copy(LIBRARY, path)
    return path


def put(path: Path, content: bytes) -> None:
    """As dpkg does it."""
    new = path.with_name(f"{path.name}.dpkg-new")
    new.write_bytes(content)
    new.rename(path)


def of(pid: int, path: Path) -> list[str]:
    """What is told of `path`, and nothing else that came to be told."""
    return [one.change for one in outdated_libraries([pid]) if one.path == str(path)]


def test_nothing_has_changed(library: Path) -> None:
    with holding(library) as pid:
        assert str(library) in {one.path for one in mapped_libraries(pid)}
        assert outdated_libraries([pid]) == ()


def test_a_library_is_replaced(library: Path) -> None:
    with holding(library) as pid:
        put(library, library.read_bytes() + b"\0")
        expected = Outdated(kind="library", path=str(library), change="replaced")
        assert outdated_libraries([pid, pid]) == (expected,)
        assert outdated_libraries([pid], but=[str(library)]) == ()
        assert expected.to_data() == {
            "kind": "library", "path": str(library), "change": "replaced",
        }  # fmt: skip


def test_the_same_package_again_changes_nothing(library: Path) -> None:
    with holding(library) as pid:
        put(library, library.read_bytes())
        assert of(pid, library) == []


def test_a_library_is_removed(library: Path) -> None:
    with holding(library) as pid:
        library.unlink()
        assert of(pid, library) == []  # as of one that was unlinked once it was loaded
        shutil.copy(LIBRARY, library.with_name("libexample.so.1.1"))
        assert of(pid, library) == ["deleted"]
        library.with_name("libexample.so.1.1").unlink()
        library.parent.rmdir()
        assert of(pid, library) == []


@pytest.mark.parametrize(
    "place",
    [
        "/memfd:libjit.so (deleted)",
        "/tmp/libjit.so (deleted)",
        "/dev/shm/libjit.so",
        "/run/libjit.so (deleted)",
    ],
)
def test_what_a_program_makes_for_itself_is_no_library(place: str) -> None:
    range_of = "7f0000000000-7f0000001000 r-xp 00000000 00:01"
    lines = [f"{range_of} 77 {place}", f"{range_of} 78 /usr/lib/libz.so.1"]
    assert [one.path for one in libraries_in(1, lines)] == ["/usr/lib/libz.so.1"]


def test_a_memfd_that_is_loaded_is_no_library() -> None:
    script = (
        "import ctypes, os, sys; fd = os.memfd_create('libjit.so');"
        "os.write(fd, open(sys.argv[1], 'rb').read()); ctypes.CDLL(f'/proc/self/fd/{fd}');"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(LIBRARY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert "/memfd:libjit.so" in Path(f"/proc/{process.pid}/maps").read_text()
            assert outdated_libraries([process.pid]) == ()
        finally:
            process.kill()


def test_who_may_not_read_what_is_mapped_is_told_by_names_alone(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(library) as pid:
        monkeypatch.setattr("supervisor.edges.mapped_libraries._is_same", lambda *_: None)
        assert outdated_libraries([pid]) == ()
        put(library, library.read_bytes())
        assert of(pid, library) == ["replaced"]


def test_only_libraries_count(tmp_path: Path) -> None:
    """What libffi or a JIT compiler executes from a file is none."""
    script = (
        "import mmap, sys; f = open(sys.argv[1], 'r+b');"
        "m = mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC);"
        "print(flush=True); sys.stdin.read()"
    )
    path = tmp_path / "ffi123"
    path.write_bytes(bytes(4096))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path.unlink()
        assert outdated_libraries([process.pid]) == ()
        process.kill()


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert outdated_libraries([process.pid]) == ()
