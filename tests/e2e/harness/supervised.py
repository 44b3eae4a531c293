"""A supervisor on a site: started, asked, stopped, killed; and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor import wire
from supervisor.cli.connection import Connection
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import LIMIT, Cradle, kill
from tests.e2e.harness.notify import Ears
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.settings import Settings, usual, write
from tests.e2e.harness.site import Site

COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Answer:
    """What nginxctl said and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    errors: str

    @property
    def last(self) -> dict[str, Any]:
        """The last line: of an operation, its verdict."""
        assert self.lines, f"nginxctl exited {self.code} without a line: {self.errors}"
        return self.lines[-1]

    @property
    def reason(self) -> str:
        """The reason in the last line."""
        reason = self.last.get("reason")
        assert isinstance(reason, str), self.last
        return reason

    def __str__(self) -> str:
        return f"exit {self.code}: {self.lines[-1] if self.lines else ''} {self.errors}"


class NotReadyError(Exception):
    """The supervisor did not come up: its exit status, and what it logged."""


class Supervised:
    """One site and the supervisors that own it one after the other."""

    def __init__(self, site: Site, cradle: Cradle, settings: Settings, ears: Ears) -> None:
        self.site, self.cradle = site, cradle
        self.settings = settings
        self.environment: dict[str, str] = {}  # more of it, for the supervisor
        self.program: list[str | Path] = [COMMANDS / "nginx-supervisor"]
        self.pid = 0
        self._ears = ears

    @property
    def toml(self) -> Path:
        return self.site.folder / "supervisor.toml"

    @property
    def log_path(self) -> Path:
        return self.site.folder / "supervisor.log"

    @property
    def socket(self) -> Path:
        return self.site.folder / "control.sock"

    # --- its life -----------------------------------------------------------------------------

    def launch(self) -> int:
        """Start a supervisor and return its pid; it is not ready yet."""
        write(self.toml, self.settings)
        self._ears.forget()
        env = {**os.environ, "NOTIFY_SOCKET": str(self._ears.path), **self.environment}
        command = [*self.program, "run", "--config", self.toml]
        self.pid = self.cradle.run(command, env=env, output=self.log_path)
        return self.pid

    def start(self) -> None:
        """Start a supervisor; returns when it is ready and has finished what it found unfinished.

        Raises NotReadyError.
        """
        self.launch()
        if not (self._ears.heard("READY=1", LIMIT) and self._ears.at_rest(LIMIT)):
            status = self.cradle.status(self.pid)
            raise NotReadyError(f"not ready (exit status {status}):\n{self.log_text()}")

    def stop(self) -> int:
        """Tell the supervisor to end, which stops nginx; its exit status."""
        kill(self.pid, signal.SIGTERM)
        return self.cradle.wait(self.pid)

    def die(self) -> None:
        """Kill the supervisor as the kernel's OOM killer would; nginx is not touched."""
        kill(self.pid, signal.SIGKILL)
        self.cradle.wait(self.pid)

    @property
    def said(self) -> list[str]:
        """What the service manager has heard, line by line, from the last supervisor."""
        return self._ears.lines

    # --- asking it ----------------------------------------------------------------------------

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start `nginxctl --json ARGUMENTS`; the caller hands it to `end`."""
        return subprocess.Popen(
            [COMMANDS / "nginxctl", "--socket", self.socket, "--json", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, asked: subprocess.Popen[str], limit: float = 120.0) -> Answer:
        """The answer of a command that was begun."""
        with asked:
            try:
                output, errors = asked.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                asked.kill()
                output, errors = asked.communicate()
                raise TimeoutError(f"no answer within {limit:g} s: {output} {errors}") from None
        return Answer(asked.returncode, [json.loads(line) for line in output.splitlines()], errors)

    def ctl(self, *arguments: str | Path, limit: float = 120.0) -> Answer:
        """Run `nginxctl --json ARGUMENTS` to its end."""
        return self.end(self.begin(*arguments), limit)

    def status(self) -> dict[str, Any]:
        """The status; it has to be answered."""
        answer = self.ctl("status")
        assert answer.code == 0, answer
        return answer.last

    def look(self) -> dict[str, Any]:
        """The status over a connection of our own: many times quicker than a process."""
        return self._call("Status")

    def history(self) -> list[dict[str, Any]]:
        """The verdicts, oldest first."""
        entries = self._call("History")["entries"]
        return sorted(entries, key=lambda one: str(one.get("time", "")))

    def _call(self, method: str) -> dict[str, Any]:
        with Connection(str(self.socket), timeout=LIMIT) as connection:
            connection.send(wire.encode_call(f"{wire.INTERFACE}.{method}", {}))
            reply = wire.parse_reply(connection.receive())
        assert reply.error is None, reply
        return dict(reply.parameters)

    def in_phase(self, phase: str) -> bool:
        """Whether an upgrade is in `phase` now."""
        return bool((self.look()["upgrade"] or {}).get("phase") == phase)

    def until_phase(self, phase: str, limit: float = LIMIT) -> None:
        """Return when an upgrade is in `phase`; the phase has to last longer than a look."""
        until(f"phase {phase}", lambda: self.in_phase(phase), limit, poll=0.02)

    def until_begun(self, phase: str, count: int = 1) -> None:
        """Return when `count` upgrades have come to `phase`; it may be over by then."""

        def begun() -> bool:
            return len([one for one in self.log() if one.get("to_state") == phase]) >= count

        until(f"{count} times in {phase}", begun, poll=0.02)

    def until_state(self, state: str, limit: float = LIMIT) -> dict[str, Any]:
        """Return when the supervisor is in `state`; the status that said so."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.clear()
            seen.update(self.look())
            return bool(seen["state"] == state)

        try:
            until(f"state {state}", reached, limit, poll=0.02)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}: {seen}") from None
        return seen

    # --- looking at it from outside -------------------------------------------------------------

    def nginx(self) -> list[Seen]:
        """All living nginx processes of this site, whoever their parent is."""
        return [one for one in self.cradle.living() if one.title.startswith("nginx: ")]

    def masters(self) -> list[Seen]:
        """The living masters, oldest first."""
        return [one for one in self.nginx() if one.is_master]

    def log(self) -> list[dict[str, Any]]:
        """The supervisor's log lines; what is not JSON is under `text`."""
        lines = []
        for line in self.log_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": "", "text": line})
        return lines

    def log_text(self) -> str:
        """The supervisor's log as it was written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def tell_all(self) -> str:
        """Everything that helps to understand a failure."""
        living = "\n".join(map(str, self.cradle.living()))
        return (
            f"--- processes\n{living}\n--- supervisor's log\n{self.log_text()[-12000:]}\n"
            f"--- nginx's error log\n{self.site.log_text()[-6000:]}"
        )


@contextmanager
def on(site: Site, settings: Mapping[str, Any] | None = None) -> Iterator[Supervised]:
    """A supervisor that is about to own `site`, and the end of all its processes.

    `settings` change the usual ones table by table. On success nothing may be left once the
    supervisor is told to stop; on failure the block says what was going on.
    """
    with Cradle() as cradle, Ears(site.folder / "notify.sock") as ears:
        supervised = Supervised(site, cradle, usual(site, settings or {}), ears)
        try:
            yield supervised
            if supervised.pid and cradle.status(supervised.pid) is None:
                assert supervised.stop() == 0, "the supervisor did not end well"
            left = cradle.living()
            assert not left, f"left behind: {[str(one) for one in left]}"
        except BaseException as exc:
            exc.add_note(supervised.tell_all())
            raise


@contextmanager
def running(site: Site, settings: Mapping[str, Any] | None = None) -> Iterator[Supervised]:
    """As `on`, with the supervisor started and nginx serving."""
    with on(site, settings) as supervised:
        supervised.start()
        yield supervised
