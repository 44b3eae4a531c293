"""The thirty misbehaviours of tests/e2e/misbehaviours.toml, each as a real nginx on one real site.

The site has eight workers, a public http port with a page, a cached page, a redirect and a page of
a backend (`/unprobed`); a second port that no probe asks; and an https port with HTTP/2, whose
certificate is of an authority made for this run. Three users ask for all of it (`users.py`).

`run` upgrades it to one candidate and tells what became of that: the verdict, the phase, how many
requests failed, and how long the old generation took to serve again.
"""

from __future__ import annotations

import contextlib
import os
import select
import socketserver
import struct
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from tests import certificates
from tests.e2e.harness import checks, supervised
from tests.e2e.harness import site as sites
from tests.e2e.harness.settings import Settings, probe
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Answer, Supervised
from tests.e2e.harness.users import Asked, Users, UsersPlan
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

LIST = Path(__file__).resolve().parents[1] / "misbehaviours.toml"
NAME = "site.test"
REDIRECT = f"https://{NAME}/new"
WORKERS = 8
NOTE = "first-bad-act"
SECOND, BACKEND = "127.0.0.2", "127.0.0.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaviour:
    """One entry of the list."""

    name: str
    what: str
    begins: str
    accepted: bool
    passes_core: bool
    users: str


def listed() -> tuple[Misbehaviour, ...]:
    """The list, in its order."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["misbehaviour"]
    return tuple(Misbehaviour(**entry) for entry in entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How long the phases last, in seconds, and when in them a fault begins, in milliseconds."""

    canary: float
    soak: float
    interval: float
    timeout: float  # of each look
    start_timeout: float
    in_canary: int  # after the candidate's start
    in_soak: int
    leaving: int  # from the end of one worker to that of the next
    max_latency: float = 0.25  # of the page

    def __str__(self) -> str:
        return (
            f"canary {self.canary:g} s, soak {self.soak:g} s, "
            f"a look of each probe every {self.interval * 1000:g} ms "
            f"with a timeout of {self.timeout:g} s"
        )


# Production's 5 s and 30 s would only make the runs longer.
LONG = Windows(
    canary=1, soak=20, interval=0.25, timeout=1, start_timeout=8,
    in_canary=600, in_soak=3000, leaving=2500,
)  # fmt: skip

# What is caught ends its soak by that, so only the pace is quicker.
SHORT = Windows(
    canary=0.3, soak=20, interval=0.1, timeout=0.5, start_timeout=5,
    in_canary=250, in_soak=1500, leaving=500,
)  # fmt: skip

Knobs = Mapping[str, int | str]


def candidate_of(name: str, windows: Windows) -> tuple[str, Knobs]:
    """The kind of candidate (tests/nginx/README.md) that does this, and its knobs."""
    soak: Knobs = {"delay_ms": windows.in_soak}
    public: Knobs = {"where": "inherited"}
    kinds: dict[str, tuple[str, Knobs]] = {
        "master_exits_at_once": ("exit_at_once", {}),
        "master_exits_in_soak": ("exit_later", soak),
        "master_hangs_before_pid_file": ("hang", {}),
        "master_stops": ("stop_after", {"delay_ms": windows.in_canary}),
        "master_spins": ("spin_master", {**soak, "burns": 1}),
        "master_ignores_signals": ("deaf_master", {"obeys_term": 1}),
        "workers_cannot_initialise": ("workers_fatal", {}),
        "worker_crashes_once": ("worker_crash_once", soak),
        "workers_exit_in_a_loop": ("workers_exit", {"delay_ms": 300}),
        "workers_leave_one_by_one": ("workers_leave", {**soak, "every_ms": windows.leaving}),
        "cache_manager_crashes": ("cache_manager_crash", soak),
        "status_500": ("status_500", {}),
        "status_500_in_public": ("status_500", public),
        "wrong_body": ("wrong_body", {}),
        "one_worker_of_eight_fails": ("status_500", {"one_worker": 1}),
        "one_worker_hangs": ("hang_one_worker", soak),
        "public_listeners_silent": ("silent_listeners", public),
        "unprobed_listener_silent": ("silent_listeners", {"loopback": 2}),
        "connections_reset": ("reset_connections", soak),
        "slow_answers": ("slow_answers", {"late_ms": 300}),
        "wrong_certificate": ("wrong_certificate", {}),
        "handshake_breaks": ("broken_handshake", {}),
        "redirect_to_the_wrong_place": ("wrong_redirect", {}),
        "http2_breaks": ("broken_http2", {}),
        "memory_leaks": ("leaky_workers", {"delay_ms": 300, "mb_per_second": 50, "limit_mb": 800}),
        "descriptors_leak": ("leaky_descriptors", {"limit": 8000}),
        "worker_burns_a_cpu": ("burn_cpu", {"delay_ms": windows.in_canary}),
        "alerts_in_the_error_log": ("alerting", {}),
        "critical_errors_in_the_error_log": ("unwritable_cache", {}),
        "unprobed_location_fails": ("unreachable_backend", {"loopback": 3}),
        "none": ("good", {}),
    }
    return kinds[name]


# --- the site


class _Backend(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


class _Page(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while self.rfile.readline(4096).strip():
                pass
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n")


@contextmanager
def _backend(address: str, port: int) -> Iterator[None]:
    """What nginx passes `/cached` and `/unprobed` on to."""
    with _Backend((address, port), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _certify(folder: Path) -> None:
    """site.pem of the authority in authority.pem; site.pem.other of one whom nobody trusts."""
    certificates.write(folder, file="site.pem", by="ours")
    certificates.write(folder, file="site.pem.other", by="somebody else")


def second_port(site: Site) -> int:
    """On 127.0.0.2; no probe asks there."""
    return site.ports[1]


def https_port(site: Site) -> int:
    """On 127.0.0.1."""
    return site.ports[6]


def _options(site: Site) -> Options:
    backend = site.ports[7]
    http = f"""
    proxy_cache_path {site.folder}/temp/cache keys_zone=pages:1m;
    proxy_cache_valid 200 1s;
    ssl_certificate {site.folder}/site.pem;
    ssl_certificate_key {site.folder}/site.pem;
    add_header X-Version $nginx_version always;
    server {{
        listen {SECOND}:{second_port(site)};
        location / {{ return 200 "ok\\n"; }}
    }}
    """
    server = f"""
        listen 127.0.0.1:{https_port(site)} ssl http2;
        location = /old {{ return 301 {REDIRECT}; }}
        location = /cached {{ proxy_cache pages; proxy_pass http://{BACKEND[:-1]}4:{backend}; }}
        location = /unprobed {{ proxy_pass http://{BACKEND}:{backend}; }}
    """
    return Options(workers=WORKERS, http=http, server=server)


@contextmanager
def made(build: Build) -> Iterator[Site]:
    """The site with `build` installed and its backend running; nginx is not started."""
    with sites.make(build) as site:
        _certify(site.folder)
        site.configure(_options(site))
        (site.binary.parent / NOTE).write_bytes(bytes(8))
        with _backend(BACKEND, site.ports[7]), _backend(f"{BACKEND[:-1]}4", site.ports[7]):
            yield site


def users_of(site: Site) -> UsersPlan:
    """The three users."""
    return UsersPlan(
        http=("127.0.0.1", site.port), second=(SECOND, second_port(site)),
        https=("127.0.0.1", https_port(site)), name=NAME,
        authority=str(site.folder / "authority.pem"), redirect=REDIRECT,
    )  # fmt: skip


class Probes(Enum):
    """Which probes the site has."""

    CORE = "core"  # those that there were when the list was written: status, body and time
    ALL = "all"  # one for https and HTTP/2 as well, and for the redirect


def settings_of(site: Site, windows: Windows, probes: Probes) -> dict[str, Any]:
    """As somebody would run it, but for the length of the phases."""
    pace: Settings = {
        "interval": f"{windows.interval:g}s", "timeout": f"{windows.timeout:g}s", "host": NAME,
    }  # fmt: skip
    tls: Settings = {
        **pace, "url": f"https://127.0.0.1:{https_port(site)}/version",
        "ca_file": str(site.folder / "authority.pem"), "expect_body": None,
    }  # fmt: skip
    every = [
        probe(site, **pace, max_latency=f"{windows.max_latency:g}s"),
        probe(
            site, **pace, name="redirect", url=f"{site.url}/old", expect_status=[301],
            expect_body=None, expect_location=f"^{REDIRECT}$",
        ),
        probe(site, **tls, name="https"),
        probe(site, **tls, name="http2", http2=True),
    ]  # fmt: skip
    return {
        "upgrade": {
            "canary": f"{windows.canary:g}s", "soak": f"{windows.soak:g}s",
            "start_timeout": f"{windows.start_timeout:g}s",
            "rollback_quit_timeout": "1s", "rollback_term_timeout": "1s", "drain_timeout": "5s",
        },
        "probe": [
            {key: value for key, value in one.items() if value is not None}
            for one in (every if probes is Probes.ALL else every[:1])
        ],
    }  # fmt: skip


# --- one run


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one upgrade came to. Times in seconds."""

    name: str
    verdict: str
    reason: str
    detail: str
    phase: str  # in which it was caught, or that was the last one
    judged: bool
    back: float | None  # from the first bad act to the old generation serving again
    requests: int
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def caught(self) -> bool:
        """Whether the candidate was not kept."""
        return self.verdict == "rolled_back"

    @property
    def failures(self) -> int:
        """Requests of users that failed."""
        return sum(self.failed.values())

    def __str__(self) -> str:
        back = "-" if self.back is None else f"{self.back * 1000:.0f} ms"
        return (
            f"{self.name}: {self.verdict} {self.reason} in {self.phase}, back after {back}, "
            f"{self.failures} of {self.requests} failed {dict(self.failed)}: {self.detail}"
        )


def run(
    name: str, old: Build, new: Build, windows: Windows, probes: Probes = Probes.ALL
) -> Outcome:
    """Upgrade the site to the candidate; afterwards everything has to be in order.

    Raises AssertionError where it is not, whoever was to blame.
    """
    kind, knobs = candidate_of(name, windows)
    binary = candidate(new, kind, **knobs)
    with (
        made(old) as site,
        supervised.running(site, settings_of(site, windows, probes)) as nginx,
        Users(replace(users_of(site), timeout=max(2.0, 2 * windows.timeout))) as users,
    ):
        sha = sha256(site.binary)
        (master,) = nginx.masters()
        with _Death(master.pid) as death:
            answer = nginx.ctl("upgrade", binary)
        if answer.last["verdict"] == "rolled_back":
            # Only who serves now may answer: the workers' last requests, and the next of each user.
            checks.assert_rolled_back(nginx, old, sha)
        else:
            assert answer.last["verdict"] == "committed", answer
            nginx.until_state("running")
        asked = users.stop()
        outcome = _outcome(name, nginx, answer, asked, death.at, old.version)
        if name != "none" and not outcome.caught:
            _end_by_force(nginx)
    return outcome


def _end_by_force(nginx: Supervised) -> None:
    """A bad candidate that was committed may not obey when it is told to stop."""
    assert nginx.ctl("stop", "--now", limit=30).code in (0, 1)


def _outcome(
    name: str, nginx: Supervised, answer: Answer, asked: list[Asked], gone: float | None, old: str
) -> Outcome:  # fmt: skip
    last = answer.last
    phases = list(last["phases"])
    caught = last["verdict"] == "rolled_back"
    phase = phases[-2] if phases[-1] == "rolling_back" else phases[-1]
    began = first_bad_act(nginx.site)
    return Outcome(
        name=name, verdict=last["verdict"], reason=last["reason"],
        detail=last["detail"].replace(str(nginx.site.folder), ""),
        judged=bool(last["judged"]), phase=phase,
        back=_back(nginx, asked, gone, old, began) if caught and began is not None else None,
        requests=len(asked), failed=Counter(one.cause for one in asked if one.cause),
    )  # fmt: skip


def first_bad_act(site: Site) -> float | None:
    """When the candidate first did wrong, on the monotonic clock."""
    (nanoseconds,) = struct.unpack("=Q", (site.binary.parent / NOTE).read_bytes())
    return nanoseconds / 1e9 if nanoseconds else None


def _back(
    nginx: Supervised, asked: list[Asked], gone: float | None, old: str, began: float
) -> float | None:  # fmt: skip
    """From the first bad act to the old generation serving alone again.

    Before the shift the old generation never stopped to serve: the candidate's end counts. After
    it: the first good answer of the old generation.
    """
    shifted = _entered(nginx, "soaking")
    if shifted is None:
        # Of one that has ended at once nobody may have seen the end; it was before the way back.
        gone = _entered(nginx, "rolling_back") if gone is None else gone
        return None if gone is None else max(0.0, gone - began)
    after = max(began, shifted)
    good = (one.ended for one in asked if one.version == old and not one.cause)
    first = next((at for at in good if at > after), None)
    return None if first is None else first - began


def _entered(nginx: Supervised, phase: str) -> float | None:
    """When the upgrade came to `phase`, on the monotonic clock; None where it did not."""
    offset = time.time() - time.monotonic()
    for line in nginx.log():
        if line["event"] == "upgrade.state_changed" and line["to_state"] == phase:
            return datetime.fromisoformat(str(line["timestamp"])).timestamp() - offset
    return None


class _Death:
    """Sees a new master appear and end, while the block runs; `at` is None where it did not."""

    def __init__(self, old: int) -> None:
        self._old = old
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.at: float | None = None

    def __enter__(self) -> _Death:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while (pid := _executed_child(self._old)) is None:
            if self._over.wait(0.005):
                return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.at = time.monotonic()
            return
        try:
            while not select.select([descriptor], [], [], 0.05)[0]:
                if self._over.is_set():
                    return
            self.at = time.monotonic()
        finally:
            os.close(descriptor)


def _executed_child(pid: int) -> int | None:
    """The child that is no worker: it runs what it has executed (PF_FORKNOEXEC is clear)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    for child in children:
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not int(fields[6]) & 0x40:
            return int(child)
    return None
