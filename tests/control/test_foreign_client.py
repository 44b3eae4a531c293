"""A client that we did not write: the `varlink` package, in an environment of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.control.fake_backend import STATUS, FakeBackend, verdict

PACKAGE = "varlink==31.0.0"
PATIENCE = 60.0

SCRIPT = """
import json, sys, varlink
with varlink.Client.new_with_address("unix:" + sys.argv[1]) as client:
    print(json.dumps(client.get_interfaces()))
    interface = client.get_interface("org.nginxsupervisor.Control")
    print(json.dumps(sorted(interface.members)))
    with client.open("org.nginxsupervisor.Control") as control:
        print(json.dumps(control.Status()))
        for reply in control.Upgrade("/usr/sbin/nginx", _more=True):
            print(json.dumps(reply["progress"]))
        print(json.dumps(control.Reload()["progress"]))
        try:
            control.Drain(now=False)
        except varlink.VarlinkError as error:
            print(json.dumps([error.error(), error.parameters()]))
"""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nginx-supervisor" / "tests"


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    """An interpreter with the package, made once per version of Python and kept in the cache."""
    cache = cache_folder()
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


async def test_the_varlink_package(
    control: str, backend: FakeBackend, foreign_python: Path
) -> None:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [str(foreign_python), "-W", "ignore", "-c", SCRIPT, control], capture_stdout=True
        )
    interfaces, members, status, *progress, reload, error = map(
        json.loads, ended.stdout.decode().splitlines()
    )
    assert interfaces == ["org.varlink.service", "org.nginxsupervisor.Control"]
    assert {"Status", "Upgrade", "Progress", "NotPermitted"} <= set(members)
    assert status["generations"][0]["version"] == STATUS["generations"][0]["version"]  # type: ignore[index]
    assert status["held_listeners"] == STATUS["held_listeners"]
    assert progress == backend.events
    assert reload == verdict("committed")
    assert error == ["org.varlink.service.InvalidParameter", {"parameter": "now"}]
