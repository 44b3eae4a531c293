"""Where the nginx builds are, and what each of them is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")
STAMP = "build.json"
# Beside each nginx of ours lies one without this module, which sites commonly use.
LACKING = "stub_status"
LIMIT_SECONDS = 10
MARKER_MODULE = "ngx_http_marker_module.so"

# What the tests may need of a build: files in its folder, the dynamic module of the tests and the
# twin without a common module,
FILES: dict[str, str] = {
    "marker": f"modules/{MARKER_MODULE}",
    "twin": f"sbin/nginx-without-{LACKING}",
}
# and the arguments of `nginx -V`, any one of which shows it.
FEATURES: dict[str, tuple[str, ...]] = {
    "ssl": ("--with-http_ssl_module",),
    "http_v2": ("--with-http_v2_module",),
    "stub_status": ("--with-http_stub_status_module",),
    "realip": ("--with-http_realip_module",),
    "stream": ("--with-stream",),
    "stream_ssl": ("--with-stream_ssl_module",),
    "http_v3": ("--with-http_v3_module",),
}
# What nginx itself has not always had: an older build without it is complete.
SINCE: dict[str, tuple[int, ...]] = {"http_v3": (1, 25, 0)}


class BuildsError(Exception):
    """There are no usable nginx builds; the message says what to do."""


@dataclass(frozen=True, slots=True, order=True)
class Build:
    """One nginx of a known version. Builds sort by version."""

    number: tuple[int, ...]
    version: str
    path: Path
    modules_dir: Path

    @classmethod
    def at(cls, folder: Path) -> Build:
        """The build in `folder`, whose name is the version."""
        return cls(
            number=version_number(folder.name),
            version=folder.name,
            path=folder / "sbin" / "nginx",
            modules_dir=folder / "modules",
        )

    @property
    def marker_module(self) -> Path:
        """The dynamic module of tests/nginx/marker, compiled for this version."""
        return self.modules_dir / MARKER_MODULE

    @property
    def lacking(self) -> Path:
        """The same version linked without the module LACKING. Only beside our own builds."""
        return self.path.with_name(f"nginx-without-{LACKING}")

    def __str__(self) -> str:
        return self.version


def version_number(version: str) -> tuple[int, ...]:
    """`1.18.0` as (1, 18, 0), which compares as versions do."""
    return tuple(int(part) for part in version.split("."))


def cache_folder() -> Path:
    """This project's folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths there.
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "nginx-supervisor"


def given_builds_folder() -> Path | None:
    """NGINX_BUILDS, if it is set: builds that someone else made."""
    given = os.environ.get("NGINX_BUILDS", "")
    return Path(given).absolute() if given else None


def builds_folder() -> Path:
    """The folder of VERSION/sbin/nginx that the tests use."""
    return given_builds_folder() or cache_folder() / "nginx"


def read_stamp(folder: Path) -> dict[str, str]:
    """How the build in `folder` was made; empty where it was not made by us or not completed."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def reported_version(nginx: Path) -> str:
    """The version that `nginx -v` prints. Raises BuildsError if it does not run or is not nginx."""
    try:
        done = subprocess.run(
            [nginx, "-v"], capture_output=True, text=True, errors="replace", timeout=LIMIT_SECONDS
        )
    except OSError as error:
        raise BuildsError(f"cannot run {nginx} -v: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildsError(f"cannot run {nginx} -v: no end within {LIMIT_SECONDS} s") from error
    match = re.search(r"nginx version: \S+/(\d+\.\d+\.\d+)", done.stderr)
    if done.returncode != 0 or match is None:
        said = (done.stderr or done.stdout).strip()[:512]
        raise BuildsError(
            f"cannot learn the version of {nginx}: it exited with {done.returncode}: {said}"
        )
    return match[1]


@cache
def configure_arguments(nginx: Path) -> frozenset[str]:
    """The arguments that `nginx -V` says it was configured with."""
    said = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    return frozenset(re.findall(r"(--[\w-]+(?:=(?:'[^']*'|\S+))?)", said))


def shown_by(feature: str) -> tuple[str, ...]:
    """What shows that a build has `feature`, any one of them. Raises ValueError for no feature."""
    if feature in FILES:
        return (FILES[feature],)
    if feature not in FEATURES:
        raise ValueError(
            f"cannot tell whether a build has {feature!r}: one of {', '.join((*FILES, *FEATURES))}"
        )
    return FEATURES[feature]


def lacks(build: Build, feature: str) -> bool:
    """Whether `build` is without `feature`, a key of FILES or FEATURES."""
    if feature in FILES:
        return not (build.path.parent.parent / FILES[feature]).is_file()
    present = configure_arguments(build.path)
    return not any(argument in present for argument in shown_by(feature))
