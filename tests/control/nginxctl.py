"""nginxctl as a process of its own, as the tests run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import trio

NGINXCTL = [sys.executable, "-c", "import sys; from supervisor.cli import main; sys.exit(main())"]
PATIENCE = 60.0


class Result:
    """How one run of nginxctl ended."""

    def __init__(self, ended: subprocess.CompletedProcess[bytes]) -> None:
        self.code = ended.returncode
        self.out = ended.stdout.decode()
        self.err = ended.stderr.decode()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


async def nginxctl(*words: str, env: dict[str, str] | None = None) -> Result:
    with trio.fail_after(PATIENCE):
        return Result(
            await trio.run_process(
                [*NGINXCTL, *words],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
                env={**os.environ, **(env or {})},
            )
        )
