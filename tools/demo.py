"""A live nginx is upgraded under load; then four bad builds are offered, and each is rolled back.

    python -m tools.demo

Takes about 30 seconds and exits 0 only if all went as it says. The load goes on all the time:
clients that make a new connection for each request, clients that keep theirs, clients that come
back after a pause, and one that downloads slowly, across the switch too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.harness import settings, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import Site
from tests.e2e.harness.supervised import Supervised
from tools.demo_screen import Screen
from tools.load import KindReport, Load, Report
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import Build, BuildsError

UPGRADE = {"canary": "1500ms", "soak": "2s", "start_timeout": "2500ms",
           "rollback_quit_timeout": "1s", "rollback_term_timeout": "1s"}  # fmt: skip
AFTER = 1.5
"""Seconds for which the load goes on after a verdict."""
SLOW_SECONDS = 9.0
"""Of the download that is under way when the old generation is told to leave.

Long enough to be so on a busy machine too: on an idle one the commit comes after five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One bad candidate: what is told, and which failures it may cause while it serves."""

    title: str
    kind: str
    knobs: Mapping[str, int | str] = field(default_factory=dict)
    may_cause: frozenset[str] = frozenset()


BAD = (
    # A candidate in the canary shares the public port, so some clients meet it before the probes
    # have condemned it. That is what a canary is for; nobody else's request may fail.
    Act(title="its site answers 500", kind="status_500", may_cause=frozenset({"status"})),
    Act(title="it exits at once", kind="exit_at_once"),
    Act(
        title="its workers die", kind="workers_crash", knobs={"delay_ms": 1000},
        may_cause=frozenset({"reset", "truncated"}),
    ),
    Act(title="it hangs in its start", kind="hang"),
)  # fmt: skip


class WentWrongError(Exception):
    """Something did not go as told."""


def expect(*, that: bool, what: str) -> None:
    """Raises WentWrongError where it is not so."""
    if not that:
        raise WentWrongError(what)


class Demo:
    """The story; one instance tells it once."""

    def __init__(self, screen: Screen, one: Site, nginx: Supervised) -> None:
        self._screen, self._site, self._nginx = screen, one, nginx
        self._rows: list[tuple[str, Mapping[str, KindReport]]] = []
        self._reports: list[Report] = []

    def tell(self, first: Build, second: Build, third: Build) -> None:
        """All acts. Raises WentWrongError at the first thing that is not as told."""
        screen = self._screen
        screen.line(f"{'':10}{'who serves':22} what happens", look="dim")
        with Load(self._site.plan(slow_seconds=SLOW_SECONDS)) as load:
            self._upgrade(first, second, load)
            for act in BAD:
                self._offer_bad(act, second, third, load)
            end = time.monotonic()
            self._reports.append(load.stop())
        expect(that=self._reports[-1].failures == 0, what=f"at the end: {self._reports[-1]}")
        screen.strip(merged(self._reports), end)
        screen.table(self._rows)
        self._history()

    def _upgrade(self, old: Build, new: Build, load: Load) -> None:
        self._moment(f"nginx {old} serves; clients ask, one downloads slowly", look="bold")
        time.sleep(AFTER)  # so that the old version is seen to serve for a while
        self._moment(f"nginxctl upgrade {new}", look="bold")
        verdict = self._ask(new.path)
        expect(that=verdict["verdict"] == "committed", what=f"the upgrade ended so: {verdict}")
        self._verdict(verdict)
        state = self._nginx.status()["state"]
        expect(that=state == "draining", what=f"the slow download must hold g1; state {state}")
        until("the slow download complete", lambda: slow_complete(load), poll=0.05)
        self._moment(f"the slow download from {old} has ended, whole")
        self._nginx.until_state("running")
        self._expect_serving(new)
        report = self._end_act(f"upgrade to {new}", load)
        expect(that=report.failures == 0, what=f"requests failed in the upgrade: {report}")
        expect(that=report.kinds["slow"].ok > 0, what="no slow download ended")
        expect(that=set(report.versions) == {str(old), str(new)}, what="both versions must serve")

    def _offer_bad(self, act: Act, serving: Build, new: Build, load: Load) -> None:
        self._moment(f"nginxctl upgrade {new}, a bad build: {act.title}", look="bold")
        verdict = self._ask(candidate(new, act.kind, into=None, **act.knobs))
        expect(that=verdict["verdict"] == "rolled_back", what=f"it ended so: {verdict}")
        self._verdict(verdict)
        self._nginx.until_state("running")
        self._expect_serving(serving)
        before = load.report()
        time.sleep(AFTER)  # so that the load sees the old version serve on
        report = self._end_act(act.title, load)
        expect(that=before.failures == report.failures, what=f"failures afterwards: {report}")
        causes = {cause for kind in report.kinds.values() for cause in kind.failed}
        expect(that=causes <= act.may_cause, what=f"requests failed: {report}")
        disk = self._nginx.status()["binary_on_disk"]
        expect(that=disk["matches_active"] is True, what=f"the wrong file is on disk: {disk}")

    def _end_act(self, title: str, load: Load) -> Report:
        report = load.lap()
        self._reports.append(report)
        self._rows.append((title, report.kinds))
        return report

    def _ask(self, binary: Path) -> dict[str, object]:
        """`nginxctl upgrade`, told line by line as it goes; the verdict."""
        with self._nginx.begin("upgrade", binary) as asked:
            assert asked.stdout is not None
            told: dict[str, object] = {}
            for line in asked.stdout:
                told = json.loads(line)
                if told["event"] == "phase":
                    reason = f"  ({told['reason']})" if told.get("reason") else ""
                    look = "bad" if reason else "plain"
                    self._moment(f"  {told['phase']}{reason}", look=look)
            errors = asked.communicate()[1]
        expect(that=told.get("event") == "verdict", what=f"no verdict: {told} {errors}")
        expected = {"committed": 0, "rolled_back": 4}.get(str(told["verdict"]))
        expect(that=asked.returncode == expected, what=f"nginxctl exited {asked.returncode}")
        return told

    def _moment(self, text: str, *, look: str = "plain") -> None:
        status = self._nginx.status()
        serving = " + ".join(
            f"{one['id']} {one['version']}"
            for one in status["generations"]
            if any(worker["state"] == "accepting" for worker in one["workers"])
        )
        self._screen.moment(serving or "nobody", text, look=look)

    def _verdict(self, verdict: Mapping[str, object]) -> None:
        good = verdict["verdict"] == "committed"
        word = str(verdict["verdict"]).replace("_", " ").upper()
        text = f"{word}: {verdict['reason']}, {str(verdict['detail'])[:100]}"
        self._moment(text, look="good" if good else "bad")

    def _expect_serving(self, build: Build) -> None:
        status = self._nginx.status()
        (active,) = status["generations"]
        expect(that=active["version"] == build.version, what=f"the wrong version serves: {status}")
        self._moment(f"nginx {build} serves", look="good")

    def _history(self) -> None:
        verdicts = [one["verdict"] for one in self._nginx.history()]
        expected = ["committed", *["rolled_back"] * len(BAD)]
        expect(that=verdicts == expected, what=f"the history says {verdicts}")


def slow_complete(load: Load) -> bool:
    """Whether a slow download has ended well since the last lap."""
    slow = load.report().kinds.get("slow")
    return slow is not None and slow.ok > 0


def merged(reports: list[Report]) -> Report:
    """One report with the timelines of all."""
    served: dict[str, dict[str, int]] = {}
    for report in reports:
        for version, pids in report.served.items():
            served.setdefault(version, {}).update(pids)
    timeline = tuple(entry for report in reports for entry in report.timeline)
    return replace(reports[0], timeline=timeline, served=served)


def three_versions() -> tuple[Build, Build, Build]:
    """Old, new, and the one that the bad builds are made of; with two builds, the last again."""
    found = builds()
    return found[0], found[1], found[-1]


def main() -> int:
    """Tell the story; 0 if all went as told."""
    screen = Screen()
    try:
        first, second, third = three_versions()
    except BuildsError as exc:
        screen.line(f"cannot start the demo: {exc}")
        return 1
    screen.line("nginx-supervisor: one good upgrade, four bad ones, under load", look="bold")
    screen.line()
    with site.make(first) as one:
        probe = settings.probe(one, interval="250ms")
        try:
            with supervised.running(one, {"upgrade": UPGRADE, "probe": [probe]}) as nginx:
                screen.began = time.monotonic()
                Demo(screen, one, nginx).tell(first, second, third)
        except WentWrongError as exc:
            screen.line()
            screen.line(f"It did not go as told: {exc}", look="bad")
            screen.line("\n".join(getattr(exc, "__notes__", [])), look="dim")
            return 1
    screen.line()
    screen.line(
        "All as told: no request was lost in the upgrade, every bad build was rolled back,",
        look="good",
    )
    screen.line("the good binary is on disk, and no process is left behind.", look="good")
    return 0


if __name__ == "__main__":
    sys.exit(main())
