"""What a whole `nginxctl --json status` costs, beside an interpreter that does nothing.

    .venv/bin/python bench/cli_startup.py [--runs N] [--installed]

Three programs take turns in one run, so that a busy machine slows all of them alike:

    pass       python3 -c pass, the same interpreter: the least that Python can cost
    nginxctl   the console script as pip made it, against a real control socket
    imports    the client's imports alone, without a socket

`--installed` measures a plain installation (wheel, no editable finder) in a venv of its own: in
the development one the interpreter's own start already loads what the editable install needs,
which flatters the ratio. The aim is a ratio of at most 2.2; exit 1 if it is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIMIT = 2.2
START_TIMEOUT = 30.0


def main() -> int:
    """Measure, print, and say whether the aim is met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=60, help="turns of each program")
    parser.add_argument("--installed", action="store_true", help="measure a plain installation")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cli-") as folder:
        scripts = Path(sys.executable).parent
        if given.installed:
            scripts = _install(Path(folder) / "venv")
        socket = Path(folder) / "s"
        with _server(socket):
            ratio = _measure(scripts, socket, given.runs)
    print(f"ratio      {ratio:.2f}  (aim: at most {LIMIT})")
    return 0 if ratio <= LIMIT else 1


def _measure(scripts: Path, socket: Path, runs: int) -> float:
    python = str(scripts / "python")
    programs = {
        "pass": [python, "-c", "pass"],
        "nginxctl": [str(scripts / "nginxctl"), "--socket", str(socket), "--json", "status"],
        "imports": [python, "-c", "import supervisor.cli"],
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(runs + 3):
        for name, command in programs.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn >= 3:  # the first ones read files that are not cached yet
                taken[name].append(time.perf_counter() - begin)
    for name, seconds in taken.items():
        fastest = min(seconds) * 1000
        print(f"{name:<9}  {statistics.median(seconds) * 1000:6.2f} ms  (fastest {fastest:.2f})")
    return statistics.median(taken["nginxctl"]) / statistics.median(taken["pass"])


@contextmanager
def _server(socket: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.control.fake_backend", str(socket)]
    with subprocess.Popen(command, cwd=REPOSITORY) as server:
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("cannot start the control socket: see above")
                time.sleep(0.01)
            yield
        finally:
            server.kill()


def _install(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    scripts = folder / "bin"
    pip = [str(scripts / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    # Built from a copy: a build in place leaves its folders behind. The client needs no packages.
    copy = folder / "source"
    copy.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "supervisor", "pyproject.toml", "README.md"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / name).read_bytes())
    readme = copy / "README.md"
    if not readme.exists():
        readme.write_text("")
    subprocess.run([*pip, "--no-deps", str(copy)], check=True, env={**os.environ, "PYTHONPATH": ""})
    return scripts


if __name__ == "__main__":
    sys.exit(main())
