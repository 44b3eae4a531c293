"""Finds out which build tools and headers are missing; installs them where that is permitted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

INSTALL_LIMIT_SECONDS = 600


class MissingPackagesError(Exception):
    """Something that the build needs is not there, and may or can not be installed."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A program or a C header, and the Debian package that carries it."""

    package: str
    program: str = ""
    header: str = ""

    def is_met(self) -> bool:
        """Whether the program is on PATH and the header compiles."""
        if self.program and shutil.which(self.program) is None:
            return False
        return not self.header or header_compiles(self.header)


COMPILER = (
    Requirement("gcc", program="gcc"),
    Requirement("libc6-dev", header="stdio.h"),
)
NGINX = (
    *COMPILER,
    Requirement("make", program="make"),
    Requirement("libpcre2-dev", header="pcre2.h"),
    Requirement("libssl-dev", header="openssl/ssl.h"),
    Requirement("zlib1g-dev", header="zlib.h"),
)
# nginx before 1.21.5 knows only this older library, which Debian dropped after bookworm: where it
# is not to be had, build_nginx.py compiles it from source.
OLD_PCRE = Requirement("libpcre3-dev", header="pcre.h")
PATCHELF = Requirement("patchelf", program="patchelf")


def header_compiles(header: str) -> bool:
    """Whether gcc finds `header`."""
    source = f"#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stddef.h>\n#include <{header}>\n"
    command = ["gcc", "-fsyntax-only", "-x", "c", "-"]
    try:
        return subprocess.run(command, input=source, capture_output=True, text=True).returncode == 0
    except FileNotFoundError:
        return False


def ensure(required: Sequence[Requirement], *, wanted: Sequence[Requirement] = ()) -> None:
    """Has every requirement met, and those only wanted too if that is easy.

    Installs with apt as root. Raises MissingPackagesError naming the packages otherwise.
    """
    missing = [requirement for requirement in required if not requirement.is_met()]
    extra = [requirement for requirement in wanted if not requirement.is_met()]
    if not missing and not extra:
        return
    names = [requirement.package for requirement in missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        if missing:
            raise MissingPackagesError(
                f"cannot make nginx builds without {', '.join(names)}:"
                f" run `apt-get install {' '.join(names)}` as root, or set NGINX_BUILDS=DIR"
                " (a folder of VERSION/sbin/nginx) if it is only headers that are missing"
            )
        return
    everything = [*names, *(requirement.package for requirement in extra)]
    print(f"nginx: installing {' '.join(everything)}", file=sys.stderr, flush=True)
    said = _install(everything)
    if said and extra and names:
        said = _install(names)
    still_missing = [requirement.package for requirement in missing if not requirement.is_met()]
    if still_missing:
        raise MissingPackagesError(
            f"cannot install {', '.join(still_missing)} with apt:"
            f" {said or 'it is installed, but gcc does not find it'}"
        )


def _install(packages: Sequence[str]) -> str:
    """Installs with apt; what apt said if it failed, else an empty text."""
    options = ["-qq", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    install = ["apt-get", *options, "install", "--no-install-recommends", *packages]
    failure = _run(install)
    if failure:
        # A fresh container has no package lists.
        _run(["apt-get", *options, "update"])
        failure = _run(install)
    return failure


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_LIMIT_SECONDS,
    )
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stdout.splitlines() if line.startswith("E:")]
    return " ".join(errors) or f"apt-get exited with {done.returncode}"
