"""Fetches Debian packages, source and binary, with a private apt configuration.

The machine's apt sources say which mirror to use and its apt.conf which proxy; nothing else is
taken from them, and nothing on the system is written: lists, caches and sources live in a private
folder. apt verifies what it fetches: the suite's Release file by Debian's keyring, the index
by the Release file, each file by the index.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

APT_LIMIT_SECONDS = 300
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)


class FetchError(Exception):
    """A source package could not be had from one suite of one mirror; another may have it."""


@dataclass(frozen=True, slots=True)
class Source:
    """One apt source of the machine: a mirror and the suites it is used for."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    check_valid_until: str = ""


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The Debian mirrors that this machine uses, for the main archive and for security updates."""

    archive: tuple[Source, ...]
    security: tuple[Source, ...] = field(default=())

    def for_suite(self, suite: str) -> tuple[Source, ...]:
        """The mirrors that would carry `suite`."""
        return self.security if suite.endswith("-security") else self.archive


def os_release() -> dict[str, str]:
    """The variables of /etc/os-release; empty where there is none."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key: "".join(shlex.split(value)) for key, _, value in pairs}


def machine_mirrors() -> Mirrors:
    """The Debian mirrors named in this machine's apt sources; empty where it is not a Debian."""
    release = os_release()
    if release.get("ID") != "debian" or shutil.which("apt-get") is None:
        return Mirrors(archive=())
    codename = release.get("VERSION_CODENAME", "sid")
    main = {codename, "sid", "unstable", "testing", "stable", "oldstable", "oldoldstable"}
    security = {f"{suite}-security" for suite in main} | {f"{suite}/updates" for suite in main}
    sources = [source for source in _machine_sources() if "main" in source.components]
    return Mirrors(
        archive=tuple(source for source in sources if main.intersection(source.suites)),
        security=tuple(source for source in sources if security.intersection(source.suites)),
    )


def _machine_sources() -> Iterator[Source]:
    shown = subprocess.run(
        [
            "apt-config",
            "shell",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    places = dict(word.split("=", 1) for word in shlex.split(shown))
    files = [Path(places.get("LIST", "/etc/apt/sources.list"))]
    parts = Path(places.get("PARTS", "/etc/apt/sources.list.d"))
    if parts.is_dir():
        files += sorted(parts.iterdir())
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from parse_one_line(text)
        elif path.suffix == ".sources":
            yield from parse_deb822(text)


def parse_one_line(text: str) -> Iterator[Source]:
    """Sources of the form `deb [options] uri suite component...`."""
    for line in text.splitlines():
        match = re.match(
            r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>\S.*)", line.partition("#")[0]
        )
        if match is None:
            continue
        uri, *words = match["rest"].split()
        options = dict(
            word.split("=", 1) for word in (match["options"] or "").split() if "=" in word
        )
        if words and not uri.startswith("cdrom:"):
            yield Source(
                uri=uri,
                suites=(words[0],),
                components=tuple(words[1:]),
                signed_by=options.get("signed-by", ""),
                check_valid_until=options.get("check-valid-until", ""),
            )


def parse_deb822(text: str) -> Iterator[Source]:
    """Sources in paragraphs of `Key: value` lines, continued on lines that begin with a blank."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        key = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[key] = fields.get(key, "") + "\n" + line
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        }:
            continue
        for uri in fields.get("uris", "").split():
            if not uri.startswith("cdrom:"):
                yield Source(
                    uri=uri,
                    suites=tuple(fields.get("suites", "").split()),
                    components=tuple(fields.get("components", "").split()),
                    signed_by=fields.get("signed-by", ""),
                    check_valid_until=fields.get("check-valid-until", ""),
                )


def fetch(package: str, *, suite: str, mirrors: Mirrors, into: Path) -> Path:
    """The verified upstream tarball of `package` in `suite`, moved into the folder `into`.

    Raises FetchError with apt's own words where no mirror has it.
    """
    return _fetch(_SOURCE, package, suite=suite, mirrors=mirrors, into=into)


def fetch_deb(package: str, *, suite: str, mirrors: Mirrors, into: Path) -> Path:
    """The verified binary package `package` (also NAME=VERSION) of `suite`, moved into `into`.

    Raises FetchError with apt's own words where no mirror has it.
    """
    return _fetch(_BINARY, package, suite=suite, mirrors=mirrors, into=into)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is fetched: the type of the apt source, apt's command, and what that leaves."""

    types: str
    command: tuple[str, ...]
    pattern: str


_SOURCE = _Kind("deb-src", ("source", "--download-only", "--tar-only"), "{}_*.orig.tar.*")
_BINARY = _Kind("deb", ("download",), "{}_*.deb")


def _fetch(kind: _Kind, package: str, *, suite: str, mirrors: Mirrors, into: Path) -> Path:
    sources = mirrors.for_suite(suite)
    if not sources:
        raise FetchError(f"this machine's apt sources name no mirror for {suite}")
    reasons = []
    for source in sources:
        with tempfile.TemporaryDirectory(prefix="apt-", dir=into) as private:
            try:
                return _fetch_from(
                    source, kind, package, suite=suite, private=Path(private), into=into
                )
            except FetchError as error:
                reasons.append(f"{source.uri} {suite}: {error}")
    raise FetchError("; ".join(reasons))


def _fetch_from(
    source: Source, kind: _Kind, package: str, *, suite: str, private: Path, into: Path
) -> Path:
    config = _write_private_apt(source, kind.types, suite=suite, private=private)
    _apt(config, ["update"], cwd=private)
    _apt(config, [*kind.command, package], cwd=private)
    pattern = kind.pattern.format(package.partition("=")[0])
    found = [path for path in private.glob(pattern) if not path.name.endswith(".asc")]
    if len(found) != 1:
        raise FetchError(f"expected one {pattern}, found {sorted(p.name for p in found)}")
    target = into / found[0].name
    os.replace(found[0], target)
    return target


def _write_private_apt(source: Source, types: str, *, suite: str, private: Path) -> Path:
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (private / folder).mkdir(parents=True)
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    paragraph = {
        "Types": types,
        "URIs": source.uri,
        "Suites": suite,
        "Components": "main",
        "Signed-By": str(keyring) if keyring else source.signed_by,
        "Check-Valid-Until": source.check_valid_until,
    }
    (private / "private.sources").write_text(
        "".join(f"{key}: {value}\n" for key, value in paragraph.items() if value), encoding="utf-8"
    )
    config = private / "apt.conf"
    # `-c` is read after the machine's own files, so its proxy and certificates stay and these win.
    # The hooks must go: they refresh system-wide indexes after `update`.
    config.write_text(
        f"""\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{private}/state";
Dir::State::lists "lists";
Dir::State::status "/dev/null";
Dir::Cache "{private}/cache";
Dir::Cache::archives "archives";
Dir::Etc::sourcelist "{private}/private.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root"; // the private folder may lie under a home that _apt cannot enter
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
""",
        encoding="utf-8",
    )
    return config


def _apt(config: Path, arguments: Iterable[str], *, cwd: Path) -> None:
    command = ["apt-get", "-qq", "-c", str(config), *arguments]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        subprocess.run(
            command,
            check=True,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=APT_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"apt took more than {APT_LIMIT_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stdout.splitlines() if line.startswith(("E:", "W:"))]
        raise FetchError(" ".join(said) or f"apt exited with {error.returncode}") from error
