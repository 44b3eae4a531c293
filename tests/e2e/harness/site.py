"""A private folder with nginx, its configuration and its content, on ports of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.harness import ports
from tools.load_client import Plan, big_content
from tools.nginx_cache import MARKER_MODULE, Build

BODY = "ok\n"
HEALTHY = "healthy\n"
BIG_SIZE = 2 * 1024 * 1024

_TEMPLATE = """\
{load_module}
worker_processes {workers};
{daemon}
pid {pid};
error_log {error_log} notice;
{main}
events {{
    worker_connections 512;
}}
http {{
    access_log {access_log};
    client_body_temp_path {folder}/temp/client_body;
    proxy_temp_path {folder}/temp/proxy;
    fastcgi_temp_path {folder}/temp/fastcgi;
    sendfile on;
    {http}
    server {{
        # A small buffer, so that a slow client's download stays with its worker, not in the kernel.
        listen 127.0.0.1:{port} sndbuf=64k{listen_options};
        {listen_unix}
        include {folder}/run/probe*.conf;
        server_name site.test;
        add_header X-Version $nginx_version always;
        add_header X-Pid $pid always;
        {marker}
        location / {{
            return 200 "{body}";
        }}
        location = /healthz {{
            return 200 "{healthy}";
        }}
        location = /version {{
            return 200 "$nginx_version\\n";
        }}
        location = /big {{
            root {folder}/www;
        }}
        {server}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a site differs from the usual one; the texts go into the block of their name."""

    workers: int = 2
    daemon: str | None = None  # "on", "off", or no directive
    module: bool = False  # load the tests' dynamic module
    unix: bool = False  # listen on site.sock as well
    reuseport: bool = False
    error_log: str | None = None
    access_log: str = "off"
    pid: str | None = None
    main: str = ""
    http: str = ""
    server: str = ""


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n")


@dataclass(slots=True)
class Site:
    """One site. `make` builds it; nothing runs yet."""

    folder: Path
    build: Build
    options: Options
    ports: Sequence[int]
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def binary(self) -> Path:
        """Where nginx is started from; upgrades replace this file."""
        return self.folder / "sbin" / "nginx"

    @property
    def config(self) -> Path:
        return self.folder / "nginx.conf"

    @property
    def pid_path(self) -> Path:
        return Path(self.options.pid or self.folder / "run" / "nginx.pid")

    @property
    def oldbin_path(self) -> Path:
        return self.pid_path.with_name(self.pid_path.name + ".oldbin")

    @property
    def error_log(self) -> Path:
        return self.folder / "error.log"

    @property
    def include(self) -> Path:
        """Where the private probe listener is written."""
        return self.folder / "run" / "probe.conf"

    @property
    def module(self) -> Path:
        return self.folder / "modules" / MARKER_MODULE

    @property
    def unix_path(self) -> Path:
        return self.folder / "run" / "site.sock"

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def spare_port(self) -> int:
        """A free port of this site for whatever a test wants to listen on."""
        return self.ports[1]

    @property
    def probe_ports(self) -> str:
        """The range for the private probe listener."""
        return f"{self.ports[2]}-{self.ports[5]}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def argv(self) -> list[str]:
        """The command line of nginx, as the supervisor makes it from its settings."""
        return [str(self.binary), "-p", str(self.folder), "-c", str(self.config)]

    def plan(self, **settings: object) -> Plan:
        """A load on this site."""
        return Plan(**{"port": self.port, "slow_size": BIG_SIZE, **settings})  # type: ignore[arg-type]

    def configure(self, options: Options | None = None) -> None:
        """Write nginx.conf anew, with `options` from now on where they are given."""
        if options is not None:
            self.options = options
        use = self.options
        text = _TEMPLATE.format(
            folder=self.folder,
            load_module=f"load_module {self.module};" if use.module else "",
            marker="marker site;" if use.module else "",
            workers=use.workers,
            daemon=f"daemon {use.daemon};" if use.daemon else "",
            pid=self.pid_path,
            error_log=use.error_log or self.error_log,
            access_log=use.access_log,
            port=self.port,
            listen_options=" reuseport" if use.reuseport else "",
            listen_unix=f"listen unix:{self.unix_path};" if use.unix else "",
            body=_escaped(BODY),
            healthy=_escaped(HEALTHY),
            main=use.main,
            http=use.http,
            server=use.server,
        )
        self.config.write_text(text, encoding="utf-8")

    def install(self, build: Build) -> None:
        """Put binary and modules of `build` in place as a package manager does: by renames."""
        put(build.path, self.binary)
        for module in sorted(build.modules_dir.glob("*.so")):
            put(module, self.folder / "modules" / module.name)

    def log_text(self) -> str:
        """What nginx has logged."""
        try:
            return self.error_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def put(source: Path, target: Path) -> Path:
    """Copy `source` beside `target` and rename it there; a running file may be replaced so."""
    target.parent.mkdir(mode=0o755, exist_ok=True)
    beside = target.with_name(target.name + ".new")
    shutil.copyfile(source, beside)
    beside.chmod(0o755)
    beside.rename(target)
    return target


def sha256(path: Path) -> str:
    """The hash of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def make(build: Build, options: Options | None = None) -> Iterator[Site]:
    """A site with `build` installed; the folder is removed afterwards."""
    # Not pytest's own folder: that is closed to the workers' user, and its path is too long for a
    # unix socket.
    folder = Path(tempfile.mkdtemp(prefix="ngs-"))
    folder.chmod(0o755)
    try:
        with ports.lease() as leased:
            for name in ("run", "logs", "temp", "www", "state"):
                (folder / name).mkdir()
            (folder / "www" / "big").write_bytes(big_content(0, BIG_SIZE))
            site = Site(folder, build, options or Options(), leased)
            site.configure()
            site.install(build)
            yield site
    finally:
        shutil.rmtree(folder, ignore_errors=os.environ.get("NGS_KEEP") is not None)
