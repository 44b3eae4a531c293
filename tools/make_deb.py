"""Makes the Debian package: `make deb`. It needs dpkg-deb, and nothing else of Debian's tools.

Every build of one commit is the same, byte for byte: packages are pinned, times are
SOURCE_DATE_EPOCH (the commit's own, unless it is set), owners are root.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tools.install import NAME, Layout, install
from tools.manpages import source_date
from tools.private_tree import REPOSITORY, TreeError, own_version, private_tree

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SCRIPTS = ("postinst", "prerm", "postrm")
APACHE = re.compile(r"Apache License\s+Version 2\.0, January 2004")
PARTS = REPOSITORY / "deb"
REVISION = "1"
MAINTAINER = "nginx-supervisor maintainers <nginx-supervisor@localhost.localdomain>"


def make_deb(
    into: Path, *, machine: str | None = None, version: str | None = None, tree: Path | None = None
) -> Path:
    """Build the package and return its path; an older one of the same name is replaced.

    `version` is for tests of an update, and so is `tree`. Raises TreeError, OSError,
    CalledProcessError.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise TreeError(f"cannot make a .deb for {machine}: only for {', '.join(ARCHITECTURES)}")
    epoch = source_date()
    tree = tree or private_tree(machine, version=version)
    number = f"{version or own_version()}-{REVISION}"
    into.mkdir(parents=True, exist_ok=True)
    package = into / f"{NAME}_{number}_{ARCHITECTURES[machine]}.deb"
    with tempfile.TemporaryDirectory(prefix="deb-") as folder:
        root = Path(folder) / NAME
        root.mkdir()
        _fill(root, tree, number, epoch)
        _control(root, number, ARCHITECTURES[machine])
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
        subprocess.run(
            [
                "dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build",
                str(root), str(package),
            ],
            check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    return package


def _fill(root: Path, tree: Path, number: str, epoch: int) -> None:
    layout = Layout(destdir=root, prefix=Path("/usr"))
    install(layout, tree=tree)
    _write(layout.staged(layout.config), (PARTS / "nginx-supervisor.toml").read_text())
    for path in layout.staged(layout.library).rglob("*"):
        if _is_licence(path):
            path.unlink()  # it is in `copyright`
    for folder in layout.staged(layout.library).glob("*.dist-info/licenses"):
        folder.rmdir()
    overrides = layout.staged(layout.prefix / "share" / "lintian" / "overrides" / NAME)
    overrides.parent.mkdir(parents=True)
    _write(overrides, (PARTS / "lintian-overrides").read_text())
    documents = layout.staged(layout.documents)
    (documents / "LICENSE").unlink()  # it is in `copyright`, with those of the other packages
    _write(documents / "copyright", _copyright(tree))
    _compress(documents / "changelog.gz", (documents / "CHANGELOG.md").read_text())
    (documents / "CHANGELOG.md").unlink()
    date = datetime.fromtimestamp(epoch, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    _compress(
        documents / "changelog.Debian.gz",
        f"{NAME} ({number}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n"
        f" -- {MAINTAINER}  {date}\n",
    )
    for page in layout.staged(layout.prefix).glob("share/man/*/*"):
        _compress(page.with_name(f"{page.name}.gz"), page.read_text())
        page.unlink()


def _copyright(tree: Path) -> str:
    """Our licence, and that of every package that comes along, in its own words."""
    parts = [
        f"{NAME} is Copyright 2026 the nginx-supervisor maintainers.\n\n",
        (REPOSITORY / "LICENSE").read_text(),
        "\nThe packages below /usr/lib/nginx-supervisor are others' work, under these licences:\n",
    ]
    for folder in sorted(tree.glob("*.dist-info")):
        if folder.name.startswith("nginx_supervisor-"):
            continue
        texts = sorted(path for path in folder.rglob("*") if _is_licence(path))
        if not texts:
            raise TreeError(f"cannot say under which licence {folder.name} comes: it has no text")
        title = folder.name.removesuffix(".dist-info").replace("-", " ")
        for path in texts:
            rule = "=" * 78
            parts.append(f"\n{rule}\n{title}: {path.name}\n{rule}\n\n{_licence_in(path)}")
    return "".join(parts)


def _licence_in(path: Path) -> str:
    text = path.read_text()
    if APACHE.search(text):
        return "The Apache License 2.0: /usr/share/common-licenses/Apache-2.0\n"
    return text


def _is_licence(path: Path) -> bool:
    inside = any(part.endswith(".dist-info") for part in path.parts)
    return (
        inside and path.is_file() and path.name.upper().startswith(("LICENSE", "NOTICE", "COPYING"))
    )


def _control(root: Path, number: str, architecture: str) -> None:
    folder = root / "DEBIAN"
    folder.mkdir()
    files = sorted(path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    kib = sum(-(-path.lstat().st_size // 1024) for path in files) + len(list(root.rglob("*")))
    text = (PARTS / "control").read_text()
    maintainer = os.environ.get("DEB_MAINTAINER", MAINTAINER)
    control = text.format(
        version=number, architecture=architecture, maintainer=maintainer, size=kib
    )
    _write(folder / "control", control)
    in_etc = [path for path in files if path.relative_to(root).parts[0] == "etc"]
    _write(folder / "conffiles", "".join(f"/{path.relative_to(root)}\n" for path in in_etc))
    _write(folder / "md5sums", "".join(_sums(root, files)))
    for name in SCRIPTS:
        _write(folder / name, (PARTS / name).read_text())
        (folder / name).chmod(0o755)


def _sums(root: Path, files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        below = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and below.parts[0] != "etc":
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            yield f"{digest}  {below}\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def _compress(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    path.chmod(0o644)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, default=REPOSITORY / "dist")
    parser.add_argument("--machine", choices=sorted(ARCHITECTURES), default=None)
    given = parser.parse_args(argv)
    try:
        print(make_deb(given.into, machine=given.machine))
    except FileNotFoundError as exc:
        print(f"deb: {exc}; dpkg-deb is in the package dpkg", file=sys.stderr)
        return 1
    except (TreeError, OSError, ValueError, subprocess.CalledProcessError) as exc:
        print(f"deb: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
