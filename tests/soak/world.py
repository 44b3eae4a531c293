"""What the deeds of a soak act on, and what they say of it: who has to serve, whom it may cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from subprocess import Popen
from typing import Any

from tests.e2e.harness import site
from tests.e2e.harness.bare import until
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.settings import probe
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tools import casualties
from tools.casualties import Killed
from tools.load_client import big_content
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import Build
from tools.quick_load import Failure

LIMIT = 60.0
"""Seconds for what takes one on an idle machine."""
SLOW = """\
location = /slow {{
    # A third of a second for 24 KiB, in three parts: there is always somebody in the middle of it.
    alias {place};
    sendfile_max_chunk 8k;
    limit_rate 64k;
}}
"""
SLOW_SIZE = 24 * 1024
_SETTINGS: dict[str, Any] = {
    "upgrade": {
        "start_timeout": "8s",
        "rollback_quit_timeout": "3s",
        "rollback_term_timeout": "500ms",
    },
    # Crashes are what this is about: they come quicker than anywhere else.
    "restart": {"crash_limit": 1000, "start_limit": 0},
    "log": {"format": "json", "level": "info"},
}


def settings(one: Site) -> dict[str, Any]:
    """The supervisor's, as changes of the usual ones; sockets are held of either sort."""
    restart = {**_SETTINGS["restart"], "hold_reuseport": one.options.reuseport}
    # A machine that is busy with all of this is no reason to condemn a good candidate.
    return {**_SETTINGS, "restart": restart, "probe": [probe(one, timeout="2s")]}


class UnexpectedError(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A good binary that may serve."""

    build: Build
    path: Path
    sha: str


@contextmanager
def site_of(build: Build, *, reuseport: bool = False) -> Iterator[Site]:
    """A site with slow answers, too, which are being sent whenever somebody dies."""
    main = "worker_shutdown_timeout 10s;"
    with site.make(build, Options(reuseport=reuseport, main=main)) as one:
        place = one.folder / "www" / "slow"
        place.write_bytes(big_content(0, SLOW_SIZE))
        one.configure(replace(one.options, server=SLOW.format(place=place)))
        yield one


def good_offers() -> list[Offer]:
    """Each build, and each with another hash."""
    paths = [(one, path) for one in builds() for path in (one.path, candidate(one, "good"))]
    return [Offer(build=one, path=path, sha=sha256(path)) for one, path in paths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A deed's time, and which failures it may cause beside those of the workers it killed."""

    begin: float
    end: float
    may_lose: frozenset[str]

    def excuses(self, failure: Failure) -> bool:
        """Whether the failure may be one of these."""
        in_it = failure.began <= self.end and failure.ended >= self.begin
        return in_it and failure.cause in self.may_lose


@dataclass(slots=True)
class World:
    """One nginx, its supervisor, and what has been done to both."""

    nginx: Supervised
    serving: Offer
    offers: Sequence[Offer]
    random: Random = field(default_factory=Random)  # of this deed alone
    kills: list[Killed] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)  # of this deed, as they were told
    accepted: set[str] = field(default_factory=set)  # upgrades of this deed that were begun
    open_ended: bool = False  # whether the history may have a verdict that nobody was told
    allowed: set[str] = field(default_factory=set)
    _begin: float = 0.0

    # --- the frame of each deed -----------------------------------------------------------------

    def begin(self, seed: str) -> None:
        """A deed begins; whatever it draws depends on `seed` alone."""
        self.random = Random(seed)
        self.verdicts, self.open_ended, self.allowed = [], False, set()
        self.accepted = set()
        self._begin = time.monotonic()

    def end(self) -> None:
        """The deed is over and all is quiet again."""
        window = Window(begin=self._begin, end=time.monotonic(), may_lose=frozenset(self.allowed))
        self.windows.append(window)

    def allow(self, *causes: str) -> None:
        """This deed may cost such requests: it offers an nginx that is bad, or stops a good one."""
        self.allowed |= set(causes)

    # --- acting -----------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where the load asks."""
        return self.nginx.site.port

    def another(self) -> Offer:
        """A good binary that does not serve now."""
        return self.random.choice([one for one in self.offers if one != self.serving])

    def kill(self, pids: Iterable[int]) -> None:
        """SIGKILL, with a note of whom each of them was about to answer."""
        self.kills += casualties.kill(pids, port=self.port)

    def ask(self, *arguments: str | Path, codes: Iterable[int] = (0,)) -> Answer:
        """Run a command of nginxctl, which has to end with one of these codes."""
        return self.answer(self.nginx.begin(*arguments), *arguments, codes=codes)

    def answer(
        self, asked: Popen[str], *arguments: str | Path, codes: Iterable[int] = (0,)
    ) -> Answer:
        """The answer of a command that was begun."""
        answer = self.nginx.end(asked, LIMIT)
        if answer.code not in codes:
            raise UnexpectedError(f"{' '.join(map(str, arguments))}: {answer}")
        last = answer.lines[-1] if answer.lines else {}
        self.accepted |= {
            line["upgrade_id"]
            for line in answer.lines
            if line.get("event") == "accepted" and line.get("upgrade_id")
        }
        # A reload has a verdict, too, and no place in the history.
        if last.get("event") == "verdict" and last.get("upgrade_id"):
            self.verdicts.append(last)
        return answer

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Return when `holds` does. Raises TimeoutError."""
        until(what, holds, LIMIT, poll=0.01)

    def quiet(self) -> dict[str, Any]:
        """Return the status when nothing is going on and what listens is held again."""
        status: dict[str, Any] = {}

        def is_quiet() -> bool:
            status.clear()
            status.update(self.nginx.look())
            held = status["held_listeners"]
            return status["state"] == "running" and (held["count"] > 0 or not held["available"])

        try:
            self.until("quiet", is_quiet)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}: {status}") from None
        return status

    def resolve(self, *offered: Offer) -> None:
        """Nobody can know how it ended: one of them serves, or still what served before."""
        self.open_ended = True
        status = self.quiet()
        serving = status["generations"][0]["sha256"]
        for one in (self.serving, *offered):
            if one.sha == serving:
                self.serving = one
                return
        raise UnexpectedError(f"neither what served nor what was offered serves: {status}")

    # --- looking ----------------------------------------------------------------------------

    def masters(self) -> list[Seen]:
        """The living masters, oldest first."""
        return self.nginx.masters()

    def family(self, master: int) -> list[int]:
        """A master and its workers, the master first."""
        seen = self.nginx.nginx()
        return [master, *(one.pid for one in seen if one.is_worker and one.parent == master)]

    def everything(self) -> list[int]:
        """All of nginx, masters first."""
        return [one.pid for one in sorted(self.nginx.nginx(), key=lambda one: not one.is_master)]

    def accepting(self, master: int) -> set[int]:
        """Its workers that are not leaving."""
        return {one.pid for one in self.nginx.nginx() if one.is_accepting and one.parent == master}
