"""Builds the nginx versions that the tests and the demo upgrade between.

    python -m tools.build_nginx            builds what is missing
    python -m tools.build_nginx --print    the same, and prints the folder that holds them

Each version is built once from the upstream tarball in Debian's source package, into
$XDG_CACHE_HOME/nginx-supervisor/nginx/VERSION (sbin/nginx, modules/, build.json). NGINX_BUILDS=DIR
names a folder of VERSION/sbin/nginx to use instead; nothing is built then.

Debian's patches are left out on purpose: with them a "1.18.0" would change with each security
upload, and two machines would test different binaries under one name. The plain upstream tarball of
a version never changes, apt still verifies it, and neither dpkg-source nor quilt is needed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import debian_sources, nginx_candidates, system_packages
from tools.debian_sources import FetchError, Mirrors
from tools.given_builds import FEWEST_VERSIONS, check_given, ignored
from tools.nginx_cache import (
    LACKING,
    SINCE,
    STAMP,
    VERSION_PATTERN,
    Build,
    BuildsError,
    builds_folder,
    cache_folder,
    given_builds_folder,
    read_stamp,
    reported_version,
    version_number,
)

# One build per slot, from the first suite that has it. A slot's later suites stand in where a
# mirror answers 404: an old release leaves the mirrors for the archive; its security suite stays
# longer.
SLOTS: dict[str, tuple[str, ...]] = {
    "old": ("bullseye", "bullseye-security"),
    "middle": ("bookworm", "bookworm-security", "bookworm-backports"),
    "new": ("trixie", "trixie-security", "forky", "sid"),
}
# Behaviour changed at these versions, so the builds should lie on both sides of each: who unlinks a
# unix socket (1.19.1), and which workers a shared listener wakes (1.21.6).
SPANNED = ("1.19.1", "1.21.6")
QUIC = ("--with-http_v3_module",)
FIRST_WITH_PCRE2 = version_number("1.21.5")
SUITES_WITH_OLD_PCRE = ("bullseye", "bookworm")

SOURCES_OF_MODULE = Path(__file__).resolve().parent.parent / "tests" / "nginx" / "marker"
CONFIGURE = (
    # Nothing lives here: a test that forgets `-p` fails at once, and no home folder is compiled in.
    "--prefix=/nonexistent/nginx",
    "--with-cc=gcc",
    "--with-compat",
    "--with-http_ssl_module",
    "--with-http_v2_module",
    "--with-http_stub_status_module",
    "--with-http_realip_module",
    "--with-stream",
    "--with-stream_ssl_module",
    "--with-threads",
    # No test uses these; without them a build takes a tenth less time.
    "--without-http_browser_module",
    "--without-http_empty_gif_module",
    "--without-http_memcached_module",
    "--without-http_scgi_module",
    "--without-http_userid_module",
    "--without-http_uwsgi_module",
    # 1.18 warns about OpenSSL 3's deprecations, which its -Werror would turn into failures.
    # -g0 undoes configure's own -g: a fifth less time.
    "--with-cc-opt=-O1 -g0 -Wno-error -Wno-deprecated-declarations",
)
# Part of the recipe's hash: raise it when the steps below change what is built.
RECIPE_NUMBER = 2


@dataclass(frozen=True, slots=True)
class Tarball:
    """A verified upstream tarball, and where it came from."""

    path: Path
    suite: str
    slot: str

    @property
    def version(self) -> str:
        """The upstream version in the file's name."""
        match = VERSION_PATTERN.search(self.path.name)
        if match is None:
            raise BuildsError(f"cannot tell the nginx version of {self.path.name}")
        return match[0]


def recipe_hash() -> str:
    """Changes whenever the same sources would be built differently."""
    digest = hashlib.sha256(repr((RECIPE_NUMBER, CONFIGURE, QUIC)).encode())
    for path in sorted(SOURCES_OF_MODULE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def ensure_builds() -> list[Build]:
    """All builds in ascending order, made now if need be. Raises BuildsError with what to do."""
    given = given_builds_folder()
    if given is not None:
        builds = check_given(given)
        if left_out := ignored(given):
            say(f"ignored in {given}, not named like 1.26.3: {', '.join(left_out)}")
        return builds
    root = cache_folder() / "nginx"
    root.mkdir(parents=True, exist_ok=True)
    # Another `make test` may be building: it holds the lock, and afterwards nothing is left to do.
    with exclusive(root / ".lock"):
        finished = finished_slots(root)
        open_slots = [slot for slot in SLOTS if slot not in finished]
        if open_slots:
            build_slots(open_slots, root=root)
            finished = finished_slots(root)
        builds = sorted(finished.values())
        check_versions([build.version for build in builds])
    return builds


def check_versions(versions: Sequence[str]) -> None:
    """Raises BuildsError where there are too few; warns where they do not span what they should."""
    if len(versions) < FEWEST_VERSIONS:
        raise BuildsError(
            f"cannot upgrade between fewer than {FEWEST_VERSIONS} nginx versions: got"
            f" {', '.join(versions) or 'none'};"
            " set NGINX_BUILDS=DIR (a folder of VERSION/sbin/nginx)"
        )
    numbers = [version_number(version) for version in versions]
    for edge in SPANNED:
        if not min(numbers) < version_number(edge) <= max(numbers):
            say(f"warning: the versions {', '.join(versions)} do not span {edge}")


def finished_slots(root: Path) -> dict[str, Build]:
    """The builds of the current recipe that still run, by slot."""
    found: dict[str, Build] = {}
    recipe = recipe_hash()
    for folder in root.iterdir():
        if not VERSION_PATTERN.fullmatch(folder.name):
            continue
        stamp = read_stamp(folder)
        build = Build.at(folder)
        if stamp.get("recipe") == recipe and stamp.get("slot") in SLOTS and runs(build):
            found[stamp["slot"]] = build
    return found


def runs(build: Build) -> bool:
    """Whether the binary still runs: after a system upgrade its libraries may be gone."""
    try:
        return reported_version(build.path) == build.version
    except BuildsError:
        return False


def build_slots(slots: Sequence[str], *, root: Path) -> None:
    """Fetches and builds the slots, all at once. One that no suite has is reported and left out."""
    mirrors = debian_sources.machine_mirrors()
    if not mirrors.archive:
        raise BuildsError(
            "cannot build nginx here: this machine's apt sources name no Debian mirror;"
            " set NGINX_BUILDS=DIR (a folder of VERSION/sbin/nginx)"
        )
    system_packages.ensure(system_packages.NGINX, wanted=(system_packages.OLD_PCRE,))
    with ThreadPoolExecutor(max_workers=len(slots)) as pool:
        # list() waits for all and raises the first exception.
        list(pool.map(lambda slot: build_slot(slot, mirrors=mirrors, root=root), slots))


def build_slot(slot: str, *, mirrors: Mirrors, root: Path) -> None:
    """Builds one slot from the first of its suites that can be fetched."""
    tarball = obtain(slot, mirrors=mirrors, sources=root.parent / "sources")
    if tarball is None:
        return
    started = time.monotonic()
    target = root / tarball.version
    with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as work:
        tree = unpack(tarball.path, into=Path(work) / "source")
        pcre = unpack_old_pcre(tarball, mirrors=mirrors, work=Path(work))
        install = Path(work) / "install"
        quic = QUIC if version_number(tarball.version) >= SINCE["http_v3"] else ()
        compile_nginx(tree, install=install, options=(*CONFIGURE, *quic, *pcre))
        finish(install, target=target, tarball=tarball)
    say(f"{tarball.version} from {tarball.suite} built in {time.monotonic() - started:.0f} s")


def obtain(slot: str, *, mirrors: Mirrors, sources: Path) -> Tarball | None:
    """The tarball of `slot`, from an earlier fetch or a fresh one; None where no suite has it."""
    for suite in SLOTS[slot]:
        folder = sources / suite
        folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(folder.glob("nginx_*.orig.tar.*"))
        if kept:
            return Tarball(path=kept[-1], suite=suite, slot=slot)
        try:
            path = debian_sources.fetch("nginx", suite=suite, mirrors=mirrors, into=folder)
        except FetchError as error:
            say(f"cannot fetch nginx from {suite}: {error}")
        else:
            return Tarball(path=path, suite=suite, slot=slot)
    return None


def unpack_old_pcre(tarball: Tarball, *, mirrors: Mirrors, work: Path) -> tuple[str, ...]:
    """The configure options that give an old nginx its PCRE library where the system has none."""
    if version_number(tarball.version) >= FIRST_WITH_PCRE2 or system_packages.OLD_PCRE.is_met():
        return ()
    reasons = []
    for suite in SUITES_WITH_OLD_PCRE:
        try:
            path = debian_sources.fetch("pcre3", suite=suite, mirrors=mirrors, into=work)
        except FetchError as error:
            reasons.append(str(error))
        else:
            # Relative: the path shows in `nginx -V`.
            unpack(path, into=work / "source" / "pcre")
            return ("--with-pcre=pcre", "--with-pcre-opt=-O1")
    raise BuildsError(
        f"cannot build nginx {tarball.version} without PCRE 8: install"
        f" {system_packages.OLD_PCRE.package}, or let apt fetch its source: {'; '.join(reasons)}"
    )


def unpack(tarball: Path, *, into: Path) -> Path:
    """Unpacks without the tarball's top folder; returns `into`."""
    into.mkdir(parents=True)
    run_logged(["tar", "-xf", str(tarball), "-C", str(into), "--strip-components=1"], cwd=into)
    return into


def compile_nginx(tree: Path, *, install: Path, options: Sequence[str]) -> None:
    """Configures and compiles `tree`, then puts sbin/ and modules/ into `install`."""
    # A copy, because the path shows in `nginx -V`: a build must not tell where it was made.
    shutil.copytree(SOURCES_OF_MODULE, tree / "marker")
    run_logged(["./configure", *options, "--add-dynamic-module=marker"], cwd=tree)
    make = ["make", "-s", "-f", "objs/Makefile", f"-j{os.cpu_count() or 2}"]
    run_logged([*make, "binary", "modules"], cwd=tree)
    copy_into(install / "sbin", [tree / "objs" / "nginx"])
    copy_into(install / "modules", sorted((tree / "objs").glob("*.so")))
    leave_out(LACKING, tree=tree)
    run_logged([*make, "binary"], cwd=tree)
    lacking = tree / "objs" / f"nginx-without-{LACKING}"
    os.rename(tree / "objs" / "nginx", lacking)
    copy_into(install / "sbin", [lacking])


def leave_out(feature: str, *, tree: Path) -> None:
    """Edits what configure wrote, so that the next `make` links nginx without the http module.

    Two objects are compiled again instead of all: the list of modules, and the text of `-V`.
    """
    objs = tree / "objs"
    modules = objs / "ngx_modules.c"
    kept = [
        line
        for line in modules.read_text(encoding="utf-8").splitlines(keepends=True)
        if f"ngx_http_{feature}_module" not in line
    ]
    modules.write_text("".join(kept), encoding="utf-8")
    header = objs / "ngx_auto_config.h"
    written = header.stat()
    text = header.read_text(encoding="utf-8")
    header.write_text(text.replace(f" --with-http_{feature}_module", ""), encoding="utf-8")
    # Every object depends on this header, but only nginx.c reads the line that changed.
    os.utime(header, ns=(written.st_atime_ns, written.st_mtime_ns))
    (objs / "src" / "core" / "nginx.o").unlink()


def copy_into(folder: Path, files: Iterable[Path]) -> None:
    """Copies executables into a folder that only its owner may write to, whatever the umask.

    The supervisor refuses a binary in a folder that others may write to.
    """
    for place in (folder.parent, folder):
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)
    for file in files:
        copy = folder / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o755)


def finish(install: Path, *, target: Path, tarball: Tarball) -> None:
    """Proves that the build runs, stamps it, and puts it at `target` in one rename."""
    version = reported_version(install / "sbin" / "nginx")
    if version != tarball.version:
        raise BuildsError(
            f"cannot use the build of {tarball.version}: it says that it is {version}"
        )
    stamp = {
        "recipe": recipe_hash(),
        "slot": tarball.slot,
        "suite": tarball.suite,
        "version": version,
        "tarball": tarball.path.name,
        "tarball_sha256": hashlib.sha256(tarball.path.read_bytes()).hexdigest(),
    }
    (install / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    if target.exists():
        # A folder cannot be replaced by one rename; the old one goes out of the way with the work.
        os.rename(target, install.parent / "replaced")
    os.rename(install, target)


def run_logged(command: Sequence[str], *, cwd: Path) -> None:
    """Runs a build step. Raises BuildsError with the last lines of its output if it fails."""
    # configure reads CFLAGS, make reads MAKEFLAGS: the caller's must not change the build.
    dropped = re.compile(r"MAKEFLAGS|MFLAGS|MAKELEVEL|C(XX|PP)?FLAGS|LDFLAGS|CC|NGINX.*")
    environment = {key: value for key, value in os.environ.items() if not dropped.fullmatch(key)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise BuildsError(f"cannot build nginx: `{' '.join(command)}` failed:\n{tail}")


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds `lock` against other processes; the kernel frees it if this one dies."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """One line of progress, on standard error: standard output is for --print."""
    print(f"nginx: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Builds the nginx versions for tests and demo.")
    parser.add_argument("--print", action="store_true", help="print the folder that holds them")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        builds = ensure_builds()
        nginx_candidates.ensure_tools()
    except (BuildsError, system_packages.MissingPackagesError) as error:
        say(str(error))
        return 1
    if arguments.print:
        print(builds_folder())
    else:
        versions = ", ".join(build.version for build in builds)
        say(f"{versions} in {builds_folder()} ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
