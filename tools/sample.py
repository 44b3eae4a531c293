"""The supervisor in the foreground with a sample site, to try things by hand.

    python -m tools.sample

Ctrl-C stops nginx and the supervisor; the folder of the sample goes with them. A supervisor that
is killed is started again on the same folder, as a service manager would: nginx serves on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import settings, site
from tests.e2e.harness.site import Site
from tests.e2e.harness.supervised import COMMANDS
from tools.nginx_builds import builds, candidate
from tools.nginx_cache import BuildsError

PID_FILE = "supervisor.pid"
UPGRADE = {"canary": "3s", "soak": "5s", "start_timeout": "5s"}
BAD: dict[str, tuple[str, dict[str, int | str]]] = {
    "answers 500": ("status_500", {}),
    "exits at once": ("exit_at_once", {}),
    "workers die": ("workers_crash", {"delay_ms": 1000}),
    "hangs": ("hang", {}),
    "fails in the soak only": ("status_500", {"where": "inherited"}),
}


def hints(one: Site) -> str:
    """What to try in another terminal."""
    later, master = builds()[-1], f"$(cat {one.pid_path})"
    lines = [
        f"The site: {one.url}/        (its folder: {one.folder})",
        "In another terminal:",
        "",
        f"  export NGINXCTL_SOCKET={one.folder}/control.sock",
        f"  alias nginxctl={COMMANDS / 'nginxctl'}",
        "  nginxctl status",
        f"  curl -i {one.url}/version",
        "  nginxctl doctor               # what this site has to judge an upgrade with",
        f"  nginxctl upgrade --dry-run {later.path}",
        f"  nginxctl upgrade {later.path}",
        f"  nginxctl upgrade --hold {builds()[0].path}",
        "  nginxctl rollback",
        "  nginxctl history --detail",
        "",
        f"Spoil the answer of /healthz in {one.config}, and the reload is taken back:",
        "",
        "  nginxctl reload --guard",
        "",
        "Bad builds, each of which is rolled back:",
        "",
    ]
    for title, (kind, knobs) in BAD.items():
        path = candidate(later, kind, into=None, **knobs)
        lines.append(f"  nginxctl upgrade {path}    # {title}")
    lines += [
        "",
        "Kill the supervisor, also in the middle of an upgrade: nginx serves on, and the next",
        "supervisor, which is started here as a service manager would, finds what is:",
        "",
        f"  kill -9 $(cat {one.folder / PID_FILE})",
        "  nginxctl adopt --take-over    # nginx is its child again, and nobody was refused",
        "  nginxctl self-upgrade         # the supervisor by itself, with all that it knows",
        "",
        "Kill nginx and all of its workers: its listeners are held, so that the next request waits",
        "for the few milliseconds that a start takes:",
        "",
        f"  kill -9 {master} $(pgrep -P {master}); curl {one.url}/version",
        "",
        "Ctrl-C here ends it all.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the supervisor until Ctrl-C; its exit status."""
    try:
        oldest = builds()[0]
    except BuildsError as exc:
        sys.stderr.write(f"cannot run the sample: {exc}\n")
        return 1
    with site.make(oldest) as one:
        toml = one.folder / "supervisor.toml"
        changes = {
            "upgrade": UPGRADE,
            "log": {"format": "auto", "level": "info"},
            "probe": [settings.probe(one, interval="500ms")],
        }
        settings.write(toml, settings.usual(one, changes))
        sys.stdout.write(hints(one) + "\n")
        sys.stdout.flush()
        # The terminal's Ctrl-C reaches the supervisor too, which then stops nginx; wait for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            supervisor = launch(toml)
            code = supervisor.wait()
            if code != -signal.SIGKILL:
                return code
            sys.stdout.write(
                "\nThe supervisor was killed. nginx serves on; the next one adopts it.\n"
            )
            sys.stdout.flush()


def launch(toml: Path) -> subprocess.Popen[bytes]:
    """A supervisor; SIGTERM to us is passed on to it from now on."""
    supervisor = subprocess.Popen(
        [COMMANDS / "nginx-supervisor", "run", "--config", toml],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.terminate())
    toml.with_name(PID_FILE).write_text(f"{supervisor.pid}\n")
    return supervisor


if __name__ == "__main__":
    sys.exit(main())
