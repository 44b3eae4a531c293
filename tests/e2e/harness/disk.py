"""Disks that fail and clocks that jump: a preloaded shim, and small file systems of our own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

from tests.e2e.harness.supervised import Supervised

SOURCE = Path(__file__).parent.parent / "disk_shim.c"


class Shim:
    """The shim in one supervisor; `disk_shim.c` says what it does. Set it up before the start."""

    def __init__(self, nginx: Supervised, library: Path, folder: Path) -> None:
        self._faults, self.record = folder / "faults", folder / "record"
        self._offset = folder / "offset"
        nginx.environment |= {
            "LD_PRELOAD": str(library),
            "DISK_FAULTS": str(self._faults),
            "CLOCK_OFFSET": str(self._offset),
        }

    def inject(self, *faults: tuple[str, int, Path]) -> None:
        """From now on each call fails with its errno for all paths that begin so; no others do."""
        text = "".join(f"{call} {errno} {path}\n" for call, errno, path in faults)
        beside = self._faults.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self._faults)

    def mend(self) -> None:
        """Nothing fails any more."""
        self.inject()

    def jump(self, seconds: float) -> None:
        """The wall clock of the supervisor is wrong by so many seconds from now on."""
        beside = self._offset.with_suffix(".new")
        beside.write_text(f"{seconds:.0f}\n")
        beside.rename(self._offset)


def build_shim(folder: Path) -> Path:
    """The library."""
    library = folder / "disk_shim.so"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Werror")
    subprocess.run(["gcc", *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library


@contextmanager
def small_disk(folder: Path, *, kilobytes: int = 24 * 1024) -> Iterator[None]:
    """A file system of its own in `folder`, which is empty again afterwards; as root."""
    options = f"size={kilobytes}k,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing more fits onto the file system of `folder`."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as exc:
                    if exc.errno != ENOSPC:
                        raise
        yield
    finally:
        ballast.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` takes no change meanwhile, from nobody; as root."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
