"""Packages to install in a box: Debian's own, packed again with other files or another version.

A package is made from the root that it is installed in: its control file, its maintainer scripts
and its files are Debian's, but for what a test replaces. `dpkg -i` then does in the box what apt
does on a server.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.booted import site
from tests.booted.box import Binding, Box
from tests.booted.manager import wait_for
from tests.booted.roots import root_of
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import cache_folder

NGINX = "/usr/sbin/nginx"
NEWEST = builds()[-1]
CANDIDATES = Binding(cache_folder() / "candidates", str(cache_folder() / "candidates"))
"""What a box must have bound for a bad candidate to run in it."""
PATH_UNIT = "nginx-supervisor-package.path"
SERVICE = "nginx-supervisor-package.service"
LIMIT = 90.0
"""Seconds for a package's whole way, from dpkg's first step to the verdict, on a busy machine."""

_SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "triggers", "conffiles", "shlibs", "symbols")
_OF_THE_STATUS = re.compile(r"^(Status|Conffiles|Version):.*\n(?: .*\n)*", re.M)


def pack(
    root: Path,
    package: str,
    version: str,
    *,
    into: Path,
    files: Mapping[str, Path] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """A .deb of `package` as it is installed in `root`, with this version number.

    `files` replaces some of its files, `scripts` some of its maintainer scripts.
    """
    deb = into / f"{package}_{version}.deb"
    with tempfile.TemporaryDirectory(dir=into) as name:
        tree = Path(name)
        tree.chmod(0o755)
        info = root / "var/lib/dpkg/info"
        stem = next(
            one.name.removesuffix(".list")
            for one in info.glob(f"{package}*.list")
            if one.name in (f"{package}.list", f"{package}:amd64.list", f"{package}:arm64.list")
        )
        _copy_files(root, tree, (info / f"{stem}.list").read_text().splitlines())
        for path, source in (files or {}).items():
            shutil.copy(source, tree / path.lstrip("/"))
            (tree / path.lstrip("/")).chmod(0o755)
        control = tree / "DEBIAN"
        control.mkdir()
        (control / "control").write_text(_control(root, package, version))
        for kind in _SCRIPTS:
            if (info / f"{stem}.{kind}").exists():
                shutil.copy(info / f"{stem}.{kind}", control / kind)
        for kind, text in (scripts or {}).items():
            (control / kind).write_text(text)
            (control / kind).chmod(0o755)
        _write_sums(tree)
        command = ["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", name, str(deb)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return deb


def _copy_files(root: Path, tree: Path, listed: Sequence[str]) -> None:
    for path in listed:
        source, target = root / path.lstrip("/"), tree / path.lstrip("/")
        if path == "/.":
            continue
        if source.is_symlink() and not source.resolve().is_dir():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.copy2(source, target)


def _control(root: Path, package: str, version: str) -> str:
    paragraphs = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    own = next(one for one in paragraphs if one.startswith(f"Package: {package}\n"))
    rest = _OF_THE_STATUS.sub("", f"{own.strip()}\n")
    was = re.search(r"^Version: (.*)$", own, re.M)
    assert was is not None
    rest = rest.replace(f" (= {was[1]})", "")  # on others that are made from the same source
    return rest.replace(f"Package: {package}\n", f"Package: {package}\nVersion: {version}\n", 1)


def _write_sums(tree: Path) -> None:
    files = sorted(
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink() and path.parent != tree / "DEBIAN"
    )
    said = subprocess.run(
        ["md5sum", "--", *files], cwd=tree, check=True, capture_output=True, text=True
    )
    (tree / "DEBIAN/md5sums").write_text(said.stdout)


# --- in the box ---------------------------------------------------------------------------------


def install(box: Box, *debs: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`dpkg -i` of the packages, in one run."""
    for deb in debs:
        shutil.copy(deb, box.path(f"/root/{deb.name}"))
    return box.run(
        "env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", "--force-confold",
        *(f"/root/{deb.name}" for deb in debs),
        check=check,
    )  # fmt: skip


def start(box: Box) -> None:
    """Our unit, and the bridge to the package manager."""
    site.start(box)
    box.run("systemctl", "enable", "--now", PATH_UNIT)


def history(box: Box) -> list[dict[str, object]]:
    """The verdicts so far."""
    said = box.run("nginxctl", "--json", "history").stdout
    return [json.loads(line) for line in said.splitlines()]


def until(box: Box, what: str, reached: Callable[[], bool]) -> None:
    """Wait until it is so; fails with the journal where it does not come."""
    try:
        wait_for(what, reached, limit=LIMIT)
    except TimeoutError as exc:
        raise AssertionError(f"{exc}:\n{box.journal('-n', '80')}") from exc


def until_settled(box: Box, verdicts: int) -> list[dict[str, object]]:
    """Wait until there are that many verdicts, and the bridge has nothing left to do."""
    until(box, f"{verdicts} verdicts", lambda: len(history(box)) >= verdicts)
    until(box, "the end of the bridge", lambda: _state(box) in ("inactive", "failed"))
    return history(box)


def invocation(box: Box) -> str:
    """Another text at each start of the bridge."""
    return box.show(SERVICE, "InvocationID")["InvocationID"]


def install_and_look(box: Box, deb: Path) -> None:
    """Install `deb`, and return when the bridge has looked at it; it may have found nothing."""
    before = invocation(box)
    install(box, deb)
    until(box, "the bridge", lambda: invocation(box) != before)
    until_settled(box, 0)


def _state(box: Box) -> str:
    return box.show(SERVICE, "ActiveState")["ActiveState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What came of one package under load."""

    box: Box
    verdict: Mapping[str, object]
    sent: int
    failed: Mapping[str, int]
    said: str  # by dpkg


def upgrade_under_load(box: Box, *debs: Path, port: int = 80, rate: float = 100.0) -> Scenario:
    """Install `debs` while clients ask, until the verdict is there and the bridge is at rest."""
    before = len(history(box))
    with box.quick_load(port=port, rate=rate) as load:
        said = install(box, *debs).stdout
        verdicts = until_settled(box, before + 1)
        load.stop()
    return Scenario(
        box=box,
        verdict=verdicts[-1],
        sent=load.total.sent,
        failed=dict(load.total.failed),
        said=said,
    )


# --- scenarios, for tests and for whoever measures ----------------------------------------------


def nginx_deb(
    folder: Path, version: str, binary: Path, *, suite: str = "bookworm", **more: Mapping[str, str]
) -> Path:
    """Debian's nginx of `suite` with another binary, as a package with this version number."""
    root = root_of(suite)
    return pack(root, "nginx", version, into=folder, files={NGINX: binary}, **more)


def good_package(boot: Callable[..., Box], folder: Path, *, suite: str = "bookworm") -> Scenario:
    """A box of its own, and in it the newest nginx as a package, under load."""
    box = boot(suite)
    site.configure(box)
    start(box)
    deb = nginx_deb(folder, f"{NEWEST.version}-1", NEWEST.path, suite=suite)
    return upgrade_under_load(box, deb)


def bad_package(boot: Callable[..., Box], folder: Path, *, kind: str = "workers_fatal") -> Scenario:
    """The same with a bad candidate of that `kind`, in bookworm: clients of one may see it."""
    box = boot("bookworm", CANDIDATES)
    site.configure(box)
    start(box)
    deb = nginx_deb(folder, f"{NEWEST.version}-1", candidate(NEWEST, kind))
    return upgrade_under_load(box, deb)
