"""The supervisor's own .deb in a box: what tests and measurements do with it.

Each deed under load returns what became of the requests; `Outcome.failed` has to be 0.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.booted.box import Box
from tests.booted.roots import only_one
from tests.booted.site import status
from tools.make_deb import make_deb
from tools.private_tree import CACHE, own_version, private_tree

NEXT = "0.99.0"
"""The version of the update that is made for tests."""
PLACE = "/debs"
"""Where a box sees the packages; bind their folder there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What clients saw meanwhile, and what the command said."""

    sent: int
    failed: int
    causes: str
    said: str


def packages() -> Path:
    """A folder with this version's package, made once for each state of the sources."""
    return _made(own_version(), lambda folder: make_deb(folder))


def next_packages() -> Path:
    """The same program with a higher version."""
    return _made(NEXT, lambda folder: make_deb(folder, version=NEXT))


def broken_packages() -> Path:
    """An update whose program does not start."""

    def make(folder: Path) -> Path:
        tree = private_tree(version=NEXT)
        broken = folder / "tree"
        subprocess.run(["cp", "-r", str(tree), str(broken)], check=True)
        (broken / "supervisor/engine.py").write_text("raise RuntimeError('made badly')\n")
        return make_deb(folder, version=NEXT, tree=broken)

    return _made(f"{NEXT}-broken", make)


def _made(what: str, make: Callable[[Path], Path]) -> Path:
    # All that is in a package, beside the tree, is small and quickly made: only the folder is kept.
    tree = private_tree(version=NEXT if what.startswith(NEXT) else None)
    folder = CACHE.parent / "test-debs" / f"{tree.name}-{what}"
    with only_one(folder):
        for old in folder.glob("*.deb"):
            return old.parent
        make(folder)
    return folder


def deb_in(place: str, box: Box) -> str:
    """The one package in a folder of the box."""
    (found,) = box.path(place).glob("*.deb")
    return f"{place}/{found.name}"


def dpkg(box: Box, *words: str, check: bool = True) -> str:
    """Run dpkg as apt does without a terminal; what it said. Raises CommandError."""
    command = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words)
    done = box.run(*command, check=check)
    return done.stdout + done.stderr


@contextmanager
def under_load(
    box: Box, *, port: int = 80, rate: float = 200.0
) -> Iterator[Callable[..., Outcome]]:
    """Requests all the while; calling what it gives ends them and tells what became of them."""
    with box.quick_load(port=port, rate=rate, processes=1) as load:
        load.lap()  # it runs

        def outcome(said: str = "") -> Outcome:
            load.stop()
            total = load.total
            causes = "; ".join(map(str, total.failures[:5]))
            return Outcome(
                sent=total.sent, failed=sum(total.failed.values()), causes=causes, said=said
            )

        yield outcome


def take_over_from_nginx_unit(box: Box) -> Outcome:
    """Move a serving nginx from nginx.service to the supervisor, under load."""
    with under_load(box) as outcome:
        done = box.run("nginx-supervisor-migrate")
        return outcome(done.stdout)


def give_back_to_nginx_unit(box: Box) -> Outcome:
    """The other way, under load."""
    with under_load(box) as outcome:
        done = box.run("nginx-supervisor-migrate", "--back")
        return outcome(done.stdout)


def update_by_package(box: Box, deb: str) -> Outcome:
    """Install a package over the one that runs, under load; dpkg has to be content."""
    with under_load(box) as outcome:
        return outcome(dpkg(box, "-i", deb))


def supervisor_version(box: Box) -> str:
    """Which version runs, as it says itself."""
    return str(status(box)["supervisor_version"])
