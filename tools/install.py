"""Installs the supervisor, or takes it away again: what `make install` and `make uninstall` run.

    python -m tools.install install|uninstall [--destdir D] [--prefix P] [--sysconfdir D] [...]

Files go where the paths of `Layout` say. The programs are small scripts: they put one private
folder in front of everything else that Python knows, and look at nothing of the user's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.manpages import current_pages
from tools.private_tree import REPOSITORY, TreeError, private_tree

NAME = "nginx-supervisor"
SAMPLE = REPOSITORY / "conf" / "nginx-supervisor.toml"
UNITS = ("service", "path", "socket", "target", "timer")
DOCUMENTS = ("README.md", "CHANGELOG.md", "LICENSE")
PROGRAM = 0o755
PLAIN = 0o644

LAUNCHER = """\
#!{interpreter} -IS
import sys

sys.path.insert(0, {library!r})

from {module} import main

if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything goes; `destdir` stands before each path, and in no file."""

    destdir: Path | None = None
    prefix: Path = Path("/usr/local")
    sysconfdir: Path = Path("/etc")
    localstatedir: Path = Path("/var")
    interpreter: str = "/usr/bin/python3"

    @property
    def library(self) -> Path:
        """The private packages; nothing else is in it."""
        return self.prefix / "lib" / NAME

    @property
    def share(self) -> Path:
        """Drop-ins that are not active by themselves."""
        return self.prefix / "share" / NAME

    @property
    def documents(self) -> Path:
        """For people."""
        return self.prefix / "share" / "doc" / NAME

    @property
    def units(self) -> Path:
        """Where systemd looks, with /usr and with /usr/local."""
        return self.prefix / "lib" / "systemd" / "system"

    @property
    def catalog(self) -> Path:
        """What `journalctl -x` explains lines with."""
        return self.prefix / "lib" / "systemd" / "catalog"

    @property
    def config(self) -> Path:
        """The supervisor's own configuration."""
        return self.sysconfdir / NAME / f"{NAME}.toml"

    @property
    def programs(self) -> dict[Path, str]:
        """Each command and the module that it is in."""
        return {
            self.prefix / "sbin" / NAME: "supervisor.__main__",
            self.prefix / "sbin" / f"{NAME}-migrate": "supervisor.installed.migrate",
            self.prefix / "bin" / "nginxctl": "supervisor.cli",
        }

    def manual(self, page: str) -> Path:
        """Where a manual page goes, by its section."""
        return self.prefix / "share" / "man" / f"man{page.rpartition('.')[2]}" / page

    def staged(self, path: Path) -> Path:
        """Where the file for `path` is written."""
        return path if self.destdir is None else self.destdir / path.relative_to("/")

    def rewritten(self, text: str) -> str:
        """A unit's or a sample's text with the paths of this layout in the place of the usual."""
        for usual, path in (
            (f"/usr/sbin/{NAME}", self.prefix / "sbin" / NAME),
            ("/usr/bin/nginxctl", self.prefix / "bin" / "nginxctl"),
            (f"/usr/lib/{NAME}", self.library),
            (f"/usr/share/{NAME}", self.share),
            (f"/etc/{NAME}", self.config.parent),
            (f"/var/lib/{NAME}", self.localstatedir / "lib" / NAME),
        ):
            text = text.replace(usual, str(path))
        return text


def install(layout: Layout, *, tree: Path | None = None) -> None:
    """Put everything in place; an existing configuration is left as it is.

    The private folder is exchanged as a whole: a supervisor that starts meanwhile finds the old
    program or the new one. Raises TreeError, OSError.
    """
    tree = tree or private_tree()
    for path, text in _texts(layout):
        _write(layout.staged(path), text, PLAIN)
    _exchange(tree, layout.staged(layout.library))
    for path, module in layout.programs.items():
        text = LAUNCHER.format(
            interpreter=layout.interpreter, library=str(layout.library), module=module
        )
        _write(layout.staged(path), text, PROGRAM)
    config = layout.staged(layout.config)
    if not os.path.lexists(config):
        _write(config, layout.rewritten(SAMPLE.read_text()), PLAIN)


def uninstall(layout: Layout) -> None:
    """Take away what `install` has put there, with the byte code that was made since.

    The configuration stays, and so does the state directory.
    """
    for path in (*layout.programs, *(path for path, _ in _texts(layout))):
        layout.staged(path).unlink(missing_ok=True)
    for folder in (layout.library, layout.share, layout.documents):
        shutil.rmtree(layout.staged(folder), ignore_errors=True)


def compile_bytecode(layout: Layout) -> None:
    """So that each start is quick, for those as well who may not write there."""
    library = str(layout.staged(layout.library))
    command = [layout.interpreter, "-IS", "-m", "compileall", "-q", "-s", library]
    subprocess.run([*command, "-p", str(layout.library), library], check=True)


def _texts(layout: Layout) -> Iterator[tuple[Path, str]]:
    """Every file but the programs, their packages and the configuration; path and text."""
    for path in sorted((REPOSITORY / "systemd").rglob("*")):
        if not path.is_file():
            continue
        text = layout.rewritten(path.read_text())
        below = path.relative_to(REPOSITORY / "systemd")
        if len(below.parts) == 1 and path.suffix.lstrip(".") in UNITS:
            yield layout.units / path.name, text
        elif len(below.parts) == 1 and path.suffix == ".catalog":
            yield layout.catalog / path.name, text
        else:
            yield layout.share / "systemd" / below, text
    for name, text in current_pages().items():
        yield layout.manual(name), layout.rewritten(text)
    for name in DOCUMENTS:
        yield layout.documents / name, (REPOSITORY / name).read_text()
    yield layout.documents / "examples" / SAMPLE.name, layout.rewritten(SAMPLE.read_text())
    for path in sorted((REPOSITORY / "docs").glob("*.md")):
        yield layout.documents / "docs" / path.name, path.read_text()


def _write(path: Path, text: str, mode: int) -> None:
    """Beside it first, and then by rename: a program may be started at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.rename(path)


def _exchange(tree: Path, place: Path) -> None:
    new, old = (place.with_name(f".{place.name}.{word}") for word in ("new", "old"))
    place.parent.mkdir(parents=True, exist_ok=True)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    shutil.copytree(tree, new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["install", "uninstall"])
    parser.add_argument("--destdir", type=_folder, help="stands before every path (staging)")
    parser.add_argument("--prefix", type=_folder, default=Path("/usr/local"))
    parser.add_argument("--sysconfdir", type=_folder, default=Path("/etc"))
    parser.add_argument("--localstatedir", type=_folder, default=Path("/var"))
    parser.add_argument("--interpreter", default="/usr/bin/python3")
    given = parser.parse_args(["--help"] if argv == [] else argv)
    layout = Layout(
        destdir=given.destdir, prefix=given.prefix, sysconfdir=given.sysconfdir,
        localstatedir=given.localstatedir, interpreter=given.interpreter,
    )  # fmt: skip
    try:
        if given.what == "install":
            _install_and_say(layout)
        else:
            uninstall(layout)
            kept = (layout.config.parent, layout.localstatedir / "lib" / NAME)
            print(f"uninstall: done; {' and '.join(map(str, kept))} stay if they are there")
    except (TreeError, OSError, subprocess.CalledProcessError) as exc:
        print(f"{given.what}: {exc}", file=sys.stderr)
        return 1
    return 0


def _install_and_say(layout: Layout) -> None:
    kept = os.path.lexists(layout.staged(layout.config))
    if layout.destdir is None:
        _expect_interpreter(layout.interpreter)
    install(layout)
    if layout.destdir is None:
        # A staged tree is for another machine, which has its own Python.
        compile_bytecode(layout)
        program = next(iter(layout.programs))
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
    print(f"install: {' and '.join(map(str, layout.programs))}")
    print(f"install: configuration {layout.config}{' (kept as it was)' if kept else ''}")


def _expect_interpreter(interpreter: str) -> None:
    question = "import sys; sys.exit(sys.version_info < (3, 11))"
    done = subprocess.run([interpreter, "-IS", "-c", question], capture_output=True)
    if done.returncode:
        raise TreeError(
            f"{interpreter} is not Python 3.11 or newer; say INTERPRETER=/path/to/python3"
        )


def _folder(text: str) -> Path | None:
    """An absolute folder; an empty DESTDIR is none."""
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute() or len(path.parts) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no absolute path below /")
    return path


if __name__ == "__main__":
    sys.exit(main())
