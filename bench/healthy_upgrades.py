"""Healthy upgrades under load, on a quiet host and on one that is overloaded: none may be undone.

    python -m bench.healthy_upgrades [--rounds N] [--seed N] [--json FILE]

Every candidate is a good one: each build to the next newer one, and to another file of the same
version. A site lives for five of them, then comes another one: plain http, http with a dynamic
module, or http and https with a probe for each; by turns on a quiet host, and while busy loops (two
for each processor) and a writer of files with fsync run. Users ask all the time: on new, kept and
idle connections, and in slow downloads. Policy, triggers and probes are at their defaults, but the
windows are scaled down, so that two hundred upgrades end in a quarter of an hour: a canary of half
a second and a soak of a second and a half instead of 5 s and 30 s, and a probe that looks ten times
in a second.

What is counted: false rollbacks, among them those where the evidence was not enough; verdicts that
no probe has judged; failed requests. All of them have to be 0 (exit status 1 where one is not).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import certificates
from tests.e2e.harness import site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import Settings
from tests.e2e.harness.site import Options, Site, put
from tests.e2e.harness.supervised import Supervised
from tools.load import Load, Report
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import Build

ROUNDS = 200
SEED = 1
A_LIFE = 5
"""Upgrades of one site, where there are as many builds."""
LOOPS_EACH = 2
"""Busy loops for each processor of a loaded host."""
LIMIT = 120.0
"""Seconds that one upgrade may take, with the end of the old generation."""

LIFE = 3600.0
"""Seconds for which users ask at most; far more than five upgrades take."""

VARIANTS = ("plain", "module", "https")
HOSTS = ("quiet", "loaded")

_LOOP = """\
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
_WRITER = """\
import os, sys
parent, block = os.getppid(), os.urandom(1 << 20)
while os.getppid() == parent:
    with open(sys.argv[1], "wb") as file:
        for _ in range(16):
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How long a candidate is looked at; as the supervisor's configuration says it."""

    canary: str = "500ms"
    soak: str = "1500ms"
    interval: str = "100ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """One upgrade and how it ended."""

    variant: str
    host: str
    versions: tuple[str, str]
    verdict: str
    reason: str
    detail: str
    judged: bool
    seconds: float

    @property
    def is_good(self) -> bool:
        """Committed, by probes that have looked at the candidate."""
        return self.verdict == "committed" and self.judged

    def __str__(self) -> str:
        between = f"{self.versions[0]} -> {self.versions[1]}"
        return f"{self.host} {self.variant} {between}: {self.verdict}, {self.reason}: {self.detail}"


@dataclass(slots=True, kw_only=True)
class Result:
    """All upgrades, and what their users saw."""

    seed: int
    upgrades: list[Upgrade] = field(default_factory=list)
    requests: int = 0
    failed: int = 0
    samples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, report: Report) -> None:
        """What users of one site saw over its life."""
        self.requests += report.requests
        self.failed += report.failures
        self.samples += report.samples

    @property
    def bad(self) -> list[Upgrade]:
        """Those that ended otherwise than they have to."""
        return [one for one in self.upgrades if not one.is_good]

    @property
    def is_good(self) -> bool:
        """No false rollback, no verdict without evidence, no request lost."""
        return not self.bad and not self.failed and self.requests > 0

    def as_json(self) -> dict[str, object]:
        """The figures."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "requests": self.requests,
            "failed": self.failed,
            "rows": [
                _row(variant, host, self._of(variant, host))
                for host in HOSTS
                for variant in VARIANTS
                if self._of(variant, host)
            ],
            "bad": list(map(str, self.bad)),
        }

    def _of(self, variant: str, host: str) -> list[Upgrade]:
        return [one for one in self.upgrades if (one.variant, one.host) == (variant, host)]

    def __str__(self) -> str:
        told = self.as_json()
        rows = told["rows"]
        assert isinstance(rows, list)
        names = list(_row("", "", self.upgrades)) if self.upgrades else []
        lines = [
            f"{len(self.upgrades)} healthy upgrades in {self.seconds:.0f} s (seed {self.seed}),"
            f" {self.requests} requests meanwhile, {self.failed} failed",
            "  " + "  ".join(f"{name:>{max(9, len(name))}}" for name in names),
        ]
        lines += [
            "  " + "  ".join(f"{row[name]!s:>{max(9, len(name))}}" for name in names)
            for row in rows
        ]
        lines += [f"  NOT AS IT HAS TO BE: {one}" for one in self.bad]
        lines += [f"  FAILED REQUEST: {one}" for one in self.samples[:20]]
        return "\n".join(lines)


def _row(variant: str, host: str, upgrades: Sequence[Upgrade]) -> dict[str, object]:
    undone = [one for one in upgrades if one.verdict == "rolled_back"]
    seconds = [one.seconds for one in upgrades]
    return {
        "host": host,
        "site": variant,
        "upgrades": len(upgrades),
        "committed": sum(one.verdict == "committed" for one in upgrades),
        "rolled back": len(undone),
        "inconclusive": sum("inconclusive" in one.reason for one in undone),
        "other": len(upgrades) - len(undone) - sum(one.verdict == "committed" for one in upgrades),
        "unjudged": sum(not one.judged for one in upgrades),
        "median s": round(statistics.median(seconds), 2),
        "longest s": round(max(seconds), 2),
    }


# --- the host -----------------------------------------------------------------------------------


@contextmanager
def overloaded(folder: Path) -> Iterator[None]:
    """Busy loops and a writer, which end with the block, and with this process."""
    with ExitStack() as running:
        commands = [["-c", _LOOP]] * (LOOPS_EACH * (os.cpu_count() or 1))
        for arguments in (*commands, ["-c", _WRITER, str(folder / "written")]):
            process = subprocess.Popen([sys.executable, "-S", "-E", *arguments])
            running.callback(_end, process)
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# --- the sites ----------------------------------------------------------------------------------


def _probe(name: str, url: str, windows: Windows, **more: object) -> Settings:
    """At its defaults, but for the interval."""
    expected = {"expect_status": [200], "expect_body": "healthy"}
    return {
        "name": name, "type": "http", "url": f"{url}/healthz", "interval": windows.interval,
        **expected, **more,
    }  # fmt: skip


def _options(one: Site, variant: str) -> Options:
    if variant == "module":
        return Options(module=True)
    if variant == "https":
        pair = certificates.write(one.folder).certificate
        return Options(
            server=f"listen 127.0.0.1:{one.spare_port} ssl;\n"
            f"ssl_certificate {pair}; ssl_certificate_key {pair};"
        )
    return Options()


def _settings(one: Site, variant: str, windows: Windows) -> dict[str, Any]:
    probes = [_probe("http", one.url, windows)]
    if variant == "https":
        url = f"https://127.0.0.1:{one.spare_port}"
        authority = str(one.folder / "authority.pem")
        probes.append(_probe("https", url, windows, host=certificates.NAME, ca_file=authority))
    upgrade = {
        "canary": windows.canary, "soak": windows.soak, "start_timeout": None,
        "rollback_quit_timeout": None,
    }  # fmt: skip
    return {"upgrade": upgrade, "probe": probes, "log": {"format": "json", "level": "info"}}


@contextmanager
def _living(variant: str, windows: Windows) -> Iterator[Supervised]:
    """A site of the oldest build, whose probes are up."""
    with site.make(builds()[0]) as one:
        one.configure(_options(one, variant))
        with supervised.running(one, _settings(one, variant, windows)) as nginx:
            until("the probes are up", lambda: _are_up(nginx), LIMIT, poll=0.05)
            yield nginx


def _are_up(nginx: Supervised) -> bool:
    return {each["state"] for each in nginx.look()["probes"]} == {"up"}


def steps() -> list[tuple[Build, Path]]:
    """What a site is upgraded to in its life: each build again as another file, then the next."""
    every = [(one, path) for one in builds() for path in (one.path, candidate(one, "good"))]
    return every[1 : 1 + A_LIFE]


def _upgrade(nginx: Supervised, variant: str, host: str, build: Build, path: Path) -> Upgrade:
    """As a package manager does it: the files first, with the module's; then the command."""
    before = nginx.look()["generations"][0]["version"]
    nginx.site.install(build)
    put(path, nginx.site.binary)
    began = time.monotonic()
    answer = nginx.ctl("upgrade", limit=LIMIT)
    last: Mapping[str, Any] = answer.last
    nginx.until_state("running", LIMIT)
    return Upgrade(
        variant=variant, host=host, versions=(str(before), build.version),
        verdict=str(last.get("verdict")), reason=str(last.get("reason")),
        detail=str(last.get("detail")), judged=last.get("judged") is True,
        seconds=time.monotonic() - began,
    )  # fmt: skip


# --- the whole ----------------------------------------------------------------------------------


def lives(seed: int) -> Iterator[tuple[str, str]]:
    """The variant and the host of each site, for ever: all of them, shuffled, again and again."""
    lot = random.Random(seed)
    kinds = [
        (variant, host)
        for variant in VARIANTS
        for host in HOSTS
        if variant != "module" or all(one.marker_module.exists() for one in builds())
    ]
    while True:
        lot.shuffle(kinds)
        yield from kinds


def measure(
    rounds: int, *, seed: int = SEED, windows: Windows | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:  # fmt: skip
    """So many upgrades, and what came of them; nothing of it is left behind."""
    windows = windows or Windows()
    result, began = Result(seed=seed), time.monotonic()
    for variant, host in lives(seed):
        with ExitStack() as life:
            nginx = life.enter_context(_living(variant, windows))
            if host == "loaded":
                life.enter_context(overloaded(nginx.site.folder))
            load = life.enter_context(Load(nginx.site.plan(slow_seconds=0.5, seconds=LIFE)))
            for build, path in steps()[: rounds - len(result.upgrades)]:
                result.upgrades.append(_upgrade(nginx, variant, host, build, path))
                say(f"\r{len(result.upgrades)} of {rounds}, {len(result.bad)} bad ")
            result.count(load.stop())
        if len(result.upgrades) >= rounds:
            break
    say("\r" + " " * 40 + "\r")
    result.seconds = time.monotonic() - began
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and tell; 1 where an upgrade was undone, or a request failed."""
    parser = argparse.ArgumentParser(description="Healthy upgrades: how many are undone.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(text)

    result = measure(given.rounds, seed=given.seed, say=say)
    if given.json is not None:
        given.json.write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{result}\n")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
