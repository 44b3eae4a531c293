"""What `nginxctl --json status` loads. Monitoring calls it often, and its imports are its cost.

A time would depend on the machine; the list of modules does not. `bench/cli_startup.py` measures.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import trio

import supervisor
from tests.control.fake_backend import STATUS

NEEDED = {
    "__future__",
    "_socket",  # the C module alone
    "supervisor",
    "supervisor.cli",
    "supervisor.cli.connection",
    "supervisor.cli.output",
    "supervisor.wire",
}
"""All that may be loaded beyond what every interpreter has; measure before you add to it."""

PROGRAM = """
import os, sys
before = set(sys.modules)
sys.path.insert(0, sys.argv.pop(1))
from supervisor.cli import main
code = main()
os.write(2, "\\n".join(set(sys.modules) - before).encode())
sys.exit(code)
"""


async def test_the_status_for_monitoring_loads_next_to_nothing(control: str) -> None:
    with trio.fail_after(60):
        ended = await trio.run_process(
            # Without `site`, whose hooks in a development environment would hide imports of ours.
            [
                *(sys.executable, "-I", "-S", "-c", PROGRAM),
                str(Path(supervisor.__file__).parent.parent),
                *("--json", "status"),
            ],
            env={**os.environ, "NGINXCTL_SOCKET": control},
            capture_stdout=True,
            capture_stderr=True,
        )
    assert json.loads(ended.stdout) == STATUS
    assert set(ended.stderr.decode().split()) == NEEDED
