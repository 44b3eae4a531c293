"""The `varlink` package from PyPI, a client that we did not write, in an environment of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "varlink==31.0.0"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nginx-supervisor" / "tests"


def varlink_python() -> Path:
    """An interpreter with the package, made once per version of Python and kept in the cache."""
    cache = _cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{PACKAGE.replace('==', '-')}-py{sys.version_info[0]}.{sys.version_info[1]}"
    python = cache / name / "bin" / "python"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one worker makes it, the others wait
        if _imports(python):
            return python
        shutil.rmtree(cache / name, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(cache / name)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, PACKAGE])
    return python


def _imports(python: Path) -> bool:
    if not python.exists():
        return False
    tried = subprocess.run([python, "-c", "import varlink"], check=False, capture_output=True)
    return tried.returncode == 0


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
