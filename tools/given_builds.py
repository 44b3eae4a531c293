"""The builds of NGINX_BUILDS: somebody else made them, so each is tried before a test relies on it.

Whatever is wrong with the folder shows here, with what to do, and not in hundreds of failed tests.
"""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.core.errors import Refusal
from supervisor.edges.trust import trusted_path
from tools.nginx_cache import VERSION_PATTERN, Build, BuildsError, reported_version

FEWEST_VERSIONS = 2
MOST_NAMES = 8
"""More names than these are not listed in a message."""


def check_given(folder: Path) -> list[Build]:
    """The builds in NGINX_BUILDS, each one tried. Raises BuildsError naming the first bad one."""
    if not folder.is_dir():
        raise unusable(folder, "it is not a folder; name a folder of VERSION/sbin/nginx")
    builds = sorted(
        Build.at(path) for path in folder.iterdir() if VERSION_PATTERN.fullmatch(path.name)
    )
    for build in builds:
        check_one(build, folder)
    if len(builds) < FEWEST_VERSIONS:
        found = ", ".join(build.version for build in builds) or "none"
        raise unusable(
            folder,
            f"at least {FEWEST_VERSIONS} versions are needed to upgrade between, and it has {found}"
            f" (folders named like 1.26.3 with sbin/nginx){_in_words(ignored(folder))}",
        )
    return builds


def check_one(build: Build, folder: Path) -> None:
    """Raises BuildsError where the tests could not upgrade to it."""
    if not build.path.exists():
        raise unusable(
            folder,
            f"there is no {build.path}; put that nginx there, or take the folder"
            f" {build.version} away",
        )
    try:
        version = reported_version(build.path)
    except BuildsError as error:
        raise unusable(
            folder,
            f"{error}; put an nginx there that runs on this machine, or take the folder"
            f" {build.version} away",
        ) from error
    if version != build.version:
        raise unusable(
            folder,
            f"{build.path} says that it is {version}, its folder {build.version}; rename the"
            f" folder to {version}",
        )
    try:
        trusted_path(build.path, os.getuid())
    except Refusal as error:
        # By far the most common cause is a umask of 002, which leaves each folder like that.
        raise unusable(
            folder,
            f"the supervisor would refuse each upgrade to {build.version} as {error.reason}:"
            f" {error.detail} (the tests do not); `chmod -R go-w {folder}` does it for all builds",
        ) from error


def unusable(folder: Path, why: str) -> BuildsError:
    """The error, which names the variable that led here."""
    return BuildsError(f"cannot use NGINX_BUILDS={folder}: {why}")


def ignored(folder: Path) -> list[str]:
    """The names in the folder that are no versions, in order."""
    names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(name for name in names if not VERSION_PATTERN.fullmatch(name))


def _in_words(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    text = f"; ignored: {', '.join(names[:MOST_NAMES])}{more}"
    for name in names:
        version = VERSION_PATTERN.search(name)
        if version is not None:
            return f"{text}; rename {name} to {version[0]}"
    return text
